"""Decide what the end of a log means, and cut a torn one.

A bad record above the last proof of durability is a torn write: nobody was told that it is safe,
or nobody can know. It is copied to ``.broken`` before it is cut, and the copy stays as the report.
A bad record below a proof is damage, and damage is refused (durability.md, "Torn or corrupt?").
"""

from __future__ import annotations

import os
from typing import NamedTuple

from wal_core.errors import CorruptError
from wal_core.failpoints import failpoint
from wal_storage.disk import Disk
from wal_storage.log.format import (
    TRAILER_SIZE_BYTES,
    SegmentId,
    footer_size,
    trailer_is_whole,
)
from wal_storage.log.scan import ScanEnd, data_end, later_proof

BROKEN_SUFFIX = ".broken"


class Cut(NamedTuple):
    """A torn tail that was set aside; possibly it had been acknowledged."""

    file: str
    offset: int
    length: int
    problem: str
    saved: str


class Tail(NamedTuple):
    """What stands behind the valid prefix of a segment."""

    torn: int
    """Bytes of a torn write; 0 for none."""
    sealed: bool


def judge_tail(data: memoryview, id: SegmentId, end: ScanEnd) -> Tail:
    """Tell zeros, a footer, a torn write and damage apart.

    Raises CorruptError where something behind the bad record proves that it was durable once."""
    name = id.file_name
    trailer = bytes(data[-TRAILER_SIZE_BYTES:])
    footer = footer_size(trailer)
    if footer and end.valid_length == len(data) - footer:
        return Tail(0, sealed=True)
    if footer and trailer_is_whole(trailer):
        raise damage(name, end)  # It was sealed, so all of it was durable. A torn footer is cut.
    last = data_end(data, end.valid_length)
    if last > end.valid_length and later_proof(data, end.valid_length, id, end.next_sequence):
        raise damage(name, end)
    return Tail(last - end.valid_length, sealed=False)


def repair_tail(disk: Disk, fd: int, data: memoryview, id: SegmentId, end: ScanEnd) -> list[Cut]:
    """Make the tip of a former owner end just behind its valid prefix. Raises CorruptError."""
    tail = judge_tail(data, id, end)
    if tail.sealed:
        return []
    if tail.torn:
        return [_cut(disk, fd, data, id, end, tail.torn)]
    if os.fstat(fd).st_size > end.valid_length:
        disk.truncate(fd, end.valid_length)  # Preallocated space that nobody will fill.
        disk.sync(fd)
    return []


def damage(name: str, end: ScanEnd) -> CorruptError:
    """The error that names the file and the offset of a bad record."""
    return CorruptError(
        f"{name}: offset {end.valid_length}: {end.problem or 'the segment ends too early'}",
        file=name,
        offset=end.valid_length,
        sequence=end.next_sequence,
    )


def _cut(disk: Disk, fd: int, data: memoryview, id: SegmentId, end: ScanEnd, torn: int) -> Cut:
    """Save a torn tail beside the segment, then cut the segment behind its valid prefix."""
    name = id.file_name
    saved = f"{name}.{end.valid_length:x}{BROKEN_SUFFIX}"
    tail = bytes(data[end.valid_length : end.valid_length + torn])
    disk.write_whole(saved, tail)
    failpoint("recovery-before-cut")
    disk.truncate(fd, end.valid_length)
    disk.sync(fd)
    disk.sync_folder()
    failpoint("recovery-after-cut")
    return Cut(name, end.valid_length, torn, end.problem, saved)
