"""The typed configuration of a run, the checks that span its fields, and its identity.

`Config` is what a Hydra composition becomes and what every rank reads back from the frozen `config.yaml`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import yaml
from omegaconf import MISSING, OmegaConf

from trainer.adapters import Adapter
from trainer.choices import IDENTITY, PLACEMENT, Choice, ConfigError, base, find, groups, identity, load_choices, placement, whole_number
from trainer.compiling import Compile
from trainer.data.defining import named
from trainer.data.evals import EvalSet, eval_sets, refuse_shared_figures
from trainer.data.mixture import leaves, sources_of
from trainer.data.sources import Data
from trainer.data.tokenizers import Tokenizer
from trainer.early_stop import EarlyStop
from trainer.models import Model
from trainer.optim import Optim
from trainer.schedules import Schedule
from trainer.settings import Checkpoint, Device, Precision, Profile, Survival, Tracking
from trainer.strategies import Strategy
from trainer.tasks import Task
from trainer.teachers import Teacher

if TYPE_CHECKING:
    Count = int
else:
    # OmegaConf takes no 1e9 for an int; `check` does.
    Count = Annotated[Any, int]


@dataclasses.dataclass
class Resume:
    """How a run directory that already exists is treated."""

    extend: bool = placement(False, help="go on with a changed budget, under the schedule of the new one")
    overwrite: bool = placement(False, help="start anew, dropping what the run directory holds")


@dataclasses.dataclass
class Init:
    """Where the first weights come from, beside the model's own initialization."""

    run: str | None = identity(None, help="weights of another run: runs/x or runs/x@step")


@dataclasses.dataclass
class Recompute:
    """What of a forward pass is computed again in backward instead of being kept: slower, in less memory, with the same result."""

    every: int | None = placement(None, help="recompute every k-th transformer block; 1: all of them, null: none")
    keep: list[str] = placement(default_factory=list, help="results that recomputed blocks keep all the same: attention, matmul")


@dataclasses.dataclass
class Head:
    """How the loss over a vocabulary is computed; the result is the same."""

    chunk_mib: float | None = placement(
        512.0, help="head and loss together, of so many rows at once that their logits take so much memory (MiB in fp32); null: apart"
    )


@dataclasses.dataclass
class BatchRamp:
    """Global batches that grow up to `global_batch` over the first part of a run."""

    start: int | None = identity(None, help="rows of the first global batches; null: all have global_batch rows")
    share: float = identity(0.1, help="share of the budget's steps in which they grow")
    stages: int = identity(4, help="sizes before the full one, each for the same number of steps")

    def sizes(self, global_batch: int) -> list[int]:
        """Rows of a global batch in each stage before the full one."""
        if self.start is None:
            return []
        return [self.start + (global_batch - self.start) * stage // self.stages for stage in range(self.stages)]


@dataclasses.dataclass
class Config:
    """One run, completely."""

    name: str = placement("${model.name}-${task.name}", help="the run's name")
    output_dir: str = placement("runs/${name}", help="the run directory itself")
    seed: int = identity(0, help="of every random draw")
    steps: Count | None = identity(None, help="budget in optimizer steps")
    tokens: Count | None = identity(None, help="budget in real tokens")
    epochs: float | None = identity(None, help="budget in passes over the rows")
    global_batch: Count = identity(64, help="rows of an optimizer step, over all devices")
    batch_ramp: BatchRamp = identity(default_factory=BatchRamp)
    sequence_length: Count = identity(256, help="tokens of a row")
    micro_batch: Union[int, str] = placement("auto", help="rows a device takes at once, or auto")  # noqa: UP007 (OmegaConf)
    deterministic: bool = placement(False, help="bit-equal repetition on GPUs, slower")
    eval_every: Count | None = placement(None, help="steps between evaluations; there is always one at the end")
    save_every: Count = placement(1000, help="steps between checkpoints; there is always one at a stop and at the end")
    log_every: Count = placement(10, help="steps between lines of metrics.jsonl")
    resume: Resume = placement(default_factory=Resume)
    init: Init = identity(default_factory=Init)
    early_stop: EarlyStop = identity(default_factory=EarlyStop)
    recompute: Recompute = placement(default_factory=Recompute)
    head: Head = placement(default_factory=Head)
    compile: Compile = placement(default_factory=Compile)
    fingerprint: str | None = identity(None, help="of the prepared data; filled in by prepare")
    evals: dict[str, Any] = placement(default_factory=dict, help="sets beside the held-out part: evals.NAME.{source, every, its options}")

    model: Model = MISSING
    adapter: Adapter = MISSING
    tokenizer: Tokenizer = MISSING
    task: Task = MISSING
    teacher: Teacher = MISSING
    data: Data = MISSING
    optim: Optim = MISSING
    schedule: Schedule = MISSING
    strategy: Strategy = MISSING
    precision: Precision = MISSING
    launcher: Any = MISSING
    device: Device = MISSING
    tracking: Tracking = MISSING
    checkpoint: Checkpoint = MISSING
    survival: Survival = MISSING
    profile: Profile = MISSING

    def __post_init__(self) -> None:
        check(self)

    @property
    def eval_sets(self) -> list[EvalSet]:
        """What is evaluated on beside the held-out part. Raises ConfigError."""
        return eval_sets(self.evals)

    @property
    def objective(self) -> str:
        """The head that its task needs of its model."""
        return self.task.objective_on(self.model)

    @property
    def weights(self) -> dict[str, float]:
        """term → weight in the training objective."""
        return self.teacher.weights(self.task)

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir)


GROUPS = ("model", "adapter", "tokenizer", "task", "teacher", "data", "optim", "schedule", "strategy", "precision", "launcher", "device",
          "tracking", "checkpoint", "survival", "profile")  # fmt: skip
# What a run's name cannot hold: it is a folder's name and stands on command lines.
UNNAMEABLE = re.compile(r"[^\w.,=@+ -]")
BUDGETS = ("steps", "tokens", "epochs")
COUNTS = ("steps", "tokens", "global_batch", "sequence_length", "eval_every", "save_every", "log_every")
RECOMPUTE_KEEPS = ("attention", "matmul")


def check(config: Config) -> None:
    """Refuse what cannot run, and contradictions between fields. Raises ConfigError naming the dotted key."""
    from trainer.strategies.matrix import refuse_unsupported

    for key in COUNTS:
        if (count := getattr(config, key)) is not None:
            setattr(config, key, whole_number(key, count))
    given = [key for key in BUDGETS if getattr(config, key) is not None]
    if len(given) != 1:
        have = ", ".join(f"{key}={getattr(config, key)}" for key in given) or "none"
        raise ConfigError(f"steps|tokens|epochs: exactly one budget is needed, {have} given; e.g. steps=1000")
    for key in (*given, "global_batch", "sequence_length", "log_every", "eval_every", "save_every"):
        value = getattr(config, key)
        if value is not None and value <= 0:
            raise ConfigError(f"{key}: {value}; must be positive")
    if (
        isinstance(config.micro_batch, str)
        and config.micro_batch != "auto"
        or not isinstance(config.micro_batch, str)
        and config.micro_batch < 1
    ):
        raise ConfigError(f"micro_batch: {config.micro_batch!r}; allowed: auto, or a number of rows from 1")
    # A name of dots alone is another folder.
    if UNNAMEABLE.search(config.name) or config.name.startswith(" ") or not config.name.strip(". "):
        raise ConfigError(f"name: {config.name!r}; allowed: letters, digits and . , = @ + - _, and not dots alone")
    if not config.output_dir.strip():
        raise ConfigError(f"output_dir: {config.output_dir!r}; allowed: the path of a folder, e.g. output_dir=runs/{config.name}")
    positions = getattr(config.model, "positions", None)
    if positions is not None and config.sequence_length > positions:
        raise ConfigError(
            f"sequence_length: {config.sequence_length} is longer than model.positions: {positions}; "
            f"set sequence_length={positions} or model.positions={config.sequence_length}"
        )
    ramp = config.batch_ramp
    if ramp.start is not None and not 1 <= ramp.start < config.global_batch:
        raise ConfigError(
            f"batch_ramp.start: {ramp.start}; allowed: from 1 to below global_batch={config.global_batch}, or null for no ramp"
        )
    if not 0 < ramp.share <= 1 or ramp.stages < 1:
        raise ConfigError(
            f"batch_ramp.share: {ramp.share}, batch_ramp.stages: {ramp.stages}; allowed: a share above 0 up to 1, and 1 stage or more"
        )
    every, keep = config.recompute.every, config.recompute.keep
    if every is not None and every < 1:
        raise ConfigError(f"recompute.every: {every}; allowed: 1 (every block) or more, or null for none")
    if any(name not in RECOMPUTE_KEEPS for name in keep):
        raise ConfigError(f"recompute.keep: {keep}; allowed: {', '.join(RECOMPUTE_KEEPS)}")
    if keep and every is None:
        raise ConfigError(f"recompute.keep: {keep} without recompute.every; set recompute.every=1 too")
    if config.head.chunk_mib is not None and config.head.chunk_mib <= 0:
        raise ConfigError(f"head.chunk_mib: {config.head.chunk_mib}; allowed: MiB above 0, or null for all logits at once")
    config.compile.check()
    # In full: what was frozen stays, should a default ever change.
    config.evals = {one.name: one.in_full() for one in config.eval_sets}
    refuse_shared_figures(config.evals, sources_of(config.data), config.task.terms)
    config.task.compatible(config.model)
    if config.data.shots is not None and not config.task.fields:
        raise ConfigError(
            f"data.shots: {config.data.shots} with task={config.task.name}, which learns from text; choose a task on examples"
        )
    sources = [(key, source) for _, key, _, source in leaves(config.data)] + [(one.key, one.source) for one in config.eval_sets]
    for key, source in sources:
        with named(key):
            source.suits(config.tokenizer, config.task)
    refuse_unsupported(config)
    _require_measured(config)


def _require_measured(config: Config) -> None:
    """Checkpoints can be ranked by a figure only where it is measured on what is saved, and one that is watched has to be measured."""
    best, watched = getattr(config.checkpoint, "best", None), config.early_stop.figure
    _, every = measured_every(config, best or "")
    if best is not None and (not best.startswith("eval_") or every is None or config.save_every % every):
        raise ConfigError(
            f"checkpoint.best: {best} with eval_every={every} and save_every={config.save_every}; allowed: a held-out figure "
            f"(eval_loss, …) that is measured whenever is saved: eval_every={config.save_every}, or another divisor of save_every"
        )
    config.early_stop.check()
    key, every = measured_every(config, watched or "")
    if watched is not None and (not watched.startswith("eval_") or every is None):
        raise ConfigError(
            f"early_stop.figure: {watched} with {key}={every}; allowed: a held-out figure (eval_loss, eval_accuracy …) that is measured "
            f"as the run goes on: set {key} to steps"
        )


def measured_every(config: Config, figure: str) -> tuple[str, int | None]:
    """The key that says how often a held-out figure is measured, and the steps between two times; None: at the end alone."""
    one = set_of(config, figure)
    return (f"{one.key}.every", one.every) if one is not None and one.every else ("eval_every", config.eval_every)


def set_of(config: Config, figure: str) -> EvalSet | None:
    """The named set that a held-out figure is of; None: the held-out part of the run's own data."""
    return next((one for one in config.eval_sets if figure.startswith(f"eval_{one.name}_")), None)


def roles(config: Config) -> dict[str, str]:
    """Dotted key → identity or placement, for every leaf."""
    found: dict[str, str] = {}

    def walk(value: Any, prefix: str, default: str) -> None:
        for field in dataclasses.fields(value):
            role = field.metadata.get("role", default)
            inner = getattr(value, field.name)
            key = f"{prefix}{field.name}"
            if isinstance(inner, Choice):
                walk(inner, f"{key}.", inner.role)
            elif dataclasses.is_dataclass(inner):
                walk(inner, f"{key}.", role)
            else:
                found[key] = role

    walk(config, "", PLACEMENT)
    return found


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values only: enums by name, nested dataclasses as dictionaries."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries → dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def identity_of(config: Config) -> dict[str, Any]:
    """The dotted keys that decide what is computed, with their values."""
    kinds = roles(config)
    found = {key: value for key, value in flatten(to_dict(config)).items() if role_of(key, kinds) == IDENTITY}
    if config.early_stop.figure is None:
        return found
    # How often it is looked at decides when the run ends.
    key, every = measured_every(config, config.early_stop.figure)
    return found | {key: every}


def role_of(key: str, kinds: dict[str, str]) -> str:
    """The role of a dotted key, by what `roles` found."""
    # A leaf below a free-form dictionary field (data.columns.text) takes the role of the field.
    while key not in kinds and "." in key:
        key = key.rsplit(".", 1)[0]
    return kinds.get(key, PLACEMENT)


def digest(config: Config) -> str:
    """A short hash of the identity keys: two runs with the same digest compute the same."""
    text = json.dumps(identity_of(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


HIDDEN = "<redacted>"
# The last word of a name, in snake_case, kebab-case or camelCase.
_SECRET = re.compile(r"(?:(?:^|[._-])(?i:api_?key|key|token|secret|password)|(?<=[a-z])(?:Key|Token|Secret|Password))s?$")

_COUNT = re.compile(r"\d[\d.,_eE+]*")


def is_secret(name: str, value: Any) -> bool:
    """Whether the value of this name is to be hidden. `tokens: 5000` and `max_tokens=1e9` are how many, not which."""
    counts = name.endswith("tokens") and (not isinstance(value, str) or _COUNT.fullmatch(value) is not None)
    return _SECRET.search(name) is not None and not counts


def redacted(tree: Any, name: str = "") -> Any:
    """A copy with the value of every name that looks like a secret replaced."""
    if isinstance(tree, dict):
        return {key: redacted(value, str(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redacted(value, name) for value in tree]
    return HIDDEN if tree and not isinstance(tree, bool) and is_secret(name, tree) else tree


def dump(config: Config) -> str:
    """The frozen YAML: complete, resolved, secrets redacted."""
    return yaml.safe_dump(redacted(to_dict(config)), sort_keys=False, allow_unicode=True, width=120)


def load(path: Path | str) -> Config:
    """A typed Config from a frozen `config.yaml`, without Hydra. What the file names is looked up, never executed."""
    return from_dict(yaml.safe_load(Path(path).read_text()))


# Groups that runs of earlier versions have not frozen, as they were then.
_LATER = {"adapter": {"name": "none"}, "teacher": {"name": "none"}}


def from_dict(tree: dict[str, Any]) -> Config:
    """A typed, checked Config from plain values, each group built by the class that its `name` registers.

    Where `launcher` is not registered (in a rank) it stays plain values.
    """
    load_choices()
    tree = _LATER | tree
    built: dict[str, Any] = {}
    for group in GROUPS:
        if group not in groups():
            continue
        built[group] = OmegaConf.merge(OmegaConf.structured(find(group, tree[group]["name"])), tree[group])
    rest = {key: value for key, value in tree.items() if key not in built}
    merged = OmegaConf.merge(OmegaConf.structured(Config), built, rest)
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config


__all__ = [
    "BUDGETS",
    "GROUPS",
    "Config",
    "ConfigError",
    "base",
    "check",
    "digest",
    "dump",
    "from_dict",
    "identity_of",
    "load",
    "redacted",
    "roles",
]
