"""What cannot go together: one table of (strategy × feature), with the reason and the mend, read before anything is launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.choices import ConfigError

if TYPE_CHECKING:
    from trainer.config import Config


@dataclass(frozen=True)
class Refusal:
    """One cell: strategies that cannot run with `key` at `value`. key: dotted; a group's name stands for its choice."""

    strategies: tuple[str, ...]
    key: str
    value: Any
    reason: str
    mend: str


# Each rank holds only a part of every tensor.
_CUT = ("zero1", "zero2", "zero3", "fsdp", "hsdp")

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        strategies=_CUT,
        key="optim",
        value="muon",
        reason="Muon orthogonalizes whole matrices, and each rank of this strategy holds only a part of every matrix",
        mend="optim=adamw, or strategy=ddp",
    ),
    Refusal(
        strategies=_CUT,
        key="optim",
        value="lamb",
        reason="LAMB scales a step by the norm of the whole tensor, and each rank of this strategy holds only a part of every tensor",
        mend="optim=adamw, or strategy=ddp",
    ),
    Refusal(
        strategies=_CUT,
        key="optim",
        value="adafactor",
        reason="Adafactor averages over the rows and columns of whole matrices, and each rank of this strategy holds only a part of them",
        mend="optim=adamw or lion, or strategy=ddp",
    ),
)


@dataclass(frozen=True)
class Unproven:
    """What can be set, but has not been seen to do on hardware what it says. reason: what is missing."""

    strategies: tuple[str, ...]
    key: str
    reason: str


UNPROVEN: tuple[Unproven, ...] = (
    Unproven(("fsdp", "hsdp"), "strategy.cpu_offload=true", "no GPU has run it; on CPUs it is tested, where it changes nothing"),
    Unproven(("fsdp", "hsdp"), "strategy.prefetch", "no GPU has run it; on CPUs it is tested to change no number, and gains nothing"),
)


def refuse_unsupported(config: Config) -> None:
    """Raise ConfigError naming both sides, the reason and the mend, where a configuration meets a cell of the table."""
    for refusal in REFUSALS:
        if config.strategy.name in refusal.strategies and value_at(config, refusal.key) == refusal.value:
            raise ConfigError(
                f"strategy={config.strategy.name} cannot run with {refusal.key}={refusal.value}: {refusal.reason}; "
                f"set {refusal.mend}; it runs with {refusal.key}={refusal.value} under {allowed(refusal)}"
            )


def value_at(config: Any, key: str) -> Any:
    """The value under a dotted key; of a choice, its name."""
    for part in key.split("."):
        config = getattr(config, part)
    return getattr(config, "name", config)


def allowed(refusal: Refusal) -> str:
    """The strategies that a feature does run under."""
    from trainer.choices import groups

    return "|".join(name for name in sorted(groups()["strategy"]) if name not in refusal.strategies)


def support() -> str:
    """Every optimizer, and every other feature that a strategy refuses, beside every strategy, as printed in the docs."""
    from trainer.choices import groups

    strategies = list(groups()["strategy"])
    features = [("optim", name) for name in groups()["optim"]]
    features += [(cell.key, cell.value) for cell in REFUSALS if (cell.key, cell.value) not in features]
    rows = [f"| | {' | '.join(strategies)} |", f"|---|{':---:|' * len(strategies)}"]
    for key, value in dict.fromkeys(features):
        refusing = {name for cell in REFUSALS if (cell.key, cell.value) == (key, value) for name in cell.strategies}
        rows.append(f"| `{key}={value}` | {' | '.join('–' if name in refusing else 'yes' for name in strategies)} |")
    return "\n".join(rows)


def markdown() -> str:
    """The table as printed in the docs."""
    rows = ["| strategy | with | why not | instead |", "|---|---|---|---|"]
    rows += [f"| {', '.join(cell.strategies)} | {cell.key}={cell.value} | {cell.reason} | {cell.mend} |" for cell in REFUSALS]
    rows += [
        "",
        "What runs, but is not proven on the hardware that it is for:",
        "",
        "| strategy | with | what is missing |",
        "|---|---|---|",
    ]
    rows += [f"| {', '.join(cell.strategies)} | {cell.key} | {cell.reason} |" for cell in UNPROVEN]
    return "\n".join(rows)
