"""The write-ahead buffer: the latest confirmed batches of a PChannel, in memory.

A tailing reader is served from here without touching a file. Offsets of a VChannel are dense, so
one number tells whether a reader's next row is here, is still to come, or must be read from the
log: no gap and no repeat can arise when it moves from one to the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wal_core.limits import WRITE_AHEAD_BUFFER_BYTES, WRITE_AHEAD_BUFFER_SECONDS
from wal_core.message import NO_OFFSET, Message, MessageType
from wal_storage.log.format import SegmentId


class Entry(NamedTuple):
    """A confirmed batch of rows, as it lies in its segment."""

    first_offset: int
    end_offset: int
    segment: SegmentId
    header: bytes
    body: bytes | bytearray | memoryview


class WriteAheadBuffer:
    """Bounded in bytes and in age; the oldest batches go first, whatever their VChannel."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        capacity: int = WRITE_AHEAD_BUFFER_BYTES,
        keep_seconds: float = WRITE_AHEAD_BUFFER_SECONDS,
    ) -> None:
        self._monotonic = monotonic
        self._capacity = capacity
        self._keep_seconds = keep_seconds
        self._rows: dict[int, deque[Entry]] = {}
        self._order: deque[tuple[float, int, int]] = deque()
        """(time, VChannel, bytes) of each entry, oldest first."""
        self.size = 0
        self.hits = 0
        self.misses = 0

    def add(self, messages: Sequence[Message], segment: SegmentId) -> None:
        """Batches that were just confirmed, in the order of the log."""
        now = self._monotonic()
        for message in messages:
            if message.type != MessageType.INSERT or message.first_offset == NO_OFFSET:
                continue
            first = message.first_offset
            vchannel = message.vchannel
            entries = self._rows.get(vchannel)
            if entries is None:
                entries = self._rows[vchannel] = deque()
            entries.append(
                Entry(first, first + message.count, segment, message.header, message.body)
            )
            size = message.size
            self._order.append((now, vchannel, size))
            self.size += size
        if self.size > self._capacity:
            self._evict(float("-inf"))

    def read(self, vchannel: int, offset: int, limit: int) -> list[Entry] | None:
        """Batches from the one that holds ``offset`` on, about ``limit`` bytes of one segment.

        None: that row is older than the buffer (or it holds nothing of the VChannel)."""
        entries = self._rows.get(vchannel)
        if not entries or entries[0].first_offset > offset:
            self.misses += 1
            return None
        found: list[Entry] = []
        for entry in reversed(entries):  # A tailing reader wants the last few.
            if entry.end_offset <= offset:
                break
            found.append(entry)
        found.reverse()
        self.hits += 1
        return _within(found, limit)

    def expire(self) -> float | None:
        """Drop what is too old. Returns the seconds after which to call again; None when empty."""
        now = self._monotonic()
        self._evict(now - self._keep_seconds)
        return self._order[0][0] + self._keep_seconds - now if self._order else None

    def clear(self) -> None:
        """Forget everything: after the log was reopened."""
        self._rows.clear()
        self._order.clear()
        self.size = 0

    def _evict(self, before: float) -> None:
        order = self._order
        while order and (self.size > self._capacity or order[0][0] < before):
            _, vchannel, size = order.popleft()
            entries = self._rows[vchannel]
            entries.popleft()
            if not entries:
                del self._rows[vchannel]
            self.size -= size


def _within(entries: list[Entry], limit: int) -> list[Entry]:
    size = 0
    for number, entry in enumerate(entries):
        size += len(entry.header) + len(entry.body)
        if size > limit or entry.segment != entries[0].segment:
            return entries[: max(number, 1)]
    return entries
