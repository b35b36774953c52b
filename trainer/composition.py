"""From overrides to a typed Config: Hydra composes once, in the front door, and its errors become ours."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from trainer import choices
from trainer.choices import ConfigError, load_choices, meant, nearest
from trainer.config import BUDGETS, GROUPS, Config, flatten
from trainer.strategies.ds_config import translated

_SEARCHPATH = "hydra.searchpath"
_stored: dict[tuple[str, str], type] = {}


def compose(*overrides: str) -> Config:
    """A checked Config from Hydra overrides, as on the command line. Raises ConfigError."""
    return to_config(compose_tree(overrides))


def compose_tree(overrides: Iterable[str]) -> DictConfig:
    """The composition before it becomes objects: what `--cfg job` prints."""
    words, told = translated(list(overrides))
    for line in told:
        print(f"ds_config: {line}", file=sys.stderr)
    parsed = parse(words)
    free = free_fields()
    words = [_added(word, override, free) for word, override in zip(words, parsed, strict=True)]
    for override in parsed:
        group = override.key_or_group
        if group in GROUPS and override.value() is None and not override.is_delete():
            raise ConfigError(f"{group}: null; a choice is needed, allowed: {', '.join(available(group))}")
    # A budget on the command line replaces the one of the YAML, whichever of the three it is.
    keys = {override.key_or_group for override in parsed}
    given = [key for key in BUDGETS if key in keys]
    cleared = [f"{key}=null" for key in BUDGETS if given and key not in given]
    with _hydra():
        try:
            tree = hydra_compose("train", overrides=[*cleared, *words])
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, parsed) from error
    return tree


def _added(word: str, override: Override, free: Iterable[str]) -> str:
    """The word, marked as one that may add its key where it lies in a dictionary that is free: `evals.books.path=…`."""
    key = override.key_or_group
    inside = any(key == name or key.startswith(f"{name}.") for name in free)
    marked = override.is_add() or override.is_force_add() or override.is_delete()
    return f"++{word}" if inside and not marked else word


def free_fields() -> list[str]:
    """Dotted keys of the fields, of Config and of every choice, that are dictionaries with keys of the user's own."""
    load_choices(launchers=True)
    holders: list[tuple[str, type]] = [("", Config)]
    holders += [(f"{group}.", cls) for group, members in choices.groups().items() for cls in members.values()]
    return [prefix + name for prefix, cls in holders for name, hint in get_type_hints(cls).items() if get_origin(hint) is dict]


def to_config(tree: DictConfig) -> Config:
    """The objects of a composition, checked. Raises ConfigError."""
    _refuse_added(tree, "")
    try:
        config = OmegaConf.to_object(tree)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: missing; give it as {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    assert isinstance(config, Config)
    config.strategy.composed(config)
    return config


def _refuse_added(node: DictConfig, prefix: str) -> None:
    """Raise ConfigError for a key that `+key=` added beside the fields of a class; dictionaries that are free stay free."""
    cls = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(cls):
        return
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in map(str, node):
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: no such key, and none can be added{_nearest_key(key, fields)}")
        inner = node._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_missing():
            _refuse_added(inner, f"{prefix}{key}.")


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a multirun: every combination of the overrides that list several values, as Hydra's basic sweeper expands them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    batches = BasicSweeper.split_arguments(parse(overrides), max_batch_size=None)
    return [job for batch in batches for job in batch]


def parse(overrides: Iterable[str]) -> list[Override]:
    """Parsed overrides. Raises ConfigError where a word is no override."""
    parser = OverridesParser.create()
    parsed = []
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
        except (HydraException, ValueError) as error:
            raise ConfigError(
                f"{word!r}: not an override; write key=value, quoting what the shell or Hydra would read "
                f"('key=\"a,b\"'): {_first_line(error)}"
            ) from error
    return parsed


def available(group: str) -> list[str]:
    """The names that can stand after `group=`: registered choices and YAML files."""
    with _hydra():
        loader = GlobalHydra.instance().config_loader()
        return sorted(name for name in loader.get_group_options(group))


class _hydra:
    """Hydra's global state, set for one composition and cleared after it."""

    def __enter__(self) -> None:
        register()
        GlobalHydra.instance().clear()
        self.context = initialize_config_module("trainer.conf", version_base="1.3")
        self.context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)
        GlobalHydra.instance().clear()


def register() -> None:
    """Feed Hydra's store: the schema, and every registered choice under its group."""
    load_choices(launchers=True)
    store = ConfigStore.instance()
    wanted = [("", "schema", Config), *((group, name, cls) for group, members in choices.groups().items() for name, cls in members.items())]
    for group, name, cls in wanted:
        # It looks into every field of a class, so each is fed once.
        if _stored.get((group, name)) is not cls:
            store.store(group=group or None, name=name, node=cls)
            _stored[group, name] = cls


def _explain(error: Exception, overrides: list[Override]) -> ConfigError:
    """Hydra's error as one of ours: the key or the choice that is unknown, and the nearest spelling."""
    groups = [*GROUPS, "experiment"]
    for override in overrides:
        key = override.key_or_group
        if key in groups and not override.is_delete():
            options = available(key)
            value = override.value()
            if isinstance(value, str) and value not in options and not any(o.key_or_group == _SEARCHPATH for o in overrides):
                return ConfigError(f"{key}={value}: no such choice; known: {', '.join(options)}{meant(key, value, options)}")
    valid = [o.input_line for o in overrides if o.key_or_group in groups or o.key_or_group == _SEARCHPATH]
    try:
        with _hydra():
            tree = hydra_compose("train", overrides=[line for line in valid if line])
    except (HydraException, OmegaConfBaseException):
        return ConfigError(_first_line(error))
    known = set(flatten(OmegaConf.to_container(tree, resolve=False)))  # type: ignore[arg-type]
    prefixes = {key[: match.start()] for key in known for match in re.finditer(r"\.", key)}
    for override in overrides:
        key = override.key_or_group
        if key in known or key in prefixes or key in groups or key == _SEARCHPATH:
            continue
        holder = key.rsplit(".", 1)[0]
        siblings = sorted(name for name in known if name.startswith(f"{holder}.")) if "." in key else []
        allowed = f"; {holder} has {', '.join(name.rsplit('.', 1)[1] for name in siblings)}" if siblings else ""
        return ConfigError(f"{key}: no such key (value {override.get_value_string()}){allowed}{_nearest_key(key, known)}")
    return ConfigError(_first_line(error))


def _nearest_key(key: str, known: set[str]) -> str:
    """The closest dotted key: by its whole spelling, else by its last word anywhere."""
    close = nearest(key, sorted(known))
    if close:
        return close
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in sorted(known, reverse=True)}
    leaf = nearest(key.rsplit(".", 1)[-1], sorted(by_leaf))
    return f"; did you mean {by_leaf[leaf.split(chr(39))[1]]!r}?" if leaf else ""


def _first_line(error: BaseException) -> str:
    """What OmegaConf or Hydra says, with its key first: `optim.lr: Value 'x' of type 'str' could not be converted to Float`."""
    cause: BaseException = error
    while isinstance(cause, ConfigCompositionException) and cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines()
    key = getattr(cause, "full_key", None)
    text = lines[0] if lines else type(cause).__name__
    if text.endswith("raised while composing config:") and len(lines) > 1:  # of a YAML file: what is wrong with it comes after
        text = f"{text.split(': ')[0]}: {lines[1]}"
    merging = re.match(r"Error merging override (.*)", str(error).splitlines()[0]) if str(error) else None
    if merging:
        text = f"{merging[1]}: {text}"
    elif key and not text.startswith(str(key)):
        text = f"{key}: {text}"
    return text
