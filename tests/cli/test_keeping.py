"""When a tail saves its position: a clock and a store of its own, no daemon."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wal_cli.keeping import Saving
from wal_client.cursors import Position
from wal_client.ranges import RowBatch
from wal_core.clock import Clock, SystemClock
from wal_core.errors import CursorMovedError, DiskFullError, UnreachableError


class Watch(SystemClock):
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


class Saved(Saving):
    """Remembers what was stored, or raises what it is told to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.stored: list[dict[str, Position]] = []
        self.failure: BaseException | None = None

    def _store(self, delivered: Mapping[str, Position]) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        self.stored.append({name: dict(position) for name, position in delivered.items()})


def batch(end: int, shard: int = 0) -> RowBatch:
    return cast(Any, SimpleNamespace(collection="c", shard=shard, end=end))


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def keeper(watch: Watch) -> Saved:
    return Saved(watch)


def test_only_what_was_flushed_is_saved(keeper: Saved) -> None:
    keeper.wrote(batch(3))
    assert keeper.due_in() is None
    keeper.close()
    assert keeper.stored == []
    keeper.flushed()
    keeper.wrote(batch(5))
    keeper.close()
    assert keeper.stored == [{"c": {0: 3}}]


def test_at_most_once_a_second(keeper: Saved, watch: Watch) -> None:
    keeper.wrote(batch(3))
    keeper.flushed()
    assert keeper.due_in() == 0
    keeper.save()
    keeper.wrote(batch(4))
    keeper.wrote(batch(9, shard=1))
    keeper.flushed()
    assert keeper.due_in() == 1
    watch.seconds += 0.75
    assert keeper.due_in() == 0.25
    watch.seconds += 5
    assert keeper.due_in() == 0
    keeper.save()
    assert keeper.stored == [{"c": {0: 3}}, {"c": {0: 4, 1: 9}}]
    assert keeper.due_in() is None


@pytest.mark.parametrize("failure", [UnreachableError("away"), DiskFullError("full")])
def test_what_may_pass_is_tried_again(keeper: Saved, failure: Exception) -> None:
    keeper.wrote(batch(3))
    keeper.flushed()
    keeper.failure = failure
    keeper.save()
    assert keeper.due_in() == 1
    keeper.failure = failure
    with pytest.raises(type(failure)):
        keeper.close()
    keeper.close()
    assert keeper.stored == [{"c": {0: 3}}]


def test_a_refusal_is_told_once(keeper: Saved) -> None:
    keeper.wrote(batch(3))
    keeper.flushed()
    keeper.failure = CursorMovedError("moved")
    with pytest.raises(CursorMovedError):
        keeper.save()
    keeper.close()
    assert keeper.stored == []


def test_a_signal_in_the_middle_of_a_save(keeper: Saved) -> None:
    keeper.wrote(batch(3))
    keeper.flushed()
    keeper.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), keeper:
        keeper.save()
    assert keeper.stored == [{"c": {0: 3}}]


def test_of_two_errors_the_first_is_told(keeper: Saved) -> None:
    keeper.wrote(batch(3))
    keeper.flushed()
    keeper.failure = UnreachableError("the second")
    with pytest.raises(UnreachableError, match="the first"), keeper:
        raise UnreachableError("the first")
    keeper.failure = UnreachableError("alone")
    with pytest.raises(UnreachableError, match="alone"), keeper:
        raise BrokenPipeError
