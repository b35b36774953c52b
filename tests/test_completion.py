"""What a shell offers after `trainer …`, and the scripts, in the shells themselves."""

from __future__ import annotations

import os
import pty
import resource
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import reference
from trainer.choices import ConfigError
from trainer.cli import main
from trainer.completion import offers
from trainer.config import GROUPS
from trainer.verbs.completion import WORDS, run


def words(line: str) -> list[str]:
    return [word for word, _ in offers(line)]


@pytest.fixture
def typed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs, one of them a job of a multirun."""
    for name in ("first", "grid/lr=1"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    (tmp_path / "runs" / "no-run").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trainer tra", ["train"]),
        ("trainer gen", ["generate"]),
        ("trainer train opt", ["optim=", "optim."]),
        ("trainer train optim=mu", ["optim=muon"]),
        ("trainer train optim.beta", ["optim.beta1=", "optim.beta2="]),
        ("trainer train optim.mom", []),
        ("trainer train optim=muon optim.mom", ["optim.momentum="]),
        ("trainer train task.whole", []),
        ("trainer train experiment=quickstart_bert task.whole", ["task.whole_word="]),
        ("trainer train model=bert_tiny model.inter", ["model.intermediate="]),
        ("trainer train tracking.wandb=of", ["tracking.wandb=offline", "tracking.wandb=off"]),
        ("trainer train deterministic=", ["deterministic=true", "deterministic=false"]),
        ("trainer train -m optim=adamw,mu", ["optim=adamw,muon"]),
        ("trainer train experiment=quickstart_", ["experiment=quickstart_bert"]),
        ("trainer train --cfg ", ["job"]),
        ("trainer train --help opti", ["optim", "optim."]),
        ("trainer train name=x 'data.path=/some", []),
        ("trainer generate te", ["temperature="]),
        ("trainer completion ", [*WORDS, "--help"]),
        ("trainer nothing ", []),
    ],
)
def test_what_is_offered(line: str, expected: list[str]) -> None:
    assert words(line) == expected


def test_every_group_and_choice_is_offered_with_its_meaning() -> None:
    for group in (*GROUPS, reference.EXPERIMENT):
        assert f"{group}=" in words("trainer train ")
        found = dict(offers(f"trainer train {group}="))
        assert set(found) >= {f"{group}={name}" for name in reference.names(group)} and all(found.values())
    assert {option.key for option in reference.run_options()} <= {word.rstrip("=") for word in words("trainer train ")}


def test_runs_are_offered(typed_in: Path) -> None:
    assert set(words("trainer generate run=")) == {"run=runs/first", "run=runs/grid/lr=1"}
    assert words("trainer train init.run=runs/f") == ["init.run=runs/first"]


def test_it_is_quick_and_imports_nothing_large() -> None:
    main(["completion", "line=trainer train opt"])  # writes the index
    code = "import sys; from trainer.cli import main; main(sys.argv[1:]); assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules)"
    command = [sys.executable, "-c", code, "completion", "line=trainer train opt"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stdout.startswith("optim=\t"), done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_another_shell_is_refused() -> None:
    with pytest.raises(ConfigError, match="bash, zsh, fish"):
        run(["tcsh"])


# Each defines Ctrl-G to write the line that stands at the prompt into the file `line`.
SETUPS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], """bind -x '"\\C-g": printf "%s" "$READLINE_LINE" > line'"""),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -Uz compinit && compinit -u -D; dump() { print -rn -- $BUFFER > line }; zle -N dump; bindkey '^G' dump",
    ),
    "fish": (["fish", "--no-config", "-i"], "bind \\cg 'commandline > line'"),
}


class Terminal:
    """A shell at a terminal."""

    def __init__(self, shell: str, folder: Path, path: str):
        self.file = folder / "line"
        command, setup = SETUPS[shell]
        self.process, self.screen = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, os.environ | {"PATH": path, "TERM": "xterm", "PS1": "> ", "HOME": str(folder)})
        script = folder / "script"
        script.write_text(subprocess.run([sys.executable, "-m", "trainer", "completion", shell], capture_output=True, text=True).stdout)
        self.type(f"{setup}\n")
        self.type("source ./script\n")

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def read(self, seconds: float) -> None:
        """What the shell writes has to be taken from it, or it stops."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.screen], [], [], left)[0]:
                os.read(self.screen, 1 << 16)

    def completed(self, text: str, expected: str) -> str:
        """The line after Tab, waited for until it is the expected one."""
        self.type(f"{text}\t")
        found, deadline = "", time.monotonic() + 60
        while found.rstrip("\n") != expected and time.monotonic() < deadline:
            self.read(0.3)
            self.file.unlink(missing_ok=True)
            self.type("\x07")
            self.read(0.3)
            found = self.file.read_text() if self.file.exists() else found
        self.type("\x15")
        return found.rstrip("\n")

    def close(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self.screen)


@pytest.mark.parametrize("shell", SETUPS)
def test_the_script_in_its_shell(shell: str, typed_in: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    (typed_in / "bin").mkdir()
    command = typed_in / "bin" / "trainer"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m trainer "$@"\n')
    command.chmod(0o755)
    terminal = Terminal(shell, typed_in, f"{command.parent}:{os.environ['PATH']}")
    try:
        for text, expected in (
            ("trainer tra", "trainer train "),
            ("trainer train experiment=quickstart_", "trainer train experiment=quickstart_bert "),
            ("trainer train optim=muon optim.mom", "trainer train optim=muon optim.momentum="),
            ("trainer generate run=runs/f", "trainer generate run=runs/first "),
            ("trainer train data.path=scr", "trainer train data.path=script "),
        ):
            assert terminal.completed(text, expected) == expected
    finally:
        terminal.close()
