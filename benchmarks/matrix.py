"""Resume matrix: save under every placement, resume under every other, compare curve and samples with the uninterrupted run.

    python benchmarks/matrix.py [--kinds gpt,bert] [--worlds 1,2,3,4] [--strategies ddp,fsdp]

Every ordered pair of single, ddp, zero1, zero2, zero3, fsdp and hsdp at worlds 1 to 4 (single at 1, hsdp at 2 and 4), by the real loop on
real rows: a tiny model is stopped on the way, which saves; other processes resume its run directory under the other placement and train to
the end. Held against the uninterrupted run on one device: the loss of every step, the final weights, and the ledger of samples. The
processes of a placement are started once, and resume from every first placement one after the other. Results: benchmarks/results/. The
exit code is 1 where a pair is outside of the tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import records  # noqa: E402
from tests import loops  # noqa: E402
from tests.distributed import run_distributed  # noqa: E402
from trainer.config import Config  # noqa: E402
from trainer.front_door import make_ready  # noqa: E402
from trainer.run import RunDir, load_frozen  # noqa: E402
from trainer.trainer import Training  # noqa: E402
from trainer.trials.outcomes import curve, distance, final, relative, samples  # noqa: E402

# The noise of adding in another order, over the steps that are run here at this rate.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-4
STEPS, SAVED_AT = 8, 4
FAMILIES = {"gpt": loops.GPT, "bert": loops.BERT}
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp", "hsdp")
# As two replicas.
HSDP_WORLDS = {2, 4}


class Place(NamedTuple):
    """A strategy at a world size."""

    strategy: str
    world: int

    def __str__(self) -> str:
        return f"{self.strategy}@{self.world}"

    @property
    def words(self) -> list[str]:
        """Overrides: with them a model this small is cut as a large one is."""
        own = {
            "hsdp": ["strategy.shard_size=2" if self.world == 4 else "strategy.shard_size=1"],
            "zero3": ["strategy.options.zero_optimization.stage3_param_persistence_threshold=0"],
        }
        return [f"strategy={self.strategy}", *own.get(self.strategy, [])]


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


def places(strategies: list[str], worlds: list[int]) -> list[Place]:
    allowed = {"single": {1}, "hsdp": HSDP_WORLDS}
    return [Place(strategy, world) for strategy in strategies for world in worlds if world in allowed.get(strategy, set(worlds))]


def loop(world: Any, paths: list[str], last: int | None) -> None:
    """On every rank: these runs, one after the other, to a step or to their ends."""
    from accelerate.state import AcceleratorState

    read: dict[str, Config] = {}
    for path in map(RunDir, paths):
        text = path.config_path.read_text()
        if text not in read:
            read[text] = load_frozen(path.config_path)
        gc.freeze()  # what is there already need not be looked through at every save
        with contextlib.redirect_stdout(io.StringIO()):
            Training(read[text], world, path, loops.StopAfter(last)).loop()  # type: ignore[arg-type]
        # Accelerate keeps the first engine's settings for the whole process; a run of its own has a process of its own.
        AcceleratorState._reset_state(reset_partial_state=True)


def train(place: Place, paths: list[Path], last: int | None = None) -> None:
    """These runs under a placement. What fails is told, and is missing in their directories."""
    texts = [str(path) for path in paths]
    try:
        run_distributed(loop, place.world, texts, last, group=place.strategy != "single", timeout_seconds=120.0 + 30.0 * len(paths))
    except AssertionError as error:
        print(f"{place}: {error}", file=sys.stderr, flush=True)


def compared(path: Path, whole: Path) -> Cell | None:
    """A run held against the uninterrupted one; None where it came to no end."""
    mine, theirs = curve(RunDir(path)), curve(RunDir(whole))
    if mine.keys() != theirs.keys():
        return None
    loss = max(relative(theirs[step]["loss"], line["loss"]) for step, line in mine.items())
    weights = distance(final(RunDir(whole)), final(RunDir(path))).whole
    return Cell(loss, weights, samples(RunDir(path)) == samples(RunDir(whole)))


def run(kinds: list[str], known: list[Place], folder: Path) -> dict[str, dict[tuple[Place, Place], Cell | None]]:
    """Every ordered pair, itself included, of each kind."""

    def ready(kind: str, place: Place, path: Path) -> Path:
        # 7 rows do not divide by 2, 3 or 4, and neither do 3 at a time.
        words = (*FAMILIES[kind], f"steps={STEPS}", "global_batch=7", "micro_batch=3", *place.words)
        make_ready(loops.composed(path, folder / "texts", *words), RunDir(path), place.world)
        return path

    alone = Place("single", 1)
    whole = {kind: ready(kind, alone, folder / kind / "whole") for kind in kinds}
    train(alone, list(whole.values()))
    for place in known:
        train(place, [ready(kind, place, folder / kind / "stopped" / f"{place}") for kind in kinds], SAVED_AT)
    cells: dict[str, dict[tuple[Place, Place], Cell | None]] = {kind: {} for kind in kinds}
    for second in known:
        began, found = time.monotonic(), []
        paths = {(kind, first): folder / kind / f"{second}" / f"{first}" for kind in kinds for first in known}
        for (kind, first), path in paths.items():
            shutil.copytree(folder / kind / "stopped" / f"{first}", path)
            if first == known[0]:
                ready(kind, second, path)
            else:
                for name in ("config.yaml", "placement.json"):  # of which the front door writes the same for all
                    shutil.copy(paths[kind, known[0]] / name, path)
        train(second, list(paths.values()))
        for (kind, first), path in paths.items():
            found.append(compared(path, whole[kind]))
            cells[kind][first, second] = found[-1]
            shutil.rmtree(path)
        good = sum(cell is not None and cell.good for cell in found)
        print(f"… → {second}: {good} of {len(found)}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return cells


def markdown(kind: str, cells: dict[tuple[Place, Place], Cell | None]) -> str:
    columns = list(dict.fromkeys(second for _, second in cells))
    rows = [
        [f"**{first}**", *(str(cells[first, second] or "failed ✗") for second in columns)]
        for first in dict.fromkeys(first for first, _ in cells)
    ]
    return records.table([f"{kind}: saved ↓ resumed →", *map(str, columns)], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kinds", default="gpt,bert")
    parser.add_argument("--worlds", default="1,2,3,4")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--to", type=Path, default=records.RESULTS, help="folder of the results")
    given = parser.parse_args()
    known = places(given.strategies.split(","), [int(world) for world in given.worlds.split(",")])
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        (folder / "texts").mkdir()
        loops.write_texts(folder / "texts")
        tables = run(given.kinds.split(","), known, folder)
    found = [cell for table in tables.values() for cell in table.values()]
    cells = [cell for cell in found if cell is not None]
    good = sum(cell.good for cell in cells)
    text = "\n\n".join(
        [
            "# Resume matrix",
            f"{good} of {len(found)} ordered pairs within {LOSS_TOLERANCE:.0e} (losses, relative) and {WEIGHT_TOLERANCE:.0e} (weights, "
            "relative L2) of the uninterrupted run on one device, the samples of every step the same. A cell: largest difference of a "
            f"loss over all steps · distance of the final weights; the largest of all: {max(cell.loss for cell in cells):.0e} · "
            f"{max(cell.weights for cell in cells):.0e}.",
            f"The real loop, fp32, dropout 0, AdamW, 7 rows a step, stopped after step {SAVED_AT} of {STEPS}; gloo over loopback; "
            f"hsdp as two replicas; zero3 without parameters that stay whole; {time.monotonic() - start:.0f} s. "
            "Made by `python benchmarks/matrix.py`.",
            *(markdown(kind, table) for kind, table in tables.items()),
        ]
    )
    print(text)
    figures = {
        kind: {f"{first} → {second}": cell and cell._asdict() for (first, second), cell in table.items()} for kind, table in tables.items()
    }
    records.write("resume-matrix", text, figures, given.to)
    return 0 if good == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
