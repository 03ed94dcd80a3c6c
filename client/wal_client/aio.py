"""The asyncio face: concurrent appends and tails over one connection."""

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
from wal_client.receipts import Ack
from wal_core import frames
from wal_core.batch import Record
from wal_core.clock import Clock, SystemClock
from wal_core.errors import NotReadyError, OutcomeUnknownError, TimedOutError, UnreachableError
from wal_core.frame_reader import FrameReader
from wal_core.frames import Frame, Hello, Kind
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
        self._ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Raises UnreachableError, ProtocolError, WrongDirectoryError."""
        loop = asyncio.get_running_loop()
        sock = connect_socket(self.endpoint.socket, self._timeout)
        sock.setblocking(False)
        _, protocol = await loop.create_unix_connection(_Protocol, sock=sock)
        self._protocol = protocol
        answer = await self._send(0, [frames.pack_hello()])
        self.hello = frames.unpack_hello_ok(answer)
        self.endpoint.check(self.hello)

    async def close(self) -> None:
        if self._protocol is not None and self._protocol.transport is not None:
            self._protocol.transport.close()
            await asyncio.sleep(0)
        self._protocol = None

    async def request(self, make: Callable[[int], bytes]) -> Frame:
        """A request that may be repeated; waits while the node is not ready."""
        loop = asyncio.get_running_loop()
        deadline = None if self._timeout is None else loop.time() + self._timeout
        while True:
            request_id = self.next_id()
            try:
                answer = await self._send(request_id, [make(request_id)])
            except OSError as error:
                raise UnreachableError(f"the daemon hung up ({error})") from None
            if answer.kind != Kind.ERROR:
                return answer
            refusal = frames.unpack_error(answer)
            late = deadline is not None and loop.time() >= deadline
            if not isinstance(refusal, NotReadyError) or late:
                raise refusal
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

    async def producer(self, collection: str, *, create: bool = True) -> AsyncProducer:
        opened = await self.open(collection, create=create)
        return AsyncProducer(self, Batcher(opened, Identity(self._clock.token())))

    async def tail(
        self,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
        until: Until | Mapping[int, Until] = NOW,
    ) -> AsyncIterator[RowBatch]:
        """Batches of rows of all shards, each shard in order."""
        opened = await self.open(collection)
        queue: asyncio.Queue[Frame | Exception] = asyncio.Queue()
        shards: dict[int, ShardReader] = {}
        protocol = self._connected()
        try:
            for number in range(len(opened.vchannels)):
                first = start if isinstance(start, From) else start.get(number)
                last = until if isinstance(until, Until) else until.get(number)
                if first is None or last is None:
                    continue
                request_id = self.next_id()
                shard = ShardReader(vchannel_id(opened.id, number), first, last, collection)
                shards[request_id] = shard
                protocol.queues[request_id] = queue
                await protocol.send([shard.request(request_id)])
            while any(not shard.done for shard in shards.values()):
                frame = await queue.get()
                if isinstance(frame, OSError):
                    raise UnreachableError(f"the daemon hung up ({frame})") from None
                if isinstance(frame, Exception):
                    raise frame
                for rows in _take(shards[frame.request_id], frame):
                    yield rows
        finally:
            for request_id, shard in shards.items():
                protocol.queues.pop(request_id, None)
                if not shard.done and protocol.transport is not None:
                    await protocol.send([frames.pack_frame(Kind.CANCEL, request_id)])

    def next_id(self) -> int:
        return next(self._ids) & 0xFFFFFFFF

    async def exchange(
        self, request_id: int, buffers: Sequence[bytes | bytearray | memoryview]
    ) -> Frame:
        """Send an append once and wait for its answer. Raises OutcomeUnknownError."""
        try:
            return await self._send(request_id, buffers)
        except (OSError, TimedOutError) as error:
            raise OutcomeUnknownError(f"the append was sent and not answered ({error})") from None

    async def _send(
        self, request_id: int, buffers: Sequence[bytes | bytearray | memoryview]
    ) -> Frame:
        protocol = self._connected()
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        protocol.futures[request_id] = future
        await protocol.send(buffers)
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            raise TimedOutError("the daemon did not answer in time") from None

    def _connected(self) -> _Protocol:
        if self._protocol is None:
            raise UnreachableError("the client is not connected")
        return self._protocol


class AsyncProducer:
    """Appends of one collection. Calls may overlap: their batches share group commits."""

    def __init__(self, client: AsyncClient, batcher: Batcher) -> None:
        self._client = client
        self._batcher = batcher
        self._acks: dict[int, asyncio.Future[Ack]] = {}

    async def append(self, bodies: Sequence[bytes], *, key: bytes | None = None) -> Ack:
        """Append rows as one batch and wait until they are durable."""
        loop = asyncio.get_running_loop()
        request_id = self._client.next_id()
        acknowledged: asyncio.Future[Ack] = loop.create_future()
        self._acks[request_id] = acknowledged
        shard = None if key is None else self._batcher.shard_of(key)
        rows = [Record(body, key) for body in bodies]
        buffers = self._batcher.records(request_id, rows, tag=request_id, shard=shard)
        try:
            answer = await self._client.exchange(request_id, buffers)
            for ack in self._batcher.answered(answer):
                self._acks[ack.tag].set_result(ack)
            return await acknowledged
        finally:
            self._acks.pop(request_id, None)


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
