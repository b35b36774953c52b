"""What the support matrix allows is run: strategy × precision × optimizer on one task, × task with one optimizer, and × adapter.

    python benchmarks/support.py [--strategies ddp,zero3] [--optims adamw] [--precisions fp32] [--tasks clm,mlm] [--adapters lora] [--all]

--all: every optimizer on every task.
A tiny model, a few steps by the real loop on real rows, at two processes (hsdp at four: two replicas of two). The loss has to fall, and
that of every step has to be the loss on one device, to the noise of adding in another order: measured, for each combination, as the
distance of two runs on one device that differ in their micro-batches. Results: benchmarks/results/. The exit code is 1 where a
combination fails.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import matrix, records  # noqa: E402
from tests import loops, tiny  # noqa: E402
from trainer.choices import find, groups, load_choices  # noqa: E402
from trainer.config import Config  # noqa: E402
from trainer.front_door import make_ready  # noqa: E402
from trainer.run import RunDir  # noqa: E402
from trainer.strategies.matrix import cells  # noqa: E402
from trainer.trials.outcomes import curve, relative  # noqa: E402

STEPS = 6
# Rates at which so few steps show something.
OPTIMS = {"adamw": 3e-3, "muon": 3e-3, "lion": 1e-3, "lamb": 1e-2, "adafactor": 3e-2, "sgd": 0.1}
# Of adapters that learn more slowly, on a model that has learned nothing.
ADAPTERS = {"ia3": 0.1, "adalora": 0.1, "prompt": 0.1, "p_tuning": 1e-2, "prefix": 3e-2}
TASKS = {
    "clm": ("model=gpt2", *loops.GPT),
    "denoising": ("model=t5_tiny", *loops.GPT),
    "mlm": ("model=bert_tiny", *loops.GPT),
    "mlm_nsp": ("model=bert_tiny", *loops.GPT),
}
# Least that is allowed, and how many times the measured noise.
LOSS, TIMES = {"fp32": 1e-5, "bf16": 1e-3, "fp16": 1e-3, "fp8": 1e-2}, 5.0
FLOOR = "noise"


class Feature(NamedTuple):
    """What a strategy is combined with."""

    optim: str
    precision: str
    task: str
    adapter: str = "none"


def places(strategies: list[str]) -> dict[str, matrix.Place]:
    """Runs by name; the first is the reference, the second it once more."""
    alone = matrix.Place("single", 1)
    return {"single": alone, FLOOR: alone} | {
        name: matrix.Place(name, 4 if name == "hsdp" else 2) for name in strategies if name != "single"
    }


def run(strategies: list[str], features: list[Feature], folder: Path) -> dict[str, dict[Feature, dict[int, float]]]:
    """Step → loss, of every combination that is allowed; empty where it came to no end."""
    configs = {feature: composed(feature, folder) for feature in features}
    found: dict[str, dict[Feature, dict[int, float]]] = {}
    for name, place in places(strategies).items():
        began = time.monotonic()
        strategy: Any = find("strategy", place.strategy)(**tiny.OPTIONS.get(place.strategy, {}))
        paths = {}
        for feature in features:
            if any(cells(key, value)[place.strategy] == "–" for key, value in feature._asdict().items()):
                continue
            paths[feature] = folder / name / "-".join(feature)
            micro_batch = 2 if name == FLOOR else 3
            config = dataclasses.replace(configs[feature], strategy=strategy, micro_batch=micro_batch, output_dir=str(paths[feature]))
            make_ready(config, RunDir(paths[feature]), place.world)
        matrix.train(place, list(paths.values()))
        found[name] = {feature: {step: line["loss"] for step, line in curve(RunDir(path)).items()} for feature, path in paths.items()}
        print(f"{place}: {len(paths)} combinations, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def composed(feature: Feature, folder: Path) -> Config:
    """A run of a feature on one device."""
    rate = f"optim.lr={ADAPTERS.get(feature.adapter, OPTIMS[feature.optim])}"
    words = [f"optim={feature.optim}", rate, f"precision={feature.precision}", f"task={feature.task}", *TASKS[feature.task]]
    words += [f"adapter={feature.adapter}"]
    # 7 rows do not divide by 2 or 4. fp16 may drop a first step, as it finds its scale.
    words += [f"steps={STEPS}", "global_batch=7", "micro_batch=3", "schedule=constant", "survival.nan=skip", "strategy=single"]
    return loops.composed(folder / "run", folder / "texts", *words)


def apart(mine: dict[int, float], reference: dict[int, float]) -> float:
    """Largest relative difference of a step's loss; infinite where a step is missing."""
    if mine.keys() != reference.keys():
        return float("inf")
    return max((relative(loss, mine[step]) for step, loss in reference.items()), default=float("inf"))


def judged(found: dict[str, dict[Feature, dict[int, float]]]) -> list[dict[str, Any]]:
    """A row for each feature: how the loss falls on one device, what is allowed, and how far each strategy is from it."""
    rows = []
    for feature, reference in found["single"].items():
        noise = apart(found[FLOOR][feature], reference)
        distances = {name: apart(curves[feature], reference) for name, curves in found.items() if feature in curves and name != FLOOR}
        curve_ = list(reference.values()) or [float("nan")]
        rows.append(
            feature._asdict()
            | {"first": curve_[0], "last": curve_[-1], "noise": noise, "allowed": max(LOSS[feature.precision], TIMES * noise)}
            | {"apart": distances}
        )
    return rows


def wrong(row: dict[str, Any], name: str) -> bool:
    return not (row["apart"][name] <= row["allowed"] and row["last"] < row["first"])


def markdown(rows: list[dict[str, Any]], strategies: list[str]) -> str:
    def cell(row: dict[str, Any], name: str) -> str:
        if name not in row["apart"]:
            return "–"
        return f"{row['apart'][name]:.0e}{' ✗' * wrong(row, name)}"

    others = [name for name in strategies if name != "single"]
    table = [
        [
            " · ".join(row[key] for key in Feature._fields if row[key] != "none"),
            f"{row['first']:.3f} → {row['last']:.3f}",
            f"{row['noise']:.0e}",
        ]
        + [cell(row, name) for name in others]
        for row in rows
    ]
    return records.table(["", "loss, single", "noise", *others], table)


def main() -> int:
    load_choices()
    known = {"strategies": list(groups()["strategy"]), "optims": list(OPTIMS), "precisions": list(LOSS), "tasks": list(TASKS)}
    known["adapters"] = list(groups()["adapter"])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for word, names in known.items():
        parser.add_argument(f"--{word}", default=",".join(names))
    parser.add_argument("--all", action="store_true", help="every optimizer on every task")
    words = parser.parse_args()
    given = {word: getattr(words, word).split(",") for word in known}
    strategies = sorted(given["strategies"], key=lambda name: (name != "single", name))
    features = [Feature(*names) for names in itertools.product(given["optims"], given["precisions"], given["tasks"])]
    features = [one for one in features if words.all or one.optim == given["optims"][0] or one.task == given["tasks"][0]]
    features += [features[0]._replace(adapter=adapter) for adapter in given["adapters"] if adapter != "none"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        (folder / "texts").mkdir()
        loops.write_texts(folder / "texts")
        rows = judged(run(strategies, features, folder))
    count = sum(len(row["apart"]) for row in rows)
    bad = sum(wrong(row, name) for row in rows for name in row["apart"])
    text = "\n\n".join(
        [
            "# Support matrix",
            f"{count - bad} of {count} combinations of strategy, optimizer, precision, task and adapter that are allowed: the loss falls, "
            f"and each step's is that of one device, within {TIMES:.0f} times the noise (relative) or "
            + ", ".join(f"{least:.0e} ({precision})" for precision, least in LOSS.items())
            + ". Noise: the distance of two runs on one device with other micro-batches. –: refused before launch. Every optimizer with "
            f"task={given['tasks'][0]}, every task and adapter with optim={given['optims'][0]}; of tasks, those that take plain text.",
            f"The real loop, {STEPS} steps of 7 rows, models of one layer of width 32, dropout 0, two processes (hsdp: 2 × 2), "
            f"gloo over loopback; {time.monotonic() - began:.0f} s. Made by `python benchmarks/support.py`.",
            markdown(rows, strategies),
        ]
    )
    print(text)
    records.write("support", text, {"rows": rows})
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
