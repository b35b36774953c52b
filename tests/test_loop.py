"""What the loop promises, on real runs of tiny models."""

from __future__ import annotations

import json
import random
import shutil
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed import run_distributed
from tests.loops import BERT, GPT, StopAfter, ledger, lines, losses, ready, single, train, training, write_texts
from trainer import compose
from trainer.choices import ConfigError
from trainer.data.batches import Batches
from trainer.data.corpus import open_corpus
from trainer.data.vocabularies import backend
from trainer.front_door import make_ready
from trainer.run import RunDir, load_frozen
from trainer.streams import seed_all
from trainer.tasks import Pick
from trainer.trainer import Outcome


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.mark.parametrize("family", [GPT, BERT], ids=["gpt", "bert"])
def test_c01_accumulation_is_the_whole_batch(tmp_path, texts, family):
    """Rows have different numbers of targets, so a mean of means would differ."""
    curves = {}
    for micro in (8, 3, 1):
        path = ready(tmp_path, texts, *family, f"micro_batch={micro}", name=f"micro-{micro}")
        train(single(), path)
        curves[micro] = [(line["loss"], line["grad_norm"]) for line in lines(path)]
    assert np.allclose(curves[8], curves[1], rtol=1e-5) and np.allclose(curves[8], curves[3], rtol=1e-5)


@pytest.mark.parametrize("family", [GPT, BERT], ids=["gpt", "bert"])
def test_c02_ranks_share_one_denominator(tmp_path, texts, family):
    """A batch of 7 on 2 and 3 ranks: counts differ between ranks, the curve does not."""
    one = ready(tmp_path, texts, *family, "global_batch=7", name="one")
    weights = train(single(), one)
    for world in (2, 3):
        many = ready(tmp_path, texts, *family, "global_batch=7", name=f"many-{world}", world=world)
        results = run_distributed(train, world, str(many))
        assert np.allclose(losses(many), losses(one), rtol=1e-5)
        one_vector, many_vector = (torch.cat([state[name].flatten() for name in weights]) for state in (weights, results[0]))
        assert (many_vector - one_vector).norm() <= 1e-4 * one_vector.norm()
        assert all(torch.equal(results[0][name], results[1][name]) for name in weights)


def test_c02_one_target_on_one_rank_and_many_on_the_other(tmp_path, texts):
    """The extreme: the deal of a step of one row leaves a rank with a row that carries no target at all."""
    one, two = (ready(tmp_path, texts, *BERT, "global_batch=1", name=f"w{world}", world=world) for world in (1, 2))
    train(single(), one)
    run_distributed(train, 2, str(two))
    assert np.allclose(losses(one), losses(two), rtol=1e-5)


def poison(here, at: int) -> None:
    """Make the loss of one step infinite, on this rank."""
    inner = here.placement.accumulate
    here.placement.accumulate = lambda loss, last: inner(loss * (float("inf") if here.step + 1 == at else 1.0), last)


def test_c03_the_schedule_is_a_function_of_the_batch_index(tmp_path, texts):
    """The same rates at any accumulation and world size, and with a dropped step, which uses its slot."""
    paths = {name: ready(tmp_path, texts, *extra, "survival.nan=skip", name=name, world=world) for name, extra, world in (
        ("plain", (), 1), ("accumulated", ("micro_batch=1",), 1), ("dropped", (), 1), ("ranks", (), 2))}  # fmt: skip
    for name in ("plain", "accumulated"):
        train(single(), paths[name])
    run_distributed(train, 2, str(paths["ranks"]))
    here = training(single(), paths["dropped"])
    poison(here, at=3)
    assert here.loop() is Outcome.finished
    rates = {name: [line["learning_rate"] for line in lines(path, "learning_rate")] for name, path in paths.items()}
    assert len(rates["plain"]) == 6 and len(set(rates["plain"])) > 3
    assert all(rate == rates["plain"] for rate in rates.values())


@pytest.mark.parametrize(("policy", "outcome"), [("halt", Outcome.halted), ("skip", Outcome.finished)])
def test_c18_a_poisoned_batch_is_an_event_with_its_samples(tmp_path, texts, policy, outcome):
    path = ready(tmp_path, texts, f"survival.nan={policy}")
    here = training(single(), path)
    before = {}

    def watch(step):
        if step in (3, 4):
            before[step] = [tensor.clone() for tensor in here.placement.task_module.state_dict().values()]

    here.stop = StopAfter(before=watch)
    poison(here, at=3)
    assert here.loop() is outcome
    (event,) = RunDir(path).events("nan")
    mine = [json.loads(line) for line in (path / "ledger" / "rank-00000.jsonl").read_text().splitlines()]
    assert event["at"] == 3 and event["policy"] == policy and sorted(event["rows"]) == sorted(mine[2]["rows"])
    if policy == "skip":
        assert all(torch.equal(old, new) for old, new in zip(before[3], before[4], strict=True))
        assert here.step == 6 and len(mine) == 6


def evaluations(world, path: str, sizes: list[int]) -> list[dict]:
    here = training(world, path)
    found = []
    for size in sizes:
        (held_out,) = here.held_outs
        held_out.loaders[""].batches = Batches(size, held_out.loaders[""].batches.size)
        found.append(held_out.figures(world.device))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_c04_every_evaluation_sample_counts_once(tmp_path, texts, world):
    """Sizes 1 … 2·W+1, by micro-batches of one row: some ranks have a row more, some none."""
    sizes = list(range(1, 2 * world + 2))
    words = (*BERT, "data.held_out=0.4", "micro_batch=1")
    one = evaluations(single(), str(ready(tmp_path, texts, *words, name="one")), sizes)
    many = run_distributed(evaluations, world, str(ready(tmp_path, texts, *words, name="many", world=world)), sizes)
    assert len(open_rows(tmp_path / "one", "eval")) >= sizes[-1]
    for rank in many:
        for alone, together in zip(one, rank, strict=True):
            assert alone.keys() == together.keys()
            assert all(together[key] == pytest.approx(alone[key], rel=1e-5) for key in alone)


def test_c05_uneven_evaluation_ends(tmp_path, texts):
    """5 samples on 4 ranks, one at a time."""
    path = ready(tmp_path, texts, *BERT, "data.held_out=0.4", "micro_batch=1", world=4)
    assert len(run_distributed(evaluations, 4, str(path), [5], timeout_seconds=60)) == 4


def open_rows(path: Path, split: str):
    placement = RunDir(path).placement
    return open_corpus(placement["corpus"], placement["rows"]).split(split).rows


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_c08_c06_what_was_read_ahead_is_not_lost(tmp_path, texts, workers):
    """Interrupted in the second pass: the rows of all steps together are those of the uninterrupted run, in the same order."""
    whole = ready(tmp_path, texts, "epochs=3", f"data.workers={workers}", name="whole")
    train(single(), whole)
    steps = len(losses(whole))
    cut = ready(tmp_path, texts, "epochs=3", f"data.workers={workers}", name="cut")
    train(single(), cut, last=steps // 2)
    train(single(), cut)
    assert ledger(cut) == ledger(whole) and losses(cut) == losses(whole)
    assert set(Counter(ledger(whole)).values()) == {3}
    size = len(open_rows(whole, "train"))
    assert ledger(whole)[:size] != ledger(whole)[size : 2 * size]


@pytest.mark.parametrize("family", [GPT, BERT], ids=["gpt", "bert"])
def test_c09_c15_f11_changed_worlds_lose_and_repeat_nothing(tmp_path, texts, family):
    """2 → 1 → 3 → 2 ranks: the ledger is exact, and as masks go with the sample the curve has no seam."""
    whole = ready(tmp_path, texts, *family, "epochs=2", name="whole")
    train(single(), whole)
    steps = len(losses(whole))
    cut = tmp_path / "cut"
    for world, last in ((2, steps // 4), (1, steps // 2), (3, 3 * steps // 4), (2, None)):
        ready(tmp_path, texts, *family, "epochs=2", "strategy=ddp", name="cut", world=world)
        if world == 1:
            ready(tmp_path, texts, *family, "epochs=2", name="cut")
            train(single(), cut, last)
        else:
            run_distributed(train, world, str(cut), last)
    assert Counter(ledger(cut)) == Counter(ledger(whole)) and set(Counter(ledger(cut)).values()) == {2}
    assert np.allclose(losses(cut), losses(whole), rtol=1e-5)


def test_f12_two_interruptions_in_one_pass_leave_no_drift(tmp_path, texts):
    """With dropout and a rate that still changes: curve, rows and weights are those of the uninterrupted run, to the last bit."""
    words = ("steps=6", "model.dropout=0.1")
    whole = train(single(), ready(tmp_path, texts, *words, name="whole"))
    cut = ready(tmp_path, texts, *words, name="cut")
    assert len(open_rows(cut, "train")) > 6 * 8, "all in the first pass"
    for last in (2, 3, None):
        weights = train(single(), cut, last)
    assert ledger(cut) == ledger(tmp_path / "whole") and losses(cut) == losses(tmp_path / "whole")
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_c10_every_draw_comes_from_a_named_stream(tmp_path, texts):
    """Draws of others between the steps change nothing, though there is dropout; so no generator's state need be stored."""

    def disturb(step):
        torch.rand(step), np.random.rand(step), random.random()

    curves = []
    for name, before in (("quiet", lambda step: None), ("disturbed", disturb)):
        path = ready(tmp_path, texts, "model.dropout=0.3", name=name)
        training(single(), path, StopAfter(before=before)).loop()
        curves.append(losses(path))
    assert curves[0] == curves[1]
    still = ready(tmp_path, texts, name="without")
    train(single(), still)
    assert losses(still) != curves[0]


def test_c11_streams_differ_by_rank_step_and_purpose_and_repeat():
    def draw(*place):
        seed_all(3, *place)
        return torch.rand(4).tolist()

    places = [("step", 1, 0, 0), ("step", 1, 0, 1), ("step", 1, 1, 0), ("step", 2, 0, 0), ("init", 1, 0, 0)]
    draws = [draw(*place) for place in places]
    assert len({tuple(one) for one in draws}) == len(places)
    assert [draw(*place) for place in places] == draws


def dropped_out(world, path: str) -> list[float]:
    """The same rows on every rank, the loss under dropout as the loop seeds it."""
    here = training(world, path)
    batch = here.task.collate(here.loader.split, [Pick(0, 0)])
    found = []
    for _ in range(2):
        seed_all(here.config.seed, "step", 0, 0, here.placement.data_rank)
        found.append(float(here.placement.module(batch)["clm"]))
    return found


def test_c11_ranks_drop_out_differently(tmp_path, texts):
    path = ready(tmp_path, texts, "model.dropout=0.5", world=2)
    (first, again), (other, _) = run_distributed(dropped_out, 2, str(path))
    assert first == again and first != other


def test_c13_the_short_last_batch_is_trained_and_counted(tmp_path, texts):
    path = ready(tmp_path, texts, "epochs=1", "global_batch=7")
    here = training(single(), path)
    assert here.loop() is Outcome.finished
    rows = len(open_rows(path, "train"))
    assert rows % 7 and here.position == rows
    assert sorted(ledger(path)) == list(range(rows))
    here.finish()
    assert RunDir(path).summary["samples"] == rows


@pytest.mark.parametrize("task", [(), ("task.whole_word=true",), ("task=mlm", "task.whole_word=true", "tokenizer.kind=bpe")])
def test_c15_masks_are_a_function_of_the_sample_and_the_pass(tmp_path, texts, task):
    whole_word = "task.whole_word=true" in task
    path = ready(tmp_path, texts, *BERT, *task)
    config, placement = load_frozen(path / "config.yaml"), RunDir(path).placement
    corpus = open_corpus(placement["corpus"], placement["rows"], config)
    split, stop = corpus.split("train"), backend(corpus.tokenizer_path).token_to_id(".")
    task, special = config.task, split.special
    masked = replaced = kept = 0
    repeated = []
    for row in range(len(split.rows)):
        batch, again, later = (task.collate(split, [Pick(row, epoch)]) for epoch in (0, 0, 1))
        alone = task.collate(split, [Pick(0, 0), Pick(row, 0)])
        assert all(torch.equal(batch.inputs[name], again.inputs[name]) for name in batch.inputs)
        assert torch.equal(alone.inputs["mlm_targets"][-len(batch.inputs["mlm_targets"]) :], batch.inputs["mlm_targets"])
        assert batch.targets == {term: int(split.rows.targets[term][row]) for term in task.terms}
        if batch.targets["mlm"] > 3:
            repeated.append(torch.equal(batch.inputs["mlm_index"], later.inputs["mlm_index"]))
        shown = batch.inputs["input_ids"][0][batch.inputs["mlm_index"]]
        masked += int((shown == special.mask).sum())
        kept += int((shown == batch.inputs["mlm_targets"]).sum())
        replaced += len(shown)
        untouched = torch.ones(batch.tokens, dtype=torch.bool)
        untouched[batch.inputs["mlm_index"]] = False
        assert not (batch.inputs["input_ids"][0][untouched] == special.mask).any()
        if whole_word:
            original = batch.inputs["input_ids"][0].clone()
            original[batch.inputs["mlm_index"]] = batch.inputs["mlm_targets"]
            assert words_cut(original.numpy(), batch.inputs["mlm_index"].numpy(), special, stop) <= 1
    assert sum(repeated) <= len(repeated) // 20, "another pass hides other tokens"
    assert 0.7 < masked / replaced < 0.9 and 0.04 < kept / replaced < 0.2


def words_cut(tokens, chosen, special, stop) -> int:
    """Words of which some pieces are masked and some are not. stop: the token that ends every sentence."""
    after = np.concatenate([[True], np.isin(tokens[:-1], [stop, special.cls, special.sep])])
    words = np.cumsum(special.starts_word[tokens] | after | np.isin(tokens, [special.cls, special.sep]))
    members, hit = Counter(words.tolist()), Counter(words[chosen].tolist())
    return sum(hit[word] != members[word] for word in hit)


def test_c19_an_evaluation_leaves_the_mode_as_it_was(tmp_path, texts):
    """With dropout: a mode left in evaluation would change the curve."""
    curves = []
    for name, words in (("without", ()), ("with", ("eval_every=2",))):
        path = ready(tmp_path, texts, "model.dropout=0.3", *words, name=name)
        train(single(), path)
        curves.append(losses(path))
        if words:
            assert len(lines(path, "eval_loss")) == 3
    assert curves[0] == curves[1]


def test_c13_an_extension_goes_on_where_a_short_last_batch_ended(tmp_path, texts):
    """Epochs 1 → 2 with a batch that does not divide: every row twice, and none of the second pass left out."""
    first = ready(tmp_path, texts, "epochs=1", "global_batch=7")
    train(single(), first)
    ready(tmp_path, texts, "epochs=2", "global_batch=7", "resume.extend=true")
    here = training(single(), first)
    assert here.loop() is Outcome.finished
    rows = len(open_rows(first, "train"))
    assert here.position == 2 * rows and Counter(ledger(first)) == dict.fromkeys(range(rows), 2)


def test_c18_a_halt_is_not_passed_by_a_save_or_a_stop(tmp_path, texts):
    """A step that was dropped between two log lines: neither a checkpoint nor a stop behind it hides it from the policy."""
    path = ready(tmp_path, texts, "log_every=100", "save_every=4", "survival.nan=halt")
    here = training(single(), path)
    poison(here, at=3)
    assert here.loop() is Outcome.halted
    assert not list((path / "checkpoints").glob("step-*"))
    stopped = ready(tmp_path, texts, "log_every=100", name="stopped")
    here = training(single(), stopped, StopAfter(4))
    poison(here, at=3)
    assert here.loop() is Outcome.halted
    again = training(single(), stopped)
    poison(again, at=3)
    assert again.step == 0 and again.loop() is Outcome.halted


def test_what_refers_to_itself_lives_to_the_next_log_line(tmp_path, texts):
    """Between them the collector stays off; no checkpoint is waited for."""
    held, alive = [], {}

    class Cycle:
        def __init__(self):
            self.tensor, self.itself = torch.zeros(8), self

    def before(step):
        if step == 2:
            held.append(weakref.ref(Cycle()))
        alive[step] = [one() is not None for one in held]

    training(single(), ready(tmp_path, texts, "log_every=3", "steps=5"), StopAfter(before=before)).loop()
    assert alive == {1: [], 2: [True], 3: [True], 4: [False], 5: [False]}


def test_overwriting_is_refused_before_anything_is_lost(tmp_path, texts):
    """A mistake in the same command: the old run is still there."""
    path = ready(tmp_path, texts)
    train(single(), path)
    with pytest.raises(ConfigError, match="nowhere"):
        ready(tmp_path, tmp_path / "nowhere", "resume.overwrite=true")
    assert len(losses(path)) == 6 and (path / "config.yaml").exists()
    ready(tmp_path, texts, "resume.overwrite=true", "optim.lr=1e-4")
    assert not (path / "metrics.jsonl").exists()
    assert not load_frozen(path / "config.yaml").resume.overwrite


def test_b04_b03_a_pretrained_model_that_does_not_fit_is_told_before_launch(tmp_path, texts):
    """What its config.json says is held against the tokenizer and the length, without its weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "model"
    GPT2LMHeadModel(GPT2Config(vocab_size=200, n_positions=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    pretrained = ("model=pretrained", f"model.path={folder}")
    with pytest.raises(ConfigError, match=r"largest id is 299, but the embedding of .* has 200 rows"):
        ready_pretrained(tmp_path, texts, *pretrained)
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=16, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    with pytest.raises(ConfigError, match="32 is longer than the 16 positions"):
        ready_pretrained(tmp_path, texts, *pretrained)
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=32, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    path = ready_pretrained(tmp_path, texts, *pretrained)
    train(single(), path)
    assert losses(path)[-1] < losses(path)[0]


def test_b04_tokens_with_other_ids_than_a_pretrained_models_own_are_told_before_launch(tmp_path, texts):
    """Shapes fit, and its embedding would be of other words."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "model"
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=32, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    pretrained = ("model=pretrained", f"model.path={folder}")
    corpus = open_corpus(*(RunDir(ready_pretrained(tmp_path, texts, *pretrained)).placement[key] for key in ("corpus", "rows")))
    shutil.copytree(corpus.tokenizer_path, folder, dirs_exist_ok=True)
    ready_pretrained(tmp_path, texts, *pretrained, "steps=7", "resume.extend=true")
    with pytest.raises(
        ConfigError, match=r"tokenizer: '.*' has id \d+, but \d+ in the tokenizer of model\.path: .*tokenizer=pretrained tokenizer\.path="
    ):
        ready_pretrained(tmp_path / "other", texts, *pretrained, "tokenizer.kind=wordpiece")


def ready_pretrained(tmp_path, texts, *words):
    shape = ("data=text", f"data.path={texts}/*.txt", "tokenizer.vocab_size=300", "sequence_length=32", "global_batch=8", "micro_batch=4")
    rest = ("steps=6", "strategy=single", "tracking.wandb=off", "log_every=1", f"output_dir={tmp_path / 'pretrained'}")
    config = compose(*words, *shape, *rest)
    make_ready(config, RunDir(config.output_dir), 1)
    return tmp_path / "pretrained"
