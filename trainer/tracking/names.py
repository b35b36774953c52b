"""What the figures of metrics.jsonl are called where they are mirrored."""

from __future__ import annotations

from typing import Any


def grouped(key: str) -> str:
    """`eval_loss` → `eval/loss`, `loss` → `train/loss`: W&B and TensorBoard lay panels out by the part before the slash."""
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def is_figure(value: Any) -> bool:
    """Whether a value can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
