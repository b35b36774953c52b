"""CONTRIBUTING.md's package, written, installed and used as it says there: a task, a strategy, a launcher and a model size from outside."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from trainer import compose
from trainer.config import dump

ROOT = Path(__file__).resolve().parents[1]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENTED_NAME = re.compile(r"# ([\w./]+\.(?:py|toml|yaml))\n")


def blocks() -> tuple[dict[str, str], list[list[str]]]:
    """The files of CONTRIBUTING.md by the name in their first line, and the words of its `trainer` commands."""
    files: dict[str, str] = {}
    commands: list[list[str]] = []
    for language, body in FENCED.findall((ROOT / "CONTRIBUTING.md").read_text()):
        named = COMMENTED_NAME.match(body)
        if language != "sh" and named:
            files[named[1]] = body
        elif language == "sh":
            commands += [words for line in body.replace("\\\n", " ").splitlines() if (words := shlex.split(line))[0] == "trainer"]
    return files, commands


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the search path into which the document's package is installed."""
    source, target = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("site")
    files, _ = blocks()
    for name, text in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in ("lab/conf", "lab/conf/model"):
        (source / folder / "__init__.py").touch()
    words = [
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        str(target),
        str(source),
    ]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are typed, with a small corpus."""
    path = tmp_path_factory.mktemp("typed")
    lines = [f"The {number}th line of a small corpus says that {number} times {number} is {number * number}.\n" for number in range(600)]
    (path / "corpus.txt").write_text("".join(lines))
    return path


def environment(*folders: Path) -> dict[str, str]:
    """The environment with folders put before the search path."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH")]))}


def typed(words: list[str], folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    """Exit code and all output of a `trainer` command."""
    command = [sys.executable, "-m", "trainer", *words[1:]]
    done = subprocess.run(command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    return done.returncode, done.stdout


def train_command() -> list[str]:
    (found,) = [words for words in blocks()[1] if "--cfg" not in words]
    return found


def test_the_document_holds_a_package_and_commands() -> None:
    files, commands = blocks()
    modules = {f"lab/{name}.py" for name in ("__init__", "task", "strategy", "launcher")}
    assert set(files) == {"pyproject.toml", "lab/conf/model/gpt2_nano.yaml", *modules}
    assert len(commands) == 2


def test_options_from_outside_are_composed_and_checked(site: Path, folder: Path) -> None:
    (words,) = [words for words in blocks()[1] if "--cfg" in words]
    code, out = typed(words, folder, environment(site))
    assert code == 0, out
    assert "name: polite" in out and "niceness: 19" in out
    code, out = typed([*words[:-2], "launcher.nicenes=3", "steps=1"], folder, environment(site))
    assert code == 1 and "launcher.niceness" in out


def test_training_with_choices_from_outside(site: Path, folder: Path) -> None:
    """The document's command trains; its ranks are polite; its task reads backwards; its strategy gives the curve of one process."""
    with (folder / "output.txt").open("w") as output:
        words = [sys.executable, "-m", "trainer", *train_command()[1:]]
        command = subprocess.Popen(words, cwd=folder, env=environment(site), stdout=output, stderr=subprocess.STDOUT)
        seen: set[int] = set()
        while command.poll() is None:
            seen |= niceness_of_ranks(command.pid)
            time.sleep(0.2)
    assert command.returncode == 0, (folder / "output.txt").read_text()
    assert seen == {10}
    ours = summary(folder, "lab")
    assert ours["strategy"] == "all_reduce" and ours["world_size"] == 2 and ours["steps"] == 4

    kept = [word for word in train_command()[2:] if not word.startswith(("strategy=", "launcher=", "name="))]
    code = ALONE.format(words=[*kept, "strategy=single", "name=alone", "tracking.wandb=off"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(site, ROOT), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    alone = summary(folder, "alone")
    assert ours["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)
    assert ours["digest"] == alone["digest"], "the strategy and the launcher are placement, and no part of the identity"


def niceness_of_ranks(front_door: int) -> set[int]:
    found = set()
    for process in psutil.Process(front_door).children(recursive=True):
        try:
            if "trainer.rank" in process.cmdline():
                found.add(process.nice())
        except psutil.Error:
            continue
    return found


# The same without the strategy and the launcher, in one process; and what the task makes of two rows.
ALONE = """
import torch
from tests.loops import single, training
from trainer import compose
from trainer.front_door import make_ready
from trainer.run import RunDir
from trainer.tasks import Pick
from trainer.tasks.clm import CausalLM

config = compose(*{words})
make_ready(config, RunDir(config.output_dir), 1)
here = training(single(), config.output_dir)
here.loop()
here.finish()
forward, backward = (task.collate(here.corpus.split("train"), [Pick(0, 0), Pick(1, 0)]) for task in (CausalLM(), here.task))
for name, other in (("input_ids", "clm_targets"), ("clm_targets", "input_ids")):
    mine, theirs = (batch.inputs[key].flatten().split(batch.lengths) for batch, key in ((backward, name), (forward, other)))
    assert all(torch.equal(one.flip(0), two) for one, two in zip(mine, theirs, strict=True))
"""


def test_a_launcher_from_outside_hides_none_of_ours(tmp_path: Path) -> None:
    """A rank, which loads no launcher itself, reads a file frozen with ours although a plugin has brought one of its own."""
    (tmp_path / "config.yaml").write_text(dump(compose("steps=1", "launcher.processes=1")))
    (tmp_path / "brings.py").write_text("from trainer.launch import Launcher\n")
    code = "from trainer.config import load; print(load('config.yaml').launcher.processes)"
    variables = environment(tmp_path) | {"TRAINER_PLUGINS": "brings"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n", done.stderr


def test_a_strategy_that_does_not_add_up_is_refused(site: Path, folder: Path, tmp_path: Path) -> None:
    """What CONTRIBUTING says of the proof before step 1 is so."""
    text = blocks()[0]["lab/strategy.py"].replace("dist.all_reduce(parameter.grad)", "pass").replace('"all_reduce"', '"not_reduced"')
    (tmp_path / "lonely.py").write_text(text)
    words = [word for word in train_command() if not word.startswith(("strategy=", "name="))]
    variables = environment(site, tmp_path) | {"TRAINER_PLUGINS": "lonely"}
    code, out = typed([*words, "strategy=not_reduced", "name=broken", "survival.restarts=0"], folder, variables)
    assert code != 0
    assert "is not that of all ranks" in out


def summary(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / name / "summary.json").read_text())
    return found
