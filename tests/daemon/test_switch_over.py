"""Readers that move between the write-ahead buffer and the log, over real files."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import Reader, Rig
from tests.storage.disks import ProbeDisk
from tests.storage.writer import Inline
from wal_core.clock import SystemClock
from wal_daemon.wal import pchannel as pchannel_module
from wal_daemon.wal.staged import Staged
from wal_storage.walstore.file import FileWal

SEGMENT_SIZE = 160 * 1024
V1 = 1 << 16
V2 = 2 << 16
KEPT_OF_TRANSACTIONS = 4000
"""Bytes; the tests have transactions on both sides of it."""


@pytest.fixture
def wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileWal]:
    monkeypatch.setattr(pchannel_module, "Staged", lambda: Staged(KEPT_OF_TRANSACTIONS))
    disk = ProbeDisk(bytes(tmp_path / "log"))
    opened = FileWal(disk, SystemClock(), Inline(), 0, "main", segment_size=SEGMENT_SIZE)
    yield opened
    opened.close(seal=True)
    disk.close()


def _served_by(rig: Rig) -> list[str]:
    """Grows with each read of any subscription: ``buffer`` or ``log``."""
    buffer = rig.pchannel.buffer
    plain = buffer.read
    found: list[str] = []

    def read(vchannel: int, offset: int, limit: int) -> object:
        rows = plain(vchannel, offset, limit)
        found.append("log" if rows is None else "buffer")
        return rows

    buffer.read = read  # type: ignore[method-assign, assignment]
    return found


def test_a_reader_that_falls_behind_is_served_from_the_log_and_comes_back(wal: FileWal) -> None:
    async def run() -> None:
        rig = Rig(wal, buffer_size=5000)
        await rig.create(V1)
        served_by = _served_by(rig)
        reader = Reader(rig, V1, 0)
        for number in range(5):
            await rig.append(V1, [b"tail %d" % number])
        assert served_by == ["buffer"] * 5
        reader.pause()
        for number in range(60):
            await rig.append(V1, [b"behind %d" % number * 20])
        assert len(reader.rows) == 5
        assert reader.subscription.lag == 60
        reader.resume()
        await reader.wait_for(65)
        assert served_by[5] == "log"
        assert reader.subscription.lag == 0
        del served_by[:]
        for number in range(5):
            await rig.append(V1, [b"tail again %d" % number])
        assert served_by == ["buffer"] * 5
        await rig.check([reader])
        await rig.close()

    asyncio.run(run())


def test_a_reader_that_falls_behind_a_little_never_leaves_the_buffer(wal: FileWal) -> None:
    async def run() -> None:
        rig = Rig(wal)
        await rig.create(V1)
        served_by = _served_by(rig)
        reader = Reader(rig, V1, 0)
        reader.pause()
        for number in range(60):
            await rig.append(V1, [b"behind %d" % number])
        await rig.check([reader])
        assert set(served_by) == {"buffer"}
        await rig.close()

    asyncio.run(run())


@pytest.mark.parametrize("batches", [2, 40], ids=["kept", "too-large"])
def test_a_transaction_reaches_a_tail_whole_whatever_its_size(wal: FileWal, batches: int) -> None:
    async def run() -> None:
        rig = Rig(wal)
        await rig.create(V1)
        served_by = _served_by(rig)
        reader = Reader(rig, V1, 0)
        await rig.append(V1, [b"before"])
        rows = [[b"%d-%d" % (number, row) * 30 for row in range(3)] for number in range(batches)]
        txn = await rig.transaction(V1, rows)
        await rig.append(V1, [b"beside"])
        assert (rig.pchannel.staged_bytes > 0) == (batches == 2)
        await rig.commit(V1, txn, rows)
        assert rig.pchannel.staged_bytes == 0
        await rig.append(V1, [b"after"])
        await reader.wait_for(3 + 3 * batches)
        assert ("log" in served_by) == (batches == 40)
        del served_by[:]
        await rig.append(V1, [b"and on"])
        assert served_by == ["buffer"]
        await rig.check([reader])
        await rig.close()

    asyncio.run(run())


def test_bytes_are_counted_once_and_the_buffer_holds_what_it_says(wal: FileWal) -> None:
    """Rows of a transaction are written once, though they come into the buffer at the commit; and
    while they are staged they are no part of it."""

    async def run() -> None:
        rig = Rig(wal)
        pchannel = rig.pchannel
        await rig.create(V1)
        before = pchannel.bytes, wal.confirmed[1]
        rows = [[b"x" * 500], [b"y" * 500]]
        txn = await rig.transactions.begin([(pchannel, V1)], 60)
        plain, *staged = await asyncio.gather(
            rig.append(V1, [b"plain" * 100]), *(rig.append(V1, batch, txn) for batch in rows)
        )
        assert pchannel.buffer.size == plain.size
        assert pchannel.staged_bytes == sum(one.size for one in staged)
        await rig.commit(V1, txn, rows)
        assert pchannel.buffer.size == plain.size + sum(one.size for one in staged)
        assert pchannel.bytes - before[0] == wal.confirmed[1] - before[1]
        await rig.close()

    asyncio.run(run())


async def _write(rig: Rig, vchannel: int, chance: random.Random, name: str) -> None:
    for number in range(25):
        body = f"{name}-{number}-".encode() * chance.randint(1, 300)
        await rig.append(vchannel, [body] * chance.randint(1, 3))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.005)


async def _transact(rig: Rig, vchannel: int, chance: random.Random, name: str) -> None:
    for number in range(6):
        size = chance.choice((1, 100, 2000))
        batches = [
            [f"{name}-{number}-{batch}-{row}-".encode() * size for row in range(2)]
            for batch in range(chance.randint(1, 5))
        ]
        txn = await rig.transaction(vchannel, batches)
        await asyncio.sleep(chance.random() * 0.01)
        if chance.random() < 0.7:
            await rig.commit(vchannel, txn, batches)
        else:
            await rig.transactions.roll_back(txn)


@pytest.mark.parametrize("seed", range(15))
def test_no_gap_and_no_repeat_while_readers_stop_and_go(wal: FileWal, seed: int) -> None:
    async def run() -> None:
        chance = random.Random(seed)
        rig = Rig(wal, buffer_size=chance.choice((0, 8_000, 60_000)))
        await rig.create(V1, V2)
        served_by = _served_by(rig)
        readers = [Reader(rig, vchannel, 0) for vchannel in (V1, V1, V2)]
        stutter = [
            asyncio.create_task(reader.stutter(random.Random(chance.random())))
            for reader in readers
        ]
        chances = [random.Random(chance.random()) for _ in range(5)]
        await asyncio.gather(
            _write(rig, V1, chances[0], "a"),
            _write(rig, V1, chances[1], "b"),
            _write(rig, V2, chances[2], "c"),
            _transact(rig, V1, chances[3], "d"),
            _transact(rig, V2, chances[4], "e"),
        )
        assert "log" in served_by
        assert len(wal.segments) > 1, "no segment was left behind"
        for task in stutter:
            task.cancel()
        await asyncio.gather(*stutter)
        await rig.check([*readers, Reader(rig, V1, 0), Reader(rig, V2, 0)])
        await rig.close()

    asyncio.run(run())
