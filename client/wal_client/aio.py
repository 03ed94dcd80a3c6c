"""The asyncio face: concurrent appends, tails and transactions over one connection.

A lost connection is made again: requests that may be repeated are, producers send again what is
under way, tails subscribe again at their next offsets, all of it until the timeout is over.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import msgspec

from wal_client.batcher import Batcher, Identity, Opened, unpack_opened
from wal_client.endpoint import Endpoint, connect_socket
from wal_client.ranges import EARLIEST, NOW, From, RowBatch, ShardReader, Until
from wal_client.receipts import Ack, Receipt, receipts_of
from wal_core import frames
from wal_core.batch import Record
from wal_core.clock import Clock, SystemClock
from wal_core.errors import (
    NotFoundError,
    NotReadyError,
    OutcomeUnknownError,
    TimedOutError,
    UnreachableError,
    WalError,
)
from wal_core.frame_reader import FrameReader
from wal_core.frames import Frame, Hello, Kind
from wal_core.limits import PRODUCER_RESULTS_MAX, TXN_KEEPALIVE_SECONDS
from wal_core.names import vchannel_id
from wal_core.settings import resolve

_POLL_SECONDS = 0.02
_RECEIVE_BYTES = 256 * 1024


class _Protocol(asyncio.BufferedProtocol):
    """Frames in, by request id: to a future once, or to a queue for a tail."""

    def __init__(self) -> None:
        self.futures: dict[int, asyncio.Future[Frame]] = {}
        self.queues: dict[int, asyncio.Queue[Frame | Exception]] = {}
        self.transport: asyncio.Transport | None = None
        self._reader = FrameReader(memoryview(bytearray(_RECEIVE_BYTES)), self._on_frame)
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass.

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._fail(ConnectionResetError("the daemon closed the connection"))
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.received(nbytes)

    def expect(self, request_id: int) -> asyncio.Future[Frame]:
        """The answer to a request that is about to be sent."""
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self.futures[request_id] = future
        return future

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()
            self.transport = None

    async def send(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        if self.transport is None:
            raise ConnectionResetError("the daemon closed the connection")
        self.transport.writelines(buffers)
        await self._writable.wait()

    def _on_frame(
        self,
        kind: int,
        flags: int,
        request_id: int,
        meta: memoryview | bytes,
        body: memoryview | bytes,
    ) -> None:
        frame = Frame(kind, flags, request_id, meta, body)
        future = self.futures.pop(frame.request_id, None)
        if future is not None:
            if not future.done():
                future.set_result(frame)
        elif frame.request_id in self.queues:
            self.queues[frame.request_id].put_nowait(frame)
        elif frame.kind == Kind.ERROR:
            self._fail(frames.unpack_error(frame))

    def _fail(self, error: Exception) -> None:
        for future in self.futures.values():
            if not future.done():
                future.set_exception(error)
        self.futures.clear()
        for queue in self.queues.values():
            queue.put_nowait(error)


class AsyncClient:
    """One connection to a daemon; use it from one event loop."""

    def __init__(
        self, endpoint: Endpoint, *, timeout: float | None = 30.0, clock: Clock | None = None
    ) -> None:
        self.endpoint = endpoint
        self.hello: Hello | None = None
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self._protocol: _Protocol | None = None
        self._connecting = asyncio.Lock()
        self._ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self.protocol()  # `connect_async` gives a connected one.
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Raises UnreachableError, ProtocolError, WrongDirectoryError, TimedOutError."""
        loop = asyncio.get_running_loop()
        sock = connect_socket(self.endpoint.socket, self._timeout)
        sock.setblocking(False)
        _, protocol = await loop.create_unix_connection(_Protocol, sock=sock)
        try:
            future = protocol.expect(0)
            await protocol.send([frames.pack_hello()])
            async with asyncio.timeout(self._timeout):
                self.hello = frames.unpack_hello_ok(await future)
            self.endpoint.check(self.hello)
        except TimeoutError:
            protocol.close()
            raise TimedOutError(f"{self.endpoint.socket}: no answer to the hello in time") from None
        except OSError as error:  # It stops just now.
            protocol.close()
            raise UnreachableError(
                f"{self.endpoint.socket}: the daemon hung up ({error})"
            ) from None
        except BaseException:
            protocol.close()
            raise
        self._protocol = protocol

    async def protocol(self) -> _Protocol:
        """The connection, made again where it was lost. Raises what ``connect`` does."""
        async with self._connecting:
            if self._protocol is None or self._protocol.transport is None:
                await self.connect()
        assert self._protocol is not None
        return self._protocol

    async def close(self) -> None:
        if self._protocol is not None:
            self._protocol.close()
            await asyncio.sleep(0)
        self._protocol = None

    def deadline(self, since: float | None = None) -> float | None:
        """When the timeout that begins now (or began at ``since``) is over; None: never."""
        if self._timeout is None:
            return None
        return (asyncio.get_running_loop().time() if since is None else since) + self._timeout

    def is_over(self, deadline: float | None) -> bool:
        return deadline is not None and asyncio.get_running_loop().time() >= deadline

    async def request(self, make: Callable[[int], bytes]) -> Frame:
        """A request that may be repeated; waits while the node is not ready, or gone."""
        deadline = self.deadline()
        failure: WalError
        while True:
            request_id = self.next_id()
            try:
                protocol = await self.protocol()
                future = protocol.expect(request_id)
                await protocol.send([make(request_id)])
                async with asyncio.timeout(self._timeout):
                    answer = await future
                if answer.kind != Kind.ERROR:
                    return answer
                failure = frames.unpack_error(answer)
                if not isinstance(failure, NotReadyError):
                    raise failure
            except TimeoutError:
                raise TimedOutError("the daemon did not answer in time") from None
            except OSError as error:
                failure = UnreachableError(f"the daemon hung up ({error})")
            except UnreachableError as error:
                if self.hello is None:
                    raise  # Nobody was there from the beginning.
                failure = error
            if self.is_over(deadline):
                raise failure
            await asyncio.sleep(_POLL_SECONDS)

    async def call(self, operation: str, **arguments: Any) -> Any:
        """A control operation: see ``wal_daemon.control``."""
        body = msgspec.msgpack.encode([operation, arguments])
        answer = await self.request(lambda id: frames.pack_frame(Kind.CALL, id, body=body))
        return msgspec.msgpack.decode(answer.body)

    async def open(self, name: str, *, create: bool = False, shards: int = 1) -> Opened:
        """A collection by name. Raises NotFoundError, BadNameError."""
        flags = frames.FLAG_CREATE if create else 0
        meta = frames.OPEN.pack(shards)
        answer = await self.request(
            lambda id: frames.pack_frame(Kind.OPEN, id, meta, name.encode(), flags)
        )
        return unpack_opened(name, answer)

    async def producer(
        self, collection: str, *, create: bool = True, txn: AsyncTransaction | None = None
    ) -> AsyncProducer:
        """A producer of one collection; with ``txn`` its rows belong to the transaction. Raises
        TxnInvalidStateError outside of its scope."""
        if txn is not None:
            await self.call("txn_check", id=txn.id, collection=collection)
        opened = await self.open(collection, create=create and txn is None)
        number = 0 if txn is None else txn.number
        batcher = Batcher(opened, Identity(self._clock.token()), txn_id=number)
        return AsyncProducer(self, batcher)

    async def begin(
        self, *collections: str, keepalive: float = TXN_KEEPALIVE_SECONDS, create: bool = True
    ) -> AsyncTransaction:
        """Begin a transaction. ``keepalive``: seconds after which it is rolled back, unless
        something is appended or it is renewed."""
        for name in collections:
            await self.open(name, create=create)
        id = await self.call("txn_begin", collections=list(collections), keepalive=keepalive)
        return AsyncTransaction(self, id)

    async def tail(
        self,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
        until: Until | Mapping[int, Until] = NOW,
    ) -> AsyncIterator[RowBatch]:
        """Batches of rows of all shards, each shard in order. Survives a lost connection."""
        opened = await self.open(collection)
        shards: list[ShardReader] = []
        for number in range(len(opened.vchannels)):
            first = start if isinstance(start, From) else start.get(number)
            last = until if isinstance(until, Until) else until.get(number)
            if first is not None and last is not None:
                shards.append(ShardReader(vchannel_id(opened.id, number), first, last, collection))
        deadline: float | None = None
        while any(not shard.done for shard in shards):
            subscription = _Subscription(self, shards)
            try:
                await subscription.begin()
                async for rows in subscription.rows():
                    deadline = None
                    yield rows
            except (OSError, UnreachableError, NotReadyError) as error:
                now = asyncio.get_running_loop().time()
                deadline = self.deadline(now) if deadline is None else deadline
                if self.is_over(deadline):
                    raise UnreachableError(f"the daemon hung up ({error})") from None
                await asyncio.sleep(_POLL_SECONDS)
                if (await self.open(collection)).id != opened.id:
                    raise NotFoundError(
                        f"collection {collection!r} was dropped meanwhile"
                    ) from None
                for shard in shards:
                    shard.done = shard.done or shard.is_complete
            finally:
                subscription.end()

    def next_id(self) -> int:
        return next(self._ids) & 0xFFFFFFFF


class _Subscription:
    """The shards of a tail on one connection."""

    def __init__(self, client: AsyncClient, shards: Sequence[ShardReader]) -> None:
        self._client = client
        self._shards = shards
        self._queue: asyncio.Queue[Frame | Exception] = asyncio.Queue()
        self._readers: dict[int, ShardReader] = {}
        self._protocol: _Protocol | None = None

    async def begin(self) -> None:
        self._protocol = protocol = await self._client.protocol()
        for shard in self._shards:
            if shard.done:
                continue
            request_id = self._client.next_id()
            self._readers[request_id] = shard
            protocol.queues[request_id] = self._queue
            await protocol.send([shard.request(request_id)])

    async def rows(self) -> AsyncIterator[RowBatch]:
        """Until all shards are done. Raises OSError where the connection is lost."""
        while any(not shard.done for shard in self._readers.values()):
            frame = await self._queue.get()
            if isinstance(frame, Exception):
                raise frame
            for rows in _take(self._readers[frame.request_id], frame):
                yield rows

    def end(self) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        for request_id, shard in self._readers.items():
            protocol.queues.pop(request_id, None)
            if not shard.done and protocol.transport is not None:
                protocol.transport.write(frames.pack_frame(Kind.CANCEL, request_id))


class _LostError(Exception):
    """The connection over which a batch was sent is of no use any more."""

    def __init__(self, protocol: _Protocol, why: Exception, again: asyncio.Future[Ack]) -> None:
        self.protocol = protocol
        self.why = why
        self.again = again
        """What to wait for when it is sent again."""


class AsyncProducer:
    """Appends of one collection. Calls may overlap: their batches share group commits."""

    def __init__(self, client: AsyncClient, batcher: Batcher) -> None:
        self._client = client
        self._batcher = batcher
        self._acks: dict[int, asyncio.Future[Ack]] = {}
        """What each append waits for, by the request id of its batch."""
        self._window = asyncio.Semaphore(PRODUCER_RESULTS_MAX)
        self._sending = asyncio.Lock()
        self._protocol: _Protocol | None = None

    async def append(self, bodies: Sequence[bytes], *, key: bytes | None = None) -> Ack:
        """Append rows as one batch and wait until they are durable. Raises OutcomeUnknownError
        where no answer came until the timeout was over, or the daemon's error; the producer is at
        its end then."""
        async with self._window:
            request_id = self._client.next_id()
            shard = None if key is None else self._batcher.shard_of(key)
            rows = [Record(body, key) for body in bodies]
            deadline = self._client.deadline(asyncio.get_running_loop().time())
            try:
                async with self._sending:
                    # The protocol is the order of the batches: it is chosen with the lock held.
                    protocol = self._protocol or await self._client.protocol()
                    self._protocol = protocol
                    buffers = self._batcher.records(request_id, rows, tag=request_id, shard=shard)
                    waiting: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
                    self._acks[request_id] = waiting
                    await self._send(protocol, request_id, buffers)
                return await self._acknowledged(waiting, deadline)
            finally:
                self._acks.pop(request_id, None)

    async def _send(
        self,
        protocol: _Protocol,
        request_id: int,
        buffers: Sequence[bytes | bytearray | memoryview],
    ) -> None:
        protocol.expect(request_id).add_done_callback(
            lambda answer: self._answered(protocol, answer)
        )
        try:
            await protocol.send(buffers)
        except OSError as error:
            self._lost(protocol, error)

    async def _acknowledged(self, waiting: asyncio.Future[Ack], deadline: float | None) -> Ack:
        """Over as many connections as it takes."""
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await waiting
            except TimeoutError:
                raise self._batcher.lost("no answer in time") from None
            except _LostError as lost:
                waiting = lost.again
                await self._recover(lost.protocol, lost.why, deadline)

    def _answered(self, protocol: _Protocol, answer: asyncio.Future[Frame]) -> None:
        if protocol is not self._protocol or answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, Exception):
            self._lost(protocol, error)
            return
        frame = answer.result()
        if self._batcher.wants_resend(frame):
            self._lost(protocol, frames.unpack_error(frame))
            return
        try:
            acks = self._batcher.answered(frame)
            refusal = self._batcher.refused()
        except WalError as error_of_first:
            acks, refusal = [], error_of_first
        for ack in acks:
            future = self._acks.get(ack.tag)
            if future is not None and not future.done():
                future.set_result(ack)
        if refusal is not None:
            self._end(refusal)

    def _lost(self, protocol: _Protocol, why: Exception) -> None:
        """Every append that waits has its batch sent again, once."""
        if protocol is not self._protocol:
            return
        for request_id, waiting in list(self._acks.items()):
            if not waiting.done():
                # The new one is in place before the answer to the new try can come.
                again = self._acks[request_id] = asyncio.get_running_loop().create_future()
                waiting.set_exception(_LostError(protocol, why, again))

    def _end(self, refusal: WalError) -> None:
        """The first batch that waits was refused, and with it what was sent behind it: to its own
        shard. What became of batches of other shards is not told."""
        for request_id, same_shard in self._batcher.behind_refused():
            waiting = self._acks.get(request_id)
            if waiting is not None and not waiting.done():
                waiting.set_exception(
                    refusal
                    if same_shard
                    else self._batcher.lost(f"refused: {refusal.message} [{refusal.code}]")
                )

    async def _recover(self, lost: _Protocol, error: Exception, deadline: float | None) -> None:
        """Send again what is under way over a new connection, unless another append just did."""
        async with self._sending:
            while self._protocol is lost:
                if self._client.is_over(deadline):
                    raise self._batcher.lost(str(error) or "no answer in time")
                lost.close()
                try:
                    again = await self._client.open(self._batcher.opened.name)
                    if again.id != self._batcher.opened.id:
                        raise NotFoundError(f"collection {again.name!r} was dropped meanwhile")
                    protocol = await self._client.protocol()
                except (OSError, UnreachableError, TimedOutError, NotReadyError) as failure:
                    error = failure
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                self._protocol = protocol
                for sent_id, buffers in self._batcher.unanswered():
                    await self._send(protocol, sent_id, buffers)


class AsyncTransaction:
    """See ``wal_client.txn``. As a context manager it commits, or rolls back."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self.id = id
        self.number = int(id, 16)
        self._client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.commit()
        else:
            await self.rollback()

    async def producer(self, collection: str) -> AsyncProducer:
        return await self._client.producer(collection, txn=self)

    async def keep_alive(self) -> float:
        """Renew the lease. Returns the seconds until it ends."""
        return float(await self._client.call("txn_keepalive", id=self.id))

    async def commit(self) -> dict[str, Receipt]:
        """Receipts by collection. May be repeated: the answer is the first one's. Raises
        OutcomeUnknownError where no answer came in time."""
        try:
            parts = await self._client.call("txn_commit", id=self.id)
        except (UnreachableError, TimedOutError) as error:
            raise OutcomeUnknownError(
                f"{error.message}; the commit of {self.id} may have happened or not",
                hint=f"wal txn commit {self.id}   gives the answer, and may be repeated",
            ) from None
        return receipts_of(parts)

    async def rollback(self) -> None:
        await self._client.call("txn_rollback", id=self.id)


def _take(shard: ShardReader, frame: Frame) -> Sequence[RowBatch]:
    if frame.kind == Kind.ERROR:
        raise frames.unpack_error(frame)
    if frame.kind == Kind.SUBSCRIBED:
        shard.subscribed(frame)
    elif frame.kind in (Kind.BATCHES, Kind.TXN_BATCHES):
        return list(shard.batches(frame))
    elif frame.kind == Kind.END:
        shard.done = True
    return ()


async def connect_async(
    directory: str | os.PathLike[str] | None = None,
    socket: str | os.PathLike[str] | None = None,
    *,
    timeout: float | None = 30.0,
) -> AsyncClient:
    """A connected client of the daemon that serves ``directory``."""
    flags = {
        "dir": None if directory is None else os.fspath(directory),
        "socket": None if socket is None else os.fspath(socket),
    }
    client = AsyncClient(Endpoint.from_settings(resolve(flags, os.environ)), timeout=timeout)
    await client.connect()
    return client
