"""The registry of choices: what a name on the command line (`task=clm`, `strategy=zero2`) stands for.

A choice is a dataclass: its fields are the options of that choice, its methods the behaviour. Registering it feeds Hydra's ConfigStore,
so that its options are typed and checked when the configuration is composed, and stamps its name into the saved YAML, so that a
frozen run is read back without Hydra. There are no `_target_` strings: a configuration can name a choice, never call a function.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar, dataclass_transform

IDENTITY, PLACEMENT = "identity", "placement"

# Modules that register choices when imported. None of them imports torch at its top, so composing stays fast.
_PACKAGES = (
    "trainer.models",
    "trainer.adapters",
    "trainer.tasks",
    "trainer.teachers",
    "trainer.data",
    "trainer.strategies",
    "trainer.settings",
    "trainer.optim",
    "trainer.schedules",
)
_PLUGINS = "trainer.plugins"

_registry: dict[str, dict[str, type[Choice]]] = {}
_bases: dict[str, type[Choice]] = {}
_loaded: set[str] = set()


class ConfigError(ValueError):
    """What a user configured cannot be run. Says what, where, the value, what is allowed, and how to mend it."""


def identity(default: Any = dataclasses.MISSING, *, help: str = "", **options: Any) -> Any:
    """A field that decides what is computed: changed, it is another run."""
    return dataclasses.field(default=default, metadata={"role": IDENTITY, "help": help}, **options)


def placement(default: Any = dataclasses.MISSING, *, help: str = "", **options: Any) -> Any:
    """A field that decides where and how it is computed: it may change between a stop and a resume."""
    return dataclasses.field(default=default, metadata={"role": PLACEMENT, "help": help}, **options)


@dataclasses.dataclass
class Choice:
    """Base of everything a user selects by name. A group's base class names its group and the role of its fields."""

    group: ClassVar[str] = ""
    role: ClassVar[str] = IDENTITY
    name: str = ""

    def __init_subclass__(cls, group: str | None = None, role: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if group is not None:
            cls.group = group
            cls.role = role or IDENTITY
            _bases[group] = cls
            _registry.setdefault(group, {})

    def __post_init__(self) -> None:
        stamped = type(self).__dataclass_fields__["name"].default
        if stamped and self.name != stamped:
            raise ConfigError(
                f"{self.group}.name: {self.name!r} was given, but the choice is {stamped!r}; select another with {self.group}={self.name}"
            )
        self.check()

    def check(self) -> None:
        """Raise ConfigError where the fields of this choice contradict each other."""


def require_positive(chosen: Choice, *fields: str, optional: bool = False) -> None:
    """Raise ConfigError for a field that is not above 0 (optional: or null)."""
    _require(chosen, fields, lambda value: value > 0, f"above 0{' or null' if optional else ''}", optional)


def require_at_least(chosen: Choice, least: int, *fields: str, optional: bool = False) -> None:
    """Raise ConfigError for a field below `least` (optional: or null)."""
    _require(chosen, fields, lambda value: value >= least, f"{least} or more{', or null' if optional else ''}", optional)


def require_share(chosen: Choice, *fields: str, whole: bool = False) -> None:
    """Raise ConfigError for a field outside [0, 1) (whole: [0, 1])."""
    allowed = "from 0 to 1" if whole else "from 0 to below 1"
    _require(chosen, fields, lambda value: 0 <= value <= 1 and (whole or value < 1), allowed, False)


def whole_number(key: str, value: Any) -> int:
    """A count, however it was written: 1000, 1e9, "1e9". YAML reads 1e9 as a float, and as a string where it stands in quotes.

    Raises ConfigError where it is no whole number.
    """
    try:
        number = value if isinstance(value, int) else float(value)
        if not isinstance(value, bool) and number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"{key}: {value!r}; allowed: a whole number, such as 1000 or 1e9")


def _require(chosen: Choice, fields: Iterable[str], holds: Callable[[Any], bool], allowed: str, optional: bool) -> None:
    for field in fields:
        value = getattr(chosen, field)
        if not (optional and value is None) and not holds(value):
            raise ConfigError(f"{chosen.group}.{field}: {value}; allowed: {allowed}")


T = TypeVar("T", bound=type)


@dataclass_transform(field_specifiers=(dataclasses.field,))
def choice(cls: T) -> T:
    """Make a subclass of a group's base a dataclass and register it under its `name`."""
    cls = dataclasses.dataclass(cls)  # type: ignore[assignment]
    name = cls.__dataclass_fields__["name"].default  # type: ignore[attr-defined]
    if not cls.group or not name:  # type: ignore[attr-defined]
        raise TypeError(f"{cls.__qualname__} needs a group (from its base) and `name: str = ...` of its own")
    known = _registry[cls.group].get(name)  # type: ignore[attr-defined]
    if known is not None and known.__module__ != cls.__module__:
        raise TypeError(f"{cls.group}={name} is registered by {known.__module__} and again by {cls.__module__}")  # type: ignore[attr-defined]
    _registry[cls.group][name] = cls  # type: ignore[attr-defined]
    return cls


def load_choices(launchers: bool = False) -> None:
    """Import every module that registers choices: ours, installed entry points, and those named in TRAINER_PLUGINS.

    launchers: also import `trainer.launch`, which only the front door does.
    """
    wanted = [*_PACKAGES, *(["trainer.launch"] if launchers else [])]
    for package_name in wanted:
        if package_name in _loaded:
            continue
        _loaded.add(package_name)
        package = importlib.import_module(package_name)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            name = f"{package_name}.{module.name}"
            if getattr(package, "CHOICES", None) is None or module.name in package.CHOICES:
                importlib.import_module(name)
    if _PLUGINS not in _loaded:
        _loaded.add(_PLUGINS)
        for entry in entry_points(group=_PLUGINS):
            entry.load()
        for name in filter(None, os.environ.get("TRAINER_PLUGINS", "").split(",")):
            importlib.import_module(name)
        # One that brings a launcher has registered the group, also in a rank, where a frozen file may name another launcher.
        if "launcher" in _bases:
            load_choices(launchers=True)


def groups() -> dict[str, dict[str, type[Choice]]]:
    """Every registered choice by group and name."""
    return _registry


def base(group: str) -> type[Choice]:
    """The class that all choices of a group derive from."""
    return _bases[group]


def find(group: str, name: str) -> type[Choice]:
    """The class registered for `group=name`. Raises ConfigError with the nearest name."""
    known = _registry[group]
    if name not in known:
        raise ConfigError(f"{group}={name}: no such choice; known: {', '.join(sorted(known))}{meant(group, name, known)}")
    return known[name]


# What others call it: a choice of the same group, or what to write instead.
_ELSEWHERE = {
    "task": {
        "distillation": "a teacher goes beside any task: teacher=pretrained teacher.path=…",
        **dict.fromkeys(("ner", "pos", "tagging"), "token_classification"),
        **dict.fromkeys(("qa", "squad"), "question_answering"),
        **dict.fromkeys(("summarization", "translation", "text2text"), "seq2seq"),
        **dict.fromkeys(("chat", "sft", "instruction"), "instruct"),
        **dict.fromkeys(("embedding", "similarity"), "contrastive"),
        **dict.fromkeys(("regression", "sequence_classification", "text_classification", "sentiment"), "classification"),
    },
    "adapter": {"houlsby": "bottleneck", "ptuning": "p_tuning", "prompt_tuning": "prompt", "prefix_tuning": "prefix"},
}


def meant(group: str, word: str, candidates: Any) -> str:
    """What was probably meant by a name that no choice of a group has, as `nearest` says it."""
    other = _ELSEWHERE.get(group, {}).get(word)
    if other is None or " " not in other and other not in candidates:
        return nearest(word, candidates)
    return f"; {other}" if " " in other else f"; did you mean {other!r}?"


def nearest(word: str, candidates: Any) -> str:
    """`; did you mean x?` for the closest candidate, else nothing."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
