"""Words between ranks over the host-side store: no device, no collective, so it works while one of them computes or has failed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.distributed import World


def exchange(world: World, topic: str, word: str, timeout_seconds: float = 1800.0) -> list[str]:
    """Every rank's word, by rank; returns when all have spoken, so it is a barrier too.

    topic: the same on all ranks, which call it the same number of times. Raises torch's DistStoreError when a rank stays silent.
    """
    if world.store is None:
        return [word]
    round_ = (world.store.add(f"exchange/{topic}", 1) - 1) // world.size
    keys = [f"exchange/{topic}/{round_}/{rank}" for rank in range(world.size)]
    world.store.set(keys[world.rank], word)
    world.store.wait(keys, timedelta(seconds=timeout_seconds))
    words = [world.store.get(key).decode() for key in keys]
    if round_:
        # All have spoken in this round, so all have read the one before.
        world.store.delete_key(f"exchange/{topic}/{round_ - 1}/{world.rank}")
    return words
