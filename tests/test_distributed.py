"""The test harness itself: results by rank, tracebacks, and an end to ranks that hang."""

import time

import pytest
import torch

from tests.distributed import run_distributed


def total(world, value):
    tensor = torch.tensor(float(value + world.rank))
    torch.distributed.all_reduce(tensor)
    return {"sum": tensor, "rank": world.rank}


def fails_on_one(world):
    if world.rank == 1:
        raise ValueError("a mistake of rank 1")
    torch.distributed.barrier()


def hangs(world):
    time.sleep(60)


def test_results_come_back_by_rank():
    results = run_distributed(total, 2, 10)
    assert [result["rank"] for result in results] == [0, 1]
    assert all(result["sum"].item() == 21.0 for result in results)


def test_traceback_of_the_failing_rank():
    with pytest.raises(AssertionError, match=r"rank 1: Traceback(.|\n)*a mistake of rank 1"):
        run_distributed(fails_on_one, 2)


def test_a_rank_that_hangs_is_named_and_ended():
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"ranks \[0, 1\] did not answer"):
        run_distributed(hangs, 2, timeout_seconds=3)
    assert time.monotonic() - start < 30
