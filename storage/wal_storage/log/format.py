"""A log segment on disk. ``docs/format.md`` is the same in prose, enough for another reader.

::

    0          file header, 256 bytes
    256        the opening snapshot, a batch of type SNAPSHOT
    …          batches, one after the other without padding (``wal_core.message``)
    end        zeros up to the preallocated size; after sealing instead:
    end        footer body (msgpack), footer trailer of 40 bytes, end of file

The file is named ``<term>-<first sequence>.seg``, both 16 hexadecimal digits. Its header names the
predecessor: identity, valid length and running checksum. The log is what is reached backwards from
the newest segment of the highest term; everything else is void.

The running checksum is CRC-32C over the header checksums (u32) of all batches since the log began;
it crosses from a segment to the next. A header checksum covers the body's, so it stands for all.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from wal_core.checksum import crc32c
from wal_core.errors import CorruptError, FormatError

FORMAT_VERSION = 1
HEADER_SIZE_BYTES = 256
_MAGIC = b"WALSEG\r\n"
_HEADER = struct.Struct("<8sIIQQQQQIIQQQ")
_HEADER_CHECKSUM_AT = HEADER_SIZE_BYTES - 4
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.seg")

_FOOTER_MAGIC = b"WALFOOT1"
_TRAILER = struct.Struct("<8sQQIIII")
TRAILER_SIZE_BYTES = 40
_U32 = struct.Struct("<I")


class SegmentId(NamedTuple):
    """Who wrote a segment and where it begins. Orders segments: highest term, then sequence."""

    term: int
    first_sequence: int

    @property
    def file_name(self) -> str:
        return f"{self.term:016x}-{self.first_sequence:016x}.seg"


NO_SEGMENT = SegmentId(0, 0)


def parse_file_name(name: str) -> SegmentId | None:
    """The identity in a segment's name, or None for any other file."""
    match = _NAME.fullmatch(name)
    return SegmentId(int(match[1], 16), int(match[2], 16)) if match else None


class Predecessor(NamedTuple):
    """What a segment says of the one before it."""

    id: SegmentId = NO_SEGMENT
    valid_length: int = 0
    running: int = 0


class SegmentHeader(NamedTuple):
    pchannel: int
    id: SegmentId
    predecessor: Predecessor
    log_start: SegmentId
    """The oldest segment that was kept when this one was made; its own predecessor may be gone."""
    created_ms: int


def pack_segment_header(header: SegmentHeader) -> bytes:
    body = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        header.pchannel,
        *header.id,
        *header.predecessor.id,
        header.predecessor.valid_length,
        header.predecessor.running,
        0,
        *header.log_start,
        header.created_ms,
    ).ljust(_HEADER_CHECKSUM_AT, b"\0")
    return body + _U32.pack(crc32c(body))


def unpack_segment_header(data: memoryview | bytes | bytearray, name: str) -> SegmentHeader:
    """Raises FormatError for a newer version, CorruptError for anything else that is not whole."""
    head = bytes(data[:HEADER_SIZE_BYTES])
    if len(head) < HEADER_SIZE_BYTES or head[:8] != _MAGIC:
        raise CorruptError(f"{name}: offset 0: not a log segment", file=name, offset=0)
    (checksum,) = _U32.unpack_from(head, _HEADER_CHECKSUM_AT)
    if crc32c(head[:_HEADER_CHECKSUM_AT]) != checksum:
        raise CorruptError(f"{name}: offset 0: the header's checksum fails", file=name, offset=0)
    fields = _HEADER.unpack_from(head)
    if fields[1] != FORMAT_VERSION:
        raise FormatError(f"{name}: format {fields[1]}; this version reads {FORMAT_VERSION}")
    header = SegmentHeader(
        fields[2],
        SegmentId(*fields[3:5]),
        Predecessor(SegmentId(*fields[5:7]), fields[7], fields[8]),
        SegmentId(*fields[10:12]),
        fields[12],
    )
    if parse_file_name(name) not in (None, header.id):
        raise CorruptError(f"{name}: offset 0: header of another segment", file=name, offset=0)
    return header


class Footer(NamedTuple):
    """What a sealed segment says of itself. Never trusted over its data."""

    valid_length: int
    next_sequence: int
    running: int
    entries: Sequence[tuple[int, int, int, int, int]]
    """(vchannel, first offset, tso, position, sequence): see ``index``."""


def pack_footer(footer: Footer) -> bytes:
    """Footer body and trailer, to stand at the valid length and end the file."""
    body = msgspec.msgpack.encode({"v": 1, "index": footer.entries})
    trailer = _TRAILER.pack(
        _FOOTER_MAGIC,
        footer.valid_length,
        footer.next_sequence,
        footer.running,
        len(body),
        crc32c(body),
        0,
    )[:-4]
    return body + trailer + _U32.pack(crc32c(trailer))


def unpack_footer(data: memoryview) -> Footer | None:
    """The footer at the end of ``data`` (the end of a file), or None where none is whole."""
    if len(data) < TRAILER_SIZE_BYTES:
        return None
    trailer = bytes(data[-TRAILER_SIZE_BYTES:])
    magic, valid_length, sequence, running, size, body_checksum, _ = _TRAILER.unpack(trailer)
    if magic != _FOOTER_MAGIC or not trailer_is_whole(trailer):
        return None
    body = data[-TRAILER_SIZE_BYTES - size : -TRAILER_SIZE_BYTES]
    if len(body) != size or crc32c(body) != body_checksum:
        return None
    value: dict[str, Any] = msgspec.msgpack.decode(body)
    index = [tuple(entry) for entry in value["index"]]
    return Footer(valid_length, sequence, running, index)


def footer_size(trailer: bytes) -> int:
    """Bytes of footer body and trailer, from the last 40 bytes of a file; 0 where they are none."""
    if len(trailer) != TRAILER_SIZE_BYTES or trailer[:8] != _FOOTER_MAGIC:
        return 0
    return int(_TRAILER.unpack(trailer)[4]) + TRAILER_SIZE_BYTES


def trailer_is_whole(trailer: bytes) -> bool:
    """Whether the checksum of a footer's trailer holds."""
    return bool(_U32.pack(crc32c(trailer[:-4])) == trailer[-4:])


def advance_running(running: int, batch_header: bytes | memoryview) -> int:
    """The running checksum behind one more batch."""
    return crc32c(batch_header[124:128], running)
