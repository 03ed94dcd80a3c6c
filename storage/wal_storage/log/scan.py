"""Walk the batches of a segment and find where they stop being valid. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from wal_core.checksum import crc32c
from wal_core.message import (
    HEADER_SIZE_BYTES,
    MAGIC,
    Header,
    header_is_valid,
    identity_seed,
    unpack_header,
)
from wal_storage.log.format import SegmentId, advance_running

Visit = Callable[[Header, memoryview], None]
"""Called with each valid batch: its header, and the whole batch's bytes."""


class ScanEnd(NamedTuple):
    """Where the valid prefix of a segment ends, and what stands there."""

    valid_length: int
    next_sequence: int
    running: int
    problem: str
    """Empty where the data ends just here."""


def scan(
    data: memoryview, start: int, id: SegmentId, sequence: int, running: int, visit: Visit
) -> ScanEnd:
    """Visit the batches from ``start`` (where ``sequence`` is expected) up to the first bad one."""
    seed = identity_seed(*id)
    at = start
    while True:
        problem = ""
        if len(data) - at < HEADER_SIZE_BYTES:
            problem = "cut off inside a header" if at < len(data) else ""
            break
        header = unpack_header(data, at)
        problem = batch_problem(data, at, header, seed, sequence)
        if problem:
            break
        end = at + header.size
        visit(header, data[at:end])
        running = advance_running(running, data[at : at + HEADER_SIZE_BYTES])
        sequence += 1
        at = end
    return ScanEnd(at, sequence, running, problem)


def batch_problem(data: memoryview, at: int, header: Header, seed: int, sequence: int) -> str:
    """What is wrong with the batch at ``at``, in words; empty where nothing is."""
    if not header_is_valid(data, at, header, seed):
        return "the header's checksum fails"
    if header.position != at or header.sequence != sequence:
        return f"sequence {header.sequence} where {sequence} is due"
    end = at + header.size
    if end > len(data):
        return "cut off inside a body"
    if crc32c(data[end - header.body_length : end]) != header.body_checksum:
        return "the body's checksum fails"
    return ""


def later_proof(data: memoryview, start: int, id: SegmentId, sequence: int) -> int | None:
    """The position of a whole header behind ``start`` which says that ``sequence`` was durable.

    This is what tells damage from a torn write: a later write began only after an fdatasync that
    covered ``sequence``, so a bad record there was good once.
    """
    seed = identity_seed(*id)
    tail = data[start:].tobytes()
    at = tail.find(MAGIC)
    while at >= 0:
        try:
            header = unpack_header(tail, at)
        except struct.error:
            return None
        if (
            header.position == start + at
            and header.synced_upto >= sequence
            and header_is_valid(memoryview(tail), at, header, seed)
        ):
            return start + at
        at = tail.find(MAGIC, at + 1)
    return None


def data_end(data: memoryview, start: int) -> int:
    """The position behind the last byte that is not zero, at least ``start``."""
    return start + len(data[start:].tobytes().rstrip(b"\0"))
