"""The checker of histories must fail on each kind of broken history, and for that reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.history import (
    NEVER,
    Broken,
    Key,
    Kind,
    Operation,
    Outcome,
    Read,
    Seen,
    check,
    running_hash,
)

OK, FAILED, UNKNOWN = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN


class Story:
    """A history that is told step by step: each step takes one unit of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.operations: list[Operation] = []
        self.log: list[bytes] = []
        self.reads: list[Read] = []
        self.last_sequence = 0

    def tick(self) -> float:
        self.now += 1
        return self.now

    def does(
        self,
        kind: Kind,
        *rows: bytes,
        outcome: Outcome = OK,
        txn: int = 0,
        key: Key | None = None,
        first: int | None = None,
    ) -> None:
        began = self.tick()
        ended = NEVER if outcome is UNKNOWN else self.tick()
        self.operations.append(
            Operation(kind, began, ended, outcome, rows, key=key, txn=txn, first=first)
        )

    def append(self, *rows: bytes, outcome: Outcome = OK, there: bool = True) -> None:
        """A batch of the one producer; the next one in its sequence."""
        self.last_sequence += 1
        first = len(self.log) if outcome is OK else None
        key = Key(1, 0, self.last_sequence)
        self.does(Kind.APPEND, *rows, outcome=outcome, key=key, first=first)
        if there:
            self.log += rows

    def commit(self, txn: int, *rows: bytes, outcome: Outcome = OK) -> None:
        first = len(self.log) if outcome is OK else None
        self.does(Kind.COMMIT, txn=txn, outcome=outcome, first=first)
        self.log += rows

    def read(self, rows: list[bytes] | None = None, *, first: int = 0, name: str = "r") -> None:
        """A reader begins now, and sees all there is, or these rows."""
        since = self.tick() if rows is None else None
        seen = self.log if rows is None else rows
        at = self.tick()
        self.reads.append(
            Read(name, [Seen(first + n, row, at) for n, row in enumerate(seen)], since=since)
        )

    def check(self) -> int:
        self.read(name="last")
        return check(self.operations, self.reads)


def told() -> Story:
    """A good one: two batches, a transaction that is committed, one that is rolled back, one that
    nobody ended, one whose commit has no answer."""
    story = Story()
    story.append(b"a1", b"a2")
    story.does(Kind.BEGIN, txn=7)
    story.does(Kind.STAGE, b"t1", b"t2", txn=7)
    story.append(b"a3")
    story.does(Kind.STAGE, b"t3", txn=7)
    story.read(name="early")
    story.commit(7, b"t1", b"t2", b"t3")
    story.does(Kind.STAGE, b"u1", txn=8)
    story.does(Kind.ROLLBACK, txn=8)
    story.does(Kind.STAGE, b"v1", txn=9)
    story.append(b"a4", outcome=UNKNOWN, there=False)
    return story


def test_a_good_history_passes() -> None:
    story = told()
    story.does(Kind.STAGE, b"w1", txn=10)
    story.commit(10, b"w1", outcome=UNKNOWN)
    story.read(story.log[2:5], first=2, name="from the middle")
    story.read([], name="saw nothing")
    assert story.check() == 7


def test_an_unknown_append_may_be_there_or_not() -> None:
    for there in (True, False):
        story = told()
        story.append(b"maybe", outcome=UNKNOWN, there=there)
        story.check()


def test_a_stage_without_an_answer_may_belong_to_the_transaction_or_not() -> None:
    for rows in ((b"x1", b"x3"), (b"x1", b"x2", b"x3")):
        story = told()
        story.does(Kind.STAGE, b"x1", txn=11)
        story.does(Kind.STAGE, b"x2", txn=11, outcome=UNKNOWN)
        story.does(Kind.STAGE, b"x3", txn=11)
        story.commit(11, *rows)
        story.check()


def test_a_batch_sent_again_is_one_batch() -> None:
    story = told()
    key = Key(5, 1, 1)
    story.does(Kind.APPEND, b"again", outcome=UNKNOWN, key=key)
    story.log.append(b"again")
    story.does(Kind.APPEND, b"again", key=key, first=len(story.log) - 1)
    story.check()


def test_a_stage_sent_again_is_one_stage() -> None:
    story = told()
    for outcome in (UNKNOWN, OK):
        story.does(Kind.STAGE, b"x1", txn=11, key=Key(5, 1, 1), outcome=outcome)
    story.commit(11, b"x1")
    story.check()


def test_a_running_hash_tells_where_rows_begin() -> None:
    assert running_hash([b"ab", b"c"])[-1] != running_hash([b"a", b"bc"])[-1]
    assert running_hash([b"a", b"b"])[1] == running_hash([b"a", b"c"])[1]


# -- what must be found ----------------------------------------------------------------------------


def aborted_read(story: Story) -> None:
    story.log.append(b"u1")


def unfinished_read(story: Story) -> None:
    story.log.append(b"v1")


def refused_append_is_there(story: Story) -> None:
    story.append(b"no", outcome=FAILED)


def staged_rows_seen_before_the_commit(story: Story) -> None:
    story.does(Kind.STAGE, b"x1", txn=11)
    story.read([*story.log, b"x1"], name="hasty")
    story.commit(11, b"x1")


def divergent_order(story: Story) -> None:
    story.read([b"a2", b"a1", b"a3"])


def divergent_order_in_the_middle(story: Story) -> None:
    story.read([b"t2", b"t1"], first=3)


def row_left_out_for_one_reader(story: Story) -> None:
    story.read([b"a1", b"a3"])


def gap(story: Story) -> None:
    seen = [Seen(0, b"a1", 99), Seen(2, b"a3", 99)]
    story.reads.append(Read("r", seen))


def repeat(story: Story) -> None:
    seen = [Seen(0, b"a1", 99), Seen(0, b"a1", 99)]
    story.reads.append(Read("r", seen))


def lost_commit(story: Story) -> None:
    story.does(Kind.STAGE, b"x1", txn=11)
    story.commit(11)


def duplicate_after_retry(story: Story) -> None:
    key = Key(5, 1, 1)
    story.does(Kind.APPEND, b"again", outcome=UNKNOWN, key=key)
    story.does(Kind.APPEND, b"again", key=key, first=len(story.log))
    story.log += [b"again", b"again"]


def retry_with_another_answer(story: Story) -> None:
    key = Key(5, 1, 1)
    story.does(Kind.APPEND, b"again", key=key, first=len(story.log))
    story.does(Kind.APPEND, b"again", key=key, first=len(story.log) + 1)
    story.log += [b"again"]


def half_a_transaction(story: Story) -> None:
    story.does(Kind.STAGE, b"x1", b"x2", txn=11)
    story.does(Kind.STAGE, b"x3", txn=11)
    story.commit(11, b"x1", b"x2")


def second_half_of_a_transaction(story: Story) -> None:
    story.does(Kind.STAGE, b"x1", b"x2", txn=11)
    story.does(Kind.STAGE, b"x3", txn=11)
    story.commit(11, b"x3", outcome=UNKNOWN)


def transaction_torn_apart(story: Story) -> None:
    story.does(Kind.STAGE, b"x1", txn=11)
    story.does(Kind.STAGE, b"x2", txn=11)
    story.commit(11, b"x1")
    story.append(b"between")
    story.log.append(b"x2")


def half_a_batch(story: Story) -> None:
    story.append(b"y1", b"y2", outcome=UNKNOWN, there=False)
    story.log.append(b"y1")


def acknowledged_row_missing(story: Story) -> None:
    story.append(b"gone", there=False)


def acknowledged_elsewhere(story: Story) -> None:
    story.does(Kind.APPEND, b"z", first=77)
    story.log.append(b"z")


def later_one_first(story: Story) -> None:
    at = len(story.log)
    story.does(Kind.APPEND, b"first", first=at + 1)
    story.does(Kind.APPEND, b"second", first=at)
    story.log += [b"second", b"first"]


def producer_out_of_order(story: Story) -> None:
    story.does(Kind.APPEND, b"p1", outcome=UNKNOWN, key=Key(5, 0, 1))
    story.does(Kind.APPEND, b"p2", outcome=UNKNOWN, key=Key(5, 0, 2))
    story.log += [b"p2", b"p1"]


def row_of_nobody(story: Story) -> None:
    story.log.append(b"???")


def stale_read(story: Story) -> None:
    since = story.tick()
    seen = [Seen(n, row, since) for n, row in enumerate(story.log[:3])]
    story.reads.append(Read("stale", seen, since=since))


def read_that_ends_inside_a_transaction(story: Story) -> None:
    since = story.tick()
    seen = [Seen(n, row, since) for n, row in enumerate(story.log[:-1])]
    story.reads.append(Read("cut", seen, since=since))


def row_shown_and_gone(story: Story) -> None:
    story.append(b"shown", outcome=UNKNOWN)
    story.read(list(story.log), name="follower")
    story.log.pop()


def committed_and_rolled_back(story: Story) -> None:
    story.does(Kind.ROLLBACK, txn=7)


@pytest.mark.parametrize(
    ("tell", "rule"),
    [
        (aborted_read, "nothing that failed"),
        (unfinished_read, "nothing that failed"),
        (refused_append_is_there, "nothing that failed"),
        (staged_rows_seen_before_the_commit, "not too early"),
        (divergent_order, "one order"),
        (divergent_order_in_the_middle, "one order"),
        (row_left_out_for_one_reader, "one order"),
        (gap, "dense offsets"),
        (repeat, "dense offsets"),
        (lost_commit, "nothing lost"),
        (duplicate_after_retry, "written once"),
        (retry_with_another_answer, "one answer"),
        (half_a_transaction, "whole and together"),
        (second_half_of_a_transaction, "whole and together"),
        (transaction_torn_apart, "whole and together"),
        (half_a_batch, "whole and together"),
        (acknowledged_row_missing, "nothing lost"),
        (acknowledged_elsewhere, "where it was acknowledged"),
        (later_one_first, "real time"),
        (producer_out_of_order, "a producer's order"),
        (row_of_nobody, "nothing else"),
        (stale_read, "not too late"),
        (read_that_ends_inside_a_transaction, "whole and together"),
        (row_shown_and_gone, "nothing goes away"),
        (committed_and_rolled_back, "one end"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_broken_history_is_found(tell: Callable[[Story], None], rule: str) -> None:
    story = told()
    tell(story)
    with pytest.raises(Broken) as caught:
        story.check()
    assert caught.value.rule == rule


def test_a_row_that_was_shown_and_replaced() -> None:
    story = told()
    story.append(b"shown", outcome=UNKNOWN)
    story.read(list(story.log), name="follower")
    story.log.pop()
    story.append(b"instead")
    with pytest.raises(Broken) as caught:
        story.check()
    assert caught.value.rule == "one order"
