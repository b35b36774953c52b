"""Resume matrix: save under every placement, resume under every other, compare curve and samples with the uninterrupted run.

    python benchmarks/matrix.py [--kinds gpt,bert] [--worlds 1,2,3,4]

Every ordered pair of single, ddp, zero1, zero2, zero3 and fsdp at worlds 1 to 4 (single at 1 only), by the real loop on real rows: a tiny
model is stopped on the way, which saves; other processes resume its run directory under the other placement and train to the end. Held
against the uninterrupted run on one device: the loss of every step, the final weights, and the ledger of samples. Prints a Markdown table
and writes it to benchmarks/results/, named by date and hardware. The exit code is 1 where a pair is outside of the tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import loops, tiny  # noqa: E402
from tests.distributed import run_distributed  # noqa: E402

# The noise of adding in another order, over the steps that are run here at this rate.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-4
STEPS, SAVED_AT = 12, 5
FAMILIES = {"gpt": loops.GPT, "bert": loops.BERT}


class Place(NamedTuple):
    """A strategy at a world size."""

    strategy: str
    world: int

    def __str__(self) -> str:
        return f"{self.strategy}@{self.world}"


class Cell(NamedTuple):
    """Largest relative difference of a step's loss, relative L2 distance of the final weights, whether every step had its samples."""

    loss: float
    weights: float
    samples: bool

    @property
    def good(self) -> bool:
        return self.loss <= LOSS_TOLERANCE and self.weights <= WEIGHT_TOLERANCE and self.samples

    def __str__(self) -> str:
        return f"{self.loss:.0e} · {self.weights:.0e}{'' if self.samples else ' · samples'}{'' if self.good else ' ✗'}"


def places(worlds: list[int]) -> list[Place]:
    several = [Place(strategy, world) for strategy in ("ddp", "zero1", "zero2", "zero3", "fsdp") for world in worlds]
    return [Place("single", 1), *several]


def run(kind: str, worlds: list[int], folder: Path) -> dict[tuple[Place, Place], Cell]:
    """Every ordered pair, itself included."""
    texts = folder / "texts"
    texts.mkdir(exist_ok=True)
    loops.write_texts(texts)

    def ready(name: str, place: Place) -> Path:
        # 7 rows do not divide by 2 or 3, and neither do 3 at a time.
        words = (*FAMILIES[kind], f"steps={STEPS}", "global_batch=7", "micro_batch=3", f"strategy={place.strategy}")
        with contextlib.redirect_stdout(sys.stderr):
            return loops.ready(folder / kind, texts, *words, name=name, world=place.world)

    def train(path: Path, place: Place, last: int | None = None) -> dict[str, torch.Tensor]:
        return run_distributed(loops.train, place.world, str(path), last, group=place.strategy != "single")[0]

    whole = ready("whole", Place("single", 1))
    weights = train(whole, Place("single", 1))
    cells = {}
    for first in places(worlds):
        stopped = ready(f"{first}", first)
        train(stopped, first, SAVED_AT)
        for second in places(worlds):
            name = f"{first}-{second}"
            shutil.copytree(stopped, folder / kind / name)
            path = ready(name, second)
            rest = train(path, second)
            curves = zip(loops.losses(path), loops.losses(whole), strict=True)
            loss = max(abs(mine - theirs) / theirs for mine, theirs in curves)
            cells[first, second] = Cell(loss, tiny.distance(rest, weights), loops.ledger(path) == loops.ledger(whole))
            print(f"{kind}: {first} → {second}: {cells[first, second]}", file=sys.stderr, flush=True)
    return cells


def markdown(kind: str, cells: dict[tuple[Place, Place], Cell]) -> str:
    columns = list(dict.fromkeys(second for _, second in cells))
    lines = [f"| {kind}: saved ↓ resumed → | {' | '.join(map(str, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for first in dict.fromkeys(first for first, _ in cells):
        lines.append(f"| **{first}** | {' | '.join(str(cells[first, second]) for second in columns)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kinds", default="gpt,bert")
    parser.add_argument("--worlds", default="1,2,3,4")
    given = parser.parse_args()
    kinds, worlds = given.kinds.split(","), [int(world) for world in given.worlds.split(",")]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tables = {kind: run(kind, worlds, Path(folder)) for kind in kinds}
    cells = [cell for table in tables.values() for cell in table.values()]
    good = sum(cell.good for cell in cells)
    hardware = f"cpu-{len(os.sched_getaffinity(0))}-cores"
    text = "\n\n".join(
        [
            f"# Resume matrix, {datetime.date.today()}, {hardware}",
            f"{good} of {len(cells)} ordered pairs within {LOSS_TOLERANCE:.0e} (losses, relative) and {WEIGHT_TOLERANCE:.0e} (weights, "
            "relative L2) of the uninterrupted run on one device, the samples of every step the same. A cell: largest difference of a "
            "loss over all steps · distance of the final weights.",
            f"The real loop, fp32, dropout 0, AdamW, 7 rows a step, stopped after step {SAVED_AT} of {STEPS}; gloo over loopback; "
            f"{time.monotonic() - start:.0f} s. Made by `python benchmarks/matrix.py`.",
            *(markdown(kind, table) for kind, table in tables.items()),
        ]
    )
    print(text)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / f"{datetime.date.today()}-{hardware}-resume-matrix.md").write_text(text + "\n")
    return 0 if good == len(cells) else 1


if __name__ == "__main__":
    sys.exit(main())
