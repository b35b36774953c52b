"""Words of verbs that look at a run: split at the first `=`, and every mistake told."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from trainer.choices import ConfigError
from trainer.options import option, parse


@dataclass
class Options:
    run: str = option(help="run directory")
    prompt: str = option("", help="text")
    count: int = option(3, help="how many")
    share: float | None = option(None, help="a share")


def test_values_are_what_they_say() -> None:
    found = parse(["run=runs/x", "prompt=def f(x): return x == 1, {2}", "count=-4", "share=0.5"], Options, "try")
    assert found == Options("runs/x", "def f(x): return x == 1, {2}", -4, 0.5)
    assert parse(["run=a"], Options, "try") == Options("a")
    assert parse(["run=a", "prompt="], Options, "try") == Options("a", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run=a", "promt=x"], ["promt", "did you mean 'prompt'"]),
        (["runs/a"], ["'runs/a'", "key=value", "run"]),
        (["prompt=x"], ["run: missing", "usage: trainer try run=…"]),
        (["run=a", "count=many"], ["count", "'many'", "whole number"]),
        (["run=a", "share=x"], ["share", "'x'", "a number"]),
        (["run=a", "run=b"], ["run", "twice"]),
    ],
)
def test_b01_mistakes_are_told(words: list[str], told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse(words, Options, "try")
    assert all(part in str(error.value) for part in told), str(error.value)


def test_help_is_printed_and_nothing_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--help"], Options, "try") is None
    out = capsys.readouterr().out
    assert "usage: trainer try run=… [prompt=…]" in out and "how many (default 3)" in out
