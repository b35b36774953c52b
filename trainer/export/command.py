"""A run as one command: what was chosen, and every option that differs from its default."""

from __future__ import annotations

import re
import shlex
from typing import Any

from trainer.choices import IDENTITY, find
from trainer.config import GROUPS, UNNAMEABLE, Config, flatten, redacted, role_of, roles, to_dict
from trainer.reference import choice_options, default_choices, run_options, written

# What Hydra reads as a text without quotes, and as nothing else.
_PLAIN = re.compile(r"[A-Za-z_./][\w./@*?+-]*")
_NOT_TEXT = ("true", "false", "null", "nan", "inf", "on", "off", "yes", "no")


def command_of(config: Config) -> str:
    """The command that computes the same, without a recipe: to be typed where the data lie at the same paths."""
    return shlex.join(["trainer", "train", *words_of(config)])


def words_of(config: Config) -> list[str]:
    """Its words: those of the identity keys, and a name where one can be typed."""
    values, kinds = redacted(to_dict(config)), roles(config)
    words = []
    defaults = {option.key: option.default for option in run_options()}
    for group in GROUPS:
        name = (values.get(group) or {}).get("name")
        if role_of(f"{group}.name", kinds) != IDENTITY:
            continue
        if default_choices().get(group) != name:
            words.append(f"{group}={name}")
        defaults |= {option.key: option.default for option in choice_options(group, find(group, str(name)))}
        defaults[f"{group}.name"] = name
    for key, value in flatten(values).items():
        if key in ("fingerprint",) or role_of(key, kinds) != IDENTITY:
            continue
        if key not in defaults or written(value) != defaults[key]:
            words.append(f"{key}={typed(value)}")
    return [*words, f"name={typed(config.name)}"] if not UNNAMEABLE.search(config.name) else words


def typed(value: Any) -> str:
    """A value as Hydra reads it back on a command line."""
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT
        return value if plain else '"' + value.replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(typed, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{typed(inner)}" for key, inner in value.items()) + "}"
    return written(value)
