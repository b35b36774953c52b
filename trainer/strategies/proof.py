"""Every strategy proves itself before step 1: engines have trained unsynchronised, or in another dtype, without a word.

Two throwaway backward passes, which also settle DDP's buckets (it rebuilds them after the first, which changes the order of sums).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainer.exchange import exchange
from trainer.streams import seed_all

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.distributed import World
    from trainer.strategies import Placement

# A gradient may differ by this much of its own norm, and of all gradients' norm where it is all but zero (an attention key's bias). bf16
# noise is a fifth of it; what is not reduced at world 2 is off by a third.
_OWN, _ALL = 0.05, 1e-3


class ProofError(RuntimeError):
    """A placement that does not compute what its strategy says; training would have gone on, wrong."""


@dataclass(frozen=True)
class Proof:
    """What was shown. tables: by rank, rows {kind, dtype, bytes, device, share}, share the most bytes that theory allows."""

    tables: list[list[dict[str, Any]]]

    def lines(self) -> list[str]:
        """The table for people: a line for each kind, bytes as the smallest and the largest of the ranks."""
        found = []
        for row in self.tables[0]:
            same = [other for table in self.tables for other in table if (other["kind"], other["dtype"]) == (row["kind"], row["dtype"])]
            sizes = [other["bytes"] for other in same]
            size = "" if row["kind"] == "reduction" else f"{min(sizes):>16,} … {max(sizes):,} bytes a rank on {row['device']}"
            found.append(f"{row['kind']:<12} {row['dtype']:<10}{size}")
        return found


def prove(placement: Placement, run_backward: Callable[[float], None], world: World) -> Proof:
    """Show that gradients are reduced and that state has the dtypes and sizes it should; leaves no trace in the state.

    run_backward(scale): forward of one micro-batch, the same on every rank and giving every parameter a gradient, then
    `placement.accumulate(loss × scale, last=True)`. Raises ProofError on every rank, saying what each rank found.
    """
    plain, table = _backward(placement, run_backward, 1.0)
    scaled, _ = _backward(placement, run_backward, world.rank + 1.0)
    complaints = [*_world(world), *_gradients(plain, scaled, (world.size + 1) / 2), *_state(table, placement)]
    words = exchange(world, "proof", json.dumps({"complaints": complaints, "table": table}))
    ranks = [json.loads(word) for word in words]
    wrong = [f"rank {rank}: {complaint}" for rank, found in enumerate(ranks) for complaint in found["complaints"]]
    if wrong:
        raise ProofError("the strategy does not do what it says:\n  " + "\n  ".join(wrong))
    return Proof([found["table"] for found in ranks])


def _backward(placement: Placement, run_backward: Callable[[float], None], scale: float) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    # The same draws of dropout on every rank and in both passes.
    seed_all(0, "proof")
    with placement.unscaled():
        run_backward(scale)
        shares = placement.shares()
        # Before the gradients are looked at: a strategy may reduce them only then.
        table = [{**row, "share": shares.get(row["kind"], 0)} for row in placement.state_table()]
        gradients = {name: gradient.detach().clone() for name, gradient in placement.gradients()}
        placement.discard()
    return gradients, table


def _world(world: World) -> list[str]:
    size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return [] if size == world.size else [f"the process group has {size} ranks, the world {world.size}"]


def _gradients(plain: dict[str, Tensor], scaled: dict[str, Tensor], ratio: float) -> list[str]:
    """With the loss of rank r multiplied by r + 1, the sum over ranks is (W + 1)/2 times what it was, wherever it is reduced."""
    total = sum(float(gradient.double().square().sum()) for gradient in plain.values()) ** 0.5
    if not plain or not total > 0:
        return ["no gradient arrived"]
    found = []
    for name, gradient in plain.items():
        wanted = gradient.double() * ratio
        apart = float((scaled[name].double() - wanted).norm())
        if not apart <= _OWN * float(wanted.norm()) + _ALL * total * ratio:
            measured = float(scaled[name].double().norm() / gradient.double().norm().clamp(min=1e-30))
            found.append(f"the gradient of {name} is not that of all ranks: multiplied by {measured:.3f}, should be {ratio:.3f}")
    return found if len(found) <= 3 else [*found[:3], f"and {len(found) - 3} more gradients likewise"]


def _state(table: list[dict[str, Any]], placement: Placement) -> list[str]:
    shares, asked, on_host = placement.shares(), placement.asked(), placement.on_host()
    held: dict[str, int] = {}
    for row in table:
        held[row["kind"]] = held.get(row["kind"], 0) + row["bytes"]
    expected = {row["kind"]: asked.get(row["kind"], "float32") for row in table}
    wrong = [
        f"{row['kind']} is {row['dtype']}, should be {expected[row['kind']]}" for row in table if row["dtype"] != expected[row["kind"]]
    ]
    wrong += [
        f"{row['kind']} lies on {row['device']}, should be offloaded to cpu"
        for row in table
        if row["kind"] in on_host and row["device"] != "cpu"
    ]
    for kind, size in held.items():
        if size > shares.get(kind, 0):
            wrong.append(f"{kind} takes {size:,} bytes, at most {shares.get(kind, 0):,} were expected")
    return wrong + [f"no {kind} is held" for kind in shares if kind not in held]
