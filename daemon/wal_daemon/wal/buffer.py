"""The write-ahead buffer: the latest confirmed batches of a PChannel, in memory.

A tailing reader is served from here without touching a file. Offsets of a VChannel are dense, so
one number tells whether a reader's next row is here, is still to come, or must be read from the
log: no gap and no repeat can arise when it moves from one to the other.

It is kept by commit group, so that a commit pays for the group and not for each of its batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wal_core.limits import WRITE_AHEAD_BUFFER_BYTES, WRITE_AHEAD_BUFFER_SECONDS
from wal_core.message import Message
from wal_storage.log.format import SegmentId


class _Group(NamedTuple):
    time: float
    size: int
    vchannels: tuple[int, ...]


class Rows(NamedTuple):
    """Batches of one VChannel that lie in one segment, in order of their offsets."""

    segment: SegmentId
    batches: Sequence[Message]
    """Empty: these rows are in the log alone (a transaction that was too large to keep)."""
    first_offset: int
    end_offset: int
    committed_tso: int = 0
    """Set for rows of a transaction."""


class WriteAheadBuffer:
    """Bounded in bytes and in age; the oldest groups go first, whatever their VChannels."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        capacity: int = WRITE_AHEAD_BUFFER_BYTES,
        keep_seconds: float = WRITE_AHEAD_BUFFER_SECONDS,
    ) -> None:
        self._monotonic = monotonic
        self._capacity = capacity
        self._keep_seconds = keep_seconds
        self._rows: dict[int, deque[Rows]] = {}
        self._groups: deque[_Group] = deque()
        self.size = 0
        self.hits = 0
        self.misses = 0

    def add(self, rows: Sequence[tuple[int, Rows]], size: int) -> None:
        """A group that was just confirmed: (VChannel, rows), of each VChannel in order; bytes."""
        for vchannel, some in rows:
            kept = self._rows.get(vchannel)
            if kept is None:
                kept = self._rows[vchannel] = deque()
            kept.append(some)
        self._groups.append(_Group(self._monotonic(), size, tuple(one for one, _ in rows)))
        self.size += size
        if self.size > self._capacity:
            self._evict(float("-inf"))

    def read(self, vchannel: int, offset: int, limit: int) -> Rows | None:
        """Batches from the one that holds ``offset`` on, about ``limit`` bytes of one segment and
        at most one transaction.

        None: that row is not in the buffer, which must be behind the log's end."""
        kept = self._rows.get(vchannel)
        if not kept or kept[0].first_offset > offset:
            self.misses += 1
            return None
        newer: list[Rows] = []
        for rows in reversed(kept):  # A tailing reader wants the last one or two.
            if rows.end_offset <= offset:
                break
            newer.append(rows)
        first = newer[-1]
        if not first.batches:
            self.misses += 1
            return None
        self.hits += 1
        found: list[Message] = []
        size = 0
        for rows in reversed(newer):
            if (
                rows.segment != first.segment
                or rows.committed_tso != first.committed_tso
                or not rows.batches
            ):
                break
            for batch in rows.batches:
                if batch.first_offset + batch.rows <= offset:
                    continue
                if found and size + batch.size > limit:
                    return _rows_of(first, found)
                found.append(batch)
                size += batch.size
        return _rows_of(first, found)

    def expire(self) -> float | None:
        """Drop what is too old. Returns the seconds after which to call again; None when empty."""
        now = self._monotonic()
        self._evict(now - self._keep_seconds)
        return self._groups[0].time + self._keep_seconds - now if self._groups else None

    def clear(self) -> None:
        """Forget everything: after the log was reopened."""
        self._rows.clear()
        self._groups.clear()
        self.size = 0

    def _evict(self, before: float) -> None:
        groups = self._groups
        while groups and (self.size > self._capacity or groups[0].time < before):
            group = groups.popleft()
            for vchannel in group.vchannels:
                kept = self._rows[vchannel]
                kept.popleft()
                if not kept:
                    del self._rows[vchannel]
            self.size -= group.size


def _rows_of(like: Rows, batches: list[Message]) -> Rows:
    last = batches[-1]
    return Rows(
        like.segment,
        batches,
        batches[0].first_offset,
        last.first_offset + last.rows,
        like.committed_tso,
    )
