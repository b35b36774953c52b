"""What a rank holds, by strategy, against theory; and how much memory it takes to fill it from a directory.

    python benchmarks/shares.py            (55 million parameters, at 2 and 4 processes)

Bytes of parameters, gradients and moments are those of the tensors that a placement holds after a backward, by rank; the peak is of all
tensors on the CPU together while a placement is made, counted below Python's surface. Results: benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_iter  # noqa: E402

from benchmarks import records  # noqa: E402
from tests.distributed import run_distributed  # noqa: E402
from trainer.choices import ConfigError, find, load_choices  # noqa: E402

SIZES = {"layers": 12, "hidden": 512, "heads": 8, "positions": 256}
VOCABULARY = 32_768
OPTIONS: dict[str, dict[str, Any]] = {"hsdp": {"shard_size": 2}}
# Which kinds a strategy cuts; of what it does not cut, every rank holds all.
CUT: dict[str, set[str]] = {
    "zero1": {"master", "exp_avg", "exp_avg_sq"},
    "zero2": {"master", "gradient", "exp_avg", "exp_avg_sq"},
    "zero3": {"parameter", "gradient", "master", "exp_avg", "exp_avg_sq"},
    "fsdp": {"parameter", "gradient", "exp_avg", "exp_avg_sq"},
    "hsdp": {"parameter", "gradient", "exp_avg", "exp_avg_sq"},
}
LIMIT = 0.05


class Alive(TorchDispatchMode):
    """Bytes of all tensors on the CPU that were made inside and are alive, now and at most. largest: of a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, DTensor):
                leaf = leaf._local_tensor
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return
        self.sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def made(world: Any, strategy: str, sizes: dict[str, Any], vocabulary: int, folder: str | None) -> dict[str, Any]:
    """Place a GPT-2 of these sizes on this rank, from a directory or anew, and take one backward: what is held, and the peak before."""
    from trainer.models import Vocabulary
    from trainer.models.gpt2 import GPT2
    from trainer.models.heads import CausalModule
    from trainer.models.pretrained import Pretrained
    from trainer.optim import AdamW
    from trainer.settings import FP32
    from trainer.tasks import Batch

    load_choices()
    known = Vocabulary(vocabulary, 0, 0, 0)
    chosen: Any = Pretrained(path=folder) if folder else GPT2(**sizes)
    module = CausalModule(chosen.skeleton("causal", known, 32), vocabulary)
    named = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
    placed: Any = find("strategy", strategy)(**OPTIONS.get(strategy, {}))
    with Alive() as alive:
        marks: list[int] = []

        def build(parameters: Any) -> Any:
            marks.append(alive.peak)  # all values are there; what comes now are moments and the engine's own
            return AdamW().build(parameters)

        placement = placed.place(module, chosen.weights(module, 0), build, SimpleNamespace(precision=FP32()), world)
    tokens = torch.arange(64)[None] % vocabulary
    inputs = {"input_ids": tokens, "position_ids": torch.arange(64)[None], "clm_targets": tokens[0]}
    batch = Batch(inputs, (64,), {"clm": 64}, 64)
    placement.accumulate(placement.module(batch)["clm"] / 64, last=True)
    held: dict[str, int] = {}
    for row in placement.state_table():
        if row["kind"] != "reduction":
            held[row["kind"]] = held.get(row["kind"], 0) + row["bytes"]
    counts = [torch.Size(shape).numel() * 4 for _, shape in named]
    return {"held": held, "peak": marks[0], "whole": sum(counts), "largest": max(counts)}


def share(strategy: str, kind: str, world: int) -> float:
    """The part of a kind that theory gives a rank."""
    return 1 / OPTIONS.get(strategy, {}).get("shard_size", world) if kind in CUT.get(strategy, ()) else 1.0


def measured(strategies: list[str], worlds: list[int], sizes: dict[str, Any], vocabulary: int) -> list[dict[str, Any]]:
    """A row for each strategy and number of processes: bytes by kind of the rank that holds most, over theory; and the peaks."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save(folder, sizes, vocabulary)
        for strategy in strategies:
            for world in worlds:
                if strategy == "hsdp" and world == 2:
                    continue  # one group of two is fsdp
                anew = run_distributed(made, world, strategy, sizes, vocabulary, None, timeout_seconds=900.0)
                read = run_distributed(made, world, strategy, sizes, vocabulary, folder, timeout_seconds=900.0)
                most = {kind: max(rank["held"][kind] for rank in anew) for kind in anew[0]["held"]}
                whole, largest = anew[0]["whole"], anew[0]["largest"]
                part = whole * share(strategy, "parameter", world)
                rows.append(
                    {
                        "strategy": strategy,
                        "world": world,
                        "whole": whole,
                        "held": most,
                        "over": {kind: size / (whole * share(strategy, kind, world)) for kind, size in most.items()},
                        "peaks": {name: max(rank["peak"] for rank in ranks) for name, ranks in (("anew", anew), ("directory", read))},
                        "allowed": part + largest,
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def save(folder: str, sizes: dict[str, Any], vocabulary: int) -> None:
    """A directory as `model=pretrained` reads it."""
    from trainer.models import Vocabulary
    from trainer.models.gpt2 import GPT2

    GPT2(**sizes).build("causal", Vocabulary(vocabulary, 0, 0, 0), 32).save_pretrained(folder, max_shard_size="50MB")


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """What is more than theory allows, by more than the limit."""
    found = []
    for row in rows:
        place = f"{row['strategy']}@{row['world']}"
        found += [f"{place}: {kind} is {over:.2f} of its share" for kind, over in row["over"].items() if abs(over - 1) > LIMIT]
        if row["strategy"] in ("fsdp", "hsdp", "zero3"):
            found += [
                f"{place}: {name} took {peak:,} bytes at most, the share and the largest tensor are {row['allowed']:,.0f}"
                for name, peak in row["peaks"].items()
                if peak > (1 + LIMIT) * row["allowed"]
            ]
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["held"]))
    head = ["", *kinds, "peak, anew", "peak, directory", "share + largest tensor"]
    table = [
        [
            f"{row['strategy']} × {row['world']}",
            *(f"{row['held'][kind] / 1e6:.1f} ({row['over'][kind]:.3f})" if kind in row["held"] else "" for kind in kinds),
            *(f"{row['peaks'][name] / 1e6:.1f}" for name in ("anew", "directory")),
            f"{row['allowed'] / 1e6:.1f}",
        ]
        for row in rows
    ]
    return records.table(head, table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--strategies", default="ddp,zero1,zero2,zero3,fsdp,hsdp")
    parser.add_argument("--worlds", default="2,4")
    given = parser.parse_args()
    load_choices()
    strategies = []
    for name in given.strategies.split(","):
        try:
            find("strategy", name)
        except ConfigError:
            continue
        strategies.append(name)
    rows = measured(strategies, [int(world) for world in given.worlds.split(",")], SIZES, VOCABULARY)
    wrong = problems(rows)
    text = "\n\n".join(
        [
            "# What a rank holds",
            f"GPT-2 of {rows[0]['whole'] / 4e6:.1f} million parameters, fp32, AdamW, gloo; megabytes of the rank that holds most, and in "
            f"brackets its size over the share that theory gives it ({LIMIT:.0%} are allowed). The peaks are of all tensors on the CPU "
            "while a rank takes its values, before the optimizer is made: first values, or safetensors files. hsdp: two replicas of two.",
            markdown(rows),
            "All within the limits." if not wrong else "\n".join(f"- {line}" for line in wrong),
            "Made by `python benchmarks/shares.py`.",
        ]
    )
    print(text)
    records.write("shares", text, {"rows": rows})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
