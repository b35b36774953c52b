"""What benchmarks/gpu.sh runs: parts, each a process of its own with a bound on its time; one that fails does not stop the next.

    benchmarks/gpu.sh [FOLDER]                                   all parts; FOLDER takes the results, default benchmarks/results
    python benchmarks/gpu.py --parts gpt2-124m,syncs [FOLDER]    some, where the packages are there already

A part has the smaller of its bound and what is left once the share of those that follow is kept, so that every part gets its turn. Results
are written after every part, so that what was measured outlives whatever comes after it. Without a GPU, or with BENCH_TOY=1, every part
runs at a size for the CPU: then it shows that the script works, and no figure of it says anything about a GPU.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import gpu_parts, records  # noqa: E402
from benchmarks.gpu_parts import TOY  # noqa: E402

Save = Callable[[dict[str, Any]], None]
TOTAL_SECONDS = float(os.environ.get("BENCH_SECONDS", 570))
# Of what the parts that follow may take, what is kept for them.
KEPT = 0.5


@dataclass(frozen=True)
class Part:
    """seconds: its bound. run: given the seconds that it has and where to put how far it got. alone: on the first GPU, as if there were
    no other, which some peers would take of themselves."""

    seconds: float
    run: Callable[[float, Save], dict[str, Any]]
    alone: bool = True


def _model(name: str) -> Callable[[float, Save], dict[str, Any]]:
    def run(seconds: float, save: Save) -> dict[str, Any]:
        from benchmarks import gpu_models

        return gpu_models.measure(name, TOY, seconds, save)

    return run


def _fast_path(seconds: float, save: Save) -> dict[str, Any]:
    from benchmarks import fast_path

    return fast_path.check()


# In the order of what would be missed most if the time ran out: what is wrong is not worth a figure, and says so first. What a part needs
# is imported by its own process alone.
PARTS = {
    "fast_path": Part(60, _fast_path),
    "kernels": Part(40, lambda seconds, save: gpu_parts.kernels()),
    "syncs": Part(40, lambda seconds, save: gpu_parts.syncs()),
    "parity": Part(60, lambda seconds, save: gpu_parts.parity(), alone=False),
    # With all peers.
    "gpt2-124m": Part(210, _model("gpt2-124m")),
    "bert-base-512": Part(85, _model("bert-base-512")),
    "bert-base-128": Part(55, _model("bert-base-128")),
    "bench": Part(30, lambda seconds, save: gpu_parts.bench()),
    # Beside Trainer.
    "bert-base-512-padded": Part(25, _model("bert-base-512-padded")),
    "gpt2-350m": Part(30, _model("gpt2-350m")),
    "bert-large-512": Part(20, _model("bert-large-512")),
    "gpt2-774m": Part(35, _model("gpt2-774m")),
    "gpt2-1558m": Part(75, _model("gpt2-1558m")),
    "bert-large-128": Part(20, _model("bert-large-128")),
    "scaling": Part(90 if torch.cuda.device_count() > 1 else 10, lambda seconds, save: gpu_parts.scaling(), alone=False),
    "quickstart": Part(25, lambda seconds, save: gpu_parts.quickstart("quickstart"), alone=False),
    "quickstart_bert": Part(25, lambda seconds, save: gpu_parts.quickstart("quickstart_bert"), alone=False),
}


def granted(bound: float, later: float, left: float) -> float:
    """The seconds that a part has. later: the bounds of those that follow, together, of which KEPT is kept for them; where the time does
    not go that far, all of them get less in proportion."""
    return max(0.0, min(bound, max(left - KEPT * later, left * bound / (bound + later))))


def run_part(name: str, until: float, path: Path) -> int:
    """In a part's own process: run it, and write what came out, or how far it got. until: by the clock."""

    def save(result: dict[str, Any]) -> None:
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(result))
        aside.replace(path)

    save(PARTS[name].run(until - time.time(), save))
    return 0


def run_bounded(name: str, seconds: float) -> dict[str, Any]:
    """A part in a process of its own, ended with all that it started when its time is up."""
    begun = time.monotonic()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": first} if PARTS[name].alone else {})
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "result.json", Path(folder) / "log"
        with log.open("w") as output:
            line = [sys.executable, __file__, "--part", name, "--to", str(path), "--until", str(time.time() + seconds)]
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
            result |= {"good": False, "late": code is None, "said": f"{why}; before that: {result['said']}", "log": end[-4000:]}
    return result | {"seconds": time.monotonic() - begun}


WITHOUT = "fast_path without the kernel"


def checked(seconds: float) -> dict[str, dict[str, Any]]:
    """The part `fast_path`. Where it finds a difference, or breaks, it runs once more without the kernel for several lengths: if that is
    right, the kernel is wrong, and nothing that follows may rest on it."""
    results = {"fast_path": run_bounded("fast_path", seconds)}
    if not results["fast_path"]["good"] and not results["fast_path"].get("late") and os.environ.get("TRAINER_VARLEN") != "0":
        os.environ["TRAINER_VARLEN"] = "0"
        results[WITHOUT] = run_bounded("fast_path", seconds)
        if not results[WITHOUT]["good"]:
            del os.environ["TRAINER_VARLEN"]
    return results


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
        "Every loop trains the same model from the same values on the same batches, in turns, and their losses are compared; but for "
        "nanoGPT's train.py, which draws values and batches of its own at random. Medians (smallest – largest), and geometric means of "
        "paired ratios (95 % interval). Made by `benchmarks/gpu.sh`."
    )
    if os.environ.get("TRAINER_VARLEN") == "0":
        head += "\n\n**TRAINER_VARLEN=0: the kernel for documents of several lengths is OFF in every figure below**" + (
            ", as the fast path computes something else with it and the same without." if WITHOUT in results else "."
        )
    parts = records.table(["part", "good", "seconds", "result"], rows)
    return "\n\n".join([head, *([goals_table(goals)] if goals else []), *tables, "## Parts", parts, *logs])


def goals_table(found: list[dict[str, Any]]) -> str:
    """All goals beside what was measured."""
    from trainer import mfu

    def figure(value: float | None) -> str:
        return "not measured" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

    rows = []
    for each in found:
        ratio = figure(each["ratio"]) if each["ratio"] else ""
        rows.append([each["what"], figure(each["goal"]), figure(each["measured"]), ratio, "yes" if each["met"] else "**no**"])
    return f"## Goals\n\n{mfu.CONVENTION}.\n\n" + records.table(["what", "goal", "measured", "measured ÷ goal", "met"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path, help="of the results; default: benchmarks/results")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in this order")
    parser.add_argument("--part", choices=PARTS, help="run this one in this process")
    parser.add_argument("--to", type=Path, help="where --part writes what came out")
    parser.add_argument("--until", type=float, default=float("inf"), help="when --part has to end, in seconds since 1970")
    given = parser.parse_args()
    if given.part:
        return run_part(given.part, given.until, given.to)
    # What the script did before, such as installing, is in its time.
    begun, name = float(os.environ.get("BENCH_BEGAN", time.time())), "gpu-toy" if TOY else "gpu"
    results: dict[str, dict[str, Any]] = {}
    parts = given.parts.split(",")
    bounds = [PARTS[part].seconds * (3 if TOY else 1) for part in parts]
    for number, part in enumerate(parts):
        left = TOTAL_SECONDS - (time.time() - begun)
        seconds = granted(bounds[number], sum(bounds[number + 1 :]), left)
        if seconds < 5:
            results[part] = {"good": False, "said": f"not begun: the {TOTAL_SECONDS:.0f} s were used up", "figures": {}}
        else:
            results |= checked(seconds) if part == "fast_path" else {part: run_bounded(part, seconds)}
        print(f"{part}: {results[part]['said']} ({results[part].get('seconds', 0):.0f} s)", file=sys.stderr, flush=True)
        path = records.write(name, markdown(results), {"toy": TOY, "parts": results}, given.folder)
    print(markdown(results), f"\nwritten to {path}", sep="\n")
    return 0 if all(result["good"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
