"""The blocking tail: rows of all shards, resumed at the next offset after a lost connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from wal_client.batcher import Opened
from wal_client.ranges import EARLIEST, NOW, From, RowBatch, ShardReader, Until
from wal_core import frames
from wal_core.clock import sleep
from wal_core.errors import (
    NotFoundError,
    NotReadyError,
    ProtocolError,
    TimedOutError,
    UnreachableError,
)
from wal_core.frames import Frame, Kind
from wal_core.names import vchannel_id

_POLL_SECONDS = 0.02
_RECEIVE_BYTES = 256 * 1024
_Buffer = bytes | bytearray | memoryview

if TYPE_CHECKING:
    from wal_client.sync import Client


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

    def has_more(self, seconds: float = 0) -> bool:
        """Whether there is something to go on with, now or within some seconds."""
        return self._client.connection.has_frame(seconds)

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
        elif frame.kind in (Kind.BATCHES, Kind.TXN_BATCHES):
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
