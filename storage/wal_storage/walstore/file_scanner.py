"""Read a VChannel's rows from log segments, up to what is confirmed.

Rows come in the order of their offsets: those of a transaction where its CommitTxn stands. Their
batches lie before it, where the commit says; most often in the chunk that was just read.
"""

from __future__ import annotations

import os
from collections import deque
from typing import NamedTuple, Protocol

from wal_core.checksum import crc32c
from wal_core.errors import CorruptError
from wal_core.limits import SCAN_AHEAD_BYTES, SCAN_CHUNK_BYTES
from wal_core.message import (
    HEADER_SIZE_BYTES,
    Header,
    MessageType,
    header_is_valid,
    identity_seed,
    unpack_header,
)
from wal_storage.disk import Disk
from wal_storage.log import format
from wal_storage.log.chain import Segment
from wal_storage.transactions import Extent, decode_commit
from wal_storage.walstore.base import Committed, Run

_HEAD_MAX_BYTES = 1 << 17
"""More than a header with its properties takes: what cannot be read in so many bytes is damaged."""


_INSERT = int(MessageType.INSERT)
_COMMIT = int(MessageType.COMMIT_TXN)
_WITH_ROWS = frozenset((_INSERT, _COMMIT))


class SegmentSource(Protocol):
    """What a scanner sees of its WAL storage."""

    segments: list[Segment]
    confirmed: tuple[int, int]


class _Transaction(NamedTuple):
    """A commit whose rows are being fetched."""

    id: int
    tso: int
    end_offset: int
    extents: deque[Extent]


class FileScanner:
    """See ``LogScanner``. Holds one open file."""

    def __init__(
        self,
        source: SegmentSource,
        disk: Disk,
        vchannel: int,
        ordinal: int,
        position: int,
        sequence: int,
    ) -> None:
        self._source = source
        self._disk = disk
        self._vchannel = vchannel
        self._ordinal = ordinal
        self._position = position
        self.next_sequence = sequence
        self._fd = -1
        self._seed = 0
        self._damage: CorruptError | None = None
        self._transaction: _Transaction | None = None
        self._next_offset = 0
        """Of the transaction's next row."""

    def read(self) -> list[Run]:
        if self._damage is not None:
            raise self._damage
        while True:
            if self._transaction is not None:
                runs = self._read_transaction(self._transaction)
            else:
                limit = self._limit()
                if self._position < limit:
                    runs = self._read_chunk(limit)
                elif not self._next_segment():
                    return []
                else:
                    continue
            if runs:
                return runs
            if self._damage is not None:
                raise self._damage

    def first_offset_since(self, tso: int) -> int:
        """Read on to the first row at or after a timestamp: its offset; -1 at the end."""
        while runs := self.read():
            for run in runs:
                if run.committed is not None:
                    if run.committed.tso >= tso:
                        return run.committed.first_offset
                    continue
                at = 0
                while at < len(run.data):
                    header = unpack_header(run.data, at)
                    if header.tso >= tso:
                        return header.first_offset
                    at += header.size
        return -1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _limit(self) -> int:
        tip, position = self._source.confirmed
        if self._ordinal == tip:
            return position
        return self._source.segments[self._ordinal].valid_length or 0

    def _next_segment(self) -> bool:
        tip, _ = self._source.confirmed
        if self._ordinal >= tip:
            return False
        self.close()
        self._ordinal += 1
        self._position = format.HEADER_SIZE_BYTES
        return True

    def _open(self) -> int:
        if self._fd < 0:
            id = self._source.segments[self._ordinal].id
            self._fd = self._disk.open_read(id.file_name)
            self._disk.prefetch(self._fd, SCAN_AHEAD_BYTES, self._position)
            self._seed = identity_seed(*id)
        return self._fd

    # -- the log itself ----------------------------------------------------------------------------

    def _read_chunk(self, limit: int) -> list[Run]:
        fd = self._open()
        start = self._position
        size = min(SCAN_CHUNK_BYTES, limit - start)
        # The disk works on the chunks to come while this one is checked and sent.
        self._disk.prefetch(fd, SCAN_CHUNK_BYTES, start + SCAN_AHEAD_BYTES)
        while True:
            data = memoryview(self._disk.read(fd, size, start)).toreadonly()
            if len(data) < size:
                limit = start + len(data)  # The file was cut short: no use in asking again.
            runs, missing = self._split(data, start, limit)
            if not missing:
                return runs
            size = missing

    def _split(self, data: memoryview, start: int, limit: int) -> tuple[list[Run], int]:
        """(runs of this VChannel's rows, bytes to read where not even one batch is whole)."""
        id = self._source.segments[self._ordinal].id
        runs: list[Run] = []
        at = run_start = end_offset = 0
        length = len(data)
        sequence = self.next_sequence
        vchannel = self._vchannel

        def close_run(end: int) -> None:
            if end > run_start:
                runs.append(Run(*id, data[run_start:end], end_offset))

        while length - at >= HEADER_SIZE_BYTES:
            header = unpack_header(data, at)
            end = at + header.size
            problem = self._problem(data, at, header, start, sequence)
            if problem:
                # Its properties may be cut off by the end of the chunk.
                whole = length - at >= _HEAD_MAX_BYTES or start + length == limit
                self._doubt(id, start + at, problem, certain=whole)
                break
            if end > length:
                if start + end > limit:
                    self._spoil(id, start + at, "cut off inside a body")
                elif at == 0:
                    return [], header.size
                break
            sequence += 1
            if header.vchannel == vchannel and header.type == _INSERT and not header.txn_id:
                end_offset = header.first_offset + header.rows
                at = end
                continue
            close_run(at)
            at = run_start = end
            if header.vchannel == vchannel and header.type == _COMMIT and header.rows:
                self._begin_transaction(header, data[end - header.body_length : end])
                runs += self._from_chunk(data, start)
                if self._transaction is not None or self._damage is not None:
                    break
        else:
            if length < HEADER_SIZE_BYTES:
                self._spoil(id, start, "cut off inside a header")
        close_run(at)
        self.next_sequence = sequence
        self._position = start + at
        return runs, 0

    def _problem(self, data: memoryview, at: int, header: Header, start: int, sequence: int) -> str:
        """What is wrong with a message of the chunk that begins at ``start``; its body is looked
        at only where it is to be used, and whole."""
        problem = _header_problem(data, at, header, self._seed, start + at)
        if problem:
            return problem
        if header.sequence != sequence:
            return f"sequence {header.sequence} where {sequence} is due"
        end = at + header.size
        if (
            header.vchannel == self._vchannel
            and header.type in _WITH_ROWS
            and end <= len(data)
            and crc32c(data[end - header.body_length : end]) != header.body_checksum
        ):
            self._spoil(
                self._source.segments[self._ordinal].id, start + at, "the body's checksum fails"
            )
            return "the body's checksum fails"
        return ""

    # -- transactions ------------------------------------------------------------------------------

    def _begin_transaction(self, header: Header, body: memoryview) -> None:
        self._next_offset = header.first_offset
        self._transaction = _Transaction(
            header.txn_id,
            header.tso,
            header.first_offset + header.rows,
            deque(decode_commit(body).extents),
        )

    def _from_chunk(self, data: memoryview, start: int) -> list[Run]:
        """The transaction's rows, where all of them lie in a chunk that is at hand."""
        transaction = self._transaction
        assert transaction is not None
        id = self._source.segments[self._ordinal].id
        if any(
            (one.term, one.first_sequence) != id or one.start < start or one.end > start + len(data)
            for one in transaction.extents
        ):
            return []
        runs: list[Run] = []
        while transaction.extents:
            one = transaction.extents.popleft()
            piece = data[one.start - start : one.end - start]
            found, _ = self._pick(transaction, piece, one, self._seed, whole=True)
            runs += found
        self._end_transaction(transaction)
        return runs

    def _read_transaction(self, transaction: _Transaction) -> list[Run]:
        """The next rows of a transaction, about a MiB of one extent."""
        while transaction.extents and self._damage is None:
            one = transaction.extents[0]
            name = format.SegmentId(one.term, one.first_sequence).file_name
            fd = self._disk.open_read(name)
            try:
                runs, used = self._read_extent(transaction, one, fd)
            finally:
                os.close(fd)
            one.start += used
            if one.start >= one.end:
                transaction.extents.popleft()
            if runs:
                return runs
        self._end_transaction(transaction)
        return []

    def _read_extent(
        self, transaction: _Transaction, one: Extent, fd: int
    ) -> tuple[list[Run], int]:
        size = SCAN_CHUNK_BYTES
        seed = identity_seed(one.term, one.first_sequence)
        self._disk.prefetch(fd, SCAN_AHEAD_BYTES, one.start)
        while True:
            wanted = min(size, one.end - one.start)
            data = memoryview(self._disk.read(fd, wanted, one.start)).toreadonly()
            whole = wanted == one.end - one.start or len(data) < wanted
            runs, used = self._pick(transaction, data, one, seed, whole=whole)
            if used or self._damage is not None:
                return runs, used
            size *= 4  # Not even one batch is whole.

    def _pick(
        self, transaction: _Transaction, data: memoryview, extent: Extent, seed: int, *, whole: bool
    ) -> tuple[list[Run], int]:
        """(runs of the transaction's rows in a piece that begins with ``extent``, bytes used).
        ``whole``: the extent ends with the piece."""
        id = format.SegmentId(extent.term, extent.first_sequence)
        runs: list[Run] = []
        at = run_start = 0
        first = self._next_offset

        def close_run(end: int) -> None:
            nonlocal first
            if end > run_start:
                committed = Committed(first, transaction.tso)
                runs.append(Run(*id, data[run_start:end], self._next_offset, committed))
            first = self._next_offset

        while len(data) - at >= HEADER_SIZE_BYTES:
            header = unpack_header(data, at)
            end = at + header.size
            problem = _header_problem(data, at, header, seed, extent.start + at)
            if not problem and end > len(data) and whole:
                problem = "cut off inside a body"
            if problem:
                if whole or len(data) - at >= _HEAD_MAX_BYTES:
                    self._spoil(id, extent.start + at, problem)
                break
            if end > len(data):
                break
            ours = header.vchannel == self._vchannel and header.txn_id == transaction.id
            if ours and header.type == MessageType.INSERT:
                if crc32c(data[end - header.body_length : end]) != header.body_checksum:
                    self._spoil(id, extent.start + at, "the body's checksum fails")
                    break
                self._next_offset += header.rows
            else:
                close_run(at)
                run_start = end
            at = end
        else:
            if whole and at < len(data):
                self._spoil(id, extent.start + at, "cut off inside a header")
        close_run(at)
        return runs, at

    def _end_transaction(self, transaction: _Transaction) -> None:
        if self._damage is None and self._next_offset != transaction.end_offset:
            id = self._source.segments[self._ordinal].id
            self._spoil(
                id,
                self._position,
                f"a transaction of rows up to {transaction.end_offset} ends at {self._next_offset}",
            )
        self._transaction = None

    def _doubt(self, id: format.SegmentId, offset: int, problem: str, *, certain: bool) -> None:
        if certain and self._damage is None:
            self._spoil(id, offset, problem)

    def _spoil(self, id: format.SegmentId, offset: int, problem: str) -> None:
        name = id.file_name
        self._damage = CorruptError(f"{name}: offset {offset}: {problem}", file=name, offset=offset)


def _header_problem(data: memoryview, at: int, header: Header, seed: int, position: int) -> str:
    if not header_is_valid(data, at, header, seed):
        return "the header's checksum fails"
    if header.position != position:
        return f"the header says position {header.position}"
    return ""
