"""Sources that are defined under names of the user's own: `data.sources.<name>.…`, `evals.<name>.…`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.choices import ConfigError, find, groups, nearest
from trainer.data.sources import Data

# Options of a run's data as a whole.
_OF_ALL = tuple(field.name for field in dataclasses.fields(Data))
# The key of an option, or the choice itself, as a source's own errors name it; not where it is a part of a path or of a value.
_OWN_KEY = re.compile(r"(?<![\w./='\"-])data\.(?=[a-z_])")
_OWN_NAME = re.compile(r"(?<![\w./='\"-])data=(?=[a-z_])")


def checked_name(name: Any, key: str) -> None:
    """Raise ConfigError for a name that cannot stand in row ids and in the names of figures."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(name)):
        raise ConfigError(f"{key}: {name!r} as a name; allowed: letters, digits, _ and -, a letter first, e.g. {key}.books")


def defined(options: Any, key: str, own: Sequence[str] = ()) -> Data:
    """The choice of the group `data` that plain options describe: `source` names it. own: further keys that are the caller's.

    Raises ConfigError, with the dotted key, for whatever that choice would not take.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"{key}: {options!r}; allowed: options below it: {key}.source=text, {key}.path=…")
    known = ", ".join(sorted(groups()["data"]))
    if not isinstance(options.get("source"), str):
        raise ConfigError(f"{key}.source: {options.get('source', 'missing')}; allowed: {known}")
    with named(key):
        cls = find("data", options["source"])
    fields = [field.name for field in dataclasses.fields(cls) if field.name not in _OF_ALL]
    for option in options:
        if option == "tokenizer" and option not in fields:
            raise ConfigError(f"{key}.tokenizer: a run has one tokenizer for all its text; set tokenizer=… and tokenizer.…=…")
        if option in _OF_ALL and option != "name":
            raise ConfigError(f"{key}.{option}: belongs to all sources together: data.{option}={options[option]}")
        if option not in (*fields, "source", *own):
            allowed = ", ".join((*own, *fields))
            raise ConfigError(f"{key}.{option}: no such option; {options['source']} has {allowed}{nearest(str(option), (*own, *fields))}")
    values = {option: value for option, value in options.items() if option in fields}
    with named(key):
        try:
            built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
        except OmegaConfBaseException as error:
            raise ConfigError(f"data.{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(built, Data)
    return built


def in_full(data: Data) -> dict[str, Any]:
    """Plain options that describe a source completely, defaults included."""
    options = OmegaConf.to_container(OmegaConf.structured(data), enum_to_str=True)
    assert isinstance(options, dict)
    return {"source": data.name} | {str(option): value for option, value in options.items() if option not in _OF_ALL}


@contextmanager
def named(key: str) -> Iterator[None]:
    """Errors of a source name its options below `data`, where they are if it is the only one; here they lie below `key`."""
    try:
        yield
    except ConfigError as error:
        if key == "data":
            raise
        text = _OWN_NAME.sub(f"{key}.source=", _OWN_KEY.sub(f"{key}.", str(error)))
        raise ConfigError(re.sub(r"^data:", f"{key}:", text)) from error
