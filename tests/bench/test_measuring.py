"""How a launch is measured: intervals of a trace, moments of a loop, what ranks saw put together, a micro-batch that does not fit."""

from __future__ import annotations

import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.bench.cells import Cell, Plan, Scaling, State, cells_of, common, varying
from trainer.bench.communication import length, union, without
from trainer.bench.energy import Energy
from trainer.bench.measuring import Counted
from trainer.bench.results import Results, gathered, spread
from trainer.bench.rounds import _is_memory
from trainer.bench.syncs import CudaSyncs, HostSyncs
from trainer.bench.tables import notes
from trainer.choices import ConfigError
from trainer.micro_batch import sizes

intervals = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda each: (each[0], each[0] + each[1])), max_size=8)


@given(intervals, intervals)
def test_time_in_which_only_some_are_busy(talk: list[tuple[int, int]], compute: list[tuple[int, int]]) -> None:
    def moments(found: list[tuple[int, int]]) -> set[int]:
        return {moment for begin, end in found for moment in range(begin, end)}

    flying = union(talk)
    assert moments(flying) == moments(talk) and length(flying) == len(moments(talk))
    assert all(before[1] < after[0] for before, after in pairwise(flying))
    exposed = without(flying, union(compute))
    assert moments(exposed) == moments(talk) - moments(compute) and length(exposed) == len(moments(exposed))


def test_the_slowest_rank_counts_and_work_is_added_up() -> None:
    def rank(seconds: float, **more: object) -> dict:
        plain = {"device": "cpu", "seconds": seconds, "step_seconds": [seconds / 2] * 2, "host_seconds": seconds, "cpu_seconds": 1.0}
        plain |= {"waited": 1.0, "tokens": 120, "samples": 4, "flops": 50.0, "peak": 100.0, "memory_bytes": 7}
        plain |= {"energy_joules": 3.0, "energy_missing": ""}
        plain |= {"compile_seconds": 0.0, "compile_seconds_within": 0.0, "start_seconds": 1.0}
        plain |= {"syncs": {"aten::item": 4}, "syncs_steps": 2, "communication": None}
        return plain | more

    found = gathered([rank(4.0), rank(5.0, memory_bytes=9, waited=0.0)], sequence_length=32)
    assert found["tokens_per_second"] == 24 and found["padded_per_second"] == 4 * 32 / 5 and found["samples_per_second"] == 0.8
    assert found["mfu"] == 100 / (5 * 2 * 100) and found["data_wait"] == 0.1 and found["memory_bytes"] == 9
    assert found["tokens_per_joule"] == 20 and found["host_syncs_per_step"] == 2 and found["step_milliseconds"] == 2500
    alone = gathered([rank(4.0, flops=None, peak=None, energy_joules=None, syncs=None)], sequence_length=32)
    assert alone["mfu"] is None and alone["tokens_per_joule"] is None and "host_syncs_per_step" not in alone


def test_what_cuda_says_of_its_debug_mode_is_no_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def mode(name: str) -> None:
        """As torch's own, the first time in a process."""
        modes.append(name)
        warnings.warn(
            "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations", stacklevel=2
        )

    def wait() -> None:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:149.)", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode)
    with CudaSyncs() as syncs:
        pass
    assert not syncs.counts and modes == ["warn", "default"]
    with CudaSyncs() as syncs:
        for _ in range(2):
            wait()
        with syncs.apart():
            wait()
    ((place, count),) = syncs.counts.items()
    assert place.startswith("test_measuring.py:") and count == 2


def test_a_log_line_within_the_steps_that_are_looked_at_is_not_counted() -> None:
    class Reading:
        def flush(self) -> float:
            return torch.ones(()).item()

    with HostSyncs() as syncs:
        torch.ones(()).item()
        assert Counted(Reading(), syncs).flush() == 1.0
        torch.ones(()).item()
    assert syncs.counts == {"aten::_local_scalar_dense": 2}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a counter here")
def test_energy_that_is_not_known_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Energy(torch.device("cuda"))
    nowhere.begin()
    assert nowhere.end() is None and nowhere.missing == "NVML: NVML Shared Library Not Found"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Energy(torch.device("cuda")).missing == "nvidia-ml-py is not installed; pip install 'shardloom[bench]'"
    assert Energy(torch.device("cpu")).missing == ""

    cell = Cell({"model": "x"}, [], state=State.measured, repeats=[{"clock": "device events", "energy_missing": nowhere.missing}] * 2)
    assert "no energy: NVML: NVML Shared Library Not Found" in notes(Results("bench", "trainer bench", Plan(), {}, [cell]))


def test_spreads() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0])
    assert found is not None and (found.low, found.lower, found.median, found.upper, found.high) == (1.0, 1.75, 2.5, 3.25, 4.0)
    assert spread([2.0]) == spread([2.0, 2.0]) and spread([]) is None


@pytest.mark.parametrize(("rows", "tried"), [(1, [1]), (8, [1, 2, 4, 8]), (48, [1, 2, 4, 8, 16, 32, 48])])
def test_micro_batches_that_are_tried(rows: int, tried: list[int]) -> None:
    assert sizes(rows) == tried


def test_words_become_cells_and_what_cannot_be_says_why(tmp_path: Path) -> None:
    words = ["model=gpt2_tiny,bert_tiny", "strategy=single,zero2", "optim=muon", "sequence_length=64"]
    cells = cells_of(words, Plan(processes=(1, 2), scaling=Scaling.weak), tmp_path)
    # Single is one process, whatever is asked for.
    assert [cell.label for cell in cells if cell.state is State.pending] == [
        "gpt2_tiny single processes=1",
        "bert_tiny single processes=1",
    ]
    refused = [cell for cell in cells if cell.state is State.refused]
    assert len(refused) == 4 and all("Muon orthogonalizes whole matrices" in cell.reason for cell in refused)
    assert [cell.settings["task"] for cell in cells] == ["clm"] * 3 + ["mlm_nsp"] * 3
    assert "model" in varying(cells) and common(cells)["optim"] == "muon" and common(cells)["sequence_length"] == "64"
    assert cells[0].config is not None and cells[0].config.steps == Plan().budget

    doubled = cells_of(["strategy=ddp", "global_batch=8"], Plan(processes=(1, 2), scaling=Scaling.weak), tmp_path)
    assert [cell.config.global_batch for cell in doubled if cell.config] == [8, 16] and [cell.world for cell in doubled] == [1, 2]
    assert len({cell.config.output_dir for cell in doubled if cell.config}) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["modle=gpt2_tiny"], "modle: no such key"),
        (["epochs=1"], "a bench measures steps"),
        (["launcher.processes=2"], "processes=1,2"),
        (["strategy=zero3", "optim=muon"], "Muon"),
    ],
)
def test_what_nothing_can_be_measured_of_is_an_error(words: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        cells_of(words, Plan(), tmp_path)


@pytest.mark.parametrize(
    ("reason", "memory"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
            True,
        ),
        ("killed by SIGKILL; the kernel does that when memory runs out", True),
        ("ValueError: 3", False),
    ],
)
def test_what_has_no_memory_is_told_from_what_fails(reason: str, memory: bool) -> None:
    assert _is_memory(reason) == memory


def test_folders_of_cells_are_names_of_runs(tmp_path: Path) -> None:
    cell = Cell({}, [], label="gpt2_tiny data.path=/a/*.txt micro_batch=auto")
    assert "/" not in cell.folder and "*" not in cell.folder
