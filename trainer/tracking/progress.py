"""What a person sees while a run goes on: one line that renews itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_REDRAW_SECONDS = 0.25
_ERASE = "\r\x1b[2K"


class Progress:
    """The line of a run: step, loss, tokens a second, time left.

    It takes no signal, hides no cursor and starts no thread: a process that is killed leaves the terminal as it was.
    """

    def __init__(self, steps: int, step: int = 0, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.console = Console(file=self.stream, highlight=False)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.steps, self.step = steps, step
        self.figures: dict[str, Any] = {}
        self._marks: deque[tuple[float, int]] = deque(maxlen=20)
        self._drawn = 0.0
        # W&B's thread has messages too.
        self._lock = threading.Lock()

    def advance(self, step: int) -> None:
        """A step has been taken."""
        self.step = step
        now = time.monotonic()
        if not self._marks:
            self._marks.append((now, self.step))
        if self.live and now - self._drawn >= _REDRAW_SECONDS:
            self._draw()

    def log(self, step: int, figures: dict[str, Any]) -> None:
        """Figures of a log line, or of an evaluation, which stays on the screen."""
        self.step = step
        if any(key.startswith("eval_") for key in figures):
            self.message(f"{self._place()}  {_evaluated(figures)}")
            return
        self._marks.append((time.monotonic(), step))
        self.figures = figures
        if self.live:
            self._draw()
        else:
            self._plain("  ".join((self._place(), *self._parts())))

    def message(self, text: str) -> None:
        """A line that stays, above the one that renews itself."""
        with self._lock:
            if self.live:
                self._write(_ERASE)
            self._write(text + "\n")
        if self.live and self.figures:
            self._draw()

    def close(self) -> None:
        """Leave the last state of the line on the screen."""
        if self.live and self._drawn:
            self._draw()
            self._write("\n")
            self._drawn = 0.0
            self.figures = {}

    def _place(self) -> str:
        return f"step {self.step:>{len(f'{self.steps:,}')},}/{self.steps:,}"

    def _parts(self) -> list[str]:
        """What there is to tell, the most wanted first."""
        parts = []
        if self.figures.get("loss") is not None:
            parts.append(f"loss {self.figures['loss']:.4f}")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        if self.figures.get("tokens_per_second"):
            parts.append(f"{self.figures['tokens_per_second']:,.0f} tokens/s")
        if self.figures.get("mfu"):
            parts.append(f"MFU {self.figures['mfu']:.1%}")
        return parts

    def seconds_left(self) -> float | None:
        """By the pace of the last log lines, evaluations and checkpoints included; None before the first."""
        if len(self._marks) < 2 or self._marks[-1][1] <= self._marks[0][1]:
            return None
        (first_time, first), (last_time, last) = self._marks[0], self._marks[-1]
        return (self.steps - self.step) * (last_time - first_time) / (last - first)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        parts = [f"step {self.step:,}/{self.steps:,}", *self._parts()]
        while len(parts) > 1 and _width(parts) >= self.console.width:
            parts.pop()
        room = min(30, self.console.width - _width(parts) - 3)
        cells: list[Any] = [Text(parts[0], "bold"), *(Text(part) for part in parts[1:])]
        if room >= 8:
            cells.insert(1, ProgressBar(self.steps, self.step, width=room))
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in cells:
            grid.add_column(no_wrap=True, overflow="crop")
        grid.add_row(*cells)
        with self._lock:
            with self.console.capture() as drawn:
                self.console.print(grid, no_wrap=True, overflow="crop", crop=True)
            self._write(_ERASE + drawn.get().split("\n")[0])

    def _plain(self, text: str) -> None:
        with self._lock:
            self._write(text + "\n")

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            # The terminal was closed; the run goes on.
            pass


def _width(parts: list[str]) -> int:
    return sum(cell_len(part) + 2 for part in parts)


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:04:05`, `2 d 03:04`."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, minutes = divmod(rest // 60, 60)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest % 60:02}" if hours else f"{minutes}:{rest % 60:02}"


def _evaluated(figures: dict[str, Any]) -> str:
    shown = {key: value for key, value in figures.items() if isinstance(value, float)}
    return "held out: " + ", ".join(f"{key.removeprefix('eval_').replace('_', ' ')} {value:.4g}" for key, value in shown.items())
