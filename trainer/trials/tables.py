"""The verdicts of trials, for a person at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.catalogue.tables import console, show
from trainer.tracking.figures import size

if TYPE_CHECKING:
    from trainer.trials.parity import Variant, Verdict

__all__ = ["console", "show_parity"]

# Of a long trial so many steps are shown: the first, the last, and some between.
_STEPS = 12


def show_parity(out: Console, verdict: Verdict) -> None:
    """Losses and norms by step, distances, bytes by rank, and what differs first."""
    every = [verdict.reference, *([verdict.floor] if verdict.floor else []), *verdict.others]
    for title, key in (("loss", "loss"), ("gradient norm", "grad_norm")):
        show(out, _curves(title, key, every))
        out.print()
    show(out, _distances(verdict))
    out.print()
    show(out, _state(verdict))
    out.print()
    for strategy, reason in verdict.skipped.items():
        out.print(f"[dim]not run: {strategy}: {escape(reason)}[/]", soft_wrap=True)
    for strategy, reason in verdict.failed.items():
        out.print(f"[red]{strategy} did not run to its end[/]: {escape(reason)}", soft_wrap=True)
    for variant in verdict.others:
        if variant.where:
            out.print(f"[red]{variant.label} differs[/]: {escape(variant.where)}", soft_wrap=True)
    if verdict.good:
        names = ", ".join(variant.label for variant in verdict.others)
        out.print(f"[green]the same curve[/]: {names} compute what {verdict.reference.label} computes", soft_wrap=True)


def _table(*heads: str) -> Table:
    return Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _curves(title: str, key: str, every: list[Variant]) -> Table:
    table = _table(title)
    for variant in every:
        table.add_column(_named(variant), justify="right", no_wrap=True)
    steps = sorted(every[0].curve)
    stride = -(-len(steps) // _STEPS)
    for step in dict.fromkeys([*steps[::stride], steps[-1]]):
        values = (variant.curve.get(step, {}).get(key) for variant in every)
        table.add_row(f"step {step:,}", *("–" if value is None else f"{value:.7g}" for value in values))
    return table


def _named(variant: Variant) -> str:
    return f"{variant.label} × {variant.world}"


def _distances(verdict: Verdict) -> Table:
    table = _table(f"largest difference to {verdict.reference.label}")
    for head in ("loss", "gradient norm", "final weights"):
        table.add_column(head, justify="right")
    table.add_column("verdict")
    for variant in [*([verdict.floor] if verdict.floor else []), *verdict.others]:
        assert variant.weights is not None
        word = "" if variant is verdict.floor else "[red]differs[/]" if variant.where else "[green]same[/]"
        table.add_row(_named(variant), *(f"{value:.1e}" for value in (variant.loss, variant.norm, variant.weights.whole)), word)
    return table


def _state(verdict: Verdict) -> Table:
    """Bytes a rank holds: of several, the most."""
    kinds = list(dict.fromkeys(kind for variant in (verdict.reference, *verdict.others) for table in variant.state for kind in table))
    found = _table("state, most of any rank")
    for kind in kinds:
        found.add_column(kind, justify="right")
    for variant in (verdict.reference, *verdict.others):
        most = (max(table.get(kind, 0) for table in variant.state) for kind in kinds)
        found.add_row(_named(variant), *(size(value) if value else "–" for value in most))
    return found
