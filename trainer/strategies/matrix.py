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
CUT = ("zero1", "zero2", "zero3", "fsdp", "hsdp")

_SWAPPED = "DeepSpeed leaves on the disk what checkpoints, averages and the proof before step 1 read and write between steps"

REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        strategies=CUT,
        key="optim",
        value="muon",
        reason="Muon orthogonalizes whole matrices, and each rank of this strategy holds only a part of every matrix",
        mend="optim=adamw, or strategy=ddp",
    ),
    Refusal(
        strategies=CUT,
        key="optim",
        value="lamb",
        reason="LAMB scales a step by the norm of the whole tensor, and each rank of this strategy holds only a part of every tensor",
        mend="optim=adamw, or strategy=ddp",
    ),
    Refusal(
        strategies=CUT,
        key="optim",
        value="adafactor",
        reason="Adafactor averages over the rows and columns of whole matrices, and each rank of this strategy holds only a part of them",
        mend="optim=adamw or lion, or strategy=ddp",
    ),
    Refusal(
        strategies=CUT,
        key="adapter",
        value="adalora",
        reason="AdaLoRA weighs the gradients of whole matrices, and each rank of this strategy holds only a part of every matrix",
        mend="adapter=lora, or strategy=ddp",
    ),
    Refusal(
        strategies=CUT,
        key="adapter",
        value="qlora",
        reason="a weight in 4 bits is no parameter that this strategy could cut or count",
        mend="adapter=lora, or strategy=ddp",
    ),
    Refusal(
        strategies=("zero1", "zero2"),
        key="strategy.offload_optimizer",
        value="nvme",
        reason="DeepSpeed swaps moments to a disk under stage 3 alone, and would keep them in the host's memory without a word",
        mend="strategy.offload_optimizer=cpu",
    ),
    Refusal(
        strategies=("zero3",),
        key="compile.blocks",
        value=True,
        reason="DeepSpeed gathers and frees the parameters of every layer inside of a block, where a compiler cuts its graph each time",
        mend="compile.blocks=false, or strategy=fsdp, which gathers them around a block",
    ),
    *(
        Refusal(
            strategies=("zero3",),
            key=key,
            value="nvme",
            reason=_SWAPPED,
            mend=f"{key}=cpu",
        )
        for key in ("strategy.offload_optimizer", "strategy.offload_parameters")
    ),
)


@dataclass(frozen=True)
class Unproven:
    """What can be set, but has not been seen to do on hardware what it says. reason: what is missing."""

    strategies: tuple[str, ...]
    key: str
    reason: str


UNPROVEN: tuple[Unproven, ...] = (
    Unproven(
        ("single", "ddp", *CUT),
        "precision=fp8",
        "no GPU has run it; on CPUs, which round to the same 8 bits, its curve is near that of bf16",
    ),
    Unproven(("single", "ddp"), "adapter=qlora", "no GPU has run it; on CPUs it is tested, where it is slow"),
    Unproven(("fsdp", "hsdp"), "strategy.cpu_offload=true", "no GPU has run it; on CPUs it is tested, where it changes nothing"),
    Unproven(
        ("zero1", "zero2", "zero3"), "strategy.offload_optimizer=cpu", "no GPU has run it; on CPUs it is tested to give the same curve"
    ),
    Unproven(("zero3",), "strategy.offload_parameters=cpu", "no GPU has run it; on CPUs it is tested to give the same curve"),
    Unproven(("fsdp", "hsdp"), "strategy.prefetch", "no GPU has run it; on CPUs it is tested to change no number, and gains nothing"),
)


def refuse_unsupported(config: Config) -> None:
    """Raise ConfigError naming both sides, the reason and the mend, where a configuration meets a cell of the table."""
    for refusal in REFUSALS:
        if config.strategy.name in refusal.strategies and value_at(config, refusal.key) == refusal.value:
            elsewhere = allowed(refusal)
            runs = f"; it runs with {refusal.key}={refusal.value} under {elsewhere}" if elsewhere else ""
            raise ConfigError(
                f"strategy={config.strategy.name} cannot run with {refusal.key}={refusal.value}: {refusal.reason}; set {refusal.mend}{runs}"
            )


def value_at(config: Any, key: str) -> Any:
    """The value under a dotted key; of a choice, its name."""
    for part in key.split("."):
        config = getattr(config, part)
    return getattr(config, "name", config)


def allowed(refusal: Refusal) -> str:
    """The strategies that a feature does run under."""
    return "|".join(name for name, word in cells(refusal.key, refusal.value).items() if word == "yes")


def cells(key: str, value: Any) -> dict[str, str]:
    """Of each strategy, whether it runs with `key` at `value`: `yes`, `–`, or nothing where it has no such key."""
    from trainer.choices import groups

    refusing = {name for cell in REFUSALS if (cell.key, cell.value) == (key, value) for name in cell.strategies}
    own = key.removeprefix("strategy.")
    return {
        name: "–" if name in refusing else "yes" if own == key or hasattr(strategy, own) else ""
        for name, strategy in sorted(groups()["strategy"].items())
    }


def support() -> str:
    """Optimizers, precisions, tasks, adapters, and whatever else a strategy refuses, beside the strategies, as printed in the docs."""
    from trainer.choices import groups

    strategies = list(groups()["strategy"])
    features = [(group, name) for group in ("optim", "precision", "task", "adapter") for name in groups()[group]]
    features += [(cell.key, cell.value) for cell in REFUSALS]
    rows = [f"| | {' | '.join(strategies)} |", f"|---|{':---:|' * len(strategies)}"]
    for key, value in dict.fromkeys(features):
        found = cells(key, value)
        rows.append(f"| `{key}={value}` | {' | '.join(found[name] for name in strategies)} |")
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
