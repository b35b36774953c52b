"""What a step of the loop costs beside the model: counted, and that the clock's side of the benchmark works."""

from __future__ import annotations

import pytest
import torch

from benchmarks import counting, overhead
from benchmarks.pace import Pace


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_no_host_synchronisation_between_log_lines_in_one_process(family):
    counts = counting.count(family, "single", 1)
    assert counts["steps"] == 10 and counts["places"] == {}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_no_host_synchronisation_between_log_lines_on_several_ranks(strategy):
    assert counting.count("gpt", strategy, 2)["places"] == {}


def test_host_synchronisations_of_zero2_are_the_engines_own_and_have_names():
    counts = counting.count("bert", "zero2", 2)
    # DeepSpeed tests the norm of the gradients on the host: NaN, infinity, -1.
    assert counts["total"] == 3 * counts["steps"]
    assert all("_local_scalar_dense in" in place and "is_invalid_grad_norm" in place for place in counts["places"]), counts


def test_a_synchronisation_is_seen_in_forward_and_backward_and_has_a_place():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            value.item()
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient[gradient > 0]
            return gradient

    between = counting.Between(2, 3)
    for step in (1, 2, 3, 4):
        between(step)
        Reads.apply(torch.ones((), requires_grad=True)).backward()
    figures = between.figures()
    assert figures["total"] >= 2 and figures["steps"] == 1
    assert all("test_overhead.py" in place for place in figures["places"])


def test_the_contest_of_loops_is_fair_and_judged():
    paces = overhead.contest(60, 2, lambda text: None)
    assert [len(found) for found in paces.values()] == [2, 2, 2, 2]
    assert all(pace.wall > 0 and pace.cpu > 0 for found in paces.values() for pace in found)
    # All of them computed the same: Trainer logs the mean over 50 steps, ours that of every 50th, the other every loss.
    by_hand = paces[overhead.PLAIN][0].losses
    assert len(by_hand) == 60
    for name in (overhead.OURS, overhead.READING):
        assert paces[name][0].losses[0] == pytest.approx(by_hand[49], abs=1e-3)
    assert paces[overhead.TRAINER][0].losses[0] == pytest.approx(sum(by_hand[:50]) / 50, abs=1e-3)
    assert "over by hand" in overhead.markdown(paces, 60, 2)


def test_the_verdict_takes_both_limits():
    def paces(ours: float, trainer: float) -> dict[str, list[Pace]]:
        figures = {overhead.OURS: ours, overhead.TRAINER: trainer, overhead.PLAIN: 1.0}
        return {name: [Pace(value / 1000, value / 1000)] for name, value in figures.items()}

    assert overhead.good(paces(1.4, 2.0), "wall")
    assert not overhead.good(paces(1.6, 9.0), "wall"), "more than half a millisecond"
    assert not overhead.good(paces(1.4, 1.6), "cpu"), "more than half of what Trainer adds"
