"""Time ticks: the watermark never passes what is under way."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Sequence

import pytest

from tests.daemon.rig import Rig
from tests.daemon.shuffled_wal import ShuffledWal
from tests.storage.writer import ManualClock
from wal_core.errors import DiskFullError, IoFailureError, WalError
from wal_core.message import Message
from wal_core.tso import TsoSource
from wal_daemon.pipeline.timetick import TimeTick

V1 = 1 << 16


@pytest.fixture
def timetick() -> TimeTick:
    return TimeTick(TsoSource(ManualClock(), 0))


def test_it_begins_at_what_the_log_has() -> None:
    floor = 1 << 60
    timetick = TimeTick(TsoSource(ManualClock(), floor))
    assert timetick.confirmed == timetick.last == floor
    assert not timetick.is_due


def test_groups_that_end_in_order(timetick: TimeTick) -> None:
    first = timetick.begin(3)
    before = timetick.confirmed
    assert before < first
    assert timetick.last == first + 2
    timetick.done(first)
    assert timetick.confirmed == first + 2
    second = timetick.begin(1)
    assert timetick.confirmed == first + 2
    timetick.done(second)
    assert timetick.confirmed == second


def test_groups_that_end_out_of_order(timetick: TimeTick) -> None:
    one, two, three = timetick.begin(2), timetick.begin(5), timetick.begin(1)
    start = timetick.confirmed
    timetick.done(three)
    timetick.done(two)
    assert timetick.confirmed == start, "the first one is still under way"
    timetick.done(one)
    assert timetick.confirmed == three
    assert timetick.confirmed == timetick.last


@pytest.mark.parametrize("seed", range(30))
def test_the_watermark_is_just_below_the_oldest_that_is_under_way(seed: int) -> None:
    chance = random.Random(seed)
    clock = ManualClock()
    timetick = TimeTick(TsoSource(clock, 0))
    under_way: dict[int, int] = {}
    given = 0
    watermark = timetick.confirmed
    for _ in range(300):
        clock.pass_ms(chance.choice((0, 0, 1, 50)))
        if under_way and chance.random() < 0.5:
            done = chance.choice(list(under_way))
            del under_way[done]
            timetick.done(done)
        else:
            count = chance.randint(1, 10)
            first = timetick.begin(count)
            assert first > given
            given = first + count - 1
            under_way[first] = given
        assert timetick.confirmed >= watermark, "the watermark went back"
        watermark = timetick.confirmed
        if under_way:
            assert watermark < min(under_way)
        else:
            assert watermark == given
    for first in list(under_way):
        timetick.done(first)
    assert timetick.confirmed == given


class FailingWal(ShuffledWal):
    """Fails in the call of this name."""

    fails_in = ""

    def cover(self, tso: int) -> None:
        if self.fails_in == "cover":
            raise DiskFullError("no space")

    def append(self, messages: Sequence[Message], confirmed_below: int) -> None:
        if self.fails_in == "append":
            raise OSError(errno.EIO, "it broke")
        super().append(messages, confirmed_below)


@pytest.mark.parametrize(("call", "error"), [("cover", DiskFullError), ("append", IoFailureError)])
def test_a_group_that_failed_is_acknowledged_to_the_clock_too(
    call: str, error: type[WalError]
) -> None:
    """Or the watermark would stand still for ever."""

    async def run() -> None:
        wal = FailingWal(1)
        rig = Rig(wal)
        await rig.create(V1)
        timetick = rig.pchannel._timetick
        before = timetick.last
        wal.fails_in = call
        with pytest.raises(error):
            await rig.append(V1, [b"no"])
        assert timetick.confirmed == timetick.last > before
        await rig.close()

    asyncio.run(run())


def test_what_is_due(timetick: TimeTick) -> None:
    timetick.done(timetick.begin(4))
    assert not timetick.is_due, "nothing was written"
    first = timetick.begin(1)
    timetick.done(first)
    timetick.written = first
    assert timetick.is_due
    timetick.told = first
    assert not timetick.is_due
