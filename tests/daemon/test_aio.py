"""The asyncio client over a daemon that is killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import wal_client
from bench.daemon import Daemon
from wal_core.errors import OutcomeUnknownError, TxnInvalidStateError, UnreachableError


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path / "wal")
    yield running
    running.remove()


def test_appends_and_a_tail_go_on_over_kills(daemon: Daemon) -> None:
    """Fifty appends are always under way; every row comes once, in order, on one tail."""
    total = 600

    async def run() -> list[bytes]:
        async with await wal_client.connect_async(daemon.folder) as client:
            await client.open("rows", create=True)
            seen: list[bytes] = []

            async def follow() -> None:
                async for batch in client.tail("rows", until=wal_client.FOLLOW):
                    seen.extend(batch.bodies())
                    if len(seen) >= total:
                        return

            async with await wal_client.connect_async(daemon.folder) as other:
                producer = await other.producer("rows")
                tail = asyncio.create_task(follow())
                gate = asyncio.Semaphore(50)

                async def append(number: int) -> None:
                    async with gate:
                        ack = await producer.append([b"%d" % number])
                        assert ack.rows == 1

                appends = [asyncio.create_task(append(number)) for number in range(total)]
                for _ in range(3):
                    await asyncio.sleep(0.05)
                    await asyncio.to_thread(daemon.kill)
                    await asyncio.to_thread(daemon.start)
                await asyncio.gather(*appends)
                await asyncio.wait_for(tail, 20)
            return seen

    seen = asyncio.run(run())
    assert sorted(map(int, seen)) == list(range(total))
    with daemon.client() as client:
        stored = [row for batch in client.tail("rows") for row in batch.bodies()]
    assert stored == seen


def test_transactions(daemon: Daemon) -> None:
    async def run() -> None:
        async with await wal_client.connect_async(daemon.folder) as client:
            async with await client.begin("rows") as transaction:
                producer = await transaction.producer("rows")
                ack = await producer.append([b"a", b"b"])
                assert ack.first < 0, "offsets come with the commit"
                assert await transaction.keep_alive() > 5
            broken = await client.begin("rows")
            with contextlib.suppress(ZeroDivisionError):
                async with broken:
                    await (await broken.producer("rows")).append([b"never"])
                    raise ZeroDivisionError
            with pytest.raises(TxnInvalidStateError):
                await broken.commit()
            receipts = await transaction.commit()
            assert (receipts["rows"].parts[0].first, receipts["rows"].count) == (0, 2)
            with pytest.raises(TxnInvalidStateError):
                await client.producer("other", txn=transaction)

    asyncio.run(run())
    with daemon.client() as client:
        assert [row for batch in client.tail("rows") for row in batch.bodies()] == [b"a", b"b"]


def test_a_daemon_that_stays_away(daemon: Daemon) -> None:
    async def run() -> None:
        client = await wal_client.connect_async(daemon.folder, timeout=0.5)
        producer = await client.producer("rows")
        await producer.append([b"a"])
        await asyncio.to_thread(daemon.kill)
        with pytest.raises(OutcomeUnknownError):
            await producer.append([b"b"])
        with pytest.raises(UnreachableError):
            async for _ in client.tail("rows", until=wal_client.FOLLOW):
                pass
        await client.close()

    asyncio.run(run())
    daemon.start()
