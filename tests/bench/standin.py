"""In place of a rank that is measured, without torch: tells where it is as its figures, or ends as `fault.json` in its run says."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from trainer.bench.rank import FOLDER, WINDOW
from trainer.environment import agent_rank
from trainer.process import die_with
from trainer.survival.causes import record

MODULE = "tests.bench.standin"


def main(run: Path) -> None:
    die_with(int(os.environ["TRAINER_AGENT_PID"]))
    place = agent_rank(os.environ)
    assert place is not None
    fault = json.loads((run / "fault.json").read_text())
    if fault.get(str(place.rank)) == "raise":
        record(run, place.rank, MemoryError("out of memory: injected"), step=3, final=False)
        sys.exit(1)
    (run / f"pid-{place.rank}").write_text(str(os.getpid()))
    while fault:  # as a rank waits for a peer that is gone
        time.sleep(0.1)
    (run / FOLDER).mkdir(exist_ok=True)
    about = asdict(place) | {"window": json.loads(os.environ[WINDOW]), "loopback": "GLOO_SOCKET_IFNAME" in os.environ}
    (run / FOLDER / f"rank-{place.rank:05d}.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
