"""The real loop on a mixture: exact shares at every step, at any world size, across a resume; figures of each source and of named sets."""

from __future__ import annotations

import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tests.distributed import run_distributed
from tests.loops import BERT, ledger, lines, losses, ready, single, train, training, write_texts
from trainer import sampling
from trainer.data.corpus import open_corpus
from trainer.run import RunDir, load_frozen
from trainer.tracking.report import write
from trainer.trainer import Outcome
from trainer.verbs.evaluate import held_out


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for number, name in enumerate(("books", "en", "zh", "news")):
        found[name] = tmp_path_factory.mktemp(name)
        write_texts(found[name], files=6 + 3 * number)
        for path in found[name].iterdir():
            path.write_text(path.read_text() + f" {name}")
    return found


def words(texts: dict[str, Path]) -> list[str]:
    """Two sources, one of them two itself."""
    sources = {"books": ("0.6", "books"), "web.sources.en": ("2", "en"), "web.sources.zh": ("1", "zh")}
    found = ["data=mixture", "data.sources.web.source=mixture", "data.sources.web.weight=0.4"]
    for key, (weight, folder) in sources.items():
        found += [
            f"data.sources.{key}.source=text",
            f"data.sources.{key}.path={texts[folder]}/*.txt",
            f"data.sources.{key}.weight={weight}",
        ]
        found += [f"data.sources.{key}.held_out=0.2"]
    return found


def by_step(path: Path) -> list[Counter[str]]:
    """How many samples of each source every step consumed, over all ranks."""
    found: dict[int, Counter[str]] = {}
    for file in sorted((path / "ledger").iterdir()):
        for line in map(json.loads, file.read_text().splitlines()):
            found.setdefault(line["step"], Counter()).update(row.rsplit(":")[0] for row in line["rows"])
    return [found[step] for step in sorted(found)]


def test_c09_shares_are_exact_at_every_step_whatever_the_number_of_ranks(tmp_path, texts):
    """1, then 2, then 3 ranks: no source is ever a sample off its share, each row has its turn, and the curve has no seam."""
    budget = (*BERT, *words(texts), "epochs=2", "global_batch=7")
    whole, cut = ready(tmp_path, texts["books"], *budget, name="whole"), tmp_path / "cut"
    train(single(), whole)
    steps = len(losses(whole))
    for world, last in ((1, steps // 3), (2, 2 * steps // 3), (3, None)):
        strategy = "strategy=single" if world == 1 else "strategy=ddp"
        ready(tmp_path, texts["books"], *budget, strategy, name="cut", world=world)
        if world == 1:
            train(single(), str(cut), last)
        else:
            run_distributed(train, world, str(cut), last)
    config, placement = load_frozen(cut / "config.yaml"), RunDir(cut).placement
    parts = open_corpus(placement["corpus"], placement["rows"], config).named()
    for path in (whole, cut):
        had: Counter[str] = Counter()
        for step in by_step(path):
            had.update(step)
            web = had["web.en"] + had["web.zh"]
            assert abs(had["books"] - Fraction(3, 5) * had.total()) < 1 and abs(had["web.en"] - Fraction(2, 3) * web) < 1
        rows = Counter(ledger(path))
        for name in ("books", "web.en", "web.zh"):
            turns = [rows[f"{name}:{row}"] for row in range(len(parts[name].split("train").rows))]
            assert max(turns) - min(turns) <= 1 and sum(turns) == had[name]
    assert max(rows.values()) > 1, "no source was gone through twice"
    assert ledger(cut) == ledger(whole), "every step has the samples that it would have had"
    assert np.allclose(losses(cut), losses(whole), rtol=1e-5)
    (stop,) = RunDir(cut).events("stop")[:1]
    assert list(stop)[-3:] == ["passes_books", "passes_web.en", "passes_web.zh"] and 0 < stop["passes_web.zh"] < 2


def test_each_source_has_figures_of_its_own_and_each_set_its_cadence(tmp_path, texts):
    mixture = (*words(texts), "steps=6", "eval_every=3", "micro_batch=1")
    sets = ("evals.news.source=text", f"evals.news.path={texts['news']}/*.txt", "evals.news.every=2",
            "evals.zh.source=text", f"evals.zh.train={texts['books']}/*.txt", f"evals.zh.eval={texts['zh']}/*.txt")  # fmt: skip
    path = ready(tmp_path, texts["books"], *mixture, *sets, name="with")
    here = training(single(), path)
    assert here.loop() is Outcome.finished
    here.finish()
    found = {
        key: [line["step"] for line in lines(path, key)] for key in ("eval_loss", "eval_web.en_loss", "eval_news_loss", "eval_zh_loss")
    }
    assert found == {"eval_loss": [3, 6], "eval_web.en_loss": [3, 6], "eval_news_loss": [2, 4, 6], "eval_zh_loss": [3, 6]}
    summary = RunDir(path).summary
    parts = here.corpus.named()
    counts = {name: part.split("eval").rows.targets_total["clm"] for name, part in parts.items() if not part.members}
    nats = {name: summary[f"eval_{name}_loss"] * count for name, count in counts.items()}
    assert summary["eval_loss"] == pytest.approx(sum(nats.values()) / sum(counts.values()))
    web = [name for name in counts if name.startswith("web.")]
    assert summary["eval_web_loss"] == pytest.approx(sum(nats[name] for name in web) / sum(counts[name] for name in web))
    # Every document of a set is scored, once: its figure is that of all its text.
    text = sum(file.stat().st_size for file in texts["news"].iterdir())
    assert here.held_outs[1].corpus.meta["splits"]["eval"]["bytes"] == text
    assert summary["eval_news_bits_per_byte"] > 0 and {f"passes_{name}" for name in counts} < summary.keys()
    recomputed = held_out(RunDir(path))
    assert {key: recomputed[key] for key in recomputed} == pytest.approx({key: summary[key] for key in recomputed}, rel=1e-4)
    stretches = sampling.held_out(here.corpus, 8, 5)
    assert [stretch[0] for stretch in stretches[:3]] == [part.tokens("eval").read(0, 1)[0] for part in parts.values() if not part.members]
    assert stretches[3] == parts["books"].tokens("eval").read(8, 8).tolist(), "of each source in turn"
    page = write(path).read_text()
    assert "Loss by source and set" in page and all(f">{name}<" in page for name in ("books", "web.en", "news"))
    card = ModelCard.load(path / "model" / "README.md")
    assert re.search(r"\| web.en \| .* \| 26.7% \| \d+ documents, ", card.text) and "| news loss |" in card.text
    assert [result.metric_name for result in card.data.eval_results] == ["loss", "perplexity", "bits per byte"]
    # Measuring is not computing: without the sets the curve is the same, and they may come and go between a stop and a resume.
    plain = ready(tmp_path, texts["books"], *mixture, name="without")
    train(single(), plain, last=3)
    ready(tmp_path, texts["books"], *mixture, *sets[:3], name="without")
    train(single(), plain)
    assert losses(plain) == losses(path)
    assert any("evals.news.path" in event["changed"] for event in RunDir(plain).events("placement"))


def figures(world, path: str) -> list[dict[str, Any]]:
    return [held_out.figures(world.device) for held_out in training(world, path).held_outs]


def test_c04_every_sample_of_every_source_and_set_counts_once_on_any_number_of_ranks(tmp_path, texts):
    given = (*words(texts), "micro_batch=2", "evals.news.source=text", f"evals.news.path={texts['news']}/*.txt")
    alone = figures(single(), str(ready(tmp_path, texts["books"], *given, name="one")))
    for together in run_distributed(figures, 3, str(ready(tmp_path, texts["books"], *given, name="three", world=3))):
        for one, other in zip(alone, together, strict=True):
            assert one.keys() == other.keys() and other == pytest.approx(one, rel=1e-5)
