"""Ours beside its peers, small: the same losses at every step from the same rows and first values, and how fast which is."""

from __future__ import annotations

import dataclasses
import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy import stats

from benchmarks import contests, throughput
from benchmarks.contests import Contest
from benchmarks.pace import STUDENT, Pace, ratio
from benchmarks.peers import loops, nanogpt
from benchmarks.peers.loops import FABRIC, LOOPS, NANOGPT, ON_CPU, OURS, PLAIN, TRAINER, TRAINER_COMPILED, compiled
from benchmarks.peers.rows import IGNORED, Cut, pad
from benchmarks.peers.work import Work
from tests.benchmarks.small import SMALL
from trainer.tasks import Batch

ROOT = Path(__file__).resolve().parents[2]


def work_of(words: tuple[str, ...], folder: Path, cut: Cut = Cut.full) -> Work:
    return throughput.Kind((*words, *SMALL), 4, cut=cut).work(folder, folder, "steps=5")


def hold(work: Work, folder: Path, names: tuple[str, ...] = ON_CPU, grid: tuple[int, ...] = (6,), **given) -> Contest:
    return contests.hold(work, names, grid, folder / "runs", **{"rounds": 1, "warm": 1, "look": 0} | given, told=print)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory) -> Work:
    return work_of(("model=gpt2_tiny",), tmp_path_factory.mktemp("gpt"))


@pytest.mark.parametrize("family", ["gpt", "bert", "pairs"])
def test_losses_equal_those_of_the_peers(family, tmp_path):
    words = {"gpt": ("model=gpt2_tiny",), "bert": ("model=bert_tiny", "task=mlm"), "pairs": ("model=bert_tiny", "task=mlm_nsp")}[family]
    cut = {"gpt": Cut.full, "bert": Cut.half, "pairs": Cut.none}[family]
    contest = hold(work_of(words, tmp_path, cut), tmp_path)
    assert not contest.failed and contest.same and contest.chosen == dict.fromkeys(ON_CPU, 6)
    losses = contest.paces[OURS][0].losses
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.02, "nothing was learned, so equal losses would say little"
    # Noise of another order of summing is a thousandth of this; a wrong denominator or decay group is far above it.
    assert all(contest.apart(name) is not None and contest.apart(name) < 1e-4 for name in (PLAIN, TRAINER, FABRIC))
    padded = contest.work.padded(1)
    assert padded == 0 if family == "gpt" else padded > 0.3 if family == "bert" else padded > 0
    text = contests.table(contest)
    assert all(name in text for name in ON_CPU)


def test_a_micro_batch_with_another_result_is_not_taken(tmp_path):
    """Trainer takes BERT for a model that divides by the targets of all micro-batches, which it does not: it sums their means."""
    contest = hold(work_of(("model=bert_tiny", "task=mlm"), tmp_path), tmp_path, (PLAIN, TRAINER), (6, 3), rounds=0, look=2)
    assert contest.chosen[TRAINER] == 6 and len(contest.notes) == 1 and "micro-batch 3" in contest.notes[0]
    assert contest.chosen[PLAIN] in (6, 3)


def test_a_loop_that_compiles_is_searched_and_compared_and_has_made_a_graph(gpt, tmp_path, monkeypatch):
    """By a backend that needs no compiler. What ours sets for its process is not there for the next; what made no graph says so."""
    import torch._dynamo

    seen = []

    def looked(loop):
        """In the search as it is; rounds are no point here."""

        def run(work, folder, warm):
            seen.append(torch._dynamo.config.suppress_errors)
            torch._dynamo.config.suppress_errors = True
            return loop(work, folder, warm) if work.config.log_every == 1 else Pace(1.0, 1.0)

        return run

    def by_eager(work, folder, warm):
        if work.config.micro_batch == 3:  # one graph is enough to see
            return LOOPS[TRAINER](work, folder, warm)
        return compiled(partial(loops._trainer, torch_compile=True, torch_compile_backend="eager"))(work, folder, warm)

    own = {OURS: LOOPS[OURS], TRAINER: LOOPS[TRAINER], TRAINER_COMPILED: by_eager}
    monkeypatch.setattr(contests, "LOOPS", {name: looked(loop) for name, loop in own.items()})
    # Logged at the end alone, as on a GPU: what is compared is a look at the size that is then taken.
    with torch._dynamo.config.patch(suppress_errors=False):
        contest = hold(gpt.with_(log_every=10), tmp_path, tuple(own), (6, 3), look=2)
    assert not contest.failed and len(seen) == 9 and not any(seen)
    assert contest.same and contest.apart(TRAINER_COMPILED) < 1e-4
    # It begins with the size of the loop that does not compile.
    assert next(iter(contest.looks[TRAINER_COMPILED])) == contest.chosen[TRAINER] and len(contest.looks[TRAINER_COMPILED]) == 2
    del contest.looks[TRAINER_COMPILED]
    assert not contest.same and "**not compared**" in contests.table(contest), "what was not compared does not pass for the same"
    with pytest.raises(RuntimeError, match="no graph"):
        compiled(LOOPS[PLAIN])(gpt, tmp_path / "plain", 1)


def test_every_work_of_a_cpu_is_searched_at_two_sizes():
    for name, kind in throughput.KINDS.items():
        (batch,) = (int(word.split("=")[1]) for word in kind.words if word.startswith("global_batch="))
        assert kind.grid == (batch, batch // 2), name


def test_a_loop_that_fails_is_named_and_the_others_go_on(gpt, tmp_path, monkeypatch):
    def fails(work, folder, warm):
        raise RuntimeError("no such device")

    def runs(work, folder, warm):
        return Pace(1.0, 2.0, [3.0] * 5)

    monkeypatch.setattr(contests, "LOOPS", {OURS: runs, TRAINER: fails, PLAIN: runs})
    contest = hold(gpt, tmp_path, (OURS, TRAINER, PLAIN), rounds=2)
    assert contest.failed == {TRAINER: "RuntimeError: no such device"} and len(contest.paces[PLAIN]) == 2
    assert f"{TRAINER}: not measured: RuntimeError" in contests.table(contest)
    assert not throughput.met(contest, None)
    late = hold(gpt, tmp_path / "late", (OURS, PLAIN), seconds=-1.0)
    assert set(late.failed) == {OURS, PLAIN} and "no time" in late.failed[OURS]


def test_the_ratio_has_an_interval_apaceits_mean():
    found = ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert found.mean == pytest.approx(2) and found.low == pytest.approx(2) and found.high == pytest.approx(2)
    wide = ratio([1.0, 1.0, 1.0], [1.0, 2.0, 4.0])
    assert wide.mean == pytest.approx(2)
    # Three logarithms ln 2 apart.
    assert math.log(wide.high / 2) == pytest.approx(stats.t.ppf(0.975, 2) * math.log(2) / math.sqrt(3), rel=1e-4)
    assert pytest.approx([stats.t.ppf(0.975, count) for count in range(1, 31)], rel=1e-4) == list(STUDENT)
    assert wide.low * wide.high == pytest.approx(4)


def test_padded_rows_hold_every_target_once():
    """Lengths differ, so padding shows; targets are shifted already."""
    one = Batch({"input_ids": torch.tensor([[5, 6, 7]]), "clm_targets": torch.tensor([6, 7, 8])}, (3,), {"clm": 3}, 3)
    other = Batch({"input_ids": torch.tensor([[5]]), "clm_targets": torch.tensor([9])}, (1,), {"clm": 1}, 1)
    padded = pad([one, other])
    assert padded["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert padded["shift_labels"].tolist() == [[6, 7, 8], [9, IGNORED, IGNORED]]
    assert "attention_mask" not in pad([one, one])


# What train.py is given, written back as its log would be; the real one is run where NANOGPT names a checkout.
ECHO = """
import os, sys, numpy
given = dict(word[2:].split("=", 1) for word in sys.argv[1:])
tokens = numpy.fromfile(os.path.join("data", given["dataset"], "train.bin"), dtype=numpy.uint16)
assert len(tokens) > 1000 and given["bias"] == "True" and given["eval_interval"] == "1000000000", given
print("step 0: train loss 4.0, val loss 4.0")
for number in range(int(given["max_iters"]) + 1):
    print(f"iter {number}: loss {float(given['n_embd']):.4f}, time {10 * (number + 1):.2f}ms, mfu -100.00%")
"""


def test_nanogpt_is_run_as_its_users_do_and_its_log_is_read(gpt, tmp_path, monkeypatch):
    given = os.environ.get("NANOGPT")
    monkeypatch.delenv("NANOGPT", raising=False)
    assert hold(gpt, tmp_path / "none", (NANOGPT,)).failed == {NANOGPT: "NANOGPT names no checkout"}
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "train.py").write_text(ECHO)
    monkeypatch.setenv("NANOGPT", given or str(checkout))
    contest = hold(gpt, tmp_path / "some", (NANOGPT,))
    assert not contest.failed and contest.apart(NANOGPT) is None
    pace = contest.paces[NANOGPT][0]
    assert len(pace.losses) == 5 and pace.wall > 0
    if not given:
        assert pace.losses == [32.0] * 5 and pace.wall == pytest.approx(0.035), "the mean of 20, 30, 40, 50 ms"
    with pytest.raises(RuntimeError, match="logged 1 iterations"):
        nanogpt.read("iter 0: loss 1.0, time 5.00ms, mfu -100.00%", 1)


def test_figures_are_all_that_was_measured(gpt, tmp_path):
    contest = hold(gpt, tmp_path, (OURS, PLAIN))
    figures = contest.figures()
    assert set(figures["loops"]) == {OURS, PLAIN} and figures["tokens"] == 6 * 48
    mine, other = figures["loops"][OURS], figures["loops"][PLAIN]
    assert mine["rounds"] == [dataclasses.asdict(pace) for pace in contest.paces[OURS]] and mine["ours_is"] == {}
    assert other["ours_is"]["cpu"]["mean"] == pytest.approx(contest.paces[PLAIN][0].cpu / contest.paces[OURS][0].cpu)
    # 6 × what is multiplied with, and attention of whole rows: two layers of width 32, a head of 512.
    assert contest.work.flops == pytest.approx(6 * (2 * 12 * 32 * 32 + 32 * 512) + 2 * 12 * 48 * 32)
