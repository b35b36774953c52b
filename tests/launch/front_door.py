"""A process in the place of the command: starts an agent over stand-in ranks, waits, and ends with its exit code."""

import sys
from pathlib import Path

from trainer.launch.local import LocalHandle, start_agent

from tests.launch.standin import MODULE

if __name__ == "__main__":
    run, options = Path(sys.argv[1]), sys.argv[2:]
    import os

    words = [sys.executable, "-P", "-m", "trainer.agent", str(run), f"--module={MODULE}", f"--front-door={os.getpid()}", *options]
    sys.exit(LocalHandle(start_agent(words)).wait())
