"""Parts of benchmarks/gpu.py that are not about one model: other commands, and what is counted. Each returns {good, said, figures}."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.pace import ratio

ROOT = Path(__file__).resolve().parents[1]
TOY = os.environ.get("BENCH_TOY") == "1" or not torch.cuda.is_available()
TOLERANCE = 1e-4  # relative, of a loss in fp32: a GPU adds up in an order of its own

SMALL = ("data=text", f"data.path={ROOT}/trainer/**/*.py", "model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=512",
         "sequence_length=64", "global_batch=4", "micro_batch=2")  # fmt: skip

# Where tests marked `gpu` are, which need one: kernels beside plain computation, and copies beside kernels.
KERNELS = [ROOT / "tests" / f"{name}.py" for name in ("models/test_varlen", "models/test_linear_cross_entropy", "models/test_fp8",
                                                      "data/test_on_device")]  # fmt: skip
SCALED = ("data=stdlib", "model=gpt2_small", "tokenizer.vocab_size=32768", "sequence_length=1024", "precision=bf16", "micro_batch=16",
          "steps=40", "log_every=20")  # fmt: skip
GOAL = 0.95  # of N times the rate of one
BENCHED = ("model=gpt2_small", "data=stdlib", "tokenizer.vocab_size=32768", "sequence_length=1024", "precision=bf16", "global_batch=64",
           "micro_batch=32")  # fmt: skip


def quickstart(experiment: str) -> dict[str, Any]:
    """The quickstart on every GPU, in bf16, at a bounded number of steps."""
    words = (*SMALL, "launcher.processes=1", "steps=4") if TOY else ("steps=300",)
    with tempfile.TemporaryDirectory() as folder:
        finish(start(Path(folder) / "run", f"experiment={experiment}", "precision=bf16", *words), f"experiment={experiment}")
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    wanted = ("loss", "eval_loss", "bits_per_byte", "gzip_bits_per_byte", "masked_accuracy", "next_sentence_accuracy", "tokens_per_second",
              "mfu", "goodput", "peak_memory_bytes", "world_size", "strategy", "steps")  # fmt: skip
    figures = {key: summary[key] for key in wanted if summary.get(key) is not None}
    quality = ", ".join(f"{key} {figures[key]:.3f}" for key in wanted[:6] if key in figures)
    said = f"{figures['steps']} steps, {quality}, {figures['tokens_per_second']:,.0f} tokens/s"
    return {"good": True, "said": said, "figures": figures}


def parity() -> dict[str, Any]:
    """The same losses under every strategy, on one device, in fp32: commands as a user types them, at the same time."""
    strategies = ("single", "zero2") if TOY else ("single", "ddp", "zero2", "fsdp")
    words = (*SMALL, "steps=4") if TOY else ("steps=20", "global_batch=16", "micro_batch=8")
    common = ("experiment=quickstart", "precision=fp32", "log_every=1", "launcher.processes=1", *words)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: start(Path(folder) / name, f"strategy={name}", *common) for name in strategies}
        losses = {}
        for name, process in runs.items():
            finish(process, f"strategy={name}")
            lines = [json.loads(line) for line in (Path(folder) / name / "metrics.jsonl").read_text().splitlines()]
            losses[name] = [line["loss"] for line in lines if "loss" in line]
    reference = losses["single"]
    apart = {
        name: max(abs(one - other) / abs(other) for one, other in zip(found, reference, strict=True))
        for name, found in losses.items()
        if name != "single"
    }
    said = f"{len(reference)} steps, furthest from single: " + ", ".join(f"{name} {difference:.1e}" for name, difference in apart.items())
    return {
        "good": all(difference <= TOLERANCE for difference in apart.values()),
        "said": said,
        "figures": {"apart": apart, "losses": losses},
    }


def scaling() -> dict[str, Any]:
    """Tokens a second of ddp and fsdp on all GPUs over as many times those of one, with as many rows for each; two rounds in turns."""
    devices = 2 if TOY else torch.cuda.device_count()
    if devices == 1:
        return {"good": True, "said": "one GPU: nothing to scale", "figures": {}}
    rates: dict[str, list[float]] = {"single": [], "ddp": [], "fsdp": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            for strategy, found in list(rates.items())[:: 1 if number % 2 else -1]:
                found.append(rate(Path(folder) / f"{strategy}-{number}", strategy, 1 if strategy == "single" else devices))
    return scaled(rates, devices)


def rate(run: Path, strategy: str, processes: int) -> float:
    """Tokens a second of a run, by its last log line."""
    words, rows = ((*SMALL, "steps=4", "log_every=2"), 2) if TOY else (SCALED, 64)
    given = (f"strategy={strategy}", f"launcher.processes={processes}", f"global_batch={rows * processes}")
    finish(start(run, *words, *given), strategy)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([line["tokens_per_second"] for line in lines if line.get("tokens_per_second")][-1])


def scaled(rates: dict[str, list[float]], devices: int) -> dict[str, Any]:
    """Judged: the geometric mean over rounds of what several devices reach of as many times one. rates: by strategy and round."""
    times = {name: ratio([devices * one for one in rates["single"]], found) for name, found in rates.items() if name != "single"}
    told = [f"{name} {each.mean:.2f} of {devices} × one" for name, each in times.items()]
    goals = [
        {"what": f"{name} on {devices} devices: of {devices} × one", "goal": GOAL, "measured": each.mean, "ratio": each.mean / GOAL,
         "met": each.mean >= GOAL}
        for name, each in times.items()
    ]  # fmt: skip
    return {
        # A CPU's cores share what a GPU has for itself.
        "good": TOY or all(goal["met"] for goal in goals),
        "said": f"{devices} devices: " + ", ".join(told),
        "figures": {"devices": devices, "tokens_per_second": rates, "of_one_each": {name: each.figures() for name, each in times.items()}},
        "goals": goals,
    }


def bench() -> dict[str, Any]:
    """`trainer bench` as a user types it, and whether it has all figures that this machine can give."""
    words = (*SMALL, "model=gpt2_tiny", "steps=2", "warmup=1", "repeats=1") if TOY else (*BENCHED, "steps=10", "warmup=3", "repeats=2")
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "trainer", "bench", f"output_dir={folder}/bench", "tracking.wandb=off", "processes=1", *words]
        finish(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), "trainer bench")
        (cell,) = json.loads((Path(folder) / "bench" / "results.json").read_text())["cells"]
    return benched(cell["repeats"], torch.cuda.is_available(), energy=torch.cuda.is_available() and find_spec("pynvml") is not None)


def benched(repeats: list[dict[str, Any]], on_gpu: bool, energy: bool) -> dict[str, Any]:
    """Judged: time by the device's own events, MFU, energy where there is a counter, and no host synchronisation in a step."""
    # Steps are looked into after the measured ones of the first repeat.
    syncs, first = repeats[0].get("host_syncs_per_step"), repeats[0]
    wrong = [f"clock: {each['clock']}" for each in repeats if each["clock"] != ("device events" if on_gpu else "host")]
    wrong += ["no MFU" for each in repeats if on_gpu and each["mfu"] is None]
    wrong += [f"no energy: {each.get('energy_missing')}" for each in repeats if energy and not each["energy_joules"]]
    wrong += [f"{syncs} host synchronisations a step: {first.get('host_syncs')}"] if syncs != 0 else []
    said = ", ".join(f"{each['tokens_per_second']:,.0f} tokens/s" + (f", MFU {each['mfu']:.1%}" if each["mfu"] else "") for each in repeats)
    return {"good": not wrong, "said": "; ".join([said, *wrong]), "figures": {"repeats": repeats}}


def syncs() -> dict[str, Any]:
    """Host synchronisations of the real loop between two log lines, on one device, as counted and as CUDA itself says."""
    from benchmarks import counting

    found = {family: counting.count(family, "single", 1, *(() if TOY else ("precision=bf16",))) for family in counting.FAMILIES}
    total = sum(counts["total"] + sum(counts["cuda_warnings"].values()) for counts in found.values())
    steps = sum(counts["steps"] for counts in found.values())
    return {"good": total == 0, "said": f"{total} in {steps} steps (single; GPT and BERT)", "figures": found}


def kernels() -> dict[str, Any]:
    """The tests that need a GPU; their closing line. Where there is one, tests that were all skipped are none that passed."""
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", *map(str, KERNELS)]
    # Without the plugins of whatever else is installed on the machine.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        raise RuntimeError("\n".join([done.stderr[-1000:], *lines[-40:]]))
    return {"good": TOY or "passed" in lines[-1], "said": lines[-1], "figures": {}}


def start(run: Path, *words: str) -> subprocess.Popen[str]:
    """`trainer train` in the background, its output in a pipe."""
    line = [sys.executable, "-m", "trainer", "train", f"output_dir={run}", "tracking.wandb=off", *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], what: str) -> None:
    """Wait for it; raises RuntimeError with the end of what it said where it failed."""
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{what}: exit code {process.returncode}\n{output[-3000:]}")
