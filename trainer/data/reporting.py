"""What prepare shows: a bar on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from trainer.data.sources import EVAL, TRAIN

_LINE_SECONDS = 5.0
_SLOW_SECONDS = 1.0
SHOWN = {"train": "training", "eval": "held out"}
# A larger share of unknown tokens is worth a warning.
_UNKNOWN = 0.01


class Reporter:
    """Reports of one prepare; silent where `shown` is false."""

    def __init__(self, shown: bool):
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Progress over `total` bytes; yields a function that adds bytes, from any thread."""
        if self.console.is_terminal and not self.console.quiet:
            share = TextColumn("{task.percentage:3.0f} %")
            columns = (TextColumn("{task.description}"), BarColumn(), share, TransferSpeedColumn(), TimeRemainingColumn())
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(what, total=total)
                yield lambda size: progress.advance(task, size)
            return
        lock, done, started = threading.Lock(), 0, time.monotonic()
        shown = started

        def advance(size: int) -> None:
            nonlocal done, shown
            with lock:
                done += size
                now = time.monotonic()
                if now - shown >= _LINE_SECONDS and total:
                    shown = now
                    rate = done / (now - started)
                    left = f", {(total - done) / rate:.0f} s left" if rate else ""
                    self.line(f"{what}: {100 * done / total:.0f} % of {total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s{left}")

        yield advance

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Says what is being done, while it takes long enough to wonder."""
        if self.console.is_terminal and not self.console.quiet:
            with self.console.status(what):
                yield
            return
        timer = threading.Timer(_SLOW_SECONDS, self.line, [f"{what} …"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def mixture(self, shares: Mapping[str, Fraction], trains: bool) -> None:
        """The share of each source. trains: whether a tokenizer is trained on the mixture."""
        self.line("mixture: " + ", ".join(f"{name} {float(share):.4g}" for name, share in shares.items()))
        if trains:
            self.line("the tokenizer is trained on text in these shares: other weights, other tokens; tokenizer=pretrained keeps them")

    def closing(self, name: str, wanted: Sequence[str], corpus: dict[str, Any], rows: dict[str, Any], path: Path, anew: bool) -> None:
        """What there is now: a table where something was made, a line where all was found.

        name: of the source, "" where it is the only one. wanted: its splits.
        """
        if corpus["examples"]:
            self._examples(name, wanted, corpus, rows, path, anew)
            return
        splits = corpus["splits"]
        unknown, held_out = splits[EVAL]["unknown"], splits[EVAL]["tokens"]
        if EVAL in wanted and unknown > _UNKNOWN * held_out:
            self.line(
                f"[yellow]warning:[/] {name and f'{name}: '}{100 * unknown / held_out:.1f} % of the held-out tokens are unknown to the "
                "tokenizer: that text is lost, and figures by byte do not count it; take a tokenizer made for such text, or train one"
            )
        if not anew:
            parts = [f"{split} {splits[split]['tokens']:,} tokens in {rows['splits'][split]['rows']:,} rows" for split in wanted]
            self.line(f"{name or 'data'}: {', '.join(parts)} (prepared before)")
            return
        table = Table(name, "documents", "bytes", "tokens", "bytes per token", "rows", title=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for split in wanted:
            found = splits[split]
            known = found["bytes"] is not None
            table.add_row(
                SHOWN[split],
                f"{found['documents']:,}",
                f"{found['bytes']:,}" if known else "–",
                f"{found['tokens']:,}",
                f"{found['bytes'] / max(1, found['tokens']):.2f}" if known else "–",
                f"{rows['splits'][split]['rows']:,}",
            )
        self.console.print(table)
        self.line(f"dropped: {_reasons(corpus)}; vocabulary: {corpus['tokenizer']['size']:,}; kept in {path}")

    def _examples(self, name: str, wanted: Sequence[str], corpus: dict[str, Any], rows: dict[str, Any], path: Path, anew: bool) -> None:
        """The same of examples with labels; a row is one of them, or a part."""
        splits, tables = corpus["splits"], rows["splits"]
        if rows["leaked"]:
            share = f"{rows['leaked']:,} of {splits[EVAL]['documents']:,} held-out examples"
            where = name and f"{name}: "
            self.line(f"[yellow]warning:[/] {where}{share} are also trained on, their labels apart: held-out figures flatter")
        for split in wanted:
            if left := tables[split].get("left_out"):
                what = f"{name and f'{name}: '}{left:,} of {splits[split]['documents']:,} examples ({split})"
                mend = f"nothing of them within sequence_length={rows['sequence_length']} is learned"
                self.line(f"[yellow]warning:[/] {what} are left out: {mend}; give a longer one")
        if rows.get("drawn"):
            self.line(f"{name or 'data'}: {rows['drawn']:,} of {splits[TRAIN]['documents']:,} training examples are drawn")
        if not anew:
            counts = ", ".join(f"{split} {splits[split]['documents']:,} examples" for split in wanted)
            self.line(f"{name or 'data'}: {counts} (prepared before)")
            return
        table = Table(name, "examples", "tokens", "tokens per row", "longest row", "rows", title=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for split in wanted:
            found = tables[split]
            average = f"{found['tokens'] / max(1, found['rows']):.1f}"
            examples = f"{splits[split]['documents']:,}"
            table.add_row(SHOWN[split], examples, f"{found['tokens']:,}", average, f"{found['longest']:,}", f"{found['rows']:,}")
        self.console.print(table)
        if rows["learned"].get("labels"):
            labels = rows["learned"]["labels"]
            self.line(f"{len(labels)} labels: {', '.join(labels[:20])}{' …' if len(labels) > 20 else ''}")
        self.line(f"dropped: {_reasons(corpus)}; vocabulary: {corpus['tokenizer']['size']:,}; kept in {path}")


def _reasons(corpus: dict[str, Any]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(corpus["dropped"].items()) if count) or "nothing"
