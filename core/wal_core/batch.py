"""The rows of a batch: columnar, so that nobody on the way has to loop over them.

Everything here is a pure function over bytes. Only the two ends (a producer that has single
records, a consumer that wants them) touch rows one by one.

``COLUMNS`` body, for a batch of n rows, little-endian::

    u32 key length × n      0xFFFFFFFF: the row has no key
    u32 headers length × n
    u32 body length × n
    keys · headers · bodies

A row's headers are pairs of (u16 name length, name, u32 value length, value).

Properties of a batch are pairs of (u8 tag, u16 length, value): tag 1 a key that all rows share,
tag 2 headers that all rows share. Other tags are kept and ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import zstandard

from wal_core.errors import CorruptError, RecordTooLargeError
from wal_core.limits import (
    BATCH_BODY_MAX_BYTES,
    KEY_SIZE_MAX_BYTES,
    PROPERTIES_SIZE_MAX_BYTES,
    RECORD_SIZE_MAX_BYTES,
)
from wal_core.message import Compression, Encoding

_ABSENT = 0xFFFFFFFF
_TAG = struct.Struct("<BH")
_TAG_KEY = 1
_TAG_HEADERS = 2
_HEADER_NAME_MAX_BYTES = 0xFFFF

type_headers = tuple[tuple[bytes, bytes], ...]


class Record(NamedTuple):
    """One row of a raw collection."""

    body: bytes
    key: bytes | None = None
    headers: type_headers = ()


# -- encoding --------------------------------------------------------------------------------------


def encode_bodies(bodies: Sequence[bytes]) -> tuple[int, bytes]:
    """(encoding, body) of rows without keys of their own: LINES where that is exact, else LEN32."""
    joined = b"\n".join(bodies)
    if joined.count(b"\n") == len(bodies) - 1:
        return Encoding.LINES, joined + b"\n"
    lengths = struct.pack(f"<{len(bodies)}I", *map(len, bodies))
    return Encoding.LEN32, lengths + b"".join(bodies)


def encode_records(records: Sequence[Record]) -> tuple[int, bytes]:
    """(encoding, body) of rows that may have keys and headers of their own."""
    if all(record.key is None and not record.headers for record in records):
        return encode_bodies([record.body for record in records])
    keys = [record.key for record in records]
    headers = [encode_headers(record.headers) for record in records]
    bodies = [record.body for record in records]
    lengths = struct.pack(
        f"<{3 * len(records)}I",
        *(_ABSENT if key is None else len(key) for key in keys),
        *map(len, headers),
        *map(len, bodies),
    )
    present = [key for key in keys if key is not None]
    return Encoding.COLUMNS, b"".join([lengths, *present, *headers, *bodies])


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Pairs of name and value, as bytes. Raises RecordTooLargeError for a name over 64 KiB."""
    headers = tuple(headers)
    longest = max((len(name) for name, _ in headers), default=0)
    if longest > _HEADER_NAME_MAX_BYTES:
        raise RecordTooLargeError(f"a header's name of {longest} bytes; at most 65535")
    return b"".join(
        struct.pack("<H", len(name)) + name + struct.pack("<I", len(value)) + value
        for name, value in headers
    )


def encode_properties(key: bytes | None, headers: type_headers) -> bytes:
    """What all rows of a batch share."""
    parts = []
    if key is not None:
        check_key(key)
        parts.append(_TAG.pack(_TAG_KEY, len(key)) + key)
    if headers:
        packed = encode_headers(headers)
        if len(packed) > PROPERTIES_SIZE_MAX_BYTES - KEY_SIZE_MAX_BYTES - 2 * _TAG.size:
            raise RecordTooLargeError(f"headers of {len(packed)} bytes; at most 32 KiB")
        parts.append(_TAG.pack(_TAG_HEADERS, len(packed)) + packed)
    return b"".join(parts)


def check_key(key: bytes) -> None:
    """Refuses a key over the limit."""
    if len(key) > KEY_SIZE_MAX_BYTES:
        raise RecordTooLargeError(f"a key of {len(key)} bytes; at most {KEY_SIZE_MAX_BYTES}")


def check_record_size(size: int, what: str = "a record") -> None:
    """Refuses a body over the limit of 16 MiB."""
    if size > RECORD_SIZE_MAX_BYTES:
        raise RecordTooLargeError(f"{what} of {size} bytes; at most {RECORD_SIZE_MAX_BYTES}")


def compress(body: bytes | bytearray | memoryview, level: int = 3) -> bytes:
    """The body as one zstd frame that declares its size."""
    return zstandard.ZstdCompressor(level=level).compress(body)


# -- decoding --------------------------------------------------------------------------------------


def decompress(compression: int, body: memoryview | bytes) -> memoryview | bytes:
    """The plain body. A frame that declares none or too large a size is refused unread."""
    if compression == Compression.NONE:
        return body
    if compression != Compression.ZSTD:
        raise CorruptError(f"unknown compression {compression}")
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size > BATCH_BODY_MAX_BYTES:
            raise CorruptError(f"a compressed batch declares {size} bytes")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
    except zstandard.ZstdError as error:
        raise CorruptError(f"a compressed batch cannot be read: {error}") from None


def decode_bodies(encoding: int, body: memoryview | bytes, count: int) -> list[bytes]:
    """The bodies of a batch in order. Raises CorruptError where body and count disagree."""
    if encoding == Encoding.LINES:
        return _decode_lines(bytes(body), count)
    view = memoryview(body)
    if encoding == Encoding.LEN32:
        return _split(view, _lengths(view, count, 1), 4 * count)
    if encoding == Encoding.COLUMNS:
        return [record.body for record in decode_records(encoding, body, count)]
    raise CorruptError(f"a batch of rows in encoding {encoding}")


def decode_records(
    encoding: int, body: memoryview | bytes, count: int, properties: bytes = b""
) -> list[Record]:
    """The rows of a batch with keys and headers, those of the properties included."""
    shared_key, shared_headers = decode_properties(properties)
    if encoding != Encoding.COLUMNS:
        return [
            Record(one, shared_key, shared_headers) for one in decode_bodies(encoding, body, count)
        ]
    view = memoryview(body)
    lengths = _lengths(view, count, 3)
    present = [0 if length == _ABSENT else length for length in lengths[:count]]
    parts = _split(view, [*present, *lengths[count:]], 12 * count)
    keys = [
        shared_key if length == _ABSENT else key
        for length, key in zip(lengths[:count], parts[:count], strict=True)
    ]
    headers = [
        shared_headers + decode_headers(packed) if packed else shared_headers
        for packed in parts[count : 2 * count]
    ]
    return list(map(Record, parts[2 * count :], keys, headers))


def decode_headers(packed: bytes) -> type_headers:
    """Pairs of name and value."""
    pairs = []
    at = 0
    try:
        while at < len(packed):
            (size,) = struct.unpack_from("<H", packed, at)
            name = packed[at + 2 : at + 2 + size]
            at += 2 + size
            (size,) = struct.unpack_from("<I", packed, at)
            value = packed[at + 4 : at + 4 + size]
            at += 4 + size
            pairs.append((name, value))
    except struct.error:
        raise CorruptError("the headers of a row are cut off") from None
    if at != len(packed):
        raise CorruptError("the headers of a row are cut off")
    return tuple(pairs)


def decode_properties(properties: bytes) -> tuple[bytes | None, type_headers]:
    """(key, headers) that all rows of a batch share; unknown tags are passed over."""
    key: bytes | None = None
    headers: type_headers = ()
    at = 0
    while at < len(properties):
        if at + _TAG.size > len(properties):
            raise CorruptError("the properties of a batch are cut off")
        tag, size = _TAG.unpack_from(properties, at)
        at += _TAG.size
        value = properties[at : at + size]
        at += size
        if len(value) != size:
            raise CorruptError("the properties of a batch are cut off")
        if tag == _TAG_KEY:
            key = value
        elif tag == _TAG_HEADERS:
            headers = decode_headers(value)
    return key, headers


def _decode_lines(body: bytes, count: int) -> list[bytes]:
    # Counted before they are split: 16 MiB of newlines would become objects of 700 MiB.
    if body.count(b"\n") != count or (body and not body.endswith(b"\n")):
        raise CorruptError(f"a batch of lines does not hold its {count} rows")
    return body.split(b"\n")[:-1]


def _lengths(view: memoryview, count: int, columns: int) -> tuple[int, ...]:
    if 4 * columns * count > len(view):
        raise CorruptError(f"a batch of {len(view)} bytes cannot hold {count} rows")
    return struct.unpack_from(f"<{columns * count}I", view)


def _split(view: memoryview, lengths: Sequence[int], at: int) -> list[bytes]:
    if at + sum(lengths) != len(view):
        raise CorruptError("the lengths in a batch do not add up to its size")
    data = view.tobytes()
    parts = []
    for length in lengths:
        parts.append(data[at : at + length])
        at += length
    return parts
