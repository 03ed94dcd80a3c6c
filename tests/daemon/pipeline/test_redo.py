"""Redo: what met a lock goes through again, in its order; in a real PChannel too."""

from __future__ import annotations

import asyncio

import pytest

from tests.daemon.pipeline.making import rows
from tests.daemon.rig import Reader, Rig
from tests.daemon.shuffled_wal import ShuffledWal
from wal_core.errors import NotReadyError
from wal_daemon.pipeline.redo import Redo

V1 = 1 << 16
V2 = 2 << 16


def test_what_is_parked_comes_out_once_and_in_order() -> None:
    redo = Redo()
    parked = [rows(count) for count in (1, 2, 3)]
    for one in parked:
        redo.park(one)
    assert len(redo) == 3
    assert redo.take() == parked
    assert len(redo) == 0
    assert redo.take() == []


def test_what_comes_back_is_parked_behind_nothing_old() -> None:
    redo = Redo()
    first, second = rows(), rows()
    redo.park(first)
    for one in redo.take():
        redo.park(one)
    redo.park(second)
    assert redo.take() == [first, second]


def test_those_of_some_vchannels_are_taken_and_the_others_stay_in_order() -> None:
    redo = Redo()
    parked = [rows(count, vchannel) for count, vchannel in ((1, V1), (2, V2), (3, V1), (4, V2))]
    for one in parked:
        redo.park(one)
    assert redo.take_of({V1}) == [parked[0], parked[2]]
    assert redo.take_of({V1}) == []
    assert redo.take() == [parked[1], parked[3]]


def test_appends_wait_for_the_lock_and_keep_their_order() -> None:
    async def run() -> None:
        rig = Rig(ShuffledWal(1))
        await rig.create(V1, V2)
        await rig.append(V1, [b"before"])
        rig.pchannel.lock([V1])
        waiting = [asyncio.create_task(rig.append(V1, [b"%d" % one])) for one in range(3)]
        await rig.append(V2, [b"not locked"])
        assert not any(task.done() for task in waiting)
        assert rig.pchannel.next_offsets[V1] == 1
        rig.pchannel.unlock([V1])
        await asyncio.gather(*waiting)
        assert [row.body for row in rig.rows(V1)] == [b"before", b"0", b"1", b"2"]
        await rig.check([Reader(rig, V1, 0)])
        await rig.close()

    asyncio.run(run())


def test_an_unlock_of_one_leaves_the_appends_to_the_other_waiting() -> None:
    async def run() -> None:
        rig = Rig(ShuffledWal(2))
        await rig.create(V1, V2)
        rig.pchannel.lock([V1])
        rig.pchannel.lock([V2])
        one = asyncio.create_task(rig.append(V1, [b"one"]))
        other = asyncio.create_task(rig.append(V2, [b"other"]))
        await asyncio.sleep(0)
        rig.pchannel.unlock([V1])
        await one
        assert not other.done()
        rig.pchannel.unlock([V2])
        await other
        await rig.close()

    asyncio.run(run())


def test_a_stop_refuses_what_waits() -> None:
    async def run() -> None:
        rig = Rig(ShuffledWal(3))
        await rig.create(V1)
        rig.pchannel.lock([V1])
        waiting = asyncio.create_task(rig.append(V1, [b"too late"]))
        await asyncio.sleep(0)
        await rig.close()
        with pytest.raises(NotReadyError, match="stopping"):
            await waiting

    asyncio.run(run())
