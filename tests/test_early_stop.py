"""Early stops: after the same step in one go, resumed and on more ranks; and the best checkpoint as the end of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.distributed import run_distributed
from tests.loops import StopAfter, lines, ready, single, training, write_texts
from trainer import compose
from trainer.checkpoint.store import committed
from trainer.choices import ConfigError
from trainer.distributed import World
from trainer.early_stop import EarlyStop, Watched
from trainer.run import RunDir
from trainer.tracking.figures import is_lower_better
from trainer.tracking.report import page

# A rate at which the held-out loss soon rises again.
WORDS = ("optim.lr=0.3", "optim.max_norm=null", "steps=40", "eval_every=2", "save_every=2", "checkpoint.keep=1",
         "early_stop.figure=eval_loss", "early_stop.patience=3", "checkpoint.best=eval_loss", "checkpoint.end=best")  # fmt: skip


@given(st.lists(st.integers(0, 8), min_size=1), st.integers(1, 4), st.sampled_from([0.0, 1.0]), st.sampled_from(["eval_loss", "eval_f1"]))
def test_it_ends_where_so_many_in_a_row_are_no_better(values: list[int], patience: int, least: float, figure: str) -> None:
    rules = EarlyStop(figure, patience, least)
    watched, resumed = Watched(rules), Watched(rules)
    sign = -1 if is_lower_better(figure) else 1
    best, worse = None, 0
    for step, value in enumerate(values):
        again = Watched(rules)
        again.load(resumed.told())
        resumed = again
        for each in (watched, resumed):
            each.look(step, {figure: value, "eval_loss": value})
        better = best is None or sign * value > sign * best + least
        best, worse = (value, 0) if better else (best, worse + 1)
        assert (watched.best, watched.worse, watched.spent) == (best, worse, worse >= patience)
    assert watched == resumed


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"), 12)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """A run that ends early, in one go."""
    path = ready(tmp_path_factory.mktemp("early"), texts, *WORDS)
    finished(single(), str(path))
    return path


def finished(world: World, path: str, last: int | None = None) -> dict[str, Any]:
    """Train to the end, or to a step; the figures of what is evaluated then."""
    here = training(world, path, StopAfter(last))
    here.loop()
    if last is None:
        here.finish()
    return dict(here.evaluated)


def test_a_run_ends_early_and_its_model_is_that_of_the_best_checkpoint(alone: Path) -> None:
    from transformers import AutoModelForCausalLM

    figures = {line["step"]: line["eval_loss"] for line in lines(alone, "eval_loss")}
    best = min(figures, key=lambda step: (figures[step], -step))
    (event,) = RunDir(alone).events("early_stop")
    assert event["step"] == best + 6 < 40 and event["reason"] == f"eval_loss was best at step {best}, 3 evaluations ago"
    summary = RunDir(alone).summary or {}
    assert (summary["steps"], summary["model_step"]) == (best + 6, best)
    assert summary["eval_loss"] == pytest.approx(figures[best], rel=1e-6)
    told = f"stopped early, at step {best + 6}: {event['reason']}"
    assert f"Weights of step {best}, of a run that {told}." in (alone / "model" / "README.md").read_text()
    assert page(alone)["subtitle"].endswith(told)
    from tests.loops import train

    shutil.copytree(alone, again := alone.parent / "again")
    shutil.rmtree(again / "checkpoints" / f"step-{best + 6:07d}")
    weights = train(single(), str(again), last=best)
    model = AutoModelForCausalLM.from_pretrained(alone / "model")
    # Rows of the vocabulary that fill up are no part of the model.
    assert all(torch.equal(tensor, weights[f"model.{name}"][: len(tensor)]) for name, tensor in model.state_dict().items())


def test_c09_stopped_and_resumed_it_ends_after_the_same_step(alone: Path, texts: Path, tmp_path: Path) -> None:
    end = (RunDir(alone).summary or {})["steps"]
    path = ready(tmp_path, texts, *WORDS)
    for last in (3, end - 1, None):
        finished(single(), str(path), last)
    assert RunDir(path).summary is not None and RunDir(path).summary["steps"] == end
    # Killed after the last save: what is saved tells that it is over.
    (path / "summary.json").unlink()
    assert finished(single(), str(path))["eval_loss"] == pytest.approx((RunDir(alone).summary or {})["eval_loss"], rel=1e-6)
    assert committed(path / "checkpoints")[-1][0] == end
    with pytest.raises(ConfigError, match="eval_every: 2 there, 4 now"):
        ready(tmp_path, texts, *WORDS, "eval_every=4", "save_every=4")


@pytest.mark.parametrize("strategy", ["zero2", "fsdp"])
def test_two_ranks_go_back_to_the_best_together(alone: Path, texts: Path, tmp_path: Path, strategy: str) -> None:
    path = ready(tmp_path, texts, *WORDS, f"strategy={strategy}", world=2)
    known = RunDir(alone).summary or {}
    for rank in run_distributed(finished, 2, str(path)):
        assert rank["eval_loss"] == pytest.approx(known["eval_loss"], rel=1e-4)
    assert (RunDir(path).summary or {})["model_step"] == known["model_step"]


def test_what_cannot_be_watched_is_refused(texts: Path, tmp_path: Path) -> None:
    for words, said in (
        (["early_stop.figure=eval_loss"], r"early_stop\.figure: eval_loss with eval_every=None; allowed: .*set eval_every to steps"),
        (["early_stop.figure=loss", "eval_every=5"], r"early_stop\.figure: loss with .*a held-out figure"),
        (["early_stop.figure=eval_loss", "eval_every=5", "early_stop.patience=0"], r"early_stop\.patience: 0; allowed: 1"),
        (["checkpoint.end=best"], r"checkpoint\.end: best without checkpoint\.best"),
    ):
        with pytest.raises(ConfigError, match=said):
            compose("task=clm", "model=gpt2_tiny", "steps=20", *words)
    path = ready(tmp_path, texts, "early_stop.figure=eval_los", "eval_every=1")
    with pytest.raises(ConfigError, match=r"early_stop\.figure: eval_los; held-out figures here: .*did you mean 'eval_loss'"):
        training(single(), path).loop()
