"""What can be configured: every option of the typed tree, with its type, what is allowed, its default, role and meaning.

Read from the dataclasses and the YAML themselves. `--help`, the shell's completion and the documentation are all made from this, so they
say the same, and what the code does.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from importlib.resources import files
from typing import Any, Union

import yaml

from trainer.choices import Choice, base, groups
from trainer.config import GROUPS, Config, flatten

EXPERIMENT = "experiment"
RECIPES = "Settings that are known to go together."
# A full stop before a capital; that of "Devlin et al. 2018" ends none.
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_LABEL = re.compile(r"[A-Z]\w+: ")
# Two spaces; lines that go on stand further in.
_COMMAND = re.compile(r"  \S")


@dataclasses.dataclass(frozen=True)
class Option:
    """One key. default: as it is typed, or None where a value has to be given; allowed: the words of an enumeration or a flag."""

    key: str
    kind: str
    allowed: tuple[str, ...]
    default: str | None
    role: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Preset:
    """A YAML file of a group: differences from a choice (`base`), and what its header says."""

    name: str
    base: str
    header: str
    values: dict[str, Any]

    @property
    def meaning(self) -> str:
        """The header's first sentence."""
        return _SENTENCE_END.split(self.paragraphs[0], maxsplit=1)[0] if self.header else ""

    @property
    def paragraphs(self) -> list[str]:
        """The header without its line breaks: a paragraph, a command or a `Word: text` each. A command keeps two spaces before it."""
        parts: list[str] = []
        fresh = True
        for line in self.header.splitlines():
            is_command = _COMMAND.match(line) is not None
            if is_command or fresh or _LABEL.match(line):
                if line.strip():
                    parts.append(f"  {line.strip()}" if is_command else " ".join(line.split()))
            elif line.strip():
                parts[-1] += f" {' '.join(line.split())}"
            fresh = is_command or not line.strip()
        return parts


def run_options() -> list[Option]:
    """The options of a run that stand in no group."""
    return list(_options(Config, "", Choice.role, leave_out=set(GROUPS)))


def choice_options(group: str, cls: type[Choice]) -> list[Option]:
    """The options of a choice, without its name."""
    return list(_options(cls, f"{group}.", cls.role, leave_out={"name"}))


def meaning(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line; of a choice without one, its group's."""
    text = cls.__doc__ or ""
    if text.startswith(f"{cls.__name__}(") and issubclass(cls, Choice):  # what dataclasses write where nobody did
        text = base(cls.group).__doc__ or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def written(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(inner)}" for key, inner in value.items()) + "}"
    return str(value) or "''"


def _options(cls: type, prefix: str, role: str, leave_out: set[str]) -> Iterator[Option]:
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in leave_out:
            continue
        own = field.metadata.get("role", role)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _options(hints[field.name], f"{prefix}{field.name}.", own, set())
            continue
        kind, allowed = describe(hints[field.name])
        yield Option(f"{prefix}{field.name}", kind, allowed, _default(field), own, field.metadata.get("help", ""))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        return written(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return written(field.default_factory())
    return None


def describe(hint: Any) -> tuple[str, tuple[str, ...]]:
    """A type as people write it, and the words it allows where they can be counted."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:  # what it takes is wider than what it is
        return describe(parts[1])
    if origin in (Union, types.UnionType):
        described = [describe(part) for part in parts]
        return " | ".join(kind for kind, _ in described), tuple(word for _, words in described for word in words)
    if hint is type(None):
        return "null", ("null",)
    if isinstance(hint, type) and issubclass(hint, Enum):
        words = tuple(str(member.value) for member in hint)
        return " | ".join(words), words
    if hint is bool:
        return "bool", ("true", "false")
    if origin in (list, tuple):
        return f"list of {describe(parts[0])[0]}", ()
    if origin is dict:
        return f"mapping of {describe(parts[1])[0]}", ()
    return {Any: "any"}.get(hint) or hint.__name__, ()


@functools.cache
def presets(group: str) -> dict[str, Preset]:
    """Our YAML files of a group by name; `experiment` is one too."""
    folder = files("trainer.conf") / group
    if not folder.is_dir():
        return {}
    entries = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    found = {entry.name[:-5]: _preset(entry.name[:-5], entry.read_text(encoding="utf-8")) for entry in entries}
    return {name: _with_base(preset, found) for name, preset in found.items()}


def _with_base(preset: Preset, found: dict[str, Preset]) -> Preset:
    """A preset whose base is another one sets what that sets, too."""
    if preset.base not in found:
        return preset
    return dataclasses.replace(preset, values=_with_base(found[preset.base], found).values | preset.values)


def _preset(name: str, text: str) -> Preset:
    tree = yaml.safe_load(text) or {}
    defaults = tree.pop("defaults", [])
    parent = next((entry for entry in defaults if isinstance(entry, str) and entry != "_self_"), "")
    chosen = {str(key).removeprefix("override /"): value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()}
    return Preset(name, parent, _header(text), chosen | flatten(tree))


def _header(text: str) -> str:
    """The comment at the top, without what Hydra reads of it."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[1:].removeprefix(" "))
    return "\n".join(lines).strip()


def default_choices() -> dict[str, str]:
    """What each group is where nothing is said."""
    tree = yaml.safe_load((files("trainer.conf") / "train.yaml").read_text(encoding="utf-8"))
    return {key: value for entry in tree["defaults"] if isinstance(entry, dict) for key, value in entry.items()}


def registered(group: str) -> dict[str, type[Choice]]:
    """The classes of a group by name, in the order of their files."""
    return groups().get(group, {})


def names(group: str) -> list[str]:
    """What can stand after `group=`."""
    return sorted({*registered(group), *presets(group)})
