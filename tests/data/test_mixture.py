"""Mixtures: shares that are exact after any number of samples, a seek that is free, one face for several tables; what is refused."""

from __future__ import annotations

import itertools
import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpora import Settings, prepared
from tests.loops import write_texts
from trainer import compose
from trainer.choices import ConfigError
from trainer.data import prepare as preparing
from trainer.data.apportioning import turns, whole_parts
from trainer.data.batches import samples as budget_of
from trainer.data.evals import EvalSet
from trainer.data.mixture import Mixture
from trainer.data.order import MixedOrder, Order
from trainer.data.prepare import prepare
from trainer.data.sources import Text
from trainer.data.tokenizers import Pretrained, Train
from trainer.tasks import Pick
from trainer.tasks.clm import CausalLM
from trainer.tasks.mlm import MaskedLM
from trainer.tasks.mlm_nsp import MaskedLMWithNextSentence

SHARES = st.lists(st.integers(1, 40), min_size=1, max_size=9)


@given(SHARES)
@settings(max_examples=150, deadline=None)
def test_every_source_is_within_one_sample_of_its_share_at_every_position(shares):
    table, whole, count = turns(shares), sum(shares), len(shares)
    had = np.zeros((whole + 1, count), np.int64)
    had[1:] = np.cumsum(table[:, None] == np.arange(count), axis=0)
    off = np.abs(had * whole - np.outer(np.arange(whole + 1), shares))
    # Tijdeman's bound, which is below one; and nothing runs on from one period into the next.
    assert off.max() * (2 * count - 2) <= (2 * count - 3) * whole if count > 1 else off.max() == 0
    assert had[-1].tolist() == shares


def orders(shares, sizes, seed=3) -> MixedOrder:
    names = [f"s{number}" for number in range(len(shares))]
    starts = [0, *itertools.accumulate(sizes)][:-1]
    own = {name: Order(seed + number, size) for number, (name, size) in enumerate(zip(names, sizes, strict=True))}
    return MixedOrder(dict(zip(names, shares, strict=True)), own, starts)


@given(shares=SHARES, start=st.integers(0, 500), length=st.integers(0, 200), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_seek_is_the_walk_and_each_source_goes_through_its_own_order(shares, start, length, data):
    sizes = data.draw(st.lists(st.integers(1, 90), min_size=len(shares), max_size=len(shares)))
    order, walked = orders(shares, sizes), ([], [])
    starts, counts = [0, *itertools.accumulate(sizes)], [0] * len(shares)
    for turn in itertools.islice(itertools.cycle(turns(shares).tolist()), start + length):
        row, epoch = order.orders[turn].at(counts[turn], counts[turn] + 1)
        walked[0].append(int(row[0]) + starts[turn])
        walked[1].append(int(epoch[0]))
        counts[turn] += 1
    rows, epochs = order.at(start, start + length)
    assert rows.tolist() == walked[0][start:] and epochs.tolist() == walked[1][start:]
    assert list(order.passes(start + length).values()) == [count / size for count, size in zip(counts, sizes, strict=True)]


def test_a_far_seek_needs_no_walk():
    order = orders([7, 2, 1], [10**9, 10**6, 10**3])
    rows, epochs = order.at(10**15, 10**15 + 10)
    assert np.bincount(np.searchsorted([10**9, 10**9 + 10**6], rows, side="right")).tolist() == [7, 2, 1]
    assert set(epochs.tolist()) == {10**15 * 7 // 10 // 10**9, 10**15 // 5 // 10**6, 10**14 // 10**3}


def test_a_nested_mixture_is_exact_at_every_level():
    inner = orders([2, 1], [50, 60])
    outer = MixedOrder({"a": 3, "b": 2}, {"a": Order(1, 40), "b": inner}, [0, 40])
    rows, _ = outer.at(0, 200)
    for position in range(201):
        a, en = int((rows[:position] < 40).sum()), int(((rows[:position] >= 40) & (rows[:position] < 90)).sum())
        b = position - a
        assert abs(a - Fraction(3, 5) * position) < 1 and abs(en - Fraction(2, 3) * b) < 1
    assert outer.passes(100) == {"a": 60 / 40, "b.s0": 27 / 50, "b.s1": 13 / 60}


def test_the_order_of_a_single_source_has_not_changed():
    """The ids themselves: a run of an older version goes on with the samples it would have had."""
    rows, epochs = Order(0, 1000).at(997, 1005)
    assert (rows.tolist(), epochs.tolist()) == ([167, 689, 90, 565, 930, 431, 856, 108], [0, 0, 0, 1, 1, 1, 1, 1])
    assert Order(7, 10**12).at(10**13, 10**13 + 4)[0].tolist() == [689272699910, 264017213778, 582345705094, 71084871321]
    assert Order(3, 5).at(0, 12)[0].tolist() == [4, 3, 0, 1, 2, 4, 1, 2, 0, 3, 3, 1]
    assert turns([7, 2, 1]).tolist() == [0, 0, 1, 0, 0, 2, 0, 0, 1, 0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Three corpora of short documents, each with words of its own."""
    found = {}
    for number, name in enumerate(("books", "en", "zh")):
        found[name] = tmp_path_factory.mktemp(name)
        write_texts(found[name], files=24 + 3 * number)
        for path in found[name].iterdir():
            path.write_text(path.read_text() + f" {name}")
    return found


def text(folder: Path, weight, **options) -> dict:
    return {"source": "text", "path": f"{folder}/*.txt", "weight": weight} | options


def nested(folders, books=0.6) -> Mixture:
    web = {"source": "mixture", "weight": 0.4, "sources": {"zh": text(folders["zh"], 1), "en": text(folders["en"], "2")}}
    return Mixture(sources={"web": web, "books": text(folders["books"], books)}, processes=1)


@pytest.mark.parametrize("task", [CausalLM(), MaskedLM(whole_word=True), MaskedLMWithNextSentence()], ids=lambda task: task.name)
def test_a_mixture_has_one_face(folders, task):
    """Every row, by its number in the mixture, has the tokens and targets that it has by its number in its own source."""
    corpus = prepared(nested(folders), task=task)
    assert list(corpus.named()) == ["", "books", "web", "web.en", "web.zh"]
    for name in ("train", "eval"):
        split, starts = corpus.split(name), 0
        assert split.epoch_tokens > 0 and split.special.size == corpus.special.size
        for source in ("books", "web.en", "web.zh"):
            own = corpus.named()[source].split(name)
            for row in range(len(own.rows)):
                place, moved = own.rows.pieces(row)[0], split.rows.pieces(starts + row)[0]
                assert np.array_equal(split.sentence_starts(*moved[:2]), own.sentence_starts(*place[:2]))
                assert split.rows.named([starts + row]) == [f"{source}:{row}"]
                alone = task.collate(own, [Pick(row, 0)])
                mixed = task.collate(split, [Pick(starts + row, 0)])
                assert mixed.targets == alone.targets == {term: int(column[starts + row]) for term, column in split.rows.targets.items()}
                assert mixed.lengths == alone.lengths and mixed.tokens == split.rows.lengths[starts + row]
                if task.name == "clm":
                    assert all(torch.equal(mixed.inputs[key], alone.inputs[key]) for key in alone.inputs)
                else:
                    assert torch.equal(unmasked(mixed), unmasked(alone))
            starts += len(own.rows)
        assert len(split.rows) == starts
    total = corpus.meta["splits"]["eval"]
    assert total["bytes"] == sum(corpus.named()[source].meta["splits"]["eval"]["bytes"] for source in ("books", "web.en", "web.zh"))
    assert all(0 < figure < 20 for figure in task.baselines(corpus).values())


def unmasked(batch) -> torch.Tensor:
    """Where the masks fell, and what stands there, differs by row number; the rest does not."""
    ids = batch.inputs["input_ids"][0].clone()
    ids[batch.inputs["mlm_index"]] = batch.inputs["mlm_targets"]
    return ids


def made(folder: Path) -> dict[str, int]:
    """When each prepared corpus was written, by its key."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("corpus/*/meta.json")}


def test_other_weights_tokenize_nothing_again_and_a_new_source_keeps_the_others(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    trained = prepared(nested(folders), tokenizer=Train(vocab_size=400))
    tokenizer = Pretrained(path=str(trained.tokenizer_path))
    first = prepared(nested(folders), tokenizer=tokenizer)
    before = made(tmp_path / "cache")
    assert len(before) == 6
    heavier = prepared(nested(folders, books=3), tokenizer=tokenizer)
    assert made(tmp_path / "cache") == before and heavier.fingerprint != first.fingerprint
    alone = prepared(nested(folders).portions[0].data, tokenizer=tokenizer)
    assert made(tmp_path / "cache") == before and alone.path == first.named()["books"].path
    more = Mixture(sources=nested(folders).sources | {"own": {"source": "text", "path": __file__, "weight": 1}}, processes=1)
    prepared(more, tokenizer=tokenizer)
    after = made(tmp_path / "cache")
    assert len(after) == 7 and after.items() > before.items()
    # A tokenizer that is trained on the mixture is another with other weights, and so are the tokens.
    prepared(nested(folders, books=3), tokenizer=Train(vocab_size=400))
    assert len(made(tmp_path / "cache")) == 10


def test_the_tokenizer_is_trained_on_the_shares(folders, monkeypatch):
    """Of a megabyte that is asked for, each source gives its share."""
    asked = {}
    real = preparing.sample_text

    def sample(planned, limit, on_error):
        asked[os.path.dirname(planned.files[0].path)] = limit
        return real(planned, limit, on_error)

    monkeypatch.setattr(preparing, "sample_text", sample)
    prepared(nested(folders), tokenizer=Train(vocab_size=401, sample_bytes=1500))
    assert asked == {str(folders["books"]): 900, str(folders["en"]): 400, str(folders["zh"]): 200}


class Budget:
    steps = epochs = tokens = None
    global_batch = 8


def test_budgets_of_a_mixture(folders):
    """An epoch is as many samples as there are rows; tokens are those of the samples as the weights draw them."""
    split = prepared(nested(folders)).split("train")
    rows, config = len(split.rows), Budget()
    config.epochs = 2.5
    assert budget_of(config, split) == round(2.5 * rows)
    # After whole periods and whole passes of every source, the tokens are exactly what the closed form says.
    leaves = {"books": split.members["books"], **{f"web.{name}": member for name, member in split.members["web"].members.items()}}
    samples = 15 * math.lcm(*(len(leaf.rows) for leaf in leaves.values()))
    passes = split.order(0).passes(samples)
    assert all(share == int(share) for share in passes.values())
    config.epochs, config.tokens = None, sum(int(passes[name]) * leaf.rows.tokens_total for name, leaf in leaves.items())
    assert budget_of(config, split) == samples
    # And over a few passes they are near it.
    seen = int(split.rows.lengths[split.order(0).at(0, 3 * rows)[0]].sum())
    assert seen == pytest.approx(3 * float(split.epoch_tokens), rel=0.02)


def test_rows_that_do_not_say_where_their_offsets_are_cannot_be_mixed(folders, monkeypatch):
    import trainer.data.packing as packing

    real = packing.pack_causal

    def silent(documents, sequence_length, writer):
        real(documents, sequence_length, writer)
        writer.offsets = None

    monkeypatch.setattr(packing, "pack_causal", silent)
    with pytest.raises(ConfigError, match=r"task=clm: its rows do not say which columns .* set `writer\.offsets`"):
        prepared(nested(folders), sequence_length=33)
    prepared(nested(folders).portions[0].data, sequence_length=33)  # alone it can


def good(**options) -> dict:
    return {"source": "text", "path": "a.txt", "weight": 1} | options


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, r"data\.sources: missing; data=mixture needs data\.sources\.NAME"),
        ({"a": good(weight=0)}, r"data\.sources\.a\.weight: 0; allowed: a number above 0.*leave the source out"),
        ({"a": good(weight=-0.5)}, r"data\.sources\.a\.weight: -0\.5; allowed: a number above 0"),
        ({"a": good(weight="half")}, r"data\.sources\.a\.weight: half; allowed"),
        ({"a": good(weight=True)}, r"data\.sources\.a\.weight: True; allowed"),
        ({"a": {"source": "text", "path": "a"}}, r"data\.sources\.a\.weight: missing"),
        (
            {"a": good(weight=0.1234567), "b": good(path="b")},
            r"data\.sources: weights as fine as these .*, e\.g\. a 0\.11, b 0\.89",
        ),
        ({"a": good(), "b": good(weight=2)}, r"data\.sources\.b: the same source as data\.sources\.a"),
        ({"a": good(tokenizer="train")}, r"data\.sources\.a\.tokenizer: a run has one tokenizer"),
        ({"a": good(workers=3)}, r"data\.sources\.a\.workers: belongs to all sources together: data\.workers=3"),
        ({"a": good(pth="b")}, r"data\.sources\.a\.pth: no such option; text has .*did you mean 'path'"),
        ({"a": good(source="txt")}, r"data\.sources\.a\.source=txt: no such choice; .*did you mean 'text'"),
        ({"a": {"path": "a", "weight": 1}}, r"data\.sources\.a\.source: missing; allowed: .*mixture.*text"),
        ({"a": "books/*.txt"}, r"data\.sources\.a: 'books/\*\.txt'; allowed: options below it"),
        ({"a b": good()}, r"data\.sources: 'a b' as a name; allowed: letters"),
        (
            {"a": {"source": "text", "weight": 1}},
            r"data\.sources\.a\.path: missing; data\.sources\.a\.source=text needs",
        ),
        ({"a": good(held_out=2)}, r"data\.sources\.a\.held_out: 2\.0"),
        ({"a": good(held_out="much")}, r"data\.sources\.a\.held_out: Value 'much'"),
        (
            {"a": good(source="mixture", sources={"en": good(weight=0)}) | {"path": None}},
            r"data\.sources\.a\.path: no such option; mixture has weight, sources",
        ),
        ({"a": {"source": "mixture", "weight": 1, "sources": {"en": good(weight=0)}}}, r"data\.sources\.a\.sources\.en\.weight: 0"),
    ],
    ids=lambda value: None if isinstance(value, dict) else "",
)
def test_a_mixture_that_cannot_be_names_the_key_and_the_mend(sources, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(sources=sources)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evals.a.source=mixture", "evals.a.sources.b.source=stdlib", "evals.a.sources.b.weight=1"],
            r"evals\.a\.source: mixture; give each",
        ),
        (["evals.a.path=x"], r"evals\.a\.source: missing; allowed: .*text"),
        (["evals.a.source=text"], r"evals\.a\.path: missing; evals\.a\.source=text needs evals\.a\.path"),
        (["evals.a.source=stdlib", "evals.a.every=0"], r"evals\.a\.every: 0; allowed: a number of steps from 1"),
        (["evals.a.source=stdlib", "evals.a.evry=5"], r"evals\.a\.evry: no such option; .*did you mean 'every'"),
        (["evals.clm.source=stdlib"], r"evals\.clm: its figure eval_clm_loss is that of the term clm of the objective already"),
        (["evals.a.source=stdlib", "evals.a_clm.source=stdlib"], r"evals\.a_clm: its figure eval_a_clm_loss is that of evals\.a already"),
        (
            ["data=mixture", "data.sources.a.source=stdlib", "data.sources.a.weight=1", "evals.a.source=stdlib"],
            r"evals\.a: its figure eval_a_loss is that of data\.sources\.a already",
        ),
        (["data=text", "data.path=x", "data.sources.a.weight=1"], r"data\.sources: no such key, and none can be added"),
    ],
)
def test_evaluation_sets_that_cannot_be_name_the_key_and_the_mend(words, message):
    with pytest.raises(ConfigError, match=message):
        compose("steps=1", *words)


def test_a_set_that_is_trained_on_is_told(folders, capsys):
    text = Text(path=f"{folders['en']}/*.txt", processes=1)
    prepare(Settings(text, eval_sets=[EvalSet("seen", text, None)]))  # type: ignore[arg-type]
    assert "evals.seen: " in (out := " ".join(capsys.readouterr().out.split())) and "is in data too: trained on" in out


def test_files_belong_to_one_source(folders, tmp_path):
    (tmp_path / "link.txt").symlink_to(next(folders["en"].glob("*.txt")))
    mixture = Mixture(sources={"a": text(folders["en"], 1), "b": {"source": "text", "path": str(tmp_path), "weight": 1}})
    with pytest.raises(ConfigError, match=r"data\.sources\.b: .*link\.txt is in data\.sources\.a too"):
        prepare(Settings(mixture), progress=False)  # type: ignore[arg-type]


def test_errors_of_a_source_name_its_keys_where_they_are(folders, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\nb\xffd\n")
    mixture = Mixture(sources={"a": text(folders["en"], 1), "b": {"source": "text", "path": str(tmp_path), "weight": 1}}, processes=1)
    with pytest.raises(ConfigError, match=rf"data\.sources\.b: {tmp_path}/bad\.txt:2:2: .*data\.sources\.b\.on_error=skip"):
        prepare(Settings(mixture), progress=False)  # type: ignore[arg-type]
    mixture = Mixture(sources={"a": text(folders["en"], 1), "b": {"source": "text", "path": "./nowhere.txt", "weight": 1}})
    with pytest.raises(ConfigError, match=r"^data\.sources\.b\.path: './nowhere\.txt' not found"):
        prepare(Settings(mixture), progress=False)  # type: ignore[arg-type]


def test_what_is_frozen_is_complete_and_sorted(folders):
    sources = nested(folders).sources
    assert list(sources) == ["books", "web"] and list(sources["web"]["sources"]) == ["en", "zh"]
    assert sources["books"]["held_out"] == 0.05 and sources["books"]["document"] == "file" and sources["books"]["weight"] == 0.6
    again = Mixture(sources=sources)
    assert again.sources == sources and [portion.share for portion in again.portions] == [3, 2]
    assert whole_parts([Fraction("0.7"), Fraction(1, 3)]) == [21, 10]
