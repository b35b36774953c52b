"""Resume matrix: save under every placement, resume under every other, compare the curve with the uninterrupted run.

    python benchmarks/matrix.py [--kinds gpt,bert] [--worlds 1,2,3]

Every ordered pair of single, ddp, zero2 and fsdp at worlds 1, 2 and 3 (single at 1 only): a tiny model trains some steps, is saved,
and goes on to the end; another set of processes, started from other weights, resumes and goes on likewise. Prints a Markdown table and
writes it to benchmarks/results/, named by date and hardware. The exit code is 1 where a pair is outside of the tolerance.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import resuming, tiny  # noqa: E402
from tests.distributed import run_distributed  # noqa: E402

# The noise of adding in another order, over the steps that are run here at this rate.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-4


class Place(NamedTuple):
    """A strategy at a world size."""

    strategy: str
    world: int

    def __str__(self) -> str:
        return f"{self.strategy}@{self.world}"


class Cell(NamedTuple):
    """The largest relative difference of a loss after the resume, and the relative L2 distance of the final weights."""

    loss: float
    weights: float

    @property
    def good(self) -> bool:
        return self.loss <= LOSS_TOLERANCE and self.weights <= WEIGHT_TOLERANCE

    def __str__(self) -> str:
        return f"{self.loss:.0e} · {self.weights:.0e}{'' if self.good else ' ✗'}"


def places(worlds: list[int]) -> list[Place]:
    several = [Place(strategy, world) for strategy in ("ddp", "zero2", "fsdp") for world in worlds]
    return [Place("single", 1), *several]


def run(kind: str, worlds: list[int], folder: Path) -> dict[tuple[Place, Place], Cell]:
    """Every ordered pair, itself included: the resume where it was is the seam alone."""
    cells = {}
    for first in places(worlds):
        root = str(folder / kind / str(first))
        whole = run_distributed(resuming.first_part, first.world, first.strategy, kind, root, group=first.strategy != "single")[0]
        for second in places(worlds):
            rest = run_distributed(resuming.second_part, second.world, second.strategy, kind, root, group=second.strategy != "single")[0]
            pairs = zip(rest["losses"], whole["losses"][resuming.SAVED_AT :], strict=True)
            loss = max(abs(mine - theirs) / theirs for mine, theirs in pairs)
            cells[first, second] = Cell(loss, tiny.distance(rest["weights"], whole["weights"]))
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
    parser.add_argument("--worlds", default="1,2,3")
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
            "relative L2) of the uninterrupted run. A cell: largest difference of a loss · distance of the final weights.",
            f"fp32, dropout 0, AdamW, saved at step {resuming.SAVED_AT} of {resuming.STEPS}; gloo over loopback; "
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
