"""Read a VChannel's batches from log segments, up to what is confirmed."""

from __future__ import annotations

import os
from typing import Protocol

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
from wal_storage.walstore.base import Run


class SegmentSource(Protocol):
    """What a scanner sees of its WAL storage."""

    segments: list[Segment]
    confirmed: tuple[int, int]


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

    def read(self) -> list[Run]:
        if self._damage is not None:
            raise self._damage
        while True:
            limit = self._limit()
            if self._position < limit:
                runs = self._read_chunk(limit)
                if runs or self._damage is not None:
                    break
            elif not self._next_segment():
                return []
        if not runs and self._damage is not None:
            raise self._damage
        return runs

    def first_offset_since(self, tso: int) -> int:
        """Read on to the first row at or after a timestamp: its offset; -1 at the end."""
        while runs := self.read():
            for run in runs:
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
        at = run_start = 0
        length = len(data)
        sequence = self.next_sequence

        def close_run(end: int) -> None:
            if end > run_start:
                runs.append(Run(*id, data[run_start:end]))

        while length - at >= HEADER_SIZE_BYTES:
            header = unpack_header(data, at)
            end = at + header.size
            problem = _header_problem(data, at, header, self._seed, start + at, sequence)
            if problem:
                # Its properties may be cut off by the end of the chunk.
                if length - at >= 1 << 17 or start + length == limit:
                    self._spoil(id, start + at, problem)
                break
            if end > length:
                if start + end > limit:
                    self._spoil(id, start + at, "cut off inside a body")
                elif at == 0:
                    return [], header.size
                break
            if header.vchannel == self._vchannel and header.type == MessageType.INSERT:
                if crc32c(data[end - header.body_length : end]) != header.body_checksum:
                    self._spoil(id, start + at, "the body's checksum fails")
                    break
            else:
                close_run(at)
                run_start = end
            at = end
            sequence += 1
        else:
            if length < HEADER_SIZE_BYTES:
                self._spoil(id, start, "cut off inside a header")
        close_run(at)
        self.next_sequence = sequence
        self._position = start + at
        return runs, 0

    def _spoil(self, id: format.SegmentId, offset: int, problem: str) -> None:
        name = id.file_name
        self._damage = CorruptError(f"{name}: offset {offset}: {problem}", file=name, offset=offset)


def _header_problem(
    data: memoryview, at: int, header: Header, seed: int, position: int, sequence: int
) -> str:
    if not header_is_valid(data, at, header, seed):
        return "the header's checksum fails"
    if header.position != position or header.sequence != sequence:
        return f"sequence {header.sequence} where {sequence} is due"
    return ""
