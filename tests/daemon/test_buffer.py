"""The write-ahead buffer against a plain list of rows."""

from __future__ import annotations

import random

import pytest

from wal_core.message import Encoding, Message, MessageType, message
from wal_daemon.wal.buffer import WriteAheadBuffer
from wal_storage.log.format import SegmentId


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _batch(vchannel: int, first: int, rows: int, size: int) -> Message:
    made = message(MessageType.INSERT, vchannel, b"x" * size, encoding=Encoding.LINES, rows=rows)
    made.first_offset = first
    return made


@pytest.mark.parametrize("seed", range(30))
def test_every_offset_is_served_whole_or_said_to_be_older(seed: int) -> None:
    randomness = random.Random(seed)
    clock = Clock()
    buffer = WriteAheadBuffer(clock, capacity=randomness.choice((2_000, 20_000)), keep_seconds=5)
    ends = {1: 0, 2: 0, 3: 0}
    for _ in range(200):
        clock.now += randomness.random() * 0.3
        group: dict[int, list[Message]] = {}
        for _ in range(randomness.randint(1, 6)):
            vchannel = randomness.choice((1, 2, 3))
            rows = randomness.randint(1, 5)
            batch = _batch(vchannel, ends[vchannel], rows, randomness.randint(0, 300))
            group.setdefault(vchannel, []).append(batch)
            ends[vchannel] += rows
        segment = SegmentId(1, randomness.choice((1, 1, 1, 2)))
        buffer.add(group, segment, sum(one.size for some in group.values() for one in some))
        assert buffer.size <= 20_000 + 6 * 500
        vchannel = randomness.choice((1, 2, 3))
        if ends[vchannel]:
            _read_to_the_end(buffer, vchannel, randomness.randrange(ends[vchannel]), ends[vchannel])


def _read_to_the_end(buffer: WriteAheadBuffer, vchannel: int, offset: int, end: int) -> None:
    first = True
    while offset < end:
        rows = buffer.read(vchannel, offset, limit=700)
        if rows is None:
            assert first, "a row was there, and the one behind it was not"
            return
        assert rows.first_offset <= offset < rows.end_offset
        for one, other in zip(rows.batches, rows.batches[1:], strict=False):
            assert one.first_offset + one.rows == other.first_offset
        offset = rows.end_offset
        first = False


def test_what_is_too_old_goes() -> None:
    clock = Clock()
    buffer = WriteAheadBuffer(clock, keep_seconds=30)
    buffer.add({1: [_batch(1, 0, 1, 10)]}, SegmentId(1, 1), 138)
    clock.now = 20
    assert buffer.expire() == pytest.approx(10)
    clock.now = 31
    assert buffer.expire() is None
    assert buffer.size == 0
    assert buffer.read(1, 0, 100) is None
