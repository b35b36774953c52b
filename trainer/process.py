"""What a process of a run does with itself: die with its parent, outlive its terminal, end in order, collect garbage between steps only."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
# What asks a run to stop; an agent takes them for all.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends. parent: its process id, as the parent told it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent-watcher", daemon=True).start()
    # The parent may have ended before the request stood.
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class Terminal:
    """A text stream that turns silent, instead of raising, once nobody reads it any more: a closed window must not end a run."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._silence()

    def _silence(self) -> None:
        # What is still buffered, and whatever writes to the descriptor directly, goes nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_terminal() -> None:
    """Make standard output and error survive the end of whoever reads them."""
    sys.stdout = Terminal(sys.stdout)  # type: ignore[assignment]
    sys.stderr = Terminal(sys.stderr)  # type: ignore[assignment]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, also where this was started in the background, which ignores the former.

    Only the main thread may set handlers; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector out of the steps, where it costs milliseconds at moments that differ between ranks.

    What is there now is never looked at again, so that collecting inside costs a tenth of a millisecond: the loop does at every log line.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
