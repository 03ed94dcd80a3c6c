"""When a time tick is due, with a clock that is moved by hand."""

from __future__ import annotations

from tests.storage.writer import ManualClock
from wal_core.limits import MARK_DELAY_SECONDS, TICK_INTERVAL_BYTES
from wal_core.message import Message, MessageType, message
from wal_core.tso import TsoSource
from wal_daemon.pipeline.timetick import TimeTick
from wal_daemon.wal.ticks import Ticks

DELAY_MS = round(MARK_DELAY_SECONDS * 1000)


class Log:
    """Confirms groups at once, as a PChannel does."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.timetick = TimeTick(TsoSource(self.clock, 0))
        self.ticks = Ticks(self.timetick, self.clock.monotonic)

    def write(self, *kinds: MessageType, size: int = 128) -> bool:
        """One group. Whether it told something."""
        first = self.timetick.begin(len(kinds))
        group: list[Message] = []
        for number, kind in enumerate(kinds):
            one = message(kind, 0)
            is_tick = kind == MessageType.TIME_TICK
            one.tso = self.timetick.confirmed if is_tick else first + number
            one.size = size
            group.append(one)
        self.timetick.done(first)
        return self.ticks.confirmed(group)

    @property
    def owes(self) -> bool:
        return self.timetick.is_due


def test_an_empty_log_owes_nothing() -> None:
    log = Log()
    log.clock.pass_ms(DELAY_MS)
    assert not log.owes
    assert not log.ticks.are_due


def test_what_was_found_in_the_log_is_told_once() -> None:
    clock = ManualClock()
    timetick = TimeTick(TsoSource(clock, floor=77))
    Ticks(timetick, clock.monotonic)
    assert timetick.is_due


def test_a_tick_is_owed_for_messages_and_never_for_a_tick() -> None:
    log = Log()
    assert not log.write(MessageType.INSERT)
    assert log.owes
    assert log.write(MessageType.TIME_TICK)
    assert not log.owes
    assert log.timetick.confirmed > log.timetick.told, "the tick took a timestamp itself"


def test_a_tick_tells_nothing_of_its_own_group() -> None:
    log = Log()
    log.write(MessageType.INSERT)
    told = log.timetick.confirmed
    assert log.write(MessageType.TIME_TICK, MessageType.INSERT)
    assert log.timetick.told == told
    assert log.owes


def test_timestamps_without_a_message_are_nothing_to_tell() -> None:
    log = Log()
    log.timetick.done(log.timetick.begin(5))  # A group that was refused.
    assert not log.owes


def test_under_load_the_next_one_waits_for_its_time() -> None:
    log = Log()
    log.write(MessageType.INSERT)
    assert not log.ticks.are_due
    log.clock.pass_ms(DELAY_MS)
    assert log.ticks.are_due
    log.write(MessageType.TIME_TICK, MessageType.INSERT)
    assert not log.ticks.are_due
    log.clock.pass_ms(DELAY_MS)
    assert log.ticks.are_due


def test_under_heavy_load_it_comes_by_bytes() -> None:
    log = Log()
    log.write(MessageType.INSERT, size=TICK_INTERVAL_BYTES - 1)
    assert not log.ticks.are_due
    log.write(MessageType.INSERT, size=1)
    assert log.ticks.are_due
    log.write(MessageType.TIME_TICK)
    log.write(MessageType.INSERT)
    assert not log.ticks.are_due
