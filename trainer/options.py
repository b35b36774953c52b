"""The words of a verb that looks at a run: `key=value`, split at the first `=` and nothing more, so that values are what they say."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from trainer.choices import ConfigError, nearest

T = TypeVar("T")

_BOOLEANS = {"true": True, "false": False}


def option(default: Any = dataclasses.MISSING, *, help: str) -> Any:
    """A field of a verb's options."""
    return dataclasses.field(default=default, metadata={"help": help})


def parse(words: list[str], kind: type[T], verb: str) -> T | None:
    """The options of a verb, as its dataclass; None where help was asked for, and printed.

    Raises ConfigError naming the word, what is allowed, and the nearest option.
    """
    if any(word in ("-h", "--help") for word in words):
        print(usage(kind, verb))
        return None
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r}: not an option; write key=value, one of: {', '.join(fields)}")
        if key not in fields:
            raise ConfigError(f"{key}: no such option of {verb}; known: {', '.join(fields)}{nearest(key, fields)}")
        if key in given:
            raise ConfigError(f"{key}: given twice")
        given[key] = _value(key, text, hints[key])
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in given]
    if missing:
        raise ConfigError(f"{missing[0]}: missing\n{usage(kind, verb)}")
    return kind(**given)


def require_device(device: str | None) -> None:
    """Raise ConfigError where an option `device` names none."""
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device: {device!r}; allowed: cpu, cuda")


def taken(words: list[str], kind: type) -> tuple[list[str], list[str]]:
    """Words of a verb that composes a run too: those that are its own options, and the rest."""
    own = {field.name for field in dataclasses.fields(kind)}
    mine = [word for word in words if "=" in word and word.partition("=")[0] in own]
    return mine, [word for word in words if word not in mine]


def usage(kind: type, verb: str) -> str:
    """What the verb takes."""
    lines = []
    words = ["usage: trainer", verb]
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING
        words.append(f"{field.name}=…" if needed else f"[{field.name}=…]")
        default = "" if needed or field.default is None else f" (default {field.default!r})"
        lines.append(f"  {field.name:<12} {field.metadata.get('help', '')}{default}")
    return "\n".join([" ".join(words), *lines])


def _value(key: str, text: str, wanted: Any) -> Any:
    if isinstance(wanted, types.UnionType):
        wanted = next(part for part in typing.get_args(wanted) if part is not types.NoneType)
    try:
        return _BOOLEANS[text.lower()] if wanted is bool else wanted(text)
    except (ValueError, KeyError):
        name = {int: "a whole number", float: "a number", bool: "true or false"}.get(wanted, wanted.__name__)
        raise ConfigError(f"{key}: {text!r}; must be {name}") from None
