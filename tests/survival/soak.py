"""Three ranks, many rounds: steps coupled by a collective, requests at random moments. Ends with exit code 1 where ranks disagree."""

from __future__ import annotations

import dataclasses
import random
import sys
import threading
import time
from datetime import timedelta

import torch
from torch import distributed as dist

from trainer import distributed
from trainer.environment import foreign_rank
from trainer.survival import stop as stopping

if __name__ == "__main__":
    import os

    rounds, seed = int(sys.argv[1]), int(sys.argv[2])
    stopping._POLL_SECONDS = 0.002
    place = foreign_rank(os.environ)
    assert place is not None
    store = distributed.connect(place)
    store.set_timeout(timedelta(seconds=20))
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("group", store), rank=place.rank, world_size=place.size, timeout=timedelta(seconds=20)
    )
    common, own = random.Random(seed), random.Random(seed * 1000 + place.rank)
    early = 0
    for number in range(rounds):
        inner = dist.PrefixStore(f"round-{number}", store)
        world = distributed.World(place.rank, place.size, place.local_rank, place.local_size, torch.device("cpu"), inner)
        budget, first = common.choice([1, 5, 30, 60]), common.choice([1, 1000])
        askers = [rank for rank in range(place.size) if common.random() < 0.5]
        stop = stopping.Stop(dataclasses.replace(world))
        if place.rank in askers:
            threading.Timer(own.random() * 0.1, stop.request, ["timer"]).start()
        last = first - 1
        for step in range(first, first + budget):
            if own.random() < 0.2:
                time.sleep(own.random() * 0.01)
            if stop.should_stop(step):
                assert askers, "nobody asked"
                break
            part = torch.tensor([step])
            dist.all_reduce(part)
            assert part.item() == step * place.size, "the ranks are in different steps"
            last = step
        stop.close()
        ends = [torch.zeros(1, dtype=torch.long) for _ in range(place.size)]
        dist.all_gather(ends, torch.tensor([last]))
        assert len({int(end) for end in ends}) == 1, f"round {number}: stopped after {[int(end) for end in ends]}"
        early += last < first + budget - 1
    if place.rank == 0:
        print(f"early {early}")
    distributed.leave(store, place.rank, place.size)
    dist.destroy_process_group()
