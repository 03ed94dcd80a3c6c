"""Producer bookkeeping without I/O: batches, sequences, the window, acknowledgements.

Batches of a VChannel are numbered from 1 per producer; the numbers go with the batches into the
log. So a batch whose answer was lost is sent again just as it was, and gets the answer of its first
try. A producer of which one batch was refused is at its end: the numbers behind it are refused too,
so the log holds a prefix of what was sent, per VChannel.
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
from wal_core.errors import (
    JUDGED_IN_ORDER,
    NotReadyError,
    OutcomeUnknownError,
    OutOfSequenceError,
    ProtocolError,
    UsageError,
    WalError,
)
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


class Identity(NamedTuple):
    """Who sends: a random id that is given up when it was not used for a while, or a name's
    (``wal_core.names.producer_id``) with the epoch and the number of its next batch."""

    id: int
    epoch: int = 0
    next_sequence: int = 1


class _Sent(NamedTuple):
    request_id: int
    vchannel: str
    rows: int
    size: int
    tag: Any
    buffers: list[_Buffer]
    """The frame, to be sent again where its answer is lost."""


class Batcher:
    """Makes append frames for one collection and matches their answers."""

    def __init__(
        self,
        opened: Opened,
        identity: Identity,
        *,
        key: bytes | None = None,
        headers: codec.type_headers = (),
        compress: bool = False,
        buffered: bool = False,
        partition: int = 0,
        shard: int | None = None,
        txn_id: int = 0,
    ) -> None:
        """``shard``: of rows without a key; None: the shards in turn."""
        self.opened = opened
        self.in_flight = 0
        """Body bytes sent and not answered."""
        self.sent = 0
        self.acknowledged = 0
        """Batches."""
        self._identity = identity
        self._properties = codec.encode_properties(key, headers)
        self._shard_of_all = shard if key is None else self.shard_of(key)
        self._partition = partition
        self._txn_id = txn_id
        self._compress = compress
        self._buffered = buffered
        self._sequences = [identity.next_sequence - 1] * len(opened.vchannels)
        self._waiting: deque[_Sent] = deque()
        self._early: dict[int, Frame] = {}
        self._sent_again: set[int] = set()
        self._batches = 0

    def become(self, producer_id: int) -> None:
        """Take a new random id, while nothing is under way: the daemon may have forgotten the old
        one."""
        self._identity = Identity(producer_id)
        self._sequences = [0] * len(self.opened.vchannels)

    @property
    def waiting(self) -> int:
        """Batches sent and not answered."""
        return len(self._waiting)

    def shard_of(self, key: bytes) -> int:
        """Where rows of a key go: always the same shard."""
        return crc32c(key) % len(self.opened.vchannels)

    def next_shard(self) -> int:
        """Where the next batch without keys goes: the shards in turn."""
        if self._shard_of_all is not None:
            return self._shard_of_all
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
            producer_id=self._identity.id,
            producer_epoch=self._identity.epoch,
            producer_sequence=self._sequences[number],
            partition=self._partition,
            txn_id=self._txn_id,
        )
        size = len(body)
        head = frames.pack_append(request_id, sent, expect=expect, buffered=self._buffered)
        buffers = [head, body]
        vchannel = self.opened.vchannels[number]
        self._waiting.append(_Sent(request_id, vchannel, count, size, tag, buffers))
        self.in_flight += size
        self.sent += 1
        return buffers

    def unanswered(self) -> list[tuple[int, list[_Buffer]]]:
        """(request id, frame) of what is to be sent again over a new connection, in order."""
        self._early.clear()
        self._sent_again = {sent.request_id for sent in self._waiting}
        return [(sent.request_id, sent.buffers) for sent in self._waiting]

    def wants_resend(self, frame: Frame) -> bool:
        """Whether an answer says that batches must be sent again: their bytes were lost on the
        way, or their fate is unknown."""
        if frame.kind != Kind.ERROR or not self._waiting:
            return False
        error = frames.unpack_error(frame)
        if isinstance(error, OutOfSequenceError):
            return frame.request_id != self._waiting[0].request_id and any(
                frame.request_id == sent.request_id for sent in self._waiting
            )
        return isinstance(error, NotReadyError) or "outcome_unknown" in error.details

    def answered(self, frame: Frame) -> list[Ack]:
        """Take an answer in. Acks come out in the order in which the batches were sent.

        Raises the daemon's error once all batches before the refused one are acknowledged."""
        if not any(sent.request_id == frame.request_id for sent in self._waiting):
            return []  # An answer that came twice.
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

    def behind_refused(self) -> list[tuple[int, bool]]:
        """(request id, whether of the same shard) of what waits, from the refused one on."""
        first = self._waiting[0].vchannel if self._waiting else ""
        return [(sent.request_id, sent.vchannel == first) for sent in self._waiting]

    def lost(self, why: str) -> WalError:
        """The error after a connection broke with batches under way."""
        return OutcomeUnknownError(
            f"{why}; {len(self._waiting)} batches were sent and not answered",
            batches=len(self._waiting),
            records=sum(sent.rows for sent in self._waiting),
        )

    def _refusal(self, answer: Frame) -> WalError:
        error = frames.unpack_error(answer)
        tried_before = answer.request_id in self._sent_again
        if error.details.get("outcome_unknown") or (
            tried_before and not isinstance(error, JUDGED_IN_ORDER)
        ):
            return OutcomeUnknownError(
                f"{error.message} [{error.code}]", cause=error.code, records=self._waiting[0].rows
            )
        return error
