"""Figures of metrics.jsonl and summary.json: what they are called where they are mirrored, and as a person reads them."""

from __future__ import annotations

from typing import Any


def grouped(key: str) -> str:
    """`eval_loss` → `eval/loss`, `loss` → `train/loss`: W&B and TensorBoard lay panels out by the part before the slash."""
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def readable(key: str) -> str:
    """A key as a person reads it, its unit being that of the figure: `peak_memory_bytes` → `peak memory`."""
    return key.removesuffix("_bytes").replace("_", " ")


def is_figure(value: Any) -> bool:
    """Whether a value can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# Of figures that end so the smaller value is the better one; of all others the larger.
_LOWER = ("loss", "perplexity", "bits_per_byte", "mse", "mae", "median_rank")


def is_lower_better(key: str) -> bool:
    """Whether the smaller of two values of a figure is the better one, by its name."""
    return key.endswith(_LOWER)


def shown(key: str, value: Any) -> str:
    """A figure under its key, in the unit that the key tells."""
    if value is None:
        return "–"
    if not is_figure(value):
        return str(value)
    if key.endswith("_bytes"):
        return size(value)
    if key in ("mfu", "goodput") or "accuracy" in key:
        return f"{value:.1%}"
    if key.endswith("_per_second"):
        return f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) >= 1 else f"{value:.4f}"


def baselines(figures: dict[str, Any]) -> dict[str, str]:
    """Figure → what needs no training, in words, of the final figures of a run."""
    beside = {}
    compressed = [f"{kind} {figures[f'{kind}_bits_per_byte']:.3f}" for kind in ("gzip", "xz") if figures.get(f"{kind}_bits_per_byte")]
    if compressed:
        beside["bits_per_byte"] = ", ".join(compressed)
    if figures.get("masked_accuracy_from_neighbour") is not None:
        beside["masked_accuracy"] = f"most frequent neighbour {figures['masked_accuracy_from_neighbour']:.1%}"
    if "next_sentence_accuracy" in figures:
        beside["next_sentence_accuracy"] = "a coin 50.0%"
    guesses = {key.removeprefix("baseline_"): value for key, value in figures.items() if key.startswith("baseline_")}
    beside |= {key: f"guessed blindly {shown(key, value)}" for key, value in guesses.items()}
    return beside


def number(value: Any) -> str:
    """Three decimals; nothing for what is no figure."""
    return f"{value:.3f}" if is_figure(value) else ""


def percent(value: Any) -> str:
    """A share; nothing for what is no figure."""
    return f"{value:.1%}" if is_figure(value) else ""


def rate(value: Any) -> str:
    """A large number by its leading digits: `12.3K`, `4.56M`; nothing for what is no figure."""
    if not is_figure(value):
        return ""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e4, "K")):
        if value >= unit:
            scaled = value / (1e3 if letter == "K" else unit)
            return f"{scaled:.3g}{letter}" if scaled < 1000 else f"{scaled:,.0f}{letter}"
    return f"{value:,.0f}"


def size(count: float) -> str:
    """Bytes, in the unit that fits: three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.{0 if abs(count) >= 100 else 1 if abs(count) >= 10 else 2}f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def stopped_early(event: dict[str, Any]) -> str:
    """When and why a run ended before its budget, by its event."""
    return f"stopped early, at step {event['step']:,}: {event['reason']}"
