"""Shards: what a VChannel lets in."""

from __future__ import annotations

import pytest

from tests.daemon.pipeline.making import NAMED, V1, V2, Line, begin, change, create, drop, rows
from wal_core.errors import (
    AlreadyExistsError,
    BadInputError,
    BugError,
    ExpectationFailedError,
    NotFoundError,
    WalError,
)
from wal_core.limits import BATCH_RECORDS_MAX
from wal_core.message import MessageType, message
from wal_daemon.wal.requests import NOBODY, AppendRequest, own_request

CREATE_PARTITION = MessageType.CREATE_PARTITION
DROP_PARTITION = MessageType.DROP_PARTITION
TRUNCATE = MessageType.TRUNCATE_COLLECTION
ALTER = MessageType.ALTER_COLLECTION


def _damaged() -> AppendRequest:
    request = rows()
    request.body = b"x\n"
    return request


def _empty() -> AppendRequest:
    return own_request(message(MessageType.INSERT, V1, b"", rows=0), NOBODY)


def _too_many() -> AppendRequest:
    return own_request(message(MessageType.INSERT, V1, b"", rows=BATCH_RECORDS_MAX + 1), NOBODY)


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (rows(vchannel=V2), NotFoundError, "never created"),
        (begin(7, V2), NotFoundError, "never created"),
        (drop(V2), NotFoundError, "never created"),
        (change(TRUNCATE, V2), NotFoundError, "never created"),
        (rows(partition=3), NotFoundError, "no partition 3"),
        (rows(partition=3, txn_id=7), NotFoundError, "no partition 3"),
        (change(DROP_PARTITION, partition=3), NotFoundError, "no partition 3"),
        (create(), AlreadyExistsError, "exists"),
        (_damaged(), BadInputError, "checksum"),
        (_empty(), BadInputError, "0 rows"),
        (_too_many(), BadInputError, "rows"),
        (rows(expect=1), ExpectationFailedError, "the next one is 0"),
        (own_request(message(MessageType.FLUSH, V1), NOBODY), BugError, "type 49"),
    ],
)
def test_what_is_refused_leaves_no_trace(
    request_: AppendRequest, error: type[WalError], text: str
) -> None:
    line = Line(V1)
    before = line.state.snapshot()
    sequence = line.state.next_sequence
    refusal = line.refusal(request_)
    assert type(refusal) is error
    assert text in refusal.message
    assert line.state.next_sequence == sequence
    line.state.tso = line.replayed(from_snapshot=False).tso  # Time alone went on.
    assert line.state.snapshot() == before


def test_nothing_follows_a_drop() -> None:
    line = Line(V1)
    line.write(rows(producer=(5, 0, 1)))
    line.write(drop())
    for request in (rows(), begin(7), drop(), change(ALTER), rows(producer=(5, 0, 2))):
        refusal = line.refusal(request)
        assert isinstance(refusal, NotFoundError)
        assert "dropped" in refusal.message
    assert isinstance(line.refusal(create()), AlreadyExistsError), "ids are never given again"


def test_rows_before_a_drop_in_the_same_group_are_in_and_those_behind_it_are_not() -> None:
    line = Line(V1)
    before, behind = rows(2), rows(3)
    outcome = line.write(before, drop(), behind)
    assert before in outcome.written
    assert [request for request, _ in outcome.refused] == [behind]
    assert line[V1].next_offset == 2


def test_partitions_take_rows_from_their_creation_to_their_drop() -> None:
    line = Line(V1)
    line.write(change(CREATE_PARTITION, partition=3, name="eu"))
    line.write(rows(2, partition=3))
    assert isinstance(
        line.refusal(change(CREATE_PARTITION, partition=4, name="eu")), AlreadyExistsError
    )
    line.write(change(DROP_PARTITION, partition=3))
    assert isinstance(line.refusal(rows(partition=3)), NotFoundError)
    line.write(change(CREATE_PARTITION, partition=4, name="eu"))
    assert line[V1].partitions == {4: "eu"}
    assert line[V1].last_partition == 4
    assert line[V1].next_offset == 2


def test_an_expectation_holds_or_tells_the_true_offset() -> None:
    line = Line(V1)
    line.write(rows(5, expect=0))
    for expect in (4, 6):
        refusal = line.refusal(rows(expect=expect))
        assert refusal.details == {"expected": expect, "next": 5}
    line.write(rows(expect=5))
    assert line[V1].next_offset == 6


def test_settings_are_merged_and_an_empty_value_takes_one_away() -> None:
    line = Line(V1)
    line.write(change(ALTER, settings={"a": "1", "b": "2"}))
    line.write(change(ALTER, number=2, settings={"a": "", "c": "3"}))
    assert line[V1].settings == {"b": "2", "c": "3"}
    assert line[V1].ddl == 2


def test_a_truncation_hides_what_is_there_and_breaks_transactions() -> None:
    line = Line(V1)
    line.write(rows(4), begin(7), rows(2, txn_id=7))
    line.write(change(TRUNCATE))
    assert (line[V1].first_offset, line[V1].next_offset) == (4, 4)
    assert line[V1].txns == {}


def test_producers_of_one_shard_mean_nothing_in_another() -> None:
    line = Line(V1, V2)
    line.write(rows(producer=(NAMED + 5, 0, 1)))
    other = rows(vchannel=V2, producer=(NAMED + 5, 0, 1))
    assert line.write(other).written == [other]
