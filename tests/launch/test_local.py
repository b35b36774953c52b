"""One agent on this machine: what listens, what is passed on, and what is refused before anything starts."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from trainer.launch import devices, local
from trainer.launch.devices import GPUs, find_gpus, selected
from trainer.launch.local import Local, start_agent

from tests.launch.processes import family, launched, new_run, ranks, steps, until
from trainer.choices import ConfigError
from trainer.settings import BF16, FP16, FP32, Precision


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    """Addresses on which these processes listen: socket inodes of /proc/PID/fd looked up in /proc/net/tcp and tcp6."""
    inodes = set()
    for process in processes:
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                address, port = words[1].split(":")
                raw = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
                found.add((str(ipaddress.ip_address(raw)), int(port, 16)))
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def test_s07_nothing_listens_beyond_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "eth0")  # as a shell set up for a cluster has it
    run = new_run(tmp_path / "run", steps=100000, save_every=1000)
    with launched(run, processes=3):
        until(lambda: all(steps(run, rank) for rank in range(3)))
        assert len(ranks(run)) == 3
        addresses = listening(family(run))
        assert len(addresses) >= 4, "the store and three ranks of gloo"
        assert all(is_loopback(address) for address, _ in addresses), addresses


def test_ranks_get_their_share_of_the_cores(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=2)
    with launched(run, "--threads=3") as handle:
        assert handle.wait() == 0
    assert {json.loads(line)["threads"] for line in (run / "steps-1.jsonl").read_text().splitlines()} == {3}


def test_each_attempt_has_a_number_of_its_own_over_all_launches(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=4, save_every=2)
    with launched(run, faults=[{"rank": 0, "step": 4, "attempt": 0, "kind": "raise"}]) as handle:
        assert handle.wait() == 0
    with launched(run) as handle:
        assert handle.wait() == 0
    text = (run / "logs" / "rank-00001.log").read_text()
    assert [line.split(",")[0] for line in text.splitlines() if line.startswith("--- ")] == [
        "--- attempt 0",
        "--- attempt 1",
        "--- attempt 2",
    ]


def config(kind: str = "auto", processes: int | None = None, precision: Precision | None = None) -> Any:
    strategy = SimpleNamespace(name="single" if processes else "ddp", processes=processes)
    return SimpleNamespace(device=SimpleNamespace(kind=kind), strategy=strategy, precision=precision or FP32())


@pytest.mark.parametrize(
    ("variable", "present", "count"),
    [
        ("0,1,2", 8, 3),
        ("", 8, 0),
        ("-1", 8, 0),
        ("0,9,1", 8, 1),
        ("NoDevFiles", 8, 0),
        ("GPU-8932f937,GPU-d47cb1fa", 2, 2),
        ("MIG-GPU-8932f937/1/0", 1, 1),
        ("0,0", 8, 0),
        (" 1 , 0 ", 2, 2),
        ("0", 0, 0),
    ],
)
def test_b09_the_variable_is_read_as_the_driver_reads_it(variable: str, present: int, count: int) -> None:
    assert selected(variable, present) == count


def test_b09_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text('#!/bin/sh\necho "GPU 0: NVIDIA H200 (UUID: GPU-1)"\necho "GPU 1: NVIDIA H200 (UUID: GPU-2)"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    gpus = find_gpus()
    assert (gpus.present, gpus.visible) == (2, 1)
    assert "1 of 2 GPUs visible" in gpus.why() and "CUDA_VISIBLE_DEVICES='1'" in gpus.why()


def test_b09_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_gpus", lambda: GPUs(present=8, visible=2, variable="0,1"))
    assert Local().resources(config()) == (2, "cuda")
    assert Local(processes=1).resources(config()) == (1, "cuda")
    assert Local(processes=4).resources(config("cpu")) == (4, "cpu")
    with pytest.raises(ConfigError) as refused:
        Local(processes=4).resources(config())
    for part in ("launcher.processes: 4", "2 of 8 GPUs visible", "CUDA_VISIBLE_DEVICES='0,1'", os.uname().nodename, "launcher.processes=2"):
        assert part in str(refused.value)


def test_b09_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find_gpus", lambda: GPUs(present=8, visible=0, variable=""))
    assert Local().resources(config()) == (2, "cpu")
    with pytest.raises(ConfigError, match=r"device=cuda: 4 GPUs asked for, but 0 of 8 GPUs visible.*CUDA_VISIBLE_DEVICES=''"):
        Local(processes=4).resources(config("cuda"))
    monkeypatch.setattr(local, "find_gpus", lambda: GPUs(present=1, visible=1, usable=False))
    with pytest.raises(ConfigError, match="built without CUDA"):
        Local().resources(config("cuda"))


OLD = ("Tesla T4, 7.5", "Tesla T4, 7.5")


@pytest.mark.parametrize(
    ("gpus", "visible", "precision", "lacks"),
    [
        (OLD, None, BF16, "Tesla T4 on"),
        (OLD, None, FP16, ""),
        (OLD, None, FP32, ""),
        (("NVIDIA A100-SXM4-80GB, 8.0", "NVIDIA H200, 9.0"), None, BF16, ""),
        (("NVIDIA A100-SXM4-80GB, 8.0", "Tesla T4, 7.5"), None, BF16, "Tesla T4 on"),
        (("Tesla T4, 7.5", "NVIDIA B200, 10.0"), "0", BF16, ""),
        (("Tesla T4, 7.5", "Tesla T4, [N/A]"), "0", BF16, ""),
    ],
)
def test_b10_a_precision_that_a_gpu_lacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...], visible: str | None, precision: type[Precision], lacks: str
) -> None:
    """By what nvidia-smi tells of them; where it is not sure, the run may go on."""
    listed = "\n".join(f"GPU {number}: {line} (UUID: GPU-{number})" for number, line in enumerate(gpus))
    asked = "\n".join(gpus)
    command = tmp_path / "nvidia-smi"
    command.write_text(f'#!/bin/sh\n[ "$1" = -L ] && echo "{listed}" || echo "{asked}"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: True)
    if not lacks:
        assert Local().resources(config(precision=precision())) == (1 if visible else 2, "cuda")
        return
    with pytest.raises(ConfigError) as refused:
        Local().resources(config(precision=precision()))
    for part in ("precision=bf16", lacks, os.uname().nodename, "compute capability 7.5", "from 8.0 on", "precision=fp16 or fp32"):
        assert part in str(refused.value)
    assert Local().resources(config("cpu", precision=precision())) == (2, "cpu"), "a CPU computes in it"


def test_f17_a_stop_that_comes_before_an_agent_can_take_it_waits() -> None:
    """It is sent while the interpreter begins, which would end with exit code 1 and a traceback."""
    lines = ["import signal, sys, time", "signal.signal(signal.SIGINT, lambda *_: sys.exit(7))"]
    lines += ["signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])", "time.sleep(60)"]
    agent = start_agent([sys.executable, "-c", "\n".join(lines)])
    agent.send_signal(signal.SIGINT)
    assert agent.wait(60) == 7
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "of this process nothing is held"


def test_single_is_one_process() -> None:
    assert Local().resources(config("cpu", processes=1)) == (1, "cpu")
    with pytest.raises(ConfigError, match=r"launcher\.processes: 2, but strategy=single is 1 process"):
        Local(processes=2).resources(config("cpu", processes=1))
    with pytest.raises(ConfigError, match=r"launcher\.processes: 0"):
        Local(processes=0)
