"""Outliving faults: stop agreement, and the exit codes by which a rank tells its agent how it ended."""

from __future__ import annotations

FINISHED = 0
# Stopped before the budget's end, with everything saved (EX_TEMPFAIL: trying again goes on).
STOPPED = 75
# A restart would end the same way: a refused configuration, a halt by policy (EX_CONFIG).
HALTED = 78
# Killed on request, without saving (128 + SIGKILL).
KILLED = 137
