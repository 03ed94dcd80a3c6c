"""Where a transaction's rows lie, how its end is remembered, and that replay equals life."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.daemon.pipeline.making import (
    NAMED,
    V1,
    V2,
    Line,
    begin,
    change,
    commit,
    create,
    drop,
    request_of,
    rollback,
    rows,
)
from wal_core.errors import (
    CorruptError,
    TxnExpiredError,
    TxnInvalidStateError,
    TxnTooLargeError,
    WalError,
)
from wal_core.limits import TXN_COMMIT_BODY_MAX_BYTES, TXN_EXTENTS_MAX, TXN_REMEMBERED_SECONDS
from wal_core.message import MessageType, message
from wal_core.tso import tso_from_ms
from wal_daemon.wal.requests import AppendRequest
from wal_storage import transactions as module
from wal_storage.state import ChannelState
from wal_storage.transactions import (
    Commit,
    End,
    Extent,
    Finished,
    Place,
    Txn,
    decode_begin,
    decode_commit,
    decode_rollback,
    encode,
    remember,
)

# -- extents ---------------------------------------------------------------------------------------


def _txn() -> Txn:
    return Txn(7, 10_000, 1, 1)


def test_neighbours_are_one_extent() -> None:
    txn = _txn()
    txn.stage(Place(1, 1, 256), 100, 2)
    txn.stage(Place(1, 1, 356), 50, 3)
    txn.stage(Place(1, 1, 500), 50, 1)
    assert txn.extents == [Extent(1, 1, 256, 406), Extent(1, 1, 500, 550)]
    assert (txn.rows, txn.size, txn.segments) == (6, 200, 1)


def test_another_segment_is_another_extent_even_at_the_same_position() -> None:
    txn = _txn()
    txn.stage(Place(1, 1, 256), 100, 1)
    txn.stage(Place(1, 9, 356), 100, 1)
    txn.stage(Place(2, 9, 456), 100, 1)
    assert len(txn.extents) == 3
    assert txn.segments == 3


@pytest.mark.parametrize("seed", range(20))
def test_extents_stay_within_their_limit_and_cover_all_rows(seed: int) -> None:
    chance = random.Random(seed)
    txn = _txn()
    staged: list[tuple[Place, int]] = []
    first, position = 1, 256
    for _ in range(chance.randint(1, 6 * TXN_EXTENTS_MAX)):
        if chance.random() < 0.001:
            first, position = first + 1000, 256
        position += chance.choice((0, 130, 1000))  # Of others.
        size = chance.randint(130, 500)
        place = Place(1, first, position)
        txn.stage(place, size, 1)
        staged.append((place, size))
        position += size
        assert len(txn.extents) <= TXN_EXTENTS_MAX
    assert txn.rows == len(staged)
    assert len(encode(Commit(txn.extents))) <= TXN_COMMIT_BODY_MAX_BYTES
    where = iter(txn.extents)
    extent = next(where)
    for (term, segment, start), size in staged:
        while (extent.term, extent.first_sequence) != (term, segment) or extent.end <= start:
            extent = next(where)
        assert extent.start <= start < start + size <= extent.end
    for one, other in zip(txn.extents, txn.extents[1:], strict=False):
        same = (one.term, one.first_sequence) == (other.term, other.first_sequence)
        assert not same or one.end <= other.start, "they overlap"


def test_one_extent_too_many_joins_them_in_pairs() -> None:
    txn = _txn()
    for number in range(TXN_EXTENTS_MAX + 1):
        txn.stage(Place(1, 1, 1000 * number), 100, 1)
    assert len(txn.extents) == TXN_EXTENTS_MAX // 2 + 1
    assert txn.extents[0] == Extent(1, 1, 0, 1100)
    assert txn.extents[-1].end == 1000 * TXN_EXTENTS_MAX + 100


def test_the_longest_commit_fits_into_the_room_that_is_kept_for_it() -> None:
    largest = [Extent(1 << 40, 1 << 40, (1 << 31) + n, (1 << 31) + n + 1) for n in range(2048)]
    assert len(largest) == TXN_EXTENTS_MAX
    assert len(encode(Commit(largest))) <= TXN_COMMIT_BODY_MAX_BYTES


def test_how_large_a_transaction_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TXN_ROWS_MAX", 10)
    monkeypatch.setattr(module, "TXN_SEGMENTS_MAX", 2)
    txn = _txn()
    txn.check_room(Place(1, 1, 256), 10)
    with pytest.raises(TxnTooLargeError, match="rows"):
        txn.check_room(Place(1, 1, 256), 11)
    txn.stage(Place(1, 1, 256), 100, 4)
    txn.stage(Place(1, 50, 256), 100, 4)
    txn.check_room(Place(1, 50, 356), 2)
    with pytest.raises(TxnTooLargeError, match="rows"):
        txn.check_room(Place(1, 50, 356), 3)
    with pytest.raises(TxnTooLargeError, match="segments"):
        txn.check_room(Place(1, 90, 256), 1)


# -- the end ---------------------------------------------------------------------------------------


def test_ends_are_remembered_for_their_time() -> None:
    finished: dict[int, Finished] = {}
    start = tso_from_ms(1_700_000_000_000)
    age = tso_from_ms(TXN_REMEMBERED_SECONDS * 1000)
    remember(finished, 1, Finished(End.COMMITTED, start, 0, 5))
    remember(finished, 2, Finished(End.EXPIRED, start + 1))
    remember(finished, 3, Finished(End.ROLLED_BACK, start + age))
    assert list(finished) == [1, 2, 3]
    remember(finished, 4, Finished(End.ROLLED_BACK, start + age + 1))
    assert list(finished) == [2, 3, 4]
    remember(finished, 5, Finished(End.ROLLED_BACK, start + 3 * age))
    assert list(finished) == [5]


def test_only_so_many_ends_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TXNS_REMEMBERED_MAX", 3)
    finished: dict[int, Finished] = {}
    for txn_id in range(10):
        remember(finished, txn_id, Finished(End.ROLLED_BACK, 5))
    assert list(finished) == [7, 8, 9]


@pytest.mark.parametrize(
    ("end", "error", "text"),
    [
        (End.COMMITTED, TxnInvalidStateError, "was committed"),
        (End.ROLLED_BACK, TxnInvalidStateError, "was rolled back"),
        (End.EXPIRED, TxnExpiredError, "expired"),
        (End.BROKEN, TxnInvalidStateError, "its collection was changed"),
    ],
)
def test_each_end_has_its_error(end: End, error: type[WalError], text: str) -> None:
    told = Finished(end, 1).error()
    assert type(told) is error
    assert text in told.message


@pytest.mark.parametrize("decode", [decode_begin, decode_commit, decode_rollback])
@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x93\x01\x02", b"\x91\xa1\xff"])
def test_bodies_that_cannot_be_read_are_damage(decode: Any, body: bytes) -> None:
    with pytest.raises(CorruptError, match="cannot be read"):
        decode(body)


# -- replay equals life ----------------------------------------------------------------------------


class _Life:
    """Makes random requests, most of them such that they are let in."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.line = Line()
        self._numbers: dict[tuple[int, int], int] = {}
        self._ddl = 0
        self._txns = 0
        self._partitions = 0

    def run(self, groups: int) -> None:
        line, chance = self.line, self.chance
        line.write(create(V1), create(V2, shards=2))
        for _ in range(groups):
            line.clock.pass_ms(chance.choice((0, 1, 1000, 1000, 400_000)))
            line.write(*(self._request() for _ in range(chance.randint(1, 8))))
            if chance.random() < 0.1:
                line.rotate()
        line.write(create(3 << 16))  # Written in any case: both clocks end at the same time.

    def _request(self) -> AppendRequest:
        chance = self.chance
        vchannel = chance.choice((V1, V2))
        kind = chance.random()
        if kind < 0.55:
            return self._rows(vchannel)
        if kind < 0.9:
            return self._of_a_transaction(vchannel)
        if kind < 0.93:
            return request_of(message(MessageType.MARK, 0))
        return self._change(vchannel)

    def _rows(self, vchannel: int, txn: int = 0) -> AppendRequest:
        chance = self.chance
        fields: dict[str, Any] = {"txn_id": txn}
        if chance.random() < 0.5:
            fields["producer"] = self._producer(vchannel)
        if chance.random() < 0.2:
            fields["partition"] = chance.randint(0, self._partitions)
        if chance.random() < 0.1 and vchannel in self.line.state.vchannels:
            fields["expect"] = self.line[vchannel].next_offset + chance.choice((0, 0, 1))
        return rows(chance.randint(1, 4), vchannel, **fields)

    def _producer(self, vchannel: int) -> tuple[int, int, int]:
        chance = self.chance
        id = chance.choice((1, 2, NAMED + 1, NAMED + 2))
        key = (vchannel, id)
        number = self._numbers.get(key, 0) + chance.choice((1, 1, 1, 1, 1, 1, 0, 2))
        epoch = chance.choice((0,) * 40 + (1,))
        known = self.line[vchannel].producers_by_id.get(id)
        if known is None or epoch > known.epoch:
            number = 1
        self._numbers[key] = max(1, number)
        return id, max(epoch, 0 if known is None else known.epoch), max(1, number)

    def _of_a_transaction(self, vchannel: int) -> AppendRequest:
        chance = self.chance
        open_ones = list(self.line[vchannel].txns)
        if not open_ones or chance.random() < 0.15:
            self._txns += 1
            return begin(self._txns, vchannel)
        txn = chance.choice((*open_ones, chance.randint(1, self._txns)))
        step = chance.random()
        if step < 0.6:
            return self._rows(vchannel, txn)
        if step < 0.85:
            producer = self._producer(vchannel) if chance.random() < 0.3 else (0, 0, 0)
            return commit(txn, vchannel, producer=producer)
        return rollback(txn, vchannel, chance.choice((End.ROLLED_BACK, End.EXPIRED)))

    def _change(self, vchannel: int) -> AppendRequest:
        chance = self.chance
        self._ddl += 1
        if chance.random() < 0.02:
            return drop(vchannel)
        kind = chance.choice(
            (
                MessageType.TRUNCATE_COLLECTION,
                MessageType.CREATE_PARTITION,
                MessageType.CREATE_PARTITION,
                MessageType.DROP_PARTITION,
                MessageType.ALTER_COLLECTION,
            )
        )
        fields: dict[str, Any] = {"number": self._ddl}
        if kind == MessageType.CREATE_PARTITION:
            self._partitions += 1
            fields |= {"partition": self._partitions, "name": f"p{self._partitions}"}
        elif kind == MessageType.DROP_PARTITION:
            fields["partition"] = chance.randint(1, self._partitions + 1)
        elif kind == MessageType.ALTER_COLLECTION:
            fields["settings"] = {chance.choice("abc"): chance.choice(("", "1", "2"))}
        return change(kind, vchannel, **fields)


@pytest.mark.parametrize("from_snapshot", [False, True], ids=["whole-log", "last-segment"])
@pytest.mark.parametrize("seed", range(40))
def test_replay_of_a_log_equals_the_life_that_wrote_it(seed: int, from_snapshot: bool) -> None:
    life = _Life(seed)
    life.run(groups=120)
    state = life.line.state
    replayed = life.line.replayed(from_snapshot=from_snapshot)
    assert replayed.confirmed_below == state.confirmed_below
    assert replayed.segment == state.segment
    assert replayed.snapshot() == state.snapshot()
    assert {id: set(one.by_id) for id, one in replayed.producers.items()} == {
        id: set(one.by_id) for id, one in state.producers.items()
    }


def test_the_lives_have_all_of_it() -> None:
    """What the test above compares is not empty."""
    kinds: set[int] = set()
    ends: set[int] = set()
    most_open = most_extents = repeats = refused = 0
    for seed in range(10):
        life = _Life(seed)
        plain = life.line.write

        def write(*group: AppendRequest, plain: Any = plain) -> Any:
            nonlocal repeats, refused
            outcome = plain(*group)
            repeats += len(outcome.repeated)
            refused += len(outcome.refused)
            return outcome

        life.line.write = write  # type: ignore[method-assign]
        life.run(groups=120)
        kinds |= {entry[0].type for entry in life.line.log if not hasattr(entry, "snapshot")}
        for vchannel in life.line.state.vchannels.values():
            ends |= {one.end for one in vchannel.finished.values()}
            most_open = max(most_open, len(vchannel.txns))
            for txn in vchannel.txns.values():
                most_extents = max(most_extents, len(txn.extents))
    assert kinds == {
        MessageType.INSERT,
        MessageType.CREATE_COLLECTION,
        MessageType.DROP_COLLECTION,
        MessageType.TRUNCATE_COLLECTION,
        MessageType.CREATE_PARTITION,
        MessageType.DROP_PARTITION,
        MessageType.ALTER_COLLECTION,
        MessageType.BEGIN_TXN,
        MessageType.COMMIT_TXN,
        MessageType.ROLLBACK_TXN,
        MessageType.MARK,
    }
    assert ends == set(End)
    assert most_open >= 1
    assert most_extents >= 2
    assert repeats > 20
    assert refused > 20


def test_the_oldest_open_transaction_holds_the_last_confirmed_position_back() -> None:
    line = Line(V1, V2)
    line.write(begin(1), begin(2, V2))
    oldest = line.log[-2][0]
    line.write(rows())
    assert line.log[-1][0].last_confirmed == oldest.sequence - 1
    line.write(commit(1))
    line.write(rows())
    assert line.log[-1][0].last_confirmed == oldest.sequence
    line.write(rollback(2, V2))
    line.write(rows())
    assert line.log[-1][0].last_confirmed == line.log[-1][0].sequence - 1
    assert ChannelState().confirmed_below > line.state.next_sequence
