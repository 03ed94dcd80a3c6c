"""The write-ahead buffer against a plain list of rows."""

from __future__ import annotations

import random

import pytest

from wal_core.message import Encoding, Message, MessageType, message
from wal_daemon.wal.buffer import Rows, WriteAheadBuffer
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
        group: list[tuple[int, Rows]] = []
        size = 0
        segment = SegmentId(1, randomness.choice((1, 1, 1, 2)))
        for _ in range(randomness.randint(1, 6)):
            vchannel = randomness.choice((1, 2, 3))
            rows = randomness.randint(1, 5)
            batch = _batch(vchannel, ends[vchannel], rows, randomness.randint(0, 300))
            committed_tso = randomness.choice((0, 0, randomness.randint(1, 1 << 40)))
            in_memory = not committed_tso or randomness.random() < 0.7
            kept = [batch] if in_memory else []
            end = ends[vchannel] + rows
            group.append((vchannel, Rows(segment, kept, ends[vchannel], end, committed_tso)))
            size += batch.size if in_memory else 0
            ends[vchannel] = end
        buffer.add(group, size)
        assert buffer.size <= 20_000 + 6 * 500
        vchannel = randomness.choice((1, 2, 3))
        if ends[vchannel]:
            _read_to_the_end(buffer, vchannel, randomness.randrange(ends[vchannel]), ends[vchannel])


def _read_to_the_end(buffer: WriteAheadBuffer, vchannel: int, offset: int, end: int) -> None:
    """Where the buffer has nothing the log would be read, up to the next row of the buffer."""
    while offset < end:
        rows = buffer.read(vchannel, offset, limit=700)
        if rows is None:
            offset += 1
            continue
        assert rows.first_offset <= offset < rows.end_offset
        for one, other in zip(rows.batches, rows.batches[1:], strict=False):
            assert one.first_offset + one.rows == other.first_offset
        assert rows.batches[0].first_offset == rows.first_offset
        last = rows.batches[-1]
        assert last.first_offset + last.rows == rows.end_offset
        offset = rows.end_offset


def test_rows_of_a_transaction_that_was_not_kept_are_a_miss_and_never_skipped() -> None:
    buffer = WriteAheadBuffer(Clock())
    one = SegmentId(1, 1)
    plain, later = _batch(1, 0, 2, 10), _batch(1, 9, 1, 10)
    group = [(1, Rows(one, [plain], 0, 2)), (1, Rows(one, [], 2, 9, committed_tso=7))]
    buffer.add([*group, (1, Rows(one, [later], 9, 10))], plain.size + later.size)
    served = buffer.read(1, 0, limit=1 << 20)
    assert served is not None
    assert served.end_offset == 2
    assert all(buffer.read(1, offset, limit=1 << 20) is None for offset in range(2, 9))
    served = buffer.read(1, 9, limit=1 << 20)
    assert served is not None
    assert (served.first_offset, served.end_offset) == (9, 10)


def test_rows_of_two_commits_never_share_an_answer() -> None:
    buffer = WriteAheadBuffer(Clock())
    one = SegmentId(1, 1)
    for number, tso in enumerate((5, 6, 6, 0)):
        batch = _batch(1, number, 1, 10)
        buffer.add([(1, Rows(one, [batch], number, number + 1, tso))], batch.size)
    ends = []
    offset = 0
    while offset < 4:
        rows = buffer.read(1, offset, limit=1 << 20)
        assert rows is not None
        ends.append((rows.end_offset, rows.committed_tso))
        offset = rows.end_offset
    assert ends == [(1, 5), (3, 6), (4, 0)]


def test_what_is_too_old_goes() -> None:
    clock = Clock()
    buffer = WriteAheadBuffer(clock, keep_seconds=30)
    buffer.add([(1, Rows(SegmentId(1, 1), [_batch(1, 0, 1, 10)], 0, 1))], 138)
    clock.now = 20
    assert buffer.expire() == pytest.approx(10)
    clock.now = 31
    assert buffer.expire() is None
    assert buffer.size == 0
    assert buffer.read(1, 0, 100) is None
