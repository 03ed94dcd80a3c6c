"""The 64-bit hybrid timestamp: 46 bits of milliseconds since 1970, 18 bits of logical counter.

Source of the layout: the TSO of TiDB and Milvus. Strictly increasing per PChannel for ever.
"""

from __future__ import annotations

import datetime

from wal_core.clock import Clock
from wal_core.limits import CLOCK_JUMP_MAX_MS

LOGICAL_BITS = 18
LOGICAL_MASK = (1 << LOGICAL_BITS) - 1


def tso_from_ms(ms: int) -> int:
    """The first timestamp of a millisecond."""
    return ms << LOGICAL_BITS


def ms_of(tso: int) -> int:
    """Milliseconds since 1970 of a timestamp."""
    return tso >> LOGICAL_BITS


def rfc3339(ms: int) -> str:
    """``2026-01-31T12:00:00.123Z``: UTC, always with milliseconds."""
    moment = datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


class TsoSource:
    """Gives the timestamps of one PChannel. Never goes back, whatever the wall clock does.

    ``floor`` is a timestamp above which all results lie: the highest of the durable mark and of
    every message that recovery saw. A wall clock that runs ahead of the monotonic one by more than
    ``CLOCK_JUMP_MAX_MS`` is ignored, and ``jumped`` is true until a restart accepts it.
    """

    def __init__(self, clock: Clock, floor: int) -> None:
        self._clock = clock
        self._last = floor
        self._wall_start = clock.wall_ms()
        self._elapsed_start = clock.elapsed_ms()
        self.jumped = False

    @property
    def last(self) -> int:
        return self._last

    def next(self) -> int:
        """A timestamp greater than all before."""
        return self.take(1)

    def take(self, count: int) -> int:
        """The first of ``count`` timestamps in a row, all greater than all before."""
        now = self._clock.wall_ms() << LOGICAL_BITS
        if now > self._last:
            now = self._judged(now)
        # Adding overflows the logical part into the next milliseconds: still increasing.
        first = now if now > self._last else self._last + 1
        self._last = first + count - 1
        return first

    def _judged(self, now: int) -> int:
        steady = self._wall_start + self._clock.elapsed_ms() - self._elapsed_start
        if (now >> LOGICAL_BITS) - steady > CLOCK_JUMP_MAX_MS:
            self.jumped = True
            return steady << LOGICAL_BITS
        return now
