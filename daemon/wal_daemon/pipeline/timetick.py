"""Time ticks: timestamps are given in order, acknowledged in any order.

After a tick T no message at or below T appears any more. T is the highest timestamp below which
every one that was given is acknowledged; one whose write failed is acknowledged too, or the clock
would stand still for ever. No timer: a tick is due only when there is something new to tell.
"""

from __future__ import annotations

import heapq

from wal_core.tso import TsoSource


class TimeTick:
    """The clock of one PChannel and its heap of acknowledgements."""

    def __init__(self, source: TsoSource) -> None:
        self._source = source
        self._under_way: list[tuple[int, int]] = []
        self._acknowledged: set[int] = set()
        self.confirmed = source.last
        """The watermark: no message at or below it will appear any more."""
        self.written = source.last
        """The highest timestamp of a confirmed message that is no tick."""
        self.told = source.last
        """The last tick that went into the log."""

    @property
    def last(self) -> int:
        """The highest timestamp given."""
        return self._source.last

    @property
    def jumped(self) -> bool:
        """See ``TsoSource``."""
        return self._source.jumped

    @property
    def is_due(self) -> bool:
        """Whether a tick would tell readers something."""
        return self.written > self.told

    def begin(self, count: int) -> int:
        """The first of ``count`` timestamps, under way until ``done`` is called with it."""
        first = self._source.take(count)
        heapq.heappush(self._under_way, (first, first + count - 1))
        return first

    def done(self, first: int) -> None:
        """The group that began with timestamp ``first`` was confirmed, or failed."""
        self._acknowledged.add(first)
        heap = self._under_way
        while heap and heap[0][0] in self._acknowledged:
            start, last = heapq.heappop(heap)
            self._acknowledged.discard(start)
            self.confirmed = last
