"""How rows look on the way out: one function a format, from a batch to bytes.

``ndjson``: an object a line, ``{"collection","shard","offset","tso","time","key","headers",
"body"}``. A body that is not UTF-8 is in ``body_b64`` instead, a key in ``key_b64``. ``headers`` is
an object, name to value: a string, or ``{"b64": …}`` where it is not UTF-8, or a list of these for
a name that comes several times. Absent fields are left out; ``tso`` is a string.

``text``: ``OFFSET  TIME  KEY  BODY`` with control characters escaped and ``-`` for no key.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from wal_cli.framing import pack_headers
from wal_client.ranges import RowBatch
from wal_core.errors import UsageError
from wal_core.tso import ms_of, rfc3339

Format = Callable[[RowBatch], bytes | memoryview]
_LENGTH = struct.Struct("<I")
# Control characters, and those that turn the direction of writing or end a line elsewhere.
_UNSAFE = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F)]
_UNSAFE += [*range(0x2066, 0x206A)]
_ESCAPES = {code: chr(code).encode("unicode_escape").decode("ascii") for code in _UNSAFE}


class _Row(msgspec.Struct, omit_defaults=True):
    collection: str
    shard: int
    offset: int
    tso: str
    time: str
    key: str | None = None
    key_b64: str | None = None
    headers: dict[str, Any] | None = None
    body: str | None = None
    body_b64: str | None = None


def raw(framing: str) -> Format:
    """Bodies alone, with what the framing puts around them. Raises UsageError."""
    if framing == "line":
        return _raw_lines
    if framing == "nul":
        return lambda batch: b"".join([body + b"\0" for body in batch.bodies()])
    if framing == "len32":
        return lambda batch: b"".join([_LENGTH.pack(len(body)) + body for body in batch.bodies()])
    if framing == "whole":
        return lambda batch: b"".join(batch.bodies())
    raise UsageError(f"--framing {framing!r} is none of line, nul, len32, whole")


def ndjson(batch: RowBatch) -> bytes:
    """An object a row, each on a line."""
    encode = msgspec.json.encode
    tso = str(batch.tso)
    time = rfc3339(ms_of(batch.tso))
    lines = []
    for offset, record in enumerate(batch.records(), batch.first):
        row = _Row(batch.collection, batch.shard, offset, tso, time)
        row.body, row.body_b64 = _text_or_base64(record.body)
        if record.key is not None:
            row.key, row.key_b64 = _text_or_base64(record.key)
        if record.headers:
            row.headers = pack_headers(record.headers)
        lines.append(encode(row))
    lines.append(b"")
    return b"\n".join(lines)


def text(*, with_collection: bool, with_shard: bool) -> Format:
    """Columns for a person; the name of the collection and the shard where there are several."""

    def format(batch: RowBatch) -> bytes:
        time = rfc3339(ms_of(batch.tso))
        start = f"{batch.collection}  " if with_collection else ""
        start += f"{batch.shard}:" if with_shard else ""
        lines = []
        for offset, record in enumerate(batch.records(), batch.first):
            key = "-" if record.key is None else _escaped(record.key)
            lines.append(f"{start}{offset}  {time}  {key}  {_escaped(record.body)}\n")
        return "".join(lines).encode("utf-8", "replace")

    return format


def _raw_lines(batch: RowBatch) -> bytes | memoryview:
    lines = batch.lines
    if lines is not None:
        return lines
    return b"".join([body + b"\n" for body in batch.bodies()])


def _text_or_base64(data: bytes) -> tuple[str | None, str | None]:
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(data).decode()


def _escaped(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").translate(_ESCAPES)
