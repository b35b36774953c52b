"""What a checkpoint costs: how long the loop waits for a save, and what loading takes of time and memory.

    python benchmarks/checkpoint.py                                    300 MB of state, five rounds, loading on 1 to 4 ranks
    python benchmarks/checkpoint.py --parameters 4e6 --rounds 2 --ranks 1,2

Saving: one process, GPT-2 with AdamW; the asynchronous save, the synchronous one and `torch.save` of the same state in turns, each into
an empty folder, the older files gone and the disk quiet. Loading: `fsdp` on several ranks and `single` on one read the same checkpoint;
memory is the process's own (RssAnon), pages of files not counted. The exit code is 1 where the loop waits for more than a tenth of the
synchronous save, or loading takes more than the largest tensor twice beside the rank's share.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import records  # noqa: E402
from benchmarks.pace import spread  # noqa: E402
from tests import tiny  # noqa: E402
from tests.distributed import run_distributed  # noqa: E402
from trainer.checkpoint.opening import open_newest  # noqa: E402
from trainer.checkpoint.saving import Saver  # noqa: E402
from trainer.checkpoint.store import snapshot  # noqa: E402
from trainer.distributed import World  # noqa: E402
from trainer.settings import DefaultCheckpoint  # noqa: E402
from trainer.tracking.figures import size  # noqa: E402

VOCABULARY, WIDTH = 8192, 512
LIMIT_SHARE = 0.1


def module(parameters: float) -> Any:
    """GPT-2 of this width, without values, with so many layers that it has about that many parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from trainer.models.deferred import deferred
    from trainer.models.heads import CausalModule

    layers = max(1, round((parameters - VOCABULARY * WIDTH) / (12 * WIDTH**2)))
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH, n_layer=layers, n_head=8, bos_token_id=0, eos_token_id=0)
    return CausalModule(deferred(lambda: GPT2LMHeadModel(config)), VOCABULARY)


def place(strategy: str, world: World, parameters: float, seed: int = 0) -> Any:
    from trainer.choices import find, load_choices
    from trainer.models.deferred import First
    from trainer.optim import AdamW

    load_choices()
    built = module(parameters)
    chosen: Any = find("strategy", strategy)()
    return chosen.place(built, First(built.model, seed), AdamW(lr=1e-3).build, tiny.config(), world)


def bytes_of(placement: Any) -> int:
    return sum(piece.tensor.numel() * piece.tensor.element_size() for piece in placement.pieces())


def saving(folder: Path, parameters: float, rounds: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Seconds by round: the loop's wait and the writing behind it, the synchronous save, torch.save; and the first wait of all."""
    world = World(0, 1, 0, 1, torch.device("cpu"))
    placement = place("single", world, parameters)
    savers = {
        name: Saver(folder / name, DefaultCheckpoint(keep=1, asynchronous=name == "asynchronous"), world)
        for name in ("asynchronous", "synchronous")
    }
    found: dict[str, Any] = {"bytes": bytes_of(placement), "stall": [], "background": [], "synchronous": [], "torch_save": []}

    def ours(name: str, step: int) -> tuple[float, float]:
        begun = time.perf_counter()
        savers[name].save(lambda: snapshot(step, placement, {}))
        stall = time.perf_counter() - begun
        savers[name].wait()
        (ended,) = savers[name].ended()
        return stall, ended.background_seconds

    def theirs() -> float:
        begun = time.perf_counter()
        torch.save({"model": placement.module.state_dict(), "optimizer": placement.optimizer.state_dict()}, folder / "theirs.pt")
        return time.perf_counter() - begun

    found["first_stall"] = ours("asynchronous", 1)[0]
    for number in range(rounds):
        turns = ["asynchronous", "synchronous", "torch_save"]
        for name in turns[number % 3 :] + turns[: number % 3]:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            os.sync()
            if name == "torch_save":
                found[name].append(theirs())
            elif name == "synchronous":
                found[name].append(ours(name, number + 2)[0])
            else:
                stall, background = ours(name, number + 2)
                found["stall"].append(stall)
                found["background"].append(background)
        told(
            f"round {number + 1}/{rounds}: "
            + ", ".join(f"{key} {found[key][-1]:.3f} s" for key in ("stall", "background", "synchronous", "torch_save"))
        )
    return found


class Peak:
    """The most memory of its own that this process has held, sampled."""

    def __enter__(self) -> Peak:
        self.before = self.most = _own_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, _own_bytes())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def load(world: World, strategy: str, root: str, parameters: float) -> dict[str, float]:
    """One rank: seconds to verify and to load, this rank's state in bytes, and what loading held beside it."""
    placement = place(strategy, world, parameters, seed=1)
    begun = time.perf_counter()
    with Peak() as peak:
        opened = open_newest(Path(root), world)
        assert opened is not None
        verified = time.perf_counter()
        placement.load(opened.read)
        loaded = time.perf_counter()
    largest = max(piece.tensor.numel() * piece.tensor.element_size() for piece in placement.pieces())
    return {"verify": verified - begun, "load": loaded - verified, "share": bytes_of(placement), "beside": peak.most - peak.before,
            "largest": largest}  # fmt: skip


def loading(folder: Path, parameters: float, ranks: list[int]) -> list[dict[str, Any]]:
    """The same checkpoint read by different numbers of ranks: the slowest rank's seconds, the largest rank's bytes."""
    world = World(0, 1, 0, 1, torch.device("cpu"))
    from trainer.checkpoint.store import save

    save(folder / "load", 1, place("single", world, parameters), {}, world)
    rows = []
    for count in ranks:
        strategy = "single" if count == 1 else "fsdp"
        found = run_distributed(load, count, strategy, str(folder / "load"), parameters, group=count > 1, timeout_seconds=600)
        rows.append({"ranks": count, "strategy": strategy} | {key: max(one[key] for one in found) for key in found[0]})
    return rows


def good(saved: dict[str, Any], loaded: list[dict[str, Any]]) -> bool:
    waits = spread(saved["stall"]).median <= LIMIT_SHARE * spread(saved["synchronous"]).median
    return waits and all(row["beside"] <= 2 * row["largest"] + (4 << 20) for row in loaded)


def markdown(saved: dict[str, Any], loaded: list[dict[str, Any]], rounds: int) -> str:
    base = spread(saved["synchronous"]).median
    names = {"stall": "asynchronous: the loop waits", "background": "asynchronous: written behind it", "synchronous": "synchronous",
             "torch_save": "`torch.save`, neither flushed nor summed"}  # fmt: skip
    rows = [[text, str(spread(saved[key])), f"{spread(saved[key]).median / base:.1%}"] for key, text in names.items()]
    reads = [
        [
            f"{row['strategy']}, {row['ranks']}",
            f"{row['verify']:.2f}",
            f"{row['load']:.2f}",
            size(row["share"]),
            size(row["beside"]),
            size(row["largest"]),
        ]
        for row in loaded
    ]
    return "\n\n".join(
        [
            "# What a checkpoint costs",
            f"GPT-2 with AdamW, {size(saved['bytes'])} of parameters and moments, one thread. Made by `python benchmarks/checkpoint.py`.",
            f"Saving, seconds: median (smallest – largest) of {rounds} rounds in turns. The very first asynchronous save waited "
            f"{saved['first_stall']:.3f} s: its memory was touched for the first time.",
            records.table(["save", "seconds", "of the synchronous one"], rows),
            "Loading: the slowest rank's seconds, the largest rank's bytes. Beside: the most that a rank held of its own memory while it "
            "verified and loaded, over what it held before, the placement's state included; pages of files not counted.",
            records.table(["placement, ranks", "verify, s", "load, s", "a rank's share", "beside it", "its largest piece"], reads),
            f"The loop waits for at most {LIMIT_SHARE:.0%} of the synchronous save, and loading holds at most two pieces beside the state: "
            f"{'yes' if good(saved, loaded) else 'no'}.",
            f"{records.hardware()}, {', '.join(f'{name} {version}' for name, version in records.versions().items())}",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parameters", type=float, default=25e6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", default="1,2,3,4", help="of the loading")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: the folder for temporary files")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        saved = saving(Path(name), given.parameters, given.rounds, lambda text: print(text, file=sys.stderr, flush=True))
        loaded = loading(Path(name), given.parameters, [int(word) for word in given.ranks.split(",")])
    text = markdown(saved, loaded, given.rounds)
    print(text, f"\nwritten to {records.write('checkpoint', text, {'saving': saved, 'loading': loaded}, given.out)}", sep="\n")
    return 0 if good(saved, loaded) else 1


if __name__ == "__main__":
    sys.exit(main())
