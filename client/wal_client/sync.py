"""The blocking face: one socket, pipelined appends, resumable tails."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from wal_client.batcher import Batcher, Opened, unpack_opened
from wal_client.endpoint import Endpoint, connect_socket
from wal_client.ranges import EARLIEST, NOW, From, RowBatch, ShardReader, Until
from wal_client.receipts import Ack, Receipt
from wal_core import frames
from wal_core.batch import Record, type_headers
from wal_core.clock import Clock, SystemClock, sleep
from wal_core.errors import (
    NotFoundError,
    NotReadyError,
    ProtocolError,
    TimedOutError,
    UnreachableError,
    WalError,
)
from wal_core.frame_reader import FrameReader
from wal_core.frames import Frame, Hello, Kind
from wal_core.limits import BATCH_TARGET_BYTES, CLIENT_WINDOW_BYTES
from wal_core.names import vchannel_id
from wal_core.settings import resolve

_POLL_SECONDS = 0.02
_RECEIVE_BYTES = 256 * 1024
_Buffer = bytes | bytearray | memoryview


class Connection:
    """A greeted socket. Sends buffers, receives frames; not for several threads."""

    def __init__(self, endpoint: Endpoint, timeout: float | None) -> None:
        self._socket = connect_socket(endpoint.socket, timeout)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._frames: deque[Frame] = deque()
        self._reader = FrameReader(memoryview(bytearray(_RECEIVE_BYTES)), self._keep)
        try:
            self.send([frames.pack_hello()])
            self.hello: Hello = frames.unpack_hello_ok(self.receive())
            endpoint.check(self.hello)
        except TimeoutError:
            self.close()
            raise TimedOutError(f"{endpoint.socket}: no answer to the hello in time") from None
        except OSError as error:  # It stops just now.
            self.close()
            raise UnreachableError(f"{endpoint.socket}: the daemon hung up ({error})") from None
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_timeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def send(self, buffers: Sequence[_Buffer]) -> None:
        """All bytes, or an OSError."""
        sent = self._socket.sendmsg(buffers)
        for buffer in buffers:
            size = len(buffer)
            if sent < size:
                self._socket.sendall(memoryview(buffer)[sent:])
            sent = max(sent - size, 0)

    def receive(self) -> Frame:
        """The next frame. Raises OSError where the connection is lost or the time is over."""
        while not self._frames:
            size = self._socket.recv_into(self._reader.buffer())
            if size == 0:
                raise ConnectionResetError("the daemon closed the connection")
            self._reader.received(size)
        return self._frames.popleft()

    def has_frame(self) -> bool:
        """Whether ``receive`` would return at once."""
        return bool(self._frames or self._poll.poll(0))

    def close(self) -> None:
        self._socket.close()

    def _keep(
        self,
        kind: int,
        flags: int,
        request_id: int,
        meta: memoryview | bytes,
        body: memoryview | bytes,
    ) -> None:
        self._frames.append(Frame(kind, flags, request_id, meta, body))


class Client:
    """A connection to a daemon, made when first needed and made again when it was lost."""

    def __init__(
        self, endpoint: Endpoint, *, timeout: float | None = 30.0, clock: Clock | None = None
    ) -> None:
        """``timeout``: seconds to wait for a daemon that is there to become ready, and for any
        one answer; None: for ever."""
        self.endpoint = endpoint
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self._connection: Connection | None = None
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def hello(self) -> Hello:
        """What the daemon said of itself. Connects."""
        return self.connection.hello

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self.endpoint, self._timeout)
        return self._connection

    def next_id(self) -> int:
        return next(self._ids) & 0xFFFFFFFF

    def deadline(self) -> float | None:
        """When the timeout that begins now is over; None: never. For ``is_over``."""
        return None if self._timeout is None else self._clock.monotonic() + self._timeout

    def is_over(self, deadline: float | None) -> bool:
        """Whether a ``deadline`` has passed."""
        return deadline is not None and self._clock.monotonic() >= deadline

    def request(self, make: Callable[[int], bytes]) -> Frame:
        """Send one request and return its answer. Waits while the node is not ready.

        Only for requests that may be repeated. Raises the daemon's error, UnreachableError,
        NotReadyError, TimedOutError."""
        deadline = self.deadline()
        while True:
            try:
                return self._request_once(make)
            except NotReadyError:
                if self.is_over(deadline):
                    raise
                sleep(_POLL_SECONDS)

    def call(self, operation: str, **arguments: Any) -> Any:
        """A control operation: see ``wal_daemon.control``."""
        body = msgspec.msgpack.encode([operation, arguments])
        answer = self.request(lambda id: frames.pack_frame(Kind.CALL, id, body=body))
        return msgspec.msgpack.decode(answer.body)

    def open(self, name: str, *, create: bool = False, shards: int = 1) -> Opened:
        """A collection by name. Raises NotFoundError, BadNameError."""
        flags = frames.FLAG_CREATE if create else 0
        meta = frames.OPEN.pack(shards)
        answer = self.request(
            lambda id: frames.pack_frame(Kind.OPEN, id, meta, name.encode(), flags)
        )
        return unpack_opened(name, answer)

    def producer(
        self,
        collection: str,
        *,
        create: bool = True,
        key: bytes | None = None,
        headers: type_headers = (),
        compress: bool = False,
        buffered: bool = False,
        on_ack: Callable[[Ack], None] | None = None,
    ) -> Producer:
        """A producer of one collection. ``key`` and ``headers`` go with every row."""
        opened = self.open(collection, create=create)
        batcher = Batcher(
            opened,
            self._clock.token(),
            key=key,
            headers=headers,
            compress=compress,
            buffered=buffered,
        )
        return Producer(self, batcher, on_ack)

    def append(
        self, collection: str, bodies: Iterable[bytes], *, key: bytes | None = None
    ) -> Receipt:
        """Append rows and wait until they are durable."""
        with self.producer(collection, key=key) as producer:
            for body in bodies:
                producer.append(body)
            return producer.flush()

    def tail(
        self,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
        until: Until | Mapping[int, Until] = NOW,
    ) -> Iterator[RowBatch]:
        """Batches of rows of all shards, each shard in order. See ``Tail``."""
        return iter(Tail(self, collection, start, until))

    def _request_once(self, make: Callable[[int], bytes]) -> Frame:
        request_id = self.next_id()
        fresh = self._connection is None
        try:
            connection = self.connection
            connection.send([make(request_id)])
            answer = connection.receive()
            while answer.request_id not in (request_id, 0):
                answer = connection.receive()
        except TimeoutError:
            self.close()
            raise TimedOutError("the daemon did not answer in time") from None
        except OSError as error:
            self.close()
            if not fresh:  # The daemon may have been restarted since the last request.
                return self._request_once(make)
            raise UnreachableError(f"the daemon hung up ({error})") from None
        if answer.kind == Kind.ERROR:
            raise frames.unpack_error(answer)
        return answer


class Producer:
    """Batches rows, keeps a window of batches under way, gives a receipt at the end.

    After an error the producer is at its end: ``receipt`` says what is durable."""

    def __init__(
        self, client: Client, batcher: Batcher, on_ack: Callable[[Ack], None] | None
    ) -> None:
        self.receipt = Receipt(batcher.opened.name)
        self._client = client
        self._batcher = batcher
        self._on_ack = on_ack
        self._bodies: list[bytes] = []
        self._size = 0
        self._keyed: dict[int, list[Record]] = {}
        self._connection = client.connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.flush()

    def append(self, body: bytes, key: bytes | None = None, headers: type_headers = ()) -> None:
        """Queue one row. It is durable when ``flush`` has returned."""
        if key is not None or headers:
            self._append_record(Record(body, key, headers))
            return
        self._bodies.append(body)
        self._size += len(body)
        if self._size >= BATCH_TARGET_BYTES or len(self._bodies) >= 65536:
            self._cut()

    def extend(self, bodies: Sequence[bytes]) -> None:
        """Queue many rows without keys."""
        for at in range(0, len(bodies), 65536):
            some = bodies[at : at + 65536]
            self._bodies += some
            self._size += sum(map(len, some))
            if self._size >= BATCH_TARGET_BYTES:
                self._cut()

    def lines(self, body: _Buffer, count: int, tag: Any = None, expect: int = -1) -> None:
        """Send ``count`` lines, each ended by a newline, as one batch: bytes as they come."""
        self._send(self._batcher.lines(self._client.next_id(), body, count, tag, expect))

    def records(
        self,
        records: Sequence[Record],
        tag: Any = None,
        shard: int | None = None,
        expect: int = -1,
    ) -> None:
        """Send rows as one batch; with keys of their own they must share ``shard``."""
        self._send(self._batcher.records(self._client.next_id(), records, tag, shard, expect))

    def encoded(
        self, encoding: int, body: _Buffer, count: int, tag: Any = None, expect: int = -1
    ) -> None:
        """Send rows that are encoded already as one batch (``wal_core.batch``)."""
        self._send(
            self._batcher.encoded(
                self._client.next_id(), encoding, body, count, tag=tag, expect=expect
            )
        )

    def shard_of(self, key: bytes) -> int:
        """Where rows of a key go."""
        return self._batcher.shard_of(key)

    @property
    def opened(self) -> Opened:
        """The collection."""
        return self._batcher.opened

    @property
    def waiting(self) -> int:
        """Batches sent and not answered."""
        return self._batcher.waiting

    def fileno(self) -> int:
        """The socket's descriptor: readable when answers came."""
        return self._connection.fileno()

    def flush(self) -> Receipt:
        """Send what is queued and wait for all answers. Raises OutcomeUnknownError where the
        connection broke with batches under way, or the daemon's error."""
        self._cut()
        while self._batcher.waiting:
            self._receive()
        return self.receipt

    def poll(self) -> None:
        """Take the answers that are there already."""
        while self._batcher.waiting and self._connection.has_frame():
            self._receive()

    def _append_record(self, record: Record) -> None:
        shard = (
            self._batcher.next_shard() if record.key is None else self._batcher.shard_of(record.key)
        )
        self._keyed.setdefault(shard, []).append(record)
        self._size += len(record.body)
        if self._size >= BATCH_TARGET_BYTES:
            self._cut()

    def _cut(self) -> None:
        self._size = 0
        if self._bodies:
            bodies, self._bodies = self._bodies, []
            self._send(self._batcher.bodies(self._client.next_id(), bodies))
        keyed, self._keyed = self._keyed, {}
        for shard, records in keyed.items():
            self.records(records, shard=shard)

    def _send(self, buffers: list[_Buffer]) -> None:
        try:
            self._connection.send(buffers)
        except OSError as error:
            self._take_what_came()
            raise self._lost(error) from None
        while self._batcher.in_flight > CLIENT_WINDOW_BYTES:
            self._receive()

    def _receive(self) -> None:
        try:
            frame = self._connection.receive()
        except OSError as error:
            raise self._lost(error) from None
        self._answered(frame)

    def _answered(self, frame: Frame) -> None:
        if frame.kind == Kind.ERROR and frame.request_id == 0:
            raise frames.unpack_error(frame)
        for ack in self._batcher.answered(frame):
            self.receipt.add(ack)
            if self._on_ack is not None:
                self._on_ack(ack)
        refusal = self._batcher.refused()
        if refusal is not None:
            raise refusal

    def _take_what_came(self) -> None:
        """Answers may lie in the socket of a daemon that is gone."""
        with contextlib.suppress(OSError):
            while self._batcher.waiting:
                self._answered(self._connection.receive())

    def _lost(self, error: OSError) -> WalError:
        self._client.close()
        why = "no answer in time" if isinstance(error, TimeoutError) else "the daemon hung up"
        return self._batcher.lost(why)


class Tail:
    """Rows of one or more collections. Survives a lost connection: it waits until the daemon is
    back, as long as the client's timeout, and subscribes again at the next offsets.

    Needs the client's connection for itself while it runs."""

    def __init__(
        self,
        client: Client,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
        until: Until | Mapping[int, Until] = NOW,
    ) -> None:
        """With a mapping only the shards are read that it names. Raises NotFoundError."""
        self._client = client
        self._collections: list[Opened] = []
        self.shards: list[ShardReader] = []
        self._requests: dict[int, ShardReader] = {}
        self.add(collection, start, until)

    def add(
        self,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
        until: Until | Mapping[int, Until] = NOW,
    ) -> None:
        """Another collection, before the iteration begins. Raises NotFoundError."""
        opened = self._client.open(collection)
        self._collections.append(opened)
        count = len(opened.vchannels)
        for given in (start, until):
            if isinstance(given, Mapping) and max(given, default=0) >= count:
                raise NotFoundError(
                    f"collection {collection!r} has no shard {max(given)}; it has {count}",
                    hint=f"wal collection describe {collection}",
                )
        for number in range(count):
            first = start if isinstance(start, From) else start.get(number)
            last = until if isinstance(until, Until) else until.get(number)
            if first is not None and last is not None:
                vchannel = vchannel_id(opened.id, number)
                self.shards.append(ShardReader(vchannel, first, last, collection))

    def __iter__(self) -> Iterator[RowBatch]:
        try:
            self._subscribe()
        except OSError:
            self._resume()
        while any(not shard.done for shard in self.shards):
            try:
                frame = self._client.connection.receive()
            except TimeoutError:
                raise TimedOutError("the daemon did not answer in time") from None
            except OSError:
                self._resume()
                continue
            yield from self._take(frame)

    def has_more(self) -> bool:
        """Whether the next batch is there already."""
        return self._client.connection.has_frame()

    def _take(self, frame: Frame) -> Iterator[RowBatch]:
        shard = self._requests.get(frame.request_id)
        if frame.kind == Kind.ERROR:
            error = frames.unpack_error(frame)
            if not isinstance(error, NotReadyError):
                raise error
            self._resume()
        elif shard is None:
            return
        elif frame.kind == Kind.SUBSCRIBED:
            shard.subscribed(frame)
        elif frame.kind == Kind.BATCHES:
            yield from shard.batches(frame)
        elif frame.kind == Kind.END:
            shard.done = True
        else:
            raise ProtocolError(f"a frame of kind {frame.kind} in a tail")

    def _subscribe(self) -> None:
        self._requests.clear()
        connection = self._client.connection
        for shard in self.shards:
            if shard.done:
                continue
            request_id = self._client.next_id()
            self._requests[request_id] = shard
            connection.send([shard.request(request_id)])
        if any(shard.follows for shard in self.shards):
            connection.set_timeout(None)

    def _resume(self) -> None:
        deadline = self._client.deadline()
        while True:
            self._client.close()
            try:
                for opened in self._collections:
                    if self._client.open(opened.name).id != opened.id:
                        raise NotFoundError(f"collection {opened.name!r} was dropped meanwhile")
                for shard in self.shards:
                    shard.done = shard.done or shard.is_complete
                self._subscribe()
                return
            except UnreachableError as error:
                failure = error
            except OSError as error:
                failure = UnreachableError(f"the daemon hung up ({error})")
            if self._client.is_over(deadline):
                raise failure
            sleep(_POLL_SECONDS)


def connect(
    directory: str | os.PathLike[str] | None = None,
    socket: str | os.PathLike[str] | None = None,
    *,
    timeout: float | None = 30.0,
) -> Client:
    """A client of the daemon that serves ``directory`` (default: as the `wal` command finds it)."""
    flags = {
        "dir": None if directory is None else os.fspath(directory),
        "socket": None if socket is None else os.fspath(socket),
    }
    return Client(Endpoint.from_settings(resolve(flags, os.environ)), timeout=timeout)
