"""Producer bookkeeping without I/O: batches, sequences, the window, acknowledgements.

Batches of a VChannel are numbered from 1 per producer; the numbers go with the batches into the
log. A producer of which one batch was refused is at its end: what it had sent behind that batch is
refused too, so the log holds a prefix of what was sent, per VChannel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from wal_client.receipts import Ack
from wal_core import batch as codec
from wal_core import frames
from wal_core.batch import Record
from wal_core.checksum import crc32c
from wal_core.errors import OutcomeUnknownError, ProtocolError, UsageError, WalError
from wal_core.frames import Frame, Kind
from wal_core.message import Compression, Encoding, MessageType, message
from wal_core.names import vchannel_id

_Buffer = bytes | bytearray | memoryview


class Opened(NamedTuple):
    """A collection as the daemon described it."""

    name: str
    id: int
    vchannels: list[str]
    """Names, in order of the shards."""


def unpack_opened(name: str, frame: Frame) -> Opened:
    if frame.kind != Kind.OPEN_OK:
        raise ProtocolError("the daemon did not answer the opening of a collection")
    collection_id, _ = frames.OPEN_OK.unpack_from(frame.meta)
    return Opened(name, collection_id, bytes(frame.body).decode().split("\n"))


class _Sent(NamedTuple):
    request_id: int
    vchannel: str
    rows: int
    size: int
    tag: Any


class Batcher:
    """Makes append frames for one collection and matches their answers."""

    def __init__(
        self,
        opened: Opened,
        producer_id: int,
        *,
        key: bytes | None = None,
        headers: codec.type_headers = (),
        compress: bool = False,
        buffered: bool = False,
    ) -> None:
        self.opened = opened
        self.in_flight = 0
        """Body bytes sent and not answered."""
        self.sent = 0
        self.acknowledged = 0
        """Batches."""
        self._producer_id = producer_id
        self._properties = codec.encode_properties(key, headers)
        self._shard_of_key = None if key is None else self.shard_of(key)
        self._compress = compress
        self._buffered = buffered
        self._sequences = [0] * len(opened.vchannels)
        self._waiting: deque[_Sent] = deque()
        self._early: dict[int, Frame] = {}
        self._batches = 0

    @property
    def waiting(self) -> int:
        """Batches sent and not answered."""
        return len(self._waiting)

    def shard_of(self, key: bytes) -> int:
        """Where rows of a key go: always the same shard."""
        return crc32c(key) % len(self.opened.vchannels)

    def next_shard(self) -> int:
        """Where the next batch without keys goes: the shards in turn."""
        if self._shard_of_key is not None:
            return self._shard_of_key
        return self._batches % len(self.opened.vchannels)

    def lines(
        self,
        request_id: int,
        body: bytes | bytearray | memoryview,
        count: int,
        tag: Any = None,
        expect: int = -1,
    ) -> list[bytes | bytearray | memoryview]:
        """A frame, in parts, of ``count`` lines, each ended by a newline."""
        return self.encoded(request_id, Encoding.LINES, body, count, tag=tag, expect=expect)

    def records(
        self,
        request_id: int,
        records: Sequence[Record],
        tag: Any = None,
        shard: int | None = None,
        expect: int = -1,
    ) -> list[bytes | bytearray | memoryview]:
        """A frame of rows that share a shard. Raises RecordTooLargeError, nothing sent."""
        for record in records:
            codec.check_record_size(len(record.body))
            if record.key is not None:
                codec.check_key(record.key)
        encoding, body = codec.encode_records(records)
        return self.encoded(
            request_id, encoding, body, len(records), tag=tag, shard=shard, expect=expect
        )

    def bodies(self, request_id: int, bodies: Sequence[bytes]) -> list[_Buffer]:
        """A frame of rows without keys of their own. Raises RecordTooLargeError, nothing sent."""
        codec.check_record_size(max(map(len, bodies)))
        encoding, body = codec.encode_bodies(bodies)
        return self.encoded(request_id, encoding, body, len(bodies))

    def encoded(
        self,
        request_id: int,
        encoding: int,
        body: bytes | bytearray | memoryview,
        count: int,
        *,
        tag: Any = None,
        shard: int | None = None,
        expect: int = -1,
    ) -> list[bytes | bytearray | memoryview]:
        """A frame of rows that are encoded already."""
        if count == 0:
            raise UsageError("a batch of no rows")
        compression = Compression.NONE
        if self._compress:
            compression, body = Compression.ZSTD, codec.compress(body)
        number = self.next_shard() if shard is None else shard
        self._batches += 1
        self._sequences[number] += 1
        sent = message(
            MessageType.INSERT,
            vchannel_id(self.opened.id, number),
            body,
            encoding=encoding,
            compression=compression,
            rows=count,
            properties=self._properties,
            producer_id=self._producer_id,
            producer_sequence=self._sequences[number],
        )
        size = len(body)
        self._waiting.append(_Sent(request_id, self.opened.vchannels[number], count, size, tag))
        self.in_flight += size
        self.sent += 1
        head = frames.pack_append(request_id, sent, expect=expect, buffered=self._buffered)
        return [head, body]

    def answered(self, frame: Frame) -> list[Ack]:
        """Take an answer in. Acks come out in the order in which the batches were sent.

        Raises the daemon's error once all batches before the refused one are acknowledged."""
        self._early[frame.request_id] = frame
        acks: list[Ack] = []
        while self._waiting and self._waiting[0].request_id in self._early:
            answer = self._early[self._waiting[0].request_id]
            if answer.kind != Kind.APPEND_OK:
                if acks:
                    return acks
                raise self._refusal(answer)
            sent = self._waiting.popleft()
            del self._early[sent.request_id]
            self.in_flight -= sent.size
            self.acknowledged += 1
            first, tso, count = frames.APPEND_OK.unpack(answer.meta)
            durable = bool(answer.flags & frames.FLAG_DURABLE)
            acks.append(Ack(sent.vchannel, first, count, tso, durable, sent.tag))
        return acks

    def refused(self) -> WalError | None:
        """The error of the next batch in order, where its answer is a refusal."""
        answer = self._early.get(self._waiting[0].request_id) if self._waiting else None
        if answer is None or answer.kind == Kind.APPEND_OK:
            return None
        return self._refusal(answer)

    def lost(self, why: str) -> WalError:
        """The error after a connection broke with batches under way."""
        return OutcomeUnknownError(
            f"{why}; {len(self._waiting)} batches were sent and not answered",
            batches=len(self._waiting),
            records=sum(sent.rows for sent in self._waiting),
        )

    def _refusal(self, answer: Frame) -> WalError:
        error = frames.unpack_error(answer)
        if error.details.get("outcome_unknown"):
            return OutcomeUnknownError(
                f"{error.message} [{error.code}]", cause=error.code, records=self._waiting[0].rows
            )
        return error
