"""Curves of the sources of a mixture and of named evaluation sets, from the lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.tracking import jsonl
from trainer.tracking.charts import DASHES, SERIES, Curve, curves_of


def figures_of_sets(lines: Sequence[dict[str, Any]], terms: Sequence[str]) -> list[str]:
    """The names that there are figures `eval_<name>_loss` of. terms: the keys of the objective's terms (`mlm_loss`), which are no sets."""
    keys = {key for line in lines for key in line if key.startswith("eval_") and key.endswith("_loss")}
    own = {"eval_loss", *(f"eval_{term}" for term in terms)}
    return sorted(key[len("eval_") : -len("_loss")] for key in keys - own if not key.endswith(tuple(f"_{term}" for term in terms)))


def curves_of_sets(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> list[Curve]:
    """The loss of each, as it was evaluated at its own steps."""
    found = []
    for number, name in enumerate(names):
        key = f"eval_{name}_loss"
        dash, colour = divmod(number, len(SERIES))
        for curve in curves_of(jsonl.kept([line for line in lines if line.get(key) is not None]), key, name, SERIES[colour], points=True):
            curve.dash = dash % len(DASHES)
            found.append(curve)
    return found
