"""Leases on a clock that is moved by hand, and the interceptor of transactions."""

from __future__ import annotations

import random

import pytest

from tests.daemon.pipeline.making import V1, V2, Line, begin, commit, drop, rollback, rows
from tests.storage.writer import ManualClock
from wal_core import limits
from wal_core.errors import (
    NotFoundError,
    ThrottledError,
    TxnExpiredError,
    TxnInvalidStateError,
    UnknownTxnError,
)
from wal_daemon.pipeline import txn as module
from wal_daemon.pipeline.txn import Leases
from wal_daemon.wal.requests import AppendRequest
from wal_storage.transactions import End, decode_commit

# -- leases ----------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def leases(clock: ManualClock) -> Leases:
    return Leases(clock.monotonic)


def test_a_lease_runs_out_unless_it_is_renewed(clock: ManualClock, leases: Leases) -> None:
    leases.start(7, 10)
    assert 7 in leases
    assert len(leases) == 1
    clock.pass_ms(9_000)
    assert not leases.is_over(7)
    assert leases.left(7) == pytest.approx(1)
    leases.renew(7)
    assert leases.left(7) == pytest.approx(10)
    clock.pass_ms(9_999)
    assert not leases.is_over(7)
    clock.pass_ms(1)
    assert leases.is_over(7)
    assert leases.left(7) == 0


def test_what_ended_is_not_renewed(leases: Leases) -> None:
    leases.start(7, 10)
    leases.end(7)
    leases.end(7)
    leases.renew(7)
    assert 7 not in leases
    assert leases.is_over(7)
    assert leases.left(7) == 0


def test_those_that_are_over_and_when_the_next_one_is(clock: ManualClock, leases: Leases) -> None:
    assert leases.over() == ([], None)
    leases.start(1, 5)
    leases.start(2, 3)
    leases.start(3, 9)
    assert leases.over() == ([], 3)
    clock.pass_ms(5_000)
    over, next_end = leases.over()
    assert sorted(over) == [1, 2]
    assert next_end == pytest.approx(4)
    clock.pass_ms(4_000)
    assert sorted(leases.over()[0]) == [1, 2, 3]
    assert leases.over()[1] is None


@pytest.mark.parametrize("seed", range(10))
def test_leases_against_a_plain_model(seed: int) -> None:
    chance = random.Random(seed)
    clock = ManualClock()
    leases = Leases(clock.monotonic)
    ends: dict[int, tuple[float, int]] = {}
    for _ in range(300):
        txn = chance.randint(1, 5)
        step = chance.choice(("start", "renew", "renew", "end", "pass", "pass"))
        if step == "start":
            seconds = chance.randint(1, 5)
            leases.start(txn, seconds)
            ends[txn] = (clock.monotonic() + seconds, seconds)
        elif step == "renew":
            leases.renew(txn)
            if txn in ends:
                ends[txn] = (clock.monotonic() + ends[txn][1], ends[txn][1])
        elif step == "end":
            leases.end(txn)
            ends.pop(txn, None)
        else:
            clock.pass_ms(chance.randint(0, 2000))
        now = clock.monotonic()
        over, next_end = leases.over()
        assert sorted(over) == sorted(one for one, (end, _) in ends.items() if end <= now)
        later = [end - now for end, _ in ends.values() if end > now]
        assert next_end == (pytest.approx(min(later)) if later else None)


# -- the interceptor -------------------------------------------------------------------------------


def test_rows_get_their_offsets_at_the_commit() -> None:
    line = Line(V1)
    line.write(begin(7), rows(2, txn_id=7), rows(1), rows(3, txn_id=7))
    assert line[V1].next_offset == 1
    done = commit(7)
    line.write(done)
    assert (done.first_offset, done.rows) == (1, 5)
    assert line[V1].next_offset == 6
    assert line[V1].last_tso == done.tso
    assert line[V1].txns == {}


def test_the_commit_says_where_its_rows_lie() -> None:
    line = Line(V1)
    staged = [rows(2, txn_id=7), rows(3, txn_id=7)]
    line.write(begin(7))
    starts = []
    for one in staged:
        starts.append(line.position)
        line.write(one, rows())
    done = commit(7)
    line.write(done)
    extents = decode_commit(bytes(done.body)).extents
    assert [(one.start, one.end) for one in extents] == [
        (start, start + one.size) for start, one in zip(starts, staged, strict=True)
    ]
    assert {(one.term, one.first_sequence) for one in extents} == {(1, 1)}


def test_a_repeated_commit_gets_its_first_answer() -> None:
    line = Line(V1)
    line.write(begin(7), rows(2, txn_id=7))
    first = commit(7)
    line.write(first)
    line.write(rows(4))
    again = commit(7)
    outcome = line.write(again)
    assert outcome.repeated == [again]
    assert outcome.written == []
    assert (again.first_offset, again.rows, again.tso) == (0, 2, first.tso)
    assert line[V1].next_offset == 6


def test_an_empty_transaction_commits_to_nothing() -> None:
    line = Line(V1)
    before = line[V1].last_tso
    done = commit(7)
    line.write(begin(7), done)
    assert done.rows == 0
    assert (line[V1].next_offset, line[V1].last_tso) == (0, before)


@pytest.mark.parametrize("late", [rows(txn_id=7), commit(7), rollback(7)], ids=lambda one: one.type)
def test_nothing_more_after_a_rollback(late: AppendRequest) -> None:
    line = Line(V1)
    line.write(begin(7), rows(2, txn_id=7), rollback(7))
    error = line.refusal(late)
    assert isinstance(error, TxnInvalidStateError)
    assert "rolled back" in error.message
    assert line[V1].next_offset == 0


def test_nothing_more_after_a_commit() -> None:
    line = Line(V1)
    line.write(begin(7), commit(7))
    for late in (rows(txn_id=7), rollback(7)):
        error = line.refusal(late)
        assert isinstance(error, TxnInvalidStateError)
        assert "committed" in error.message


def test_an_unknown_one_and_one_of_another_shard() -> None:
    line = Line(V1, V2)
    line.write(begin(7, V1))
    for request in (rows(txn_id=8), commit(8), rollback(8), rows(vchannel=V2, txn_id=7)):
        assert isinstance(line.refusal(request), UnknownTxnError)


def test_expiry_is_refused_to_one_that_was_renewed_meanwhile() -> None:
    line = Line(V1)
    line.leases.start(7, 10)
    line.write(begin(7))
    line.clock.pass_ms(10_000)
    line.write(rows(txn_id=7))  # It came in time to be sequenced: the lease begins anew.
    assert isinstance(line.refusal(rollback(7, end=End.EXPIRED)), TxnExpiredError)
    assert 7 in line[V1].txns
    line.clock.pass_ms(10_000)
    assert len(line.write(rollback(7, end=End.EXPIRED)).written) == 1
    error = line.refusal(commit(7))
    assert isinstance(error, TxnExpiredError)
    assert line[V1].next_offset == 0


def test_a_drop_breaks_the_open_ones() -> None:
    line = Line(V1)
    line.write(begin(7), rows(txn_id=7), drop())
    assert line[V1].txns == {}
    assert isinstance(line.refusal(commit(7)), NotFoundError)


def test_how_many_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TXNS_OPEN_MAX", 3)
    assert limits.TXNS_OPEN_MAX > 3
    line = Line(V1, V2)
    line.write(*(begin(one) for one in (1, 2, 3)))
    assert isinstance(line.refusal(begin(4)), ThrottledError)
    line.write(begin(4, V2))
    line.write(rollback(2))
    assert len(line.write(begin(4)).written) == 1
