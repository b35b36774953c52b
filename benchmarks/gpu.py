"""What benchmarks/gpu.sh runs: parts, each a process of its own with a bound on its time; one that fails does not stop the next.

    benchmarks/gpu.sh [FOLDER]                                   all parts; FOLDER takes the results, default benchmarks/results
    python benchmarks/gpu.py --parts gpt2-124m,syncs [FOLDER]    some, where the packages are there already

Results are written after every part, so that what was measured outlives whatever comes after it. Without a GPU, or with BENCH_TOY=1, every
part runs at a size for the CPU: then it shows that the script works, and no figure of it says anything about a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import fast_path, gpu_models, records  # noqa: E402

Save = Callable[[dict[str, Any]], None]
TOY = os.environ.get("BENCH_TOY") == "1" or not torch.cuda.is_available()
TOTAL_SECONDS = float(os.environ.get("BENCH_SECONDS", 570))
TOLERANCE = 1e-4  # relative, of a loss in fp32: a GPU adds up in an order of its own

SMALL = ("data=text", f"data.path={ROOT}/trainer/**/*.py", "model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=512",
         "sequence_length=64", "global_batch=4", "micro_batch=2", "launcher.processes=1")  # fmt: skip

# Those of the model's tests that run on a GPU.
KERNELS = [
    str(path) for name in ("varlen", "compiled", "linear_cross_entropy", "fp8") for path in ROOT.glob(f"tests/models/test_{name}.py")
]
SCALED = ("data=stdlib", "model=gpt2_small", "tokenizer.vocab_size=32768", "sequence_length=1024", "precision=bf16", "micro_batch=16",
          "steps=40", "log_every=20")  # fmt: skip


def quickstart(experiment: str) -> dict[str, Any]:
    """The quickstart on every GPU, in bf16, at a bounded number of steps."""
    words = (*SMALL, "steps=4") if TOY else ("steps=300",)
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
    words = (*SMALL, "steps=4") if TOY else ("steps=20", "global_batch=16", "micro_batch=8", "launcher.processes=1")
    common = ("experiment=quickstart", "precision=fp32", "log_every=1", *words)
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
    """Tokens a second of ddp and fsdp on all GPUs, over as many times those of one, with as many rows for each."""
    devices = 2 if TOY else torch.cuda.device_count()
    if devices == 1:
        return {"good": True, "said": "one GPU: nothing to scale", "figures": {}}
    words = (*SMALL, "steps=4", "log_every=2") if TOY else SCALED
    rows = 2 if TOY else 64
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for strategy, size in (("single", 1), ("ddp", devices), ("fsdp", devices)):
            run = Path(folder) / strategy
            finish(start(run, *words, f"strategy={strategy}", f"launcher.processes={size}", f"global_batch={rows * size}"), strategy)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            rates[strategy] = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")][-1]
    shares = {name: rate / rates["single"] / devices for name, rate in rates.items() if name != "single"}
    said = f"{devices} devices: " + ", ".join(f"{name} {share:.2f} of {devices} × one" for name, share in shares.items())
    return {"good": True, "said": said, "figures": {"devices": devices, "tokens_per_second": rates, "of_one_each": shares}}


def syncs() -> dict[str, Any]:
    """Host synchronisations of the real loop between two log lines, on one device, as counted and as CUDA itself says."""
    from benchmarks import counting

    found = {family: counting.count(family, "single", 1, *(() if TOY else ("precision=bf16",))) for family in counting.FAMILIES}
    total = sum(counts["total"] + sum(counts["cuda_warnings"].values()) for counts in found.values())
    steps = sum(counts["steps"] for counts in found.values())
    return {"good": total == 0, "said": f"{total} in {steps} steps (single; GPT and BERT)", "figures": found}


def tests(*words: str) -> dict[str, Any]:
    """pytest on these words; its closing line."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        raise RuntimeError("\n".join(lines[-40:]) + done.stderr[-1000:])
    return {"good": True, "said": lines[-1], "figures": {}}


@dataclass(frozen=True)
class Part:
    """seconds: its bound. run: given the seconds that it has and where to put how far it got. alone: on the first GPU, as if there were
    no other, which some peers would take of themselves."""

    seconds: float
    run: Callable[[float, Save], dict[str, Any]]
    alone: bool = True


# In the order of what would be missed most if the time ran out: what is wrong is not worth a figure.
PARTS = {
    "fast_path": Part(60, lambda seconds, save: fast_path.check()),
    "kernels": Part(60, lambda seconds, save: tests(*KERNELS, "-rs")),
    **{name: Part(row.seconds, partial(gpu_models.measure, name, TOY)) for name, row in gpu_models.ROWS.items()},
    "syncs": Part(60, lambda seconds, save: syncs()),
    "scaling": Part(90, lambda seconds, save: scaling(), alone=False),
    "parity": Part(120, lambda seconds, save: parity(), alone=False),
    "quickstart": Part(110, lambda seconds, save: quickstart("quickstart"), alone=False),
    "quickstart_bert": Part(110, lambda seconds, save: quickstart("quickstart_bert"), alone=False),
}


def start(run: Path, *words: str) -> subprocess.Popen[str]:
    """`trainer train` in the background, its output in a pipe."""
    line = [sys.executable, "-m", "trainer", "train", f"output_dir={run}", "tracking.wandb=off", *words]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], what: str) -> None:
    """Wait for it; raises RuntimeError with the end of what it said where it failed."""
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{what}: exit code {process.returncode}\n{output[-3000:]}")


def run_part(name: str, seconds: float, path: Path) -> int:
    """In a part's own process: run it, and write what came out, or how far it got."""

    def save(result: dict[str, Any]) -> None:
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(result))
        aside.replace(path)

    save(PARTS[name].run(seconds, save))
    return 0


def run_bounded(name: str, seconds: float) -> dict[str, Any]:
    """A part in a process of its own, ended with all that it started when its time is up."""
    begun = time.monotonic()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": first} if PARTS[name].alone else {})
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "result.json", Path(folder) / "log"
        with log.open("w") as output:
            line = [sys.executable, __file__, "--part", name, "--to", str(path), "--seconds", str(seconds)]
            process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment)
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        result = json.loads(path.read_text()) if path.exists() else {"good": False, "said": "nothing", "figures": {}}
        if code != 0:
            end = log.read_text(errors="replace").strip()
            why = f"not done after {seconds:.0f} s" if code is None else (end.splitlines() or [f"exit code {code}"])[-1]
            result |= {"good": False, "said": f"{why}; before that: {result['said']}", "log": end[-4000:]}
    return result | {"seconds": time.monotonic() - begun}


def markdown(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            name,
            "yes" if result["good"] else "**no**",
            f"{result.get('seconds', 0):.0f}",
            result["said"].replace("|", "/").replace("\n", " "),
        ]
        for name, result in results.items()
    ]
    where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    scale = "at toy size: this shows that the script works; no figure here says anything about a GPU" if TOY else "bf16 unless said"
    goals = [goal for result in results.values() for goal in result.get("goals", [])]
    tables = [result[key] for result in results.values() for key in ("table", "profile") if key in result]
    logs = [f"`{name}`:\n\n```\n{result['log'][-1500:]}\n```" for name, result in results.items() if "log" in result]
    software = ", ".join(f"{name} {version}" for name, version in records.versions("lightning").items())
    head = (
        f"# GPU benchmarks\n\n{records.hardware()} ({where}), commit {records.commit()}; {software}; {scale}. "
        "Every loop trains the same model from the same values on the same batches, in turns: medians (smallest – largest), and geometric "
        "means of paired ratios (95 % interval). Made by `benchmarks/gpu.sh`."
    )
    parts = records.table(["part", "good", "seconds", "result"], rows)
    return "\n\n".join([head, *([gpu_models.goals_table(goals)] if goals else []), *tables, "## Parts", parts, *logs])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path, help="of the results; default: benchmarks/results")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in this order")
    parser.add_argument("--part", choices=PARTS, help="run this one in this process")
    parser.add_argument("--to", type=Path, help="where --part writes what came out")
    parser.add_argument("--seconds", type=float, default=600.0, help="that --part has")
    given = parser.parse_args()
    if given.part:
        return run_part(given.part, given.seconds, given.to)
    begun, name = time.monotonic(), "gpu-toy" if TOY else "gpu"
    results: dict[str, dict[str, Any]] = {}
    for part in given.parts.split(","):
        left = TOTAL_SECONDS - (time.monotonic() - begun)
        if left < 10:
            results[part] = {"good": False, "said": f"not begun: the {TOTAL_SECONDS:.0f} s were used up", "figures": {}}
            continue
        results[part] = run_bounded(part, min(PARTS[part].seconds * (3 if TOY else 1), left))
        print(f"{part}: {results[part]['said']} ({results[part]['seconds']:.0f} s)", file=sys.stderr, flush=True)
        if part in ("fast_path", "kernels") and not results[part]["good"]:
            # Nothing that follows may rest on a kernel that computes something else.
            os.environ["TRAINER_VARLEN"] = "0"
            results[part]["said"] += "; what follows is without the kernel for several lengths (TRAINER_VARLEN=0)"
        path = records.write(name, markdown(results), {"toy": TOY, "parts": results}, given.folder)
    print(markdown(results), f"\nwritten to {path}", sep="\n")
    return 0 if all(result["good"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
