"""When is a group complete? No I/O.

Clients that wait for their answers send again right after it. Committing as soon as the first of
them is back splits them into two parties that pay for an fdatasync each, in turns. So a commit
waits until all that took part in the last two groups are back, but only as long as they keep
coming: a pause of a quarter of the last commit's time ends the wait. A single writer is never
waited for. (docs/decisions/0006-group-commit.md has the measurement.)
"""

from __future__ import annotations

from collections.abc import Sequence

PARTY_MAX = 64
"""Larger groups share their fdatasync among so many that waiting for more would gain nothing."""
QUIET_SHARE = 0.25
QUIET_MAX_SECONDS = 0.0002


class Gathering:
    """Decides, turn by turn of the event loop, whether to wait for more requests."""

    def __init__(self) -> None:
        self._last: set[int] = set()
        self._expected = 1
        self._quiet_limit = 0.0
        self._seen = 0
        self._since = 0.0

    def is_complete(self, queued: int, now: float) -> bool:
        """Whether to commit ``queued`` requests now (seconds on a monotonic clock)."""
        if queued >= self._expected:
            return True
        if queued > self._seen:
            self._seen = queued
            self._since = now
            return False
        return now - self._since > self._quiet_limit

    def committed(self, writers: Sequence[object], seconds: float) -> None:
        """A group was committed: who took part (told apart by identity), how long it took."""
        if len(writers) > PARTY_MAX:
            self._expected = 1
            return
        these = set(map(id, writers))
        self._expected = len(these | self._last)
        self._last = these
        self._quiet_limit = min(seconds * QUIET_SHARE, QUIET_MAX_SECONDS)
        self._seen = 0
