"""Whether a host is there, asked in bounded time before a library asks it without a bound."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

_REFUSED_BY_PROXY = (403, 407)


def answers(url: str, seconds: float) -> bool:
    """Whether a host answers HTTP at all within so many seconds, name lookup and proxy included."""
    found = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            found.set()
        except urllib.error.HTTPError as answer:
            # A proxy answers for a host that it cannot or will not reach; the host itself may well say 404 to this question.
            if answer.code < 500 and answer.code not in _REFUSED_BY_PROXY:
                found.set()
        except (OSError, ValueError):
            pass

    # A thread, because a name lookup knows no time-out.
    asking = threading.Thread(target=ask, name="probe", daemon=True)
    asking.start()
    asking.join(seconds)
    return found.is_set()
