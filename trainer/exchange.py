"""Words between ranks.

`exchange` goes over the host-side store: no device, no collective, so it works while one of them computes or has failed. `gather` and
`spread` are collectives on the host, for words of any length.
"""

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


def gather(word: str) -> list[str]:
    """Every rank's word on rank 0, by rank; nothing on the others. Entered by every rank."""
    import torch
    from torch import distributed as dist

    if not dist.is_initialized():
        return [word]
    mine = torch.frombuffer(bytearray(word.encode()), dtype=torch.uint8) if word else torch.zeros(0, dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(mine)]))
    longest = int(max(sizes))
    padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
    leads = dist.get_rank() == 0
    found = [torch.empty(longest, dtype=torch.uint8) for _ in sizes] if leads else None
    dist.gather(padded, found)
    return [bytes(each[: int(size)].numpy()).decode() for each, size in zip(found, sizes, strict=True)] if found else []


def spread(word: str) -> str:
    """Rank 0's word on every rank. Entered by every rank."""
    import torch
    from torch import distributed as dist

    if not dist.is_initialized():
        return word
    text = bytearray(word.encode())
    size = torch.tensor([len(text)])
    dist.broadcast(size, 0)
    found = torch.frombuffer(text, dtype=torch.uint8) if dist.get_rank() == 0 else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(found, 0)
    return bytes(found.numpy()).decode()
