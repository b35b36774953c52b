"""The progress line, on a real terminal and without one."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time

import pytest

from trainer.tracking.progress import Progress, duration

SHOW = """
import sys, time
from trainer.tracking.progress import Progress
progress = Progress(1200)
for step in range(1, 31):
    time.sleep(0.02)
    progress.advance(step)
    if step % 10 == 0:
        progress.log(step, {"loss": 3.14159, "tokens_per_second": 12345.6, "mfu": None})
progress.log(30, {"eval_loss": 2.71828})
progress.close()
print("after")
"""


def _on_terminal(columns: int) -> str:
    main, side = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "LINES": "24", "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen([sys.executable, "-c", SHOW], stdout=side, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env)
    os.close(side)
    found = b""
    try:
        while chunk := os.read(main, 65536):
            found += chunk
    except OSError:
        pass
    os.close(main)
    assert process.wait(30) == 0, found.decode()
    return found.decode()


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(1200, stream=stream)
    for step in (1, 2):
        progress.advance(step)
        time.sleep(0.01)
    progress.log(2, {"loss": 3.14159, "tokens_per_second": 12345.6, "mfu": 0.412})
    progress.log(2, {"eval_loss": 2.71828, "eval_perplexity": 15.15})
    progress.message("checkpoint at step 2")
    progress.close()
    first, second, third = stream.getvalue().splitlines()
    assert first.startswith("step     2/1,200  loss 3.1416  0:") and first.endswith(" left  12,346 tokens/s  MFU 41.2%")
    assert second == "step     2/1,200  held out: loss 2.718, perplexity 15.15"
    assert third == "checkpoint at step 2"
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


@pytest.mark.parametrize("columns", [100, 40])
def test_one_line_renews_itself_on_a_terminal(columns: int) -> None:
    text = _on_terminal(columns)
    lines = text.replace("\r\n", "\n").split("\n")
    assert lines[0].count("\x1b[2K") > 3, "the line is drawn over"
    assert "step 30/1,200" in text and "held out: loss 2.718" in text and "loss 3.1416" in text
    assert lines[-2] == "after", "what follows begins on a line of its own"
    assert len(lines) == 4, f"one line that renews itself, one evaluation, the last state: {lines}"
    assert "\x1b[?25l" not in text, "the cursor is never hidden: a killed process could not show it again"
    last = text.split("\x1b[2K")[-1]
    assert ("━" in last) == (columns == 100), "the bar gives way where there is no room"
    assert ("tokens/s" in last) == (columns == 100), "and so do the less wanted figures"


def test_f17_a_progress_line_takes_no_signal_and_starts_no_thread() -> None:
    import signal
    import threading

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], threading.active_count()
    Progress(10, stream=io.StringIO()).advance(1)
    assert ([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], threading.active_count()) == before


def test_a_closed_terminal_stops_nothing() -> None:
    stream = io.StringIO()
    progress = Progress(10, stream=stream)
    stream.close()
    progress.log(1, {"loss": 1.0})
    progress.message("gone")


def test_time_left_goes_by_the_pace_of_the_log_lines() -> None:
    progress = Progress(100, stream=io.StringIO())
    progress.advance(1)
    assert progress.seconds_left() is None
    time.sleep(0.2)
    progress.log(21, {"loss": 1.0})
    left = progress.seconds_left()
    assert left is not None and 0.7 < left < 1.6, "20 steps took 0.2 s, 79 are left"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3600, "1:00:00"), (90061, "1 d 01:01"), (-3, "0:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
