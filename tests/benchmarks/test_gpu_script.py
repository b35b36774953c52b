"""benchmarks/gpu.sh at toy size: from the script to its results, what it needs, and what it does where a part fails or does not end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import fast_path, gpu, gpu_models, gpu_parts, wheels
from benchmarks.peers.loops import FABRIC, OURS, TRAINER
from trainer import compose

ROOT = Path(__file__).resolve().parents[2]


# No module of these distributions is found, and they are not installed.
WITHOUT = """
from importlib.machinery import PathFinder
from importlib.metadata import Distribution
modules, names, find, every = {modules!r}, {names!r}, PathFinder.find_spec, Distribution.discover
PathFinder.find_spec = classmethod(lambda cls, name, *given: None if name in modules else find(name, *given))
there = lambda one: one._normalized_name.replace("_", "-") not in names
Distribution.discover = classmethod(lambda cls, **given: filter(there, every(**given)))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter, and whatever is started from it, like that of a machine with a GPU: what is there, and what wheels/ carries."""
    folder = tmp_path_factory.mktemp("python")
    there = [Requirement(name) for name in wheels.THERE if wheels._met(Requirement(name))]
    carried = wheels.missing([*wheels.named()[0], *wheels.named()[1]]) | wheels.missing(there, frozenset()) | {"shardloom"}
    of = {module: {str(canonicalize_name(name)) for name in names} for module, names in packages_distributions().items()}
    hidden = {module for module, names in of.items() if not names & carried}
    (folder / "sitecustomize.py").write_text(WITHOUT.format(modules=hidden, names=set().union(*of.values()) - carried))
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={folder}${{PYTHONPATH:+:$PYTHONPATH}} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    done = subprocess.run([script, "-c", "import hydra, pytest; import scipy"], capture_output=True, text=True)
    assert "No module named 'scipy'" in done.stderr
    return script


def test_gpu_script_runs_at_toy_size(python, tmp_path):
    # The parts with most in them; other models and the fast path run below without a process each, and the rest is what other tests run.
    parts = "kernels,gpt2-124m,bench"
    environment = os.environ | {"PYTHON": str(python), "BENCH_TOY": "1", "BENCH_PARTS": parts}
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", tmp_path / "results"], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").glob("*-gpu-toy.json")
    found = json.loads(path.read_text())
    assert found["toy"] and list(found["parts"]) == parts.split(",") and all(part["good"] for part in found["parts"].values())
    model = found["parts"]["gpt2-124m"]
    rates = model["figures"]["loops"]
    assert {OURS, TRAINER, FABRIC} <= set(rates) and all(each["tokens_per_second"] > 0 for each in rates.values())
    # Every loop that runs here was searched, and every one's losses were compared.
    assert all(each["tried"] == [4, 2] for each in rates.values())
    assert all((each["apart"] is None) == (loop == OURS) for loop, each in rates.items())
    assert len(model["operations"]) == 10 and sum(each["share"] for each in model["operations"]) > 0.2
    (repeat,) = found["parts"]["bench"]["figures"]["repeats"]
    assert repeat["clock"] == "host" and repeat["host_syncs_per_step"] == 0
    text = path.with_suffix(".md").read_text()
    assert "at toy size" in text and "| gpt2-124m | yes |" in text and "the most expensive operations" in text and "(4, 2)" in text
    assert "| gpt2-124m: real tokens/s | 580,000 |" in text, "every goal stands beside what was measured"
    # Nothing measured on a CPU may pass for a GPU's: no MFU, and the file says what it was taken on.
    assert all(each["mfu"] is None for each in rates.values()) or "cpu" not in path.name


def test_wheels_are_installed_where_something_is_missing(tmp_path, monkeypatch):
    carried = wheels.missing([*wheels.named()[0], *wheels.named()[1]])
    assert carried >= {"hydra-core", "omegaconf", "antlr4-python3-runtime", "deepspeed", "matplotlib", "pytest", "pluggy", "hypothesis"}
    assert not carried & (wheels.LEFT_OUT | wheels.THERE)
    # Of each distribution that this environment lacks, has, and has in another version than is wanted.
    for name in ("no_such_package-1.0-py3-none-any", "omegaconf-2.3.0-py3-none-any", "pytest-99.0-py3-none-any"):
        (tmp_path / f"{name}.whl").touch()
    wanted = [Requirement(text) for text in ("omegaconf>=2", "pytest>=99", "torch>=99", "not-there>=1")]
    monkeypatch.setattr(wheels, "named", lambda: (wanted, [Requirement("not-there-either")]))
    install, without, other = wheels.lacking(tmp_path)
    assert [path.name.split("-")[0] for path in install] == ["no_such_package", "pytest"]
    assert (without, other) == (["not-there>=1"], ["torch>=99"])
    assert wheels.install(tmp_path, tmp_path / "site") == 2


@pytest.mark.parametrize("name", ["bert-base-512-padded", "bert-base-128"])
def test_models_are_measured_at_toy_size(name, monkeypatch):
    # Which loops take part is the same code for all: here, ours and Trainer.
    monkeypatch.setitem(gpu_models.ROWS, name, dataclasses.replace(gpu_models.ROWS[name], loops=gpu_models.TWO))
    kept = []
    result = gpu_models.measure(name, True, 300.0, kept.append)
    assert result["good"], result
    assert [len(each["figures"]["loops"]) for each in kept] == [1, 2], "results are kept after every turn"
    assert all(goal["met"] == (goal["measured"] is not None and goal["ratio"] >= 1) for goal in result["goals"])
    assert "padded" not in name or result["figures"]["padded"] > 0.1


def test_every_model_has_a_configuration_of_its_own_size():
    """What toy sizes leave out: that the words of the real ones are right, and that they fit together."""
    assert not any("," in name for name in gpu.PARTS), "parts are named with commas between them"
    assert set(gpu_models.ROWS) < set(gpu.PARTS)
    found = {name: gpu_models.configured(row, False) for name, row in gpu_models.ROWS.items()}
    assert {name: (one.model.layers, one.model.hidden) for name, one in found.items()} == {
        "gpt2-124m": (12, 768), "gpt2-350m": (24, 1024), "gpt2-774m": (36, 1280), "gpt2-1558m": (48, 1600),
        "bert-base-512": (12, 768), "bert-base-512-padded": (12, 768), "bert-base-128": (12, 768),
        "bert-large-512": (24, 1024), "bert-large-128": (24, 1024),
    }  # fmt: skip
    for name, config in found.items():
        row = gpu_models.ROWS[name]
        assert all(config.global_batch % size == 0 for size in row.grid)
        assert config.precision.autocast == "bfloat16" and config.task.name == ("clm" if "gpt" in name else "mlm_nsp")
        assert config.sequence_length == (1024 if "gpt" in name else int(name.split("-")[2]))


def test_the_fast_path_is_the_plain_one_and_a_difference_is_seen(tmp_path, monkeypatch):
    result = fast_path.check()
    assert result["good"] and set(result["figures"]) >= {"gpt, fp32", "bert, fp32"}, result
    # Documents that see each other, as rows without lengths would have it.
    config = compose(*fast_path.FAMILIES["gpt"], *fast_path.SMALL, "precision=fp32")
    apart = fast_path.padded

    def joined(batch, term):
        return apart(dataclasses.replace(batch, lengths=(sum(batch.lengths),)), term)

    monkeypatch.setattr(fast_path, "padded", joined)
    found = fast_path.compared(config, fast_path.packed(config), tmp_path)
    assert found["gradients"] > 10 * fast_path.TOLERANCES["fp32"]


def test_every_part_gets_its_turn():
    """All at their limits, after 40 s of installing; and where there is little time, nobody is left out."""
    bounds = [part.seconds for part in gpu.PARTS.values()]
    for left in (530.0, 100.0):
        shares = []
        for number, bound in enumerate(bounds):
            shares.append(gpu.granted(bound, sum(bounds[number + 1 :]), left))
            left -= shares[-1]
        least = gpu.KEPT if sum(shares) > 500 else 0.1
        assert left >= -1e-6 and all(least * bound <= share <= bound for share, bound in zip(shares, bounds, strict=True))
        # Correctness is not what is cut first.
        assert sum(shares) < 500 or shares[:4] == bounds[:4]
    assert list(gpu.PARTS)[:4] == ["fast_path", "kernels", "syncs", "parity"]
    assert gpu.granted(30, 0, 500.0) == 30 and gpu.granted(30, 10, -5.0) == 0


@pytest.mark.parametrize(("without", "late", "off"), [(True, False, True), (False, False, False), (True, True, False)])
def test_the_kernel_is_off_only_where_it_is_what_computes_something_else(without, late, off, monkeypatch):
    def run(name, seconds):
        return {"good": without and os.environ.get("TRAINER_VARLEN") == "0", "late": late, "said": "", "figures": {}}

    monkeypatch.setattr(gpu, "run_bounded", run)
    monkeypatch.setenv("TRAINER_VARLEN", "")
    results = gpu.checked(1.0)
    assert list(results) == ["fast_path"] + [gpu.WITHOUT] * (not late) and (os.environ.get("TRAINER_VARLEN") == "0") == off
    assert ("**TRAINER_VARLEN=0" in gpu.markdown(results)) == off


def test_scaling_and_bench_are_judged(monkeypatch):
    monkeypatch.setattr(gpu_parts, "TOY", False)
    rates = {"single": [100.0, 100.0], "ddp": [196.0, 192.0], "fsdp": [180.0, 196.0]}
    found = gpu_parts.scaled(rates, 2)
    assert not found["good"] and [goal["met"] for goal in found["goals"]] == [True, False]
    assert gpu_parts.scaled(rates | {"fsdp": [191.0, 192.0]}, 2)["good"]
    repeat = {"clock": "device events", "mfu": 0.5, "energy_joules": 9.0, "tokens_per_second": 10.0}
    first = repeat | {"host_syncs_per_step": 0.0, "host_syncs": {}}
    assert gpu_parts.benched([first, repeat], True, True)["good"]
    wrong = ({"clock": "host"}, {"mfu": None}, {"energy_joules": None}, {"host_syncs_per_step": 0.5, "host_syncs": {"a.py:1": 1}})
    assert not any(gpu_parts.benched([first | each, repeat], True, True)["good"] for each in wrong)


def test_a_part_that_does_not_end_is_ended_and_the_next_one_runs():
    result = gpu.run_bounded("quickstart", 0.5)
    assert not result["good"] and result["late"] and "not done after" in result["said"]


def test_results_are_a_table_with_what_failed():
    goal = {"what": "speed", "goal": 2.0, "measured": 1.0, "ratio": 0.5, "met": False}
    text = gpu.markdown(
        {
            "one": {"good": True, "said": "1 | 2", "seconds": 3.0, "goals": [goal, goal | {"measured": None, "ratio": None}]},
            "two": {"good": False, "said": "no", "seconds": 1.0, "log": "why"},
        }
    )
    assert "| one | yes | 3 | 1 / 2 |" in text and "| two | **no** | 1 | no |" in text and "why" in text
    assert "| speed | 2.00 | 1.00 | 0.50 | **no** |" in text and "| speed | 2.00 | not measured |  | **no** |" in text
