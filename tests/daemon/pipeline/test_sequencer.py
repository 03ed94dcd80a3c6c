"""The sequencer: a group goes in, each request comes out with its place, its old answer or an
error."""

from __future__ import annotations

import pytest

from tests.daemon.pipeline.making import (
    NAMED,
    V1,
    V2,
    Line,
    begin,
    commit,
    create,
    request_of,
    rollback,
    rows,
)
from wal_core.errors import (
    ExpectationFailedError,
    NotFoundError,
    OutOfSequenceError,
    ProducerFencedError,
    ThrottledError,
)
from wal_core.limits import PRODUCER_RESULTS_MAX
from wal_core.message import NO_OFFSET, MessageType, message
from wal_storage import producers
from wal_storage.transactions import decode_commit

ID = 5
"""Of a client without a name; with ``NAMED`` of one that has one."""


def test_sequences_timestamps_and_offsets_follow_the_order_of_arrival() -> None:
    line = Line(V1, V2)
    sequence = line.state.next_sequence
    group = [rows(2), rows(1, V2), rows(3), rows(4, V2)]
    outcome = line.write(*group)
    assert outcome.written == group
    assert [one.sequence for one in group] == [sequence + number for number in range(4)]
    assert [one.tso - group[0].tso for one in group] == [0, 1, 2, 3]
    assert [one.first_offset for one in group] == [0, 0, 2, 1]
    assert line.state.next_sequence == sequence + 4
    assert (line[V1].next_offset, line[V2].next_offset) == (5, 5)
    assert line[V1].last_tso == group[2].tso


def test_a_refused_one_leaves_no_hole() -> None:
    line = Line(V1)
    group = [rows(2), rows(1, V2), rows(3, expect=7), rows(3)]
    outcome = line.write(*group)
    assert outcome.written == [group[0], group[3]]
    assert [type(error) for _, error in outcome.refused] == [NotFoundError, ExpectationFailedError]
    assert group[3].sequence == group[0].sequence + 1
    assert group[3].first_offset == 2
    assert line.position == 256 + sum(header.size for header, _ in line.log)  # type: ignore[misc]


# -- producers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [ID, NAMED + ID], ids=["anonymous", "named"])
def test_a_batch_that_was_written_gets_its_first_answer(id: int) -> None:
    line = Line(V1)
    first = rows(2, producer=(id, 0, 1))
    line.write(first)
    line.write(rows(9))
    again = rows(2, producer=(id, 0, 1))
    outcome = line.write(again)
    assert (outcome.written, outcome.repeated) == ([], [again])
    assert (again.first_offset, again.rows, again.tso) == (0, 2, first.tso)
    assert line[V1].next_offset == 11


@pytest.mark.parametrize("id", [ID, NAMED + ID], ids=["anonymous", "named"])
def test_the_same_batch_twice_in_one_group(id: int) -> None:
    line = Line(V1)
    first, again, next_one = (rows(2, producer=(id, 0, number)) for number in (1, 1, 2))
    outcome = line.write(first, again, next_one)
    assert outcome.written == [first, next_one]
    assert outcome.repeated == [again]
    assert (again.first_offset, again.tso) == (first.first_offset, first.tso)
    assert next_one.first_offset == 2
    assert next_one.sequence == first.sequence + 1


def test_the_last_results_are_remembered_and_no_more() -> None:
    line = Line(V1)
    last = PRODUCER_RESULTS_MAX + 3
    for number in range(1, last + 1):
        line.write(rows(producer=(ID, 0, number)))
    for number in range(last - PRODUCER_RESULTS_MAX + 1, last + 1):
        again = rows(producer=(ID, 0, number))
        assert line.write(again).repeated == [again]
        assert again.first_offset == number - 1
    error = line.refusal(rows(producer=(ID, 0, last - PRODUCER_RESULTS_MAX)))
    assert isinstance(error, OutOfSequenceError)
    assert error.details["last"] == last


@pytest.mark.parametrize("id", [ID, NAMED + ID], ids=["anonymous", "named"])
def test_a_gap_is_refused_and_the_one_that_is_due_is_named(id: int) -> None:
    line = Line(V1)
    line.write(rows(producer=(id, 0, 1)))
    group = [rows(producer=(id, 0, number)) for number in (3, 2, 3)]
    outcome = line.write(*group)
    ((refused, error),) = outcome.refused
    assert refused is group[0]
    assert isinstance(error, OutOfSequenceError)
    assert error.details == {"sequence": 3, "last": 1}
    assert outcome.written == group[1:]


def test_who_may_begin_where() -> None:
    line = Line(V1)
    assert isinstance(line.refusal(rows(producer=(ID, 0, 2))), OutOfSequenceError)
    line.write(rows(producer=(NAMED + ID, 0, 1000)))
    assert line[V1].next_offset == 1


def test_named_sequences_only_go_up_where_there_are_several_shards() -> None:
    line = Line()
    line.write(create(shards=2))
    line.write(rows(producer=(NAMED + ID, 0, 1)))
    line.write(rows(producer=(NAMED + ID, 0, 5)))
    assert line[V1].next_offset == 2
    assert isinstance(line.refusal(rows(producer=(NAMED + ID, 0, 4))), OutOfSequenceError)
    line.write(rows(producer=(ID, 0, 1)))
    assert isinstance(line.refusal(rows(producer=(ID, 0, 3))), OutOfSequenceError)


@pytest.mark.parametrize("id", [ID, NAMED + ID], ids=["anonymous", "named"])
def test_a_newer_epoch_takes_over_and_the_older_one_is_fenced(id: int) -> None:
    line = Line(V1)
    line.write(rows(producer=(id, 0, 1)), rows(producer=(id, 0, 2)))
    taken = rows(producer=(id, 1, 1))
    assert line.write(taken).written == [taken]
    assert taken.first_offset == 2
    for number in (2, 3):
        error = line.refusal(rows(producer=(id, 0, number)))
        assert isinstance(error, ProducerFencedError)
        assert error.details == {"epoch": 1}
    assert line.write(rows(producer=(id, 1, 2))).refused == []


def test_epochs_that_meet_in_one_group() -> None:
    line = Line(V1)
    old, new, late = (
        rows(producer=(ID, epoch, number)) for epoch, number in ((0, 1), (1, 1), (0, 2))
    )
    outcome = line.write(old, new, late)
    assert outcome.written == [old, new]
    assert [type(error) for _, error in outcome.refused] == [ProducerFencedError]


def test_a_conditional_append_that_is_repeated_did_get_its_offset() -> None:
    line = Line(V1)
    first = rows(2, expect=0, producer=(ID, 0, 1))
    again = rows(2, expect=0, producer=(ID, 0, 1))
    other = rows(2, expect=0)
    outcome = line.write(first, again, other)
    assert outcome.written == [first]
    assert outcome.repeated == [again]
    assert [type(error) for _, error in outcome.refused] == [ExpectationFailedError]
    assert again.first_offset == 0


def test_a_failed_expectation_uses_no_number_of_the_producer() -> None:
    line = Line(V1)
    assert isinstance(line.refusal(rows(expect=3, producer=(ID, 0, 1))), ExpectationFailedError)
    retried = rows(expect=0, producer=(ID, 0, 1))
    assert line.write(retried).written == [retried]


def test_one_producer_more_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers, "PRODUCERS_MAX", 2)
    line = Line(V1)
    line.write(rows(producer=(1, 0, 1)), rows(producer=(2, 0, 1)))
    assert isinstance(line.refusal(rows(producer=(3, 0, 1))), ThrottledError)
    line.write(rows(producer=(2, 0, 2)))
    line.clock.pass_ms(producers.ANONYMOUS_PRODUCER_SECONDS * 1000 + 1)
    line.write(rows())  # The state's time is that of the last group.
    assert line.write(rows(producer=(3, 0, 1))).refused == []


# -- transactions ----------------------------------------------------------------------------------


def test_staged_rows_get_a_place_and_no_offset() -> None:
    line = Line(V1)
    staged = rows(2, txn_id=7)
    line.write(begin(7), staged, rows())
    assert staged.first_offset == NO_OFFSET
    assert line[V1].next_offset == 1
    assert line[V1].txns[7].rows == 2
    staged_header = line.log[-2][0]
    assert staged_header.first_offset == NO_OFFSET
    assert staged_header.sequence == staged.sequence


def test_a_whole_transaction_in_one_group() -> None:
    line = Line(V1)
    group = [begin(7), rows(2, txn_id=7), rows(1), commit(7), rows(1)]
    assert line.write(*group).written == group
    assert [one.first_offset for one in group] == [NO_OFFSET, NO_OFFSET, 0, 1, 3]
    header, body = line.log[-2]
    assert header.rows == 2
    (extent,) = decode_commit(body).extents
    assert extent.end - extent.start == group[1].size


def test_a_staged_batch_that_is_sent_again_is_staged_once() -> None:
    line = Line(V1)
    first, again = (rows(2, txn_id=7, producer=(ID, 0, 1)) for _ in range(2))
    outcome = line.write(begin(7), first, again)
    assert outcome.repeated == [again]
    assert (again.first_offset, again.rows, again.tso) == (NO_OFFSET, 2, first.tso)
    done = commit(7)
    line.write(done)
    assert done.rows == 2


def test_a_commit_may_be_a_batch_of_a_producer() -> None:
    """The same input in another transaction is known again: its rows are not written twice."""
    line = Line(V1)
    producer = (NAMED + ID, 0, 1)
    first = commit(7, producer=producer)
    line.write(begin(7), rows(2, txn_id=7), first)
    second = commit(8, producer=producer)
    outcome = line.write(begin(8), rows(2, txn_id=8), second)
    assert outcome.repeated == [second]
    assert (second.first_offset, second.rows, second.tso) == (0, 2, first.tso)
    assert line[V1].next_offset == 2
    assert 8 in line[V1].txns, "to be rolled back by whoever asked"
    assert len(line.write(rollback(8)).written) == 1


def test_a_commit_of_no_rows_is_no_batch_of_its_producer() -> None:
    line = Line(V1)
    empty = commit(7, producer=(NAMED + ID, 0, 1))
    line.write(begin(7), empty)
    assert line.log[-1][0].producer_id == 0
    rows_of_it = rows(producer=(NAMED + ID, 0, 1))
    assert line.write(rows_of_it).written == [rows_of_it]


def test_a_conditional_commit() -> None:
    line = Line(V1)
    line.write(begin(7), rows(2, txn_id=7), rows(3))
    error = line.refusal(commit(7, expect=0))
    assert isinstance(error, ExpectationFailedError)
    assert error.details["next"] == 3
    assert 7 in line[V1].txns, "a refused commit may be tried again"
    done = commit(7, expect=3)
    line.write(done)
    assert done.first_offset == 3


# -- messages of the service -----------------------------------------------------------------------


def test_a_time_tick_carries_the_watermark_from_before_its_group() -> None:
    line = Line(V1)
    line.write(rows())
    confirmed = line.timetick.confirmed
    tick = request_of(message(MessageType.TIME_TICK, 0))
    behind = rows()
    line.write(tick, behind)
    assert tick.tso == confirmed < behind.tso
    assert behind.sequence == tick.sequence + 1


def test_a_mark_changes_nothing_but_sequence_and_time() -> None:
    line = Line(V1)
    line.write(rows(3))
    before = (line[V1].next_offset, line[V1].last_tso, line.state.next_sequence)
    mark = request_of(message(MessageType.MARK, 0))
    assert line.write(mark).written == [mark]
    assert (line[V1].next_offset, line[V1].last_tso, line.state.next_sequence - 1) == before
    assert mark.first_offset == NO_OFFSET
    assert line.state.tso == mark.tso
