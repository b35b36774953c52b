"""What can be typed next: the words that a shell offers after `trainer …`.

A shell asks at every press of the key, so nothing is composed or imported for it: what there is to offer is written once into an index in
the cache, and read from there until a file of ours, the set of installed packages, or TRAINER_PLUGINS changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_FLAGS = {
    "--help": "groups and options, and what they mean",
    "--multirun": "run every combination of the values that commas part",
    "--cfg": "print the configuration: --cfg job",
}
# Keys whose value is a run.
_RUNS = ("run", "init.run")
_DEEPEST = 4

Offer = tuple[str, str]


def offers(line: str) -> list[Offer]:
    """(word, meaning) for the last word of a command line up to the cursor, which begins with the name of the command."""
    try:
        words = shlex.split(line)
    except ValueError:  # inside quotes: the shell completes file names by itself
        return []
    last = "" if not words or line[-1:].isspace() else words.pop()
    known = index()
    return [(word, meaning) for word, meaning in _candidates(known, words[1:], last) if word.startswith(last)]


def _candidates(known: dict[str, Any], before: list[str], last: str) -> Iterator[Offer]:
    if not before:
        yield from ((verb, entry["meaning"]) for verb, entry in known["verbs"].items())
        yield from (("--help", "the verbs"), ("--version", "the version"))
        return
    verb = known["verbs"].get(before[0])
    if verb is None:
        return
    key, equals, _ = last.partition("=")
    if equals and key in _RUNS:
        yield from ((f"{key}={path}", "") for path in runs())
    elif not verb["composes"]:
        yield from ((f"{option}=", meaning) for option, meaning in verb["options"])
        yield from ((word, "") for word in verb["words"])
        yield ("--help", "what it takes")
    elif before[-1] == "--cfg":
        yield ("job", "the whole configuration of a run")
    elif equals:
        yield from _values(known, before, key, last)
    else:
        yield from _keys(known, before, last)


def _keys(known: dict[str, Any], before: list[str], last: str) -> Iterator[Offer]:
    """Flags, groups and options; the options of a group when its name and a dot are there."""
    yield from _FLAGS.items()
    asked = "--help" in before or "-h" in before
    group, dot, _ = last.partition(".")
    for name, entry in known["groups"].items():
        yield (name if asked else f"{name}=", entry["meaning"])
        if not dot and _options(known, before, name):
            yield (f"{name}.", f"options of {name}={_selected(known, before, name)}")
    options = known["run"] + (_options(known, before, group) if dot and group in known["groups"] else [])
    for key, _, meaning in options:
        yield (key if asked else f"{key}=", meaning)


def _values(known: dict[str, Any], before: list[str], key: str, last: str) -> Iterator[Offer]:
    """Values of a key; with -m, after each comma."""
    head = last[: last.rfind(",") + 1] or f"{key}="
    group = known["groups"].get(key)
    if group:
        yield from ((f"{head}{name}", choice["meaning"]) for name, choice in group["choices"].items())
        return
    for option, allowed, _ in known["run"] + _options(known, before, key.partition(".")[0]):
        if option == key:
            yield from ((f"{head}{value}", "") for value in allowed)


def _selected(known: dict[str, Any], before: list[str], group: str) -> str:
    """The choice that a command line has of a group: as it says, as its experiment has it, or the default."""
    said = {key: value for key, equals, value in (word.partition("=") for word in before) if equals}
    recipe = known["groups"]["experiment"]["choices"].get(said.get("experiment"), {})
    return str(said.get(group) or recipe.get("sets", {}).get(group) or known["groups"][group]["default"])


def _options(known: dict[str, Any], before: list[str], group: str) -> list[list[Any]]:
    if group not in known["groups"]:
        return []
    choices = known["groups"][group]["choices"]
    entry = choices.get(_selected(known, before, group), {})
    options: list[list[Any]] = choices.get(entry.get("base"), entry).get("options", [])
    return options


def runs() -> list[str]:
    """Run directories below runs/, newest first."""
    found = []
    for folder, folders, names in os.walk("runs"):
        depth = folder.count(os.sep)
        if "config.yaml" in names:
            found.append((os.stat(folder).st_mtime, folder))
            folders.clear()
        elif depth >= _DEEPEST:
            folders.clear()
    return [folder for _, folder in sorted(found, reverse=True)]


# -- the index --------------------------------------------------------------------------------------------------------------------


def index() -> dict[str, Any]:
    """What there is to offer, from the cache where nothing has changed."""
    here = (str(_HERE), sys.prefix, os.environ.get("TRAINER_PLUGINS"), os.environ.get("PYTHONPATH"))
    name = f"{hashlib.sha256(repr(here).encode()).hexdigest()[:16]}.json"
    path = Path(os.environ.get("TRAINER_CACHE") or "~/.cache/shardloom").expanduser() / "completion" / name
    stamp = _stamp()
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(path.read_text())
        if known["stamp"] == stamp:
            return known
    known = build() | {"stamp": stamp}
    with contextlib.suppress(OSError):  # a full disk costs a second, and no more
        from trainer.atomic import write_text

        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(known))
    return known


def _stamp() -> str:
    """Changes with every file that the index is made from, and with what is installed."""
    states = []
    folders = [str(_HERE), *(str(folder) for name in ("conf", "launch") for folder in (_HERE / name, _HERE.parent / name))]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.name.endswith((".py", ".yaml")):
                    states.append((entry.path, entry.stat().st_mtime_ns))
    states += [(folder, os.stat(folder).st_mtime_ns) for folder in sys.path if folder.endswith("-packages") and os.path.isdir(folder)]
    return hashlib.sha256(repr(sorted(set(states))).encode()).hexdigest()


def build() -> dict[str, Any]:
    """The index, from the registry and the YAML."""
    from trainer import reference
    from trainer.choices import base, load_choices
    from trainer.config import GROUPS

    load_choices(launchers=True)

    def listed(options: list[reference.Option]) -> list[list[Any]]:
        return [[option.key, option.allowed, option.meaning] for option in options]

    groups: dict[str, Any] = {}
    for group in GROUPS:
        choices: dict[str, Any] = {
            name: {"meaning": reference.meaning(cls), "options": listed(reference.choice_options(group, cls))}
            for name, cls in reference.registered(group).items()
        }
        choices |= {name: {"meaning": preset.meaning, "base": preset.base} for name, preset in reference.presets(group).items()}
        groups[group] = {
            "meaning": reference.meaning(base(group)),
            "default": reference.default_choices().get(group),
            "choices": dict(sorted(choices.items())),
        }
    recipes = {
        name: {"meaning": preset.meaning, "sets": {key: value for key, value in preset.values.items() if key in GROUPS}}
        for name, preset in reference.presets(reference.EXPERIMENT).items()
    }
    groups[reference.EXPERIMENT] = {"meaning": reference.RECIPES, "default": None, "choices": recipes}
    return {"run": listed(reference.run_options()), "groups": groups, "verbs": _verbs()}


def _verbs() -> dict[str, Any]:
    """Each verb with what it takes: a run to compose, or options of its own."""
    import dataclasses
    import importlib
    import pkgutil

    from trainer import verbs

    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(verbs.__path__)):
        module = importlib.import_module(f"trainer.verbs.{name}")
        kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        options = {field.name: field.metadata["help"] for kind in kinds for field in dataclasses.fields(kind) if "help" in field.metadata}
        words = getattr(module, "WORDS", ())
        composes = not options and not words
        found[name] = {"meaning": verbs.summary(name), "composes": composes, "options": list(options.items()), "words": list(words)}
    return found
