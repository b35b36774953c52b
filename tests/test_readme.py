"""README.md: what it shows is accepted as typed. Nothing is trained here; the journeys do that."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from trainer import options
from trainer.words import composed

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]*-m (trainer [^`…]*)`")


def blocks(language: str) -> list[str]:
    return [body for found, body in FENCED.findall(README.read_text()) if found == language]


def commands(program: str) -> list[list[str]]:
    """The words after the program, of every command in a `sh` block, and behind another launcher in the prose."""
    lines = [line for body in blocks("sh") for line in body.replace("\\\n", " ").splitlines()]
    lines += INLINE.findall(README.read_text())
    typed = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in typed if words and words[0].rsplit("/", 1)[-1] == program]


def spelled(words: list[str]) -> str:
    return " ".join(words)


def test_it_is_short_and_has_what_is_checked_below() -> None:
    assert len(README.read_text().splitlines()) <= 150
    assert {words[0] for words in commands("trainer")} >= {"train", "prepare", "generate", "evaluate", "report"}
    assert blocks("python") and commands("make")


@pytest.mark.parametrize("words", [words for words in commands("trainer") if words[0] in ("train", "prepare")], ids=spelled)
def test_what_trains_or_prepares_composes(words: list[str]) -> None:
    """Composed and checked with all its jobs, which looks at no file of `data.path`."""
    verb, *rest = words
    configs = composed(rest, verb)
    printed = {"--help", "-h", "--cfg"} & set(rest)
    assert (configs is None) if printed else configs
    if configs and "-m" in rest:
        assert len({config.output_dir for config in configs}) == len(configs) > 1


@pytest.mark.parametrize("words", [words for words in commands("trainer") if words[0] not in ("train", "prepare")], ids=spelled)
def test_words_of_the_other_verbs_are_theirs(words: list[str]) -> None:
    verb, *rest = words
    assert options.parse(rest, importlib.import_module(f"trainer.verbs.{verb}").Options, verb)


def test_targets_of_make_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for words in commands("make") for word in words} <= targets


@pytest.mark.parametrize("body", blocks("python"), ids=lambda body: body.splitlines()[0])
def test_python_compiles_and_imports_what_there_is(body: str) -> None:
    compile(body, "README.md", "exec")
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trainer":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
