"""Where records end in a stream of bytes. No I/O: ``wal_cli.pump`` reads and sends.

A framing looks at the bytes read so far, says how many of them hold whole records, and turns these
into batches. For ``line`` and ``nul`` that is a search and a count over a megabyte at once; no
loop runs over records. Positions and numbers of records count from where the reading began.

========  ==========================================================================
framing   a record
========  ==========================================================================
line      what a newline ends; the last one may do without
nul       what a NUL byte ends; the last one may do without
len32     u32 length, little-endian, then so many bytes
whole     the whole input (an empty one holds no record)
ndjson    a line with a JSON object as ``wal tail -o ndjson`` prints it: ``body`` or
          ``body_b64``, and optionally ``key`` or ``key_b64`` and ``headers``
========  ==========================================================================
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from wal_core import batch as codec
from wal_core.batch import Record, type_headers
from wal_core.errors import BadInputError, RecordTooLargeError, UsageError, WalError
from wal_core.limits import (
    BATCH_BODY_MAX_BYTES,
    BATCH_TARGET_BYTES,
    KIB,
    RECORD_SIZE_MAX_BYTES,
)
from wal_core.message import Encoding

_LENGTH = struct.Struct("<I")
_JSON_LINE_MAX_BYTES = 6 * RECORD_SIZE_MAX_BYTES + 64 * KIB
"""A body of the largest size in the longest JSON spelling, ``\\u0000`` for a byte."""


class Batch(NamedTuple):
    """Rows ready to be sent."""

    encoding: int
    body: bytes | memoryview
    rows: int


class Keyed(NamedTuple):
    """Rows that may have keys of their own: the sender must send each to its shard."""

    records: list[Record]


class Framing:
    """The interface, and what ``line`` does."""

    unit = "line"
    """What a person counts to find a record."""
    max_bytes = RECORD_SIZE_MAX_BYTES + 1
    """The largest record with all that frames it."""

    def __init__(self) -> None:
        self.number = 0
        """Records taken so far."""

    def whole(self, data: bytearray, start: int, seen: int, size: int) -> int:
        """How many of the first ``size`` bytes hold whole records. The last time there were
        ``seen`` bytes, and ``start`` of these did. Raises RecordTooLargeError."""
        return data.rfind(b"\n", seen, size) + 1 or start

    def batches(self, data: bytes | bytearray, size: int) -> Sequence[Batch | Keyed]:
        """The rows of the first ``size`` bytes, which ``whole`` found; they may be views of
        ``data``. Raises BadInputError, RecordTooLargeError."""
        count = data.count(b"\n", 0, size)
        self.number += count
        return [Batch(Encoding.LINES, memoryview(data)[:size], count)]

    def last(self, data: bytes) -> Sequence[Batch | Keyed]:
        """The rows of what is left at the end of the input; ``data`` is not empty."""
        if len(data) >= self.max_bytes:
            raise self.too_large()
        return self.batches(data + b"\n", len(data) + 1)

    def too_large(self) -> WalError:
        """The error for a next record that is over the limit."""
        return self.at(RecordTooLargeError, f"a record of more than {RECORD_SIZE_MAX_BYTES} bytes")

    def at(self, kind: type[WalError], what: str, ahead: int = 1) -> WalError:
        """An error of the record ``ahead`` of those taken."""
        number = self.number + ahead
        error = kind(f"{self.unit} {number}: {what}")
        error.details[self.unit] = number
        return error


class Nul(Framing):
    unit = "record"

    def whole(self, data: bytearray, start: int, seen: int, size: int) -> int:
        return data.rfind(b"\0", seen, size) + 1 or start

    def batches(self, data: bytes | bytearray, size: int) -> Sequence[Batch | Keyed]:
        bodies = bytes(data[: size - 1]).split(b"\0")
        self.number += len(bodies)
        return pack(bodies)

    def last(self, data: bytes) -> Sequence[Batch | Keyed]:
        if len(data) >= self.max_bytes:
            raise self.too_large()
        return self.batches(data + b"\0", len(data) + 1)


class Len32(Framing):
    unit = "record"
    max_bytes = RECORD_SIZE_MAX_BYTES + _LENGTH.size

    def whole(self, data: bytearray, start: int, seen: int, size: int) -> int:
        at = start
        while size - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > RECORD_SIZE_MAX_BYTES:
                if at:
                    break  # What came before it is sent first.
                raise self.at(RecordTooLargeError, f"a record of {length} bytes")
            if at + _LENGTH.size + length > size:
                break
            at += _LENGTH.size + length
        return at

    def batches(self, data: bytes | bytearray, size: int) -> Sequence[Batch | Keyed]:
        stored = bytes(data[:size])
        bodies = []
        at = 0
        while at < len(stored):
            (length,) = _LENGTH.unpack_from(stored, at)
            at += _LENGTH.size
            bodies.append(stored[at : at + length])
            at += length
        self.number += len(bodies)
        return pack(bodies)

    def last(self, data: bytes) -> Sequence[Batch | Keyed]:
        if len(data) < _LENGTH.size:
            raise self.at(BadInputError, f"the input ends after {len(data)} of 4 length bytes")
        (length,) = _LENGTH.unpack_from(data)
        if length > RECORD_SIZE_MAX_BYTES:
            raise self.at(RecordTooLargeError, f"a record of {length} bytes")
        got = len(data) - _LENGTH.size
        raise self.at(BadInputError, f"the input ends after {got} of {length} bytes")


class Whole(Framing):
    unit = "record"

    def whole(self, data: bytearray, start: int, seen: int, size: int) -> int:
        return 0

    def batches(self, data: bytes | bytearray, size: int) -> Sequence[Batch | Keyed]:
        self.number += 1
        return pack([bytes(data[:size])])

    def last(self, data: bytes) -> Sequence[Batch | Keyed]:
        if len(data) >= self.max_bytes:
            raise self.too_large()
        return self.batches(data, len(data))


class _Row(msgspec.Struct):
    """The fields of a line that count; others are passed over."""

    body: str | None = None
    body_b64: str | None = None
    key: str | None = None
    key_b64: str | None = None
    headers: dict[str, Any] = {}


class NdJson(Framing):
    max_bytes = _JSON_LINE_MAX_BYTES

    def __init__(self) -> None:
        super().__init__()
        self._decode = msgspec.json.Decoder(_Row).decode

    def batches(self, data: bytes | bytearray, size: int) -> Sequence[Batch | Keyed]:
        lines = bytes(data[:size]).split(b"\n")
        lines.pop()
        records = [self._record(line, ahead) for ahead, line in enumerate(lines, 1)]
        self.number += len(records)
        if all(record.key is None and not record.headers for record in records):
            return pack([record.body for record in records])
        return [Keyed(records)]

    def _record(self, line: bytes, ahead: int) -> Record:
        try:
            row = self._decode(line)
            body = _bytes(row.body, row.body_b64)
            key = _bytes(row.key, row.key_b64)
            headers = unpack_headers(row.headers)
        except (msgspec.DecodeError, ValueError) as error:
            raise self.at(BadInputError, f"not a row ({error})", ahead) from None
        if body is None:
            raise self.at(BadInputError, "no field `body` or `body_b64`", ahead)
        try:
            codec.check_record_size(len(body))
            if key is not None:
                codec.check_key(key)
        except RecordTooLargeError as error:
            raise self.at(RecordTooLargeError, error.message, ahead) from None
        record = Record(body, key, headers)
        if stored_size(record) > BATCH_BODY_MAX_BYTES:
            raise self.at(RecordTooLargeError, "body and headers fill more than a batch", ahead)
        return record


FRAMINGS: dict[str, type[Framing]] = {
    "line": Framing,
    "nul": Nul,
    "len32": Len32,
    "whole": Whole,
    "ndjson": NdJson,
}


def framing(name: str) -> Framing:
    """A new framing by its name. Raises UsageError."""
    try:
        return FRAMINGS[name]()
    except KeyError:
        known = ", ".join(FRAMINGS)
        raise UsageError(f"--framing {name!r} is none of {known}") from None


def pack(bodies: list[bytes]) -> list[Batch]:
    """Batches of bodies without keys. Lengths may take them over the limit of one batch."""
    encoding, body = codec.encode_bodies(bodies)
    if len(body) <= BATCH_BODY_MAX_BYTES:
        return [Batch(encoding, body, len(bodies))]
    middle = len(bodies) // 2
    return pack(bodies[:middle]) + pack(bodies[middle:])


def stored_size(record: Record) -> int:
    """Bytes that a record takes in a batch with keys and headers, at most."""
    headers = sum(len(name) + len(value) + 6 for name, value in record.headers)
    return len(record.body) + len(record.key or b"") + headers + 12


def cut(records: Sequence[Record]) -> list[list[Record]]:
    """Runs of records, none over the size of a batch unless it is a single record."""
    runs: list[list[Record]] = [[]]
    size = 0
    for record in records:
        own = stored_size(record)
        if size + own > BATCH_TARGET_BYTES and runs[-1]:
            runs.append([])
            size = 0
        runs[-1].append(record)
        size += own
    return runs


def pack_headers(headers: type_headers) -> dict[str, Any]:
    """Headers as JSON shows them: a value is a string, ``{"b64": …}`` where it is not UTF-8; a
    name that comes several times has a list of values."""
    shown: dict[str, Any] = {}
    for raw_name, raw in headers:
        name = raw_name.decode("utf-8", "replace")
        try:
            value: Any = raw.decode()
        except UnicodeDecodeError:
            value = {"b64": base64.b64encode(raw).decode()}
        if name not in shown:
            shown[name] = value
        elif isinstance(shown[name], list):
            shown[name].append(value)
        else:
            shown[name] = [shown[name], value]
    return shown


def unpack_headers(shown: dict[str, Any]) -> type_headers:
    """The inverse of ``pack_headers``. Raises ValueError."""
    return tuple(
        (name.encode(), _header_value(value))
        for name, values in shown.items()
        for value in (values if isinstance(values, list) else [values])
    )


def _header_value(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and isinstance(value.get("b64"), str):
        return _base64(value["b64"])
    raise ValueError("a header is neither a string nor an object with `b64`")


def _bytes(text: str | None, encoded: str | None) -> bytes | None:
    if encoded is not None:
        return _base64(encoded)
    return None if text is None else text.encode()


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"base64: {error}") from None
