"""Seeking in the data, the rates that steps really take, and evaluation where a missing rank would hang the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.loops import BERT, ready, single, training, write_texts
from trainer.data.batches import Batches
from trainer.distributed import World


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


class CountedRows:
    """A row table that counts the rows read from it."""

    def __init__(self, rows: Any):
        self.rows, self.read = rows, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def pieces(self, row: int) -> Any:
        self.read += 1
        return self.rows.pieces(row)


@pytest.mark.parametrize("workers", [0, 2])
def test_c07_a_seek_reads_no_row_that_was_consumed(tmp_path: Path, texts: Path, workers: int) -> None:
    """As many rows are read before the first batch after a resume at step 10 as at step 10⁶: one batch, or what is read ahead."""
    path = ready(tmp_path, texts, "steps=2000000", f"data.workers={workers}")
    loader = training(single(), path).loader
    counted = loader.split.rows = CountedRows(loader.split.rows)
    most = 1 if workers == 0 else 100
    for step in (10 if workers == 0 else 1000, 1_000_000):
        counted.read = 0
        steps = loader.steps(step * loader.batches.size)
        assert next(steps).start == step * loader.batches.size
        steps.close()
        assert loader.batches.size <= counted.read <= most * loader.batches.size


def rates_taken(world: World, path: str, dropped: int | None = None) -> list[float]:
    """The learning rate in the optimizer after each step."""
    here = training(world, path)
    accumulate, finish = here.placement.accumulate, here.placement.finish
    found = []

    def poisoned(loss: Any, last: bool) -> None:
        accumulate(loss * float("nan") if here.step == dropped else loss, last)

    def recorded(*arguments: Any) -> Any:
        done = finish(*arguments)
        found.append(here.placement.optimizer.param_groups[0]["lr"])
        return done

    here.placement.accumulate, here.placement.finish = poisoned, recorded
    here.loop()
    return found


def test_c03_the_optimizer_takes_the_rate_of_its_batch(tmp_path: Path, texts: Path) -> None:
    """At any accumulation, at worlds 1, 2 and 4, and with a step that was dropped and used its slot."""
    words = ("survival.nan=skip", "schedule.warmup=0.5", "steps=6")
    plain = rates_taken(single(), str(ready(tmp_path, texts, *words, name="plain")))
    assert len(plain) == 6 and len(set(plain)) >= 5
    assert plain == rates_taken(single(), str(ready(tmp_path, texts, *words, "micro_batch=1", name="accumulated")))
    assert plain == rates_taken(single(), str(ready(tmp_path, texts, *words, name="dropped")), 2)
    for world in (2, 4):
        for rates in run_distributed(rates_taken, world, str(ready(tmp_path, texts, *words, name=f"world-{world}", world=world))):
            assert rates == plain


def held_out_figures(world: World, path: str, sizes: list[int]) -> dict[str, Any]:
    """Figures of the first samples, so many at a time; then those of all after one step more, and its loss."""
    here = training(world, path)
    (held_out,) = here.held_outs
    batches, figures = held_out.loaders[""].batches, []
    for size in sizes:
        held_out.loaders[""].batches = Batches(size, batches.size)
        figures.append(held_out.figures(world.device))
    held_out.loaders[""].batches = batches
    here.loop()
    return {"figures": figures, "after": held_out.figures(world.device), "loss": here.last["loss"]}


@pytest.mark.parametrize("strategy", ["zero1", "zero3", "fsdp"])
def test_c05_c04_uneven_evaluation_ends_where_every_forward_is_collective(tmp_path: Path, texts: Path, strategy: str) -> None:
    """1 … 2·W+1 samples on 4 ranks: under fsdp and zero3 a rank that had none and left out a forward would leave the others waiting."""
    words = (*BERT, "data.held_out=0.4", "micro_batch=1", "steps=1", "eval_every=100")
    # By default DeepSpeed keeps parameters as small as these, and as few, whole on every rank, and no forward would gather any again.
    off = ", ".join(f"stage3_{key}: 0" for key in ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance"))
    small = (f"strategy.options={{zero_optimization: {{{off}}}}}",) if strategy == "zero3" else ()
    sizes = list(range(1, 10))
    alone = held_out_figures(single(), str(ready(tmp_path, texts, *words, name="alone")), sizes)
    path = ready(tmp_path, texts, *words, f"strategy={strategy}", *small, name="together", world=4)
    for found in run_distributed(held_out_figures, 4, str(path), sizes, timeout_seconds=60):
        for mine, wanted in zip(found["figures"], alone["figures"], strict=True):
            assert mine == pytest.approx(wanted, rel=1e-5)
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert found["after"] == pytest.approx(alone["after"], rel=1e-5)
