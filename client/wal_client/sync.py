"""The blocking face: a client, made of a connection, producers and tails."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec

from wal_client.batcher import Batcher, Identity, Opened, unpack_opened
from wal_client.connection import Connection
from wal_client.consumer import Tail
from wal_client.cursors import Cursor
from wal_client.endpoint import Endpoint
from wal_client.groups import Member
from wal_client.producer import Producer
from wal_client.ranges import EARLIEST, NOW, From, RowBatch, Until
from wal_client.receipts import Ack, Receipt
from wal_client.txn import Transaction
from wal_core import frames
from wal_core.batch import type_headers
from wal_core.clock import Clock, SystemClock, sleep
from wal_core.errors import (
    NotReadyError,
    TimedOutError,
    UnreachableError,
    WalError,
)
from wal_core.frames import Frame, Hello, Kind
from wal_core.limits import GROUP_LEASE_SECONDS, TXN_KEEPALIVE_SECONDS
from wal_core.names import producer_id
from wal_core.settings import resolve

_POLL_SECONDS = 0.02
_RECEIVE_BYTES = 256 * 1024
_Buffer = bytes | bytearray | memoryview


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

    def sibling(self) -> Client:
        """Another client of the same daemon: requests while this one's connection is in use."""
        return Client(self.endpoint, timeout=self._timeout, clock=self._clock)

    def next_id(self) -> int:
        return next(self._ids) & 0xFFFFFFFF

    def now(self) -> float:
        """Seconds on the clock of ``deadline``."""
        return self._clock.monotonic()

    def deadline(self, since: float | None = None) -> float | None:
        """When the timeout that begins now (or began at ``since``) is over; None: never. For
        ``is_over``."""
        if self._timeout is None:
            return None
        return (self.now() if since is None else since) + self._timeout

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
        partition: str | None = None,
        shard: int | None = None,
        identity: Identity | None = None,
        txn: Transaction | None = None,
        resend: bool = True,
        on_ack: Callable[[Ack], None] | None = None,
    ) -> Producer:
        """A producer of one collection. ``key`` and ``headers`` go with every row; ``shard``: where
        rows without a key go, modulo the number of shards (None: the shards in turn).
        ``identity``: that of a name, whose batches the caller numbers (None: a random one).
        ``resend``: send again what was not answered, until the timeout is over.

        Raises NotFoundError for a partition that does not exist, and with ``txn``
        TxnInvalidStateError outside of its scope."""
        if txn is not None:
            txn.check(collection)
        opened = self.open(collection, create=create and txn is None)
        number = 0
        if partition is not None:
            number = self.call("partition", name=collection, partition=partition)
        batcher = Batcher(
            opened,
            identity or Identity(self._clock.token()),
            key=key,
            headers=headers,
            compress=compress,
            buffered=buffered,
            partition=number,
            shard=None if shard is None else shard % len(opened.vchannels),
            txn_id=0 if txn is None else txn.number,
        )
        new_id = self._clock.token if identity is None else None
        return Producer(self, batcher, on_ack, new_id, resend=resend)

    def named_producer(
        self, collection: str, name: str, *, next_sequence: int = 1, **options: Any
    ) -> Producer:
        """A producer with a name: it takes the next epoch of it, which fences whoever used the name
        before, and numbers its batches from ``next_sequence``. ``options``: see ``producer``."""
        self.open(collection, create=options.get("create", True))
        id, epoch, _ = self._producer_state(collection, name)
        identity = Identity(id, epoch + 1, next_sequence)
        return self.producer(collection, identity=identity, **options)

    def last_sequence(self, collection: str, name: str) -> int:
        """The number of the last batch that a name has written; 0: none."""
        return self._producer_state(collection, name)[2]

    def begin(
        self, *collections: str, keepalive: float = TXN_KEEPALIVE_SECONDS, create: bool = True
    ) -> Transaction:
        """Begin a transaction over collections. ``keepalive``: seconds after which it is rolled
        back, unless something is appended or it is renewed."""
        for name in collections:
            self.open(name, create=create)
        id = self.call("txn_begin", collections=list(collections), keepalive=keepalive)
        return Transaction(self, id)

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

    def _producer_state(self, collection: str, name: str) -> tuple[int, int, int]:
        """(id, epoch, last sequence)."""
        id = producer_id("producer", name)
        epoch, sequence = self.call("producer", collection=collection, producer=str(id))
        return id, epoch, sequence

    def cursor(
        self, name: str, collection: str, start: From | Mapping[int, From] = EARLIEST
    ) -> Cursor:
        """A named cursor; a new one is placed at ``start``. See ``Cursor``."""
        return Cursor(self, name, collection, start)

    def member(
        self,
        group: str,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
        until: Until | Mapping[int, Until] = NOW,
        *,
        settle: Callable[[], None] = lambda: None,
        on_lost: Callable[[WalError], None] = lambda error: None,
        lease_seconds: float = GROUP_LEASE_SECONDS,
    ) -> Member:
        """A member of a group that shares out a collection's shards. See ``Member``."""
        return Member(
            self,
            self._clock,
            group,
            collection,
            start,
            until,
            settle=settle,
            on_lost=on_lost,
            lease_seconds=lease_seconds,
        )

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
