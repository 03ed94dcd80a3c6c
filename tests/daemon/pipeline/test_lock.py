"""Locks: who waits while a collection is changed."""

from __future__ import annotations

import pytest

from tests.daemon.pipeline.making import V1, V2, begin, change, commit, create, drop, rollback, rows
from wal_core.message import MessageType
from wal_daemon.pipeline.lock import Locks
from wal_daemon.wal.requests import AppendRequest

SHARED = [rows(), rows(txn_id=7), begin(7), commit(7), rollback(7)]
CHANGES = [
    create(),
    drop(),
    *(
        change(kind)
        for kind in (
            MessageType.TRUNCATE_COLLECTION,
            MessageType.CREATE_PARTITION,
            MessageType.DROP_PARTITION,
            MessageType.ALTER_COLLECTION,
        )
    ),
]


def _kind(request: AppendRequest) -> str:
    return MessageType(request.type).name


@pytest.mark.parametrize("request_", SHARED, ids=_kind)
def test_everything_but_the_change_waits(request_: AppendRequest) -> None:
    locks = Locks()
    assert not locks.stops(request_)
    locks.take([V1])
    assert locks.stops(request_)
    locks.release([V1])
    assert not locks.stops(request_)


@pytest.mark.parametrize("request_", CHANGES, ids=_kind)
def test_the_change_goes_through_its_own_lock(request_: AppendRequest) -> None:
    locks = Locks()
    locks.take([V1])
    assert not locks.stops(request_)


def test_other_vchannels_go_on() -> None:
    locks = Locks()
    locks.take([V1, V1 + 1])
    assert locks.stops(rows(vchannel=V1 + 1))
    assert not locks.stops(rows(vchannel=V2))
    locks.take([V2])
    locks.release([V1, V1 + 1])
    assert not locks.stops(rows(vchannel=V1))
    assert locks.stops(rows(vchannel=V2))
    assert locks.held == {V2}


def test_to_release_what_is_not_held_does_nothing() -> None:
    locks = Locks()
    locks.release([V1])
    assert not locks.held
