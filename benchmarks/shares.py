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


class Watched:
    """Where values come from; peak: of all tensors when the last of them was handed over."""

    def __init__(self, weights: Any, alive: Alive):
        self.weights, self.alive, self.peak = weights, alive, 0

    def __call__(self, *asked: Any) -> torch.Tensor:
        values: torch.Tensor = self.weights(*asked)
        self.peak = self.alive.peak
        return values

    def __getattr__(self, name: str) -> Any:
        return getattr(self.weights, name)


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
    groups = [[tensor.numel() for tensor in group["params"]] for group in AdamW().build(module.named_parameters()).param_groups]
    placed: Any = find("strategy", strategy)(**OPTIONS.get(strategy, {}))
    with Alive() as alive:
        weights: Any = Watched(chosen.weights(module, 0), alive)
        placement = placed.place(module, weights, AdamW().build, SimpleNamespace(precision=FP32()), world)
    tokens = torch.arange(64)[None] % vocabulary
    inputs = {"input_ids": tokens, "position_ids": torch.arange(64)[None], "clm_targets": tokens[0]}
    batch = Batch(inputs, (64,), {"clm": 64}, 64)
    placement.accumulate(placement.module(batch)["clm"] / 64, last=True)
    held: dict[str, int] = {}
    for row in placement.state_table():
        if row["kind"] != "reduction":
            held[row["kind"]] = held.get(row["kind"], 0) + row["bytes"]
    return {"held": held, "peak": weights.peak, "groups": groups}


def share(strategy: str, kind: str, world: int, groups: list[list[int]]) -> float:
    """The bytes of a kind that theory gives the rank that holds most. groups: elements of each tensor, by group of the optimizer."""
    if kind not in CUT.get(strategy, ()):
        return 4 * sum(map(sum, groups))
    if (strategy, kind) == ("zero2", "gradient"):
        # DeepSpeed cuts a group laid end to end, and keeps whole the gradients that a border cuts, on both of its sides.
        return 4 * max(sum(cut_whole(group, rank, world) for group in groups) for rank in range(world))
    return 4 * sum(map(sum, groups)) / OPTIONS.get(strategy, {}).get("shard_size", world)


def cut_whole(group: list[int], rank: int, world: int) -> int:
    """Elements of all tensors that have some in a rank's part of a group."""
    part, found, at = sum(group) / world, 0, 0
    for size in group:
        if at < (rank + 1) * part and at + size > rank * part:
            found += size
        at += size
    return found


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
                # What holds whole parameters takes them whole from wherever.
                cuts = "parameter" in CUT.get(strategy, ())
                read = run_distributed(made, world, strategy, sizes, vocabulary, folder, timeout_seconds=900.0) if cuts else []
                places = {"anew": anew, "directory": read}
                groups, most = anew[0]["groups"], {kind: max(rank["held"][kind] for rank in anew) for kind in anew[0]["held"]}
                rows.append(
                    {
                        "strategy": strategy,
                        "world": world,
                        "whole": 4 * sum(map(sum, groups)),
                        "held": most,
                        "over": {kind: size / share(strategy, kind, world, groups) for kind, size in most.items()},
                        "peaks": {name: max(rank["peak"] for rank in ranks) for name, ranks in places.items() if ranks},
                        "allowed": share(strategy, "parameter", world, groups) + 4 * max(map(max, groups)),
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
        if "parameter" in CUT.get(row["strategy"], ()):
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
            *(f"{row['peaks'][name] / 1e6:.1f}" if name in row["peaks"] else "" for name in ("anew", "directory")),
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
            "while a rank takes its values, until it has the last of them: first values, or safetensors files. hsdp: two replicas of two. "
            "zero2: DeepSpeed keeps a gradient that the border of two parts cuts whole on both ranks (at four, that of the embedding), and "
            "so does theory here.",
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
