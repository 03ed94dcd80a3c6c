"""Rows of open transactions, kept in memory for those who tail: at the commit they go into the
write-ahead buffer as they are. What does not fit is read back from the log; it is there anyway.
"""

from __future__ import annotations

from wal_core.limits import TXN_MEMORY_BYTES
from wal_core.message import Message
from wal_daemon.wal.buffer import Rows
from wal_storage.log.format import SegmentId

_Key = tuple[int, int]


class _Kept:
    __slots__ = ("batches", "size")

    def __init__(self) -> None:
        self.batches: list[tuple[SegmentId, Message]] = []
        self.size = 0


class Staged:
    """By VChannel and transaction. ``capacity``: bytes of all together."""

    def __init__(self, capacity: int = TXN_MEMORY_BYTES) -> None:
        self._capacity = capacity
        self._kept: dict[_Key, _Kept] = {}
        self.size = 0

    def begin(self, key: _Key) -> None:
        self._kept[key] = _Kept()

    def add(self, key: _Key, segment: SegmentId, batch: Message) -> None:
        """A batch was confirmed. A transaction that does not fit is let go of as a whole."""
        kept = self._kept.get(key)
        if kept is None:
            return
        if self.size + batch.size > self._capacity:
            self.forget(key)
            return
        kept.batches.append((segment, batch))
        kept.size += batch.size
        self.size += batch.size

    def forget(self, key: _Key) -> None:
        """It ended without a commit, or outgrew the memory."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.size -= kept.size

    def forget_all(self, vchannel: int) -> None:
        """All transactions of a VChannel ended without a commit."""
        for key in [key for key in self._kept if key[0] == vchannel]:
            self.forget(key)

    def clear(self) -> None:
        """After the log was reopened."""
        self._kept.clear()
        self.size = 0

    def commit(
        self, key: _Key, segment: SegmentId, first_offset: int, rows: int, tso: int
    ) -> tuple[list[Rows], int]:
        """(the rows of a transaction with their offsets, by segment; their bytes). ``segment``:
        of the commit itself."""
        kept = self._kept.get(key)
        self.forget(key)
        end = first_offset + rows
        if kept is None:
            return [Rows(segment, (), first_offset, end, tso)], 0
        found: list[Rows] = []
        batches: list[Message] = []
        lies_in = segment
        offset = first_offset
        for where, batch in kept.batches:
            if batches and where != lies_in:
                found.append(_rows(lies_in, batches, tso))
                batches = []
            lies_in = where
            batch.first_offset = offset
            offset += batch.rows
            batches.append(batch)
        if batches:
            found.append(_rows(lies_in, batches, tso))
        return found, kept.size


def _rows(segment: SegmentId, batches: list[Message], tso: int) -> Rows:
    last = batches[-1]
    return Rows(segment, batches, batches[0].first_offset, last.first_offset + last.rows, tso)
