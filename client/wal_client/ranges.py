"""Where a tail starts and ends, and the rows of the batches that come. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from wal_core import batch as codec
from wal_core import frames
from wal_core.batch import Record
from wal_core.checksum import crc32c
from wal_core.errors import CorruptError
from wal_core.frames import End, Frame, Start
from wal_core.message import (
    HEADER_SIZE_BYTES,
    Encoding,
    Header,
    header_is_valid,
    identity_seed,
    unpack_header,
)
from wal_core.names import split_vchannel_id
from wal_core.tso import tso_from_ms


class From(NamedTuple):
    """The start of a tail, for one shard."""

    kind: int
    value: int = 0


class Until(NamedTuple):
    """The end of a tail, for one shard."""

    kind: int
    value: int = 0


EARLIEST = From(Start.EARLIEST)
LATEST = From(Start.LATEST)
FOLLOW = Until(End.NEVER)
NOW = Until(End.NOW)


def from_offset(offset: int) -> From:
    return From(Start.OFFSET, offset)


def from_ms(ms: int) -> From:
    """The first row at or after a wall-clock time."""
    return From(Start.TSO, tso_from_ms(ms))


def from_last(rows: int) -> From:
    return From(Start.LAST, rows)


def until_offset(offset: int, *, follow: bool = False) -> Until:
    """This offset included."""
    return Until(End.FOLLOW_OFFSET if follow else End.OFFSET, offset)


def until_ms(ms: int) -> Until:
    """The last row of this millisecond included."""
    return Until(End.TSO, tso_from_ms(ms + 1) - 1)


class RowBatch:
    """Rows of one shard, contiguous, in order. Decoded only when asked."""

    __slots__ = (
        "_body",
        "_skip",
        "_take",
        "collection",
        "count",
        "encoding",
        "first",
        "properties",
        "shard",
        "tso",
    )

    def __init__(
        self,
        collection: str,
        header: Header,
        properties: bytes,
        body: memoryview,
        skip: int,
        take: int,
    ) -> None:
        self.collection = collection
        self.shard = split_vchannel_id(header.vchannel)[1]
        self.tso = header.tso
        self.encoding = header.encoding
        self.properties = properties
        self.first = header.first_offset + skip
        self.count = take
        self._skip = skip
        self._take = header.rows
        self._body = codec.decompress(header.compression, body)

    @property
    def end(self) -> int:
        """The offset behind the last row."""
        return self.first + self.count

    def limit(self, count: int) -> None:
        """Keep at most the first ``count`` rows."""
        self.count = min(self.count, count)

    @property
    def lines(self) -> memoryview | bytes | None:
        """All rows, each ended by a newline, where they lie just so; else None."""
        if self.encoding == Encoding.LINES and self._skip == 0 and self.count == self._take:
            return self._body
        return None

    def bodies(self) -> list[bytes]:
        """The rows' bodies."""
        bodies = codec.decode_bodies(self.encoding, self._body, self._take)
        return bodies[self._skip : self._skip + self.count]

    def records(self) -> list[Record]:
        """The rows with keys and headers."""
        records = codec.decode_records(self.encoding, self._body, self._take, self.properties)
        return records[self._skip : self._skip + self.count]


class ShardReader:
    """One shard of a tail: makes its requests and cuts what comes to the rows asked for."""

    def __init__(self, vchannel: int, start: From, until: Until, collection: str) -> None:
        self.vchannel = vchannel
        self.shard = split_vchannel_id(vchannel)[1]
        self._collection = collection
        self.next_offset: int | None = None
        """The offset behind the last row delivered, once the first answer is known."""
        self.done = False
        self._start = start
        self._until = until
        self._end: int | None = None

    @property
    def follows(self) -> bool:
        """Whether it waits for rows that are not there yet."""
        return self._until.kind in (End.NEVER, End.FOLLOW_OFFSET)

    @property
    def is_complete(self) -> bool:
        """Whether all rows have come, though no answer said so yet."""
        if self._end is None or self.next_offset is None:
            return False
        return self.next_offset >= self._end

    def request(self, request_id: int) -> bytes:
        """A SUBSCRIBE frame: the first one, or one that resumes where a lost connection ended."""
        start = self._start if self.next_offset is None else from_offset(self.next_offset)
        until = self._until
        if self.next_offset is not None and self._end is not None:
            until = until_offset(self._end - 1, follow=True)
        meta = frames.SUBSCRIBE.pack(
            self.vchannel, start.kind, until.kind, 0, start.value, until.value
        )
        return frames.pack_frame(frames.Kind.SUBSCRIBE, request_id, meta)

    def subscribed(self, frame: Frame) -> None:
        first, latest = frames.SUBSCRIBED.unpack(frame.meta)
        if self.next_offset is None:
            self.next_offset = first
            if self._until.kind == End.NOW:
                self._end = latest
            elif self._until.kind in (End.OFFSET, End.FOLLOW_OFFSET):
                self._end = self._until.value + 1
                if self._until.kind == End.OFFSET:
                    self._end = min(self._end, latest)

    def batches(self, frame: Frame) -> Iterator[RowBatch]:
        """The rows of a BATCHES or TXN_BATCHES frame. Raises CorruptError naming file and
        offset."""
        committed: tuple[int, int] | None = None
        if frame.kind == frames.Kind.TXN_BATCHES:
            term, first_sequence, *of_commit = frames.TXN_BATCHES.unpack(frame.meta)
            committed = (of_commit[0], of_commit[1])
        else:
            term, first_sequence = frames.BATCHES.unpack(frame.meta)
        seed = identity_seed(term, first_sequence)
        data = memoryview(frame.body)
        at = 0
        while at < len(data):
            header = unpack_header(data, at)
            end = at + header.size
            body = data[end - header.body_length : end]
            if (
                end > len(data)
                or not header_is_valid(data, at, header, seed)
                or crc32c(body) != header.body_checksum
            ):
                name = f"{term:016x}-{first_sequence:016x}.seg"
                raise CorruptError(
                    f"{name}: offset {header.position}: a batch came damaged",
                    file=name,
                    offset=header.position,
                )
            properties = bytes(data[at + HEADER_SIZE_BYTES : end - header.body_length])
            if committed is not None:
                # Offsets and the timestamp of its rows are the commit's to give.
                offset, tso = committed
                header = header._replace(first_offset=offset, tso=tso)
                committed = (offset + header.rows, tso)
            rows = self._rows(header, properties, body)
            if rows is not None:
                yield rows
            at = end

    def _rows(self, header: Header, properties: bytes, body: memoryview) -> RowBatch | None:
        assert self.next_offset is not None
        first, end = header.first_offset, header.first_offset + header.rows
        # A frame may hold more batches than were asked for.
        if self._end is not None and first >= self._end:
            return None
        if self._until.kind == End.TSO and header.tso > self._until.value:
            return None
        if first > self.next_offset:
            raise CorruptError(f"rows from {first} on came where {self.next_offset} was due")
        skip = self.next_offset - first
        stop = end if self._end is None else min(end, self._end)
        if stop <= self.next_offset:
            return None
        self.next_offset = stop
        return RowBatch(self._collection, header, properties, body, skip, stop - first - skip)
