"""A reader of the log that was written from docs/format.md alone.

It shares nothing with the project: no import, no constant. Where it reads other rows than the
project does, one of the two disagrees with the documentation.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

SEGMENT_HEADER = 256
BATCH_HEADER = 128
NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.seg")

Id = tuple[int, int]


class Row(NamedTuple):
    offset: int
    tso: int
    key: bytes | None
    headers: list[tuple[bytes, bytes]]
    body: bytes


class BadLog(Exception):
    """The log breaks a rule of the format."""


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def crc32c(data: bytes, start: int = 0) -> int:
    """Of ``data``, or of what ``start`` is the checksum of and ``data`` behind it."""
    crc = start ^ 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def read_log(folder: Path) -> tuple[dict[int, str], dict[int, list[Row]]]:
    """(collection names, rows) of each VChannel of the PChannel in ``folder``."""
    matches = map(NAME.fullmatch, os.listdir(folder))
    ids = {(int(match[1], 16), int(match[2], 16)) for match in matches if match}
    names: dict[int, str] = {}
    rows: dict[int, list[Row]] = {}
    last = None
    for id, length, running in _chain(folder, ids):
        if last not in (None, running):
            raise BadLog(f"{id}: another running checksum than its predecessor's")
        data = (folder / f"{id[0]:016x}-{id[1]:016x}.seg").read_bytes()
        end, last = _segment(data, id, length, running, names, rows)
        if length is not None and end != length:
            raise BadLog(f"{id}: ends at {end}, {length} bytes are valid")
    return names, rows


def _chain(folder: Path, ids: set[Id]) -> list[tuple[Id, int | None, int]]:
    """(identity, valid length or None, running checksum before it), oldest first."""
    found: list[tuple[Id, int | None, int]] = []
    at, length, start = max(ids), None, None
    while at != (0, 0):
        with open(folder / f"{at[0]:016x}-{at[1]:016x}.seg", "rb") as file:
            head = file.read(SEGMENT_HEADER)
        magic, version = struct.unpack_from("<8sI", head)
        if magic != b"WALSEG\r\n" or struct.unpack_from("<I", head, 252)[0] != crc32c(head[:252]):
            raise BadLog(f"{at}: bad segment header")
        if version != 1:
            raise BadLog(f"{at}: version {version}")
        if struct.unpack_from("<QQ", head, 16) != at:
            raise BadLog(f"{at}: the header of another segment")
        before = struct.unpack_from("<QQ", head, 32)
        before_length, before_running = struct.unpack_from("<QI", head, 48)
        start = start or struct.unpack_from("<QQ", head, 64)
        found.append((at, length, before_running))
        if at == start:
            break
        at, length = before, before_length
    return found[::-1]


def _segment(
    data: bytes,
    id: Id,
    length: int | None,
    running: int,
    names: dict[int, str],
    rows: dict[int, list[Row]],
) -> tuple[int, int]:
    """Read batches up to the valid length or the first bad one: (end, running checksum)."""
    data = data if length is None else data[:length]
    seed = crc32c(struct.pack("<QQ", *id))
    at, sequence = SEGMENT_HEADER, id[1]
    while at + BATCH_HEADER <= len(data):
        magic, version, kind, encoding, compression, _, properties_size, count = struct.unpack_from(
            "<4s4BHHI", data, at
        )
        vchannel, body_size, body_crc = struct.unpack_from("<QII", data, at + 16)
        _, own_sequence, tso, first_offset = struct.unpack_from("<QQQq", data, at + 72)
        position, header_crc = struct.unpack_from("<II", data, at + 120)
        body_at = at + BATCH_HEADER + properties_size
        end = body_at + body_size
        if magic != b"WALB" or version != 1 or end > len(data):
            break
        properties, body = data[at + BATCH_HEADER : body_at], data[body_at:end]
        if header_crc != crc32c(properties, crc32c(data[at : at + 124], seed)):
            break
        if position != at or own_sequence != sequence or crc32c(body) != body_crc:
            break
        if sequence == id[1] and kind != 67:
            raise BadLog(f"{id}: does not open with a snapshot")
        if kind == 1:
            plain = _decompress(compression, body)
            some = _rows(encoding, plain, count, properties)
            known = rows.setdefault(vchannel, [])
            if first_offset != (known[-1].offset + 1 if known else 0):
                raise BadLog(f"offset {first_offset} is not the next one")
            known += [Row(first_offset + number, tso, *one) for number, one in enumerate(some)]
        elif kind == 16:
            names[vchannel] = msgpack(body, 0)[0][0]
        elif kind == 67:
            _check_snapshot(msgpack(body, 0)[0], names, rows)
        running = crc32c(data[at + 124 : at + 128], running)
        at, sequence = end, sequence + 1
    return at, running


def _check_snapshot(value: Any, names: dict[int, str], rows: dict[int, list[Row]]) -> None:
    for entry in value["vchannels"]:
        if entry[1] != names[entry[0]] or entry[4] != len(rows.get(entry[0], [])):
            raise BadLog(f"a snapshot that disagrees with the log: {entry}")


def _decompress(compression: int, body: bytes) -> bytes:
    if compression == 0:
        return body
    import zstandard

    return zstandard.ZstdDecompressor().decompress(body)


def _rows(
    encoding: int, body: bytes, count: int, properties: bytes
) -> list[tuple[bytes | None, list[tuple[bytes, bytes]], bytes]]:
    shared_key, shared_headers = None, []
    at = 0
    while at < len(properties):
        tag, size = struct.unpack_from("<BH", properties, at)
        value = properties[at + 3 : at + 3 + size]
        at += 3 + size
        if tag == 1:
            shared_key = value
        elif tag == 2:
            shared_headers = _headers(value)
    if encoding == 1:
        return [(shared_key, shared_headers, one) for one in body.split(b"\n")[:-1]]
    columns = 3 if encoding == 3 else 1
    lengths = struct.unpack_from(f"<{columns * count}I", body)
    at = 4 * columns * count
    parts = []
    for length in lengths:
        size = 0 if columns == 3 and length == 0xFFFFFFFF else length
        parts.append(body[at : at + size])
        at += size
    if at != len(body):
        raise BadLog("the lengths of a body do not add up")
    if encoding == 2:
        return [(shared_key, shared_headers, one) for one in parts]
    return [
        (
            shared_key if lengths[row] == 0xFFFFFFFF else parts[row],
            shared_headers + _headers(parts[count + row]),
            parts[2 * count + row],
        )
        for row in range(count)
    ]


def _headers(packed: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    at = 0
    while at < len(packed):
        (size,) = struct.unpack_from("<H", packed, at)
        name = packed[at + 2 : at + 2 + size]
        at += 2 + size
        (size,) = struct.unpack_from("<I", packed, at)
        found.append((name, packed[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


def msgpack(data: bytes, at: int) -> tuple[Any, int]:
    """One value and the position behind it: the few kinds that a snapshot has."""
    kind = data[at]
    at += 1
    if kind < 0x80:
        return kind, at
    if kind < 0x90 or kind in (0xDE, 0xDF):
        size, at = _size(data, at, kind, 0xDE)
        found = {}
        for _ in range(size):
            key, at = msgpack(data, at)
            found[key], at = msgpack(data, at)
        return found, at
    if kind < 0xA0 or kind in (0xDC, 0xDD):
        size, at = _size(data, at, kind, 0xDC)
        items = []
        for _ in range(size):
            item, at = msgpack(data, at)
            items.append(item)
        return items, at
    if kind < 0xC0 or kind == 0xD9:
        size, at = (kind & 0x1F, at) if kind < 0xC0 else (data[at], at + 1)
        return data[at : at + size].decode(), at + size
    if 0xCC <= kind <= 0xCF:
        size = 1 << kind - 0xCC
        return int.from_bytes(data[at : at + size], "big"), at + size
    raise BadLog(f"msgpack {kind:#x}")


def _size(data: bytes, at: int, kind: int, wide: int) -> tuple[int, int]:
    if kind < 0xA0:
        return kind & 0x0F, at
    size = 2 if kind == wide else 4
    return int.from_bytes(data[at : at + size], "big"), at + size
