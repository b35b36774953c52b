"""README.md and docs/: what they show is accepted, what is marked is run, what they link to is there, and the site builds."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.documents import DOCUMENTS, README, ROOT, Example, examples, trainer_words
from tests.loops import write_texts
from trainer import options, reference
from trainer.choices import load_choices
from trainer.config import GROUPS
from trainer.words import composed, trial

EXAMPLES = [example for document in DOCUMENTS for example in examples(document)]
TYPED = [(example, command) for example in EXAMPLES if example.is_shell for command in example.commands()]
# One with … in it shows a form, and is none to type.
COMMANDS = [(example, words) for example, command in TYPED if (words := trainer_words(command)) and "…" not in "".join(words)]
MARKED = [example for example in EXAMPLES if example.run is not None]
# They take options of their own beside the words of a run.
TRIALS = ("parity", "rehearse")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


# -- examples ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples are typed: the files that they are said to find."""
    path = tmp_path_factory.mktemp("typed")
    for name in ("corpus", "books"):
        (path / name).mkdir()
        write_texts(path / name)
    posts = [{"id": number, "body": file.read_text()} for number, file in enumerate(sorted((path / "corpus").iterdir()))]
    (path / "posts.jsonl").write_text("".join(f"{json.dumps(post)}\n" for post in posts))
    for example in EXAMPLES:
        if example.file:
            (path / example.file).parent.mkdir(parents=True, exist_ok=True)
            (path / example.file).write_text(example.body)
    return path


@pytest.mark.parametrize(("example", "words"), COMMANDS, ids=[f"{example}-{' '.join(words)}" for example, words in COMMANDS])
def test_a_command_is_accepted(example: Example, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composed and checked with all its jobs, or parsed by its verb; no file of `data.path` is looked at."""
    monkeypatch.chdir(folder)
    verb, *rest = words
    module = importlib.import_module(f"trainer.verbs.{verb}")
    printed = bool({"--help", "-h", "--cfg"} & set(rest))
    if verb == "runs":
        accepted_by_runs(rest)
        return
    if verb == "bench" and not printed:
        accepted_by_bench(rest)
        return
    if verb in TRIALS and not printed:
        own, rest = options.taken(rest, module.Options)
        assert options.parse(own, module.Options, verb) and trial(rest, verb, steps=1)
        return
    if hasattr(module, "Options"):
        assert printed or options.parse(rest, module.Options, verb)
        return
    configs = composed(rest, verb)
    assert (configs is None) if printed else configs
    if configs and "-m" in rest:
        assert len({config.output_dir for config in configs}) == len(configs) > 1


def accepted_by_bench(words: list[str]) -> None:
    """Its own options, then the words of runs: every combination is one that there can be."""
    from trainer.bench.cells import State
    from trainer.bench.opening import requested
    from trainer.verbs import bench

    if words[:1] == ["compare"]:
        assert bench.two(words[1:])
        return
    own, rest = options.taken(words, bench.Options)
    given = options.parse(own, bench.Options, "bench")
    assert given is not None
    request = requested(rest, bench.plan_of(given))
    assert not [cell.reason for cell in request.cells if cell.state is State.refused]


def accepted_by_runs(words: list[str]) -> None:
    """`runs` has a grammar of its own: a word before others, options, conditions."""
    from trainer.catalogue.conditions import condition
    from trainer.verbs.runs import CheckpointsOptions, CleanOptions

    if words[:1] == ["checkpoints"]:
        assert options.parse(words[1:], CheckpointsOptions, "runs checkpoints")
        return
    if words[:1] == ["diff"]:
        assert len([word for word in words[1:] if not word.startswith("root=")]) == 2
        return
    known = {field.name for field in dataclasses.fields(CleanOptions)}
    for word in words[words[:1] in (["clean"], ["spread"]) :]:
        assert word.split("=")[0] in known or condition(word)


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example.language == "python"], ids=str)
def test_python_compiles_and_imports_what_there_is(example: Example) -> None:
    for node in ast.walk(ast.parse(example.body)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trainer":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[Example, dict[str, Any]]:
    """Every marked example, run in order, in one process."""
    blocks = [{"language": example.language, "body": example.body, "words": list(example.run or ())} for example in MARKED]
    done = subprocess.run(
        [sys.executable, "-m", "tests.examples"],
        cwd=folder,
        env=os.environ | {"TRAINER_PLUGINS": "tests.inside", "PYTHONPATH": str(ROOT)},
        input=json.dumps(blocks),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(MARKED, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("example", MARKED, ids=str)
def test_a_marked_example_runs(example: Example, outcomes: dict[Example, dict[str, Any]]) -> None:
    outcome = outcomes[example]
    assert outcome["error"] is None, outcome["error"] + outcome["output"]


def test_targets_of_make_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for _, words in TYPED if words[0] == "make"}
    assert {"train", "test"} <= named <= targets


# -- links ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path) if path else document
        assert found.exists(), f"{document.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{document.name}: {target}"


def anchors(document: Path) -> set[str]:
    """The places that a heading makes, as GitHub and mkdocs both name them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# -- the site ---------------------------------------------------------------------------------------------------------------------


def all_options() -> list[reference.Option]:
    load_choices(launchers=True)
    found = reference.run_options()
    for group in GROUPS:
        for cls in reference.registered(group).values():
            found += reference.choice_options(group, cls)
    return found


def test_every_option_says_what_it_means() -> None:
    silent = sorted({option.key for option in all_options() if not option.meaning})
    assert not silent, "help=… is missing"


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra `docs`)")
def test_the_site_builds_strictly_with_every_option_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    page = (tmp_path / "site" / "configuration.html").read_text()
    for option in all_options():
        assert f"<code>{option.key}</code>" in page, option.key
    for group in GROUPS:
        for name in (*reference.registered(group), *reference.presets(group)):
            assert f"<code>{group}={name}</code>" in page, (group, name)
    recipes = (tmp_path / "site" / "recipes.html").read_text()
    assert all(f"<code>{name}</code>" in recipes for name in reference.presets(reference.EXPERIMENT))
    for html in (tmp_path / "site").glob("**/*.html"):
        text = html.read_text()
        assert "<!-- generated" not in text
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)|<link[^>]* href=\"?([^\" >]+)", text)
        assert not [address for pair in loaded for address in pair if re.match(r"(https?:)?//", address)], html.name
