"""Which rank failed first, and why: what ranks leave behind when they fail, and how the root cause is told from its consequences.

When one rank fails, its peers fail a moment later in whatever collective they are in. Their tracebacks are true and useless.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.atomic import write_json

_PEER = re.compile(r"gloo|nccl|tcpstore|connection (was )?(closed|reset|refused|lost)|broken pipe|socket|the store was lost", re.IGNORECASE)
_TAIL_LINES = 30


@dataclass(frozen=True)
class Failure:
    """How one rank ended.

    final: a restart would end the same way. peer: it looks like the consequence of another rank's failure. time: seconds since the epoch.
    """

    rank: int
    time: float
    reason: str
    details: str = ""
    step: int | None = None
    host: str = ""
    final: bool = False
    peer: bool = False

    def __str__(self) -> str:
        at = f" at step {self.step}" if self.step is not None and self.step >= 0 else ""
        return f"rank {self.rank}{at} on {self.host or socket.gethostname()}: {self.reason}"


def error_path(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / f"error-{rank:05d}.json"


def record(run_dir: Path, rank: int, error: BaseException, step: int | None, final: bool) -> None:
    """Leave an exception where the agent looks for it."""
    failure = Failure(
        rank=rank,
        time=time.time(),
        reason=str(error) if final else "".join(traceback.format_exception_only(error)).strip(),
        details="" if final else "".join(traceback.format_exception(error)),
        step=step,
        host=socket.gethostname(),
        final=final,
        peer=not final and is_peer_loss(error),
    )
    path = error_path(run_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(failure))


def is_peer_loss(error: BaseException) -> bool:
    """Whether an exception says that another process went away."""
    chain: BaseException | None = error
    while chain is not None:
        named = f"{type(chain).__name__}: {chain}"
        if isinstance(chain, ConnectionError) or type(chain).__name__.startswith("Dist") or _PEER.search(named):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def ended(run_dir: Path, rank: int, code: int, log: str) -> Failure:
    """The failure of a rank that ended with an exit code (negative: the signal). log: what it wrote in this attempt."""
    path = error_path(run_dir, rank)
    if path.exists():
        return Failure(**json.loads(path.read_text()))
    tail = "\n".join(log.splitlines()[-_TAIL_LINES:])
    if code >= 0:
        return Failure(rank, time.time(), f"exit code {code}", tail)
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "; the kernel does that when memory runs out" if name == "SIGKILL" else ""
    # NCCL's watchdog aborts a rank whose peer went away: never the first to blame.
    return Failure(rank, time.time(), f"killed by {name}{hint}", tail, peer=name == "SIGABRT")


def root(failures: list[Failure]) -> Failure:
    """The one that the others follow from: the earliest that does not itself look like a consequence."""
    return min(failures, key=lambda failure: (failure.peer, failure.time))
