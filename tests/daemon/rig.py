"""A real PChannel with transactions and subscriptions, on the event loop of a test."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from wal_client.ranges import FOLLOW, ShardReader, from_offset
from wal_core import frames
from wal_core.batch import encode_bodies
from wal_core.clock import SystemClock
from wal_core.errors import CorruptError, WalError
from wal_core.frames import Kind, split_frame
from wal_core.message import Message, MessageType, message
from wal_daemon.pipeline.txn import Leases
from wal_daemon.transactions import ProducerOf, Transactions
from wal_daemon.wal.buffer import WriteAheadBuffer
from wal_daemon.wal.pchannel import PChannel
from wal_daemon.wal.subscription import Subscription
from wal_storage.disk import Buffer
from wal_storage.state import CreateCollection, encode_create
from wal_storage.walstore.base import WalStorage

NO_PRODUCER = ProducerOf()


class Row(NamedTuple):
    offset: int
    tso: int
    body: bytes


class Rig:
    """``ledger``: VChannel → its acknowledged rows, as their writers learned of them."""

    def __init__(self, wal: WalStorage, buffer_size: int = 1 << 20) -> None:
        self.clock = SystemClock()
        self._committer = ThreadPoolExecutor(1)
        self.readers = ThreadPoolExecutor(2)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failures: list[WalError] = []
        leases = Leases(self.clock.monotonic)
        self.transactions = Transactions(self.clock, leases, self.spawn)
        self.pchannel = PChannel(
            0,
            wal,
            wal.recover(),
            self.clock,
            self._committer,
            WriteAheadBuffer(self.clock.monotonic, buffer_size),
            leases,
            lambda _, error: self.failures.append(error),
        )
        self.transactions.revive(self.pchannel)
        self.ledger: dict[int, dict[int, Row]] = {}

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        self.transactions.close()
        await asyncio.gather(*self._tasks)
        await self.pchannel.drain()
        for executor in (self._committer, self.readers):
            executor.shutdown(wait=True)

    async def until_told(self) -> None:
        """Until the PChannel has written the time tick that it owes."""
        for _ in range(5000):
            if not self.pchannel.owes_tick:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("no time tick came")

    # -- writers -----------------------------------------------------------------------------------

    async def create(self, *vchannels: int) -> None:
        for vchannel in vchannels:
            body = encode_create(CreateCollection(f"c{vchannel}", 1))
            await self.pchannel.append(message(MessageType.CREATE_COLLECTION, vchannel, body))
            self.ledger[vchannel] = {}

    async def append(self, vchannel: int, bodies: Sequence[bytes], txn: int = 0) -> Message:
        """One batch; noted in the ledger unless it belongs to a transaction."""
        encoding, body = encode_bodies(bodies)
        made = message(
            MessageType.INSERT, vchannel, body, encoding=encoding, rows=len(bodies), txn_id=txn
        )
        confirmed = await self.pchannel.append(made)
        if not txn:
            self._note(vchannel, confirmed.first_offset, confirmed.tso, bodies)
        return confirmed

    async def transaction(
        self, vchannel: int, batches: Sequence[Sequence[bytes]], *, keepalive: float = 60
    ) -> int:
        """Begin one and append to it, all at once. Returns its id."""
        txn = await self.transactions.begin([(self.pchannel, vchannel)], keepalive)
        await asyncio.gather(*(self.append(vchannel, bodies, txn) for bodies in batches))
        return txn

    async def commit(self, vchannel: int, txn: int, batches: Iterable[Sequence[bytes]]) -> None:
        """``batches``: in the order of their appends. Noted in the ledger."""
        ((_, commit),) = await self.transactions.commit(txn, NO_PRODUCER)
        rows = [body for bodies in batches for body in bodies]
        assert commit.rows == len(rows)
        self._note(vchannel, commit.first_offset, commit.tso, rows)

    def _note(self, vchannel: int, first: int, tso: int, bodies: Sequence[bytes]) -> None:
        for offset, body in enumerate(bodies, first):
            assert offset not in self.ledger[vchannel], "an offset was given twice"
            self.ledger[vchannel][offset] = Row(offset, tso, body)

    # -- readers -----------------------------------------------------------------------------------

    def rows(self, vchannel: int, start: int = 0) -> list[Row]:
        """What a reader has to get."""
        ledger = self.ledger[vchannel]
        return [ledger[offset] for offset in range(start, len(ledger))]

    async def check(self, readers: Sequence[Reader]) -> None:
        """All of them come to the end, and have got every row once, in order."""
        for reader in readers:
            reader.resume()
            expected = self.rows(reader.vchannel, reader.start)
            await reader.wait_for(len(expected))
            assert reader.rows == expected
            tsos = [row.tso for row in reader.rows]
            assert tsos == sorted(tsos)
            reader.close()


class Reader:
    """A subscription and the connection behind it. What it gets is checked as a client does."""

    def __init__(self, rig: Rig, vchannel: int, start: int) -> None:
        self.vchannel = vchannel
        self.start = start
        self.paused = False
        self.rows: list[Row] = []
        self.failure: WalError | None = None
        self._news = asyncio.Event()
        self._shard = ShardReader(vchannel, from_offset(start), FOLLOW, "demo")
        self._shard.next_offset = start
        self.subscription = Subscription(
            rig.pchannel, vchannel, start, None, self, request_id=1, readers=rig.readers
        )
        self.subscription.wake()

    def send(self, buffers: Sequence[Buffer]) -> None:
        self._news.set()
        data = b"".join(buffers)
        at = 0
        while at < len(data):
            split = split_frame(data, at)
            assert split is not None, "a frame that is not whole"
            frame, at = split
            if frame.kind == Kind.ERROR:
                self.failure = frames.unpack_error(frame)
                return
            try:
                for batch in self._shard.batches(frame):
                    rows = enumerate(batch.bodies(), batch.first)
                    self.rows += [Row(offset, batch.tso, bytes(body)) for offset, body in rows]
            except CorruptError as error:
                self.failure = error

    def finished(self, request_id: int) -> None: ...

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.subscription.wake()

    def close(self) -> None:
        self.subscription.close()

    async def wait_for(self, count: int, seconds: float = 20) -> None:
        """Until so many rows have come. Raises the error that came instead."""
        async with asyncio.timeout(seconds):
            while len(self.rows) < count and self.failure is None:
                self._news.clear()
                await self._news.wait()
        if self.failure is not None:
            raise self.failure

    async def stutter(self, chance: random.Random) -> None:
        """Pause and resume at random until cancelled."""
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(chance.random() * 0.01)
                if self.paused:
                    self.resume()
                else:
                    self.pause()
