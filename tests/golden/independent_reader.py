"""A reader of the log that was written from docs/format.md alone.

It shares nothing with the project: no import, no constant. Where it reads other rows than the
project does, one of the two disagrees with the documentation.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

SEGMENT_HEADER = 256
BATCH_HEADER = 128
NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.seg")
INSERT, CREATE, DROP, TRUNCATE, ADD_PARTITION, DROP_PARTITION, ALTER = 1, 16, 17, 18, 19, 20, 21
BEGIN, COMMIT, ROLLBACK, SNAPSHOT = 32, 33, 34, 67

Id = tuple[int, int]


class Row(NamedTuple):
    offset: int
    tso: int
    key: bytes | None
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Shard:
    """What the log tells of a VChannel."""

    collection: str
    shards: int
    rows: list[Row] = field(default_factory=list)
    """From offset 0 on; those below ``first`` are not to be shown any more."""
    first: int = 0
    dropped: bool = False
    partitions: dict[int, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    changes: int = 0
    open: dict[int, int] = field(default_factory=dict)
    """Transaction → sequence of its BeginTxn."""
    ended: dict[int, int] = field(default_factory=dict)
    """Transaction → 0 committed, 1 rolled back, 2 expired, 3 broken by a change."""


class Batch(NamedTuple):
    kind: int
    encoding: int
    compression: int
    count: int
    vchannel: int
    txn: int
    sequence: int
    tso: int
    first_offset: int
    last_confirmed: int
    checksum: bytes
    properties: bytes
    body: bytes
    end: int


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


def read_log(folder: Path) -> dict[int, Shard]:
    """VChannel → what the log of the PChannel in ``folder`` tells of it."""
    matches = map(NAME.fullmatch, os.listdir(folder))
    ids = {(int(match[1], 16), int(match[2], 16)) for match in matches if match}
    log = _Log()
    last = None
    for id, length, running in _chain(folder, ids):
        if last not in (None, running):
            raise BadLog(f"{id}: another running checksum than its predecessor's")
        data = (folder / f"{id[0]:016x}-{id[1]:016x}.seg").read_bytes()
        log.segments[id] = data if length is None else data[:length]
        end, last = log.read_segment(id, running)
        if length is not None and end != length:
            raise BadLog(f"{id}: ends at {end}, {length} bytes are valid")
    return log.shards


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


def _batch_at(data: bytes, at: int, id: Id) -> Batch | None:
    """The valid batch at a position of a segment; its sequence is not judged."""
    if at + BATCH_HEADER > len(data):
        return None
    magic, version, kind, encoding, compression, _, properties_size, count = struct.unpack_from(
        "<4s4BHHI", data, at
    )
    vchannel, body_size, body_crc = struct.unpack_from("<QII", data, at + 16)
    (txn,) = struct.unpack_from("<Q", data, at + 56)
    _, sequence, tso, first_offset, _, last_confirmed = struct.unpack_from("<QQQqQQ", data, at + 72)
    position, header_crc = struct.unpack_from("<II", data, at + 120)
    body_at = at + BATCH_HEADER + properties_size
    end = body_at + body_size
    if magic != b"WALB" or version != 1 or end > len(data) or position != at:
        return None
    properties, body = data[at + BATCH_HEADER : body_at], data[body_at:end]
    seed = crc32c(struct.pack("<QQ", *id))
    if header_crc != crc32c(properties, crc32c(data[at : at + 124], seed)):
        return None
    if crc32c(body) != body_crc:
        return None
    checksum = data[at + 124 : at + 128]
    numbers = (kind, encoding, compression, count, vchannel, txn, sequence, tso, first_offset)
    return Batch(*numbers, last_confirmed, checksum, properties, body, end)


class _Log:
    """What was read so far."""

    def __init__(self) -> None:
        self.segments: dict[Id, bytes] = {}
        """Their bytes up to the valid length, as far as it is known."""
        self.shards: dict[int, Shard] = {}

    def read_segment(self, id: Id, running: int) -> tuple[int, int]:
        """Read up to the end or the first bad batch: (position there, running checksum)."""
        data = self.segments[id]
        at, sequence = SEGMENT_HEADER, id[1]
        while True:
            batch = _batch_at(data, at, id)
            if batch is None or batch.sequence != sequence:
                return at, running
            if (batch.kind == SNAPSHOT) != (sequence == id[1]):
                raise BadLog(f"{id}: one snapshot opens a segment")
            self._apply(batch)
            running = crc32c(batch.checksum, running)
            at, sequence = batch.end, sequence + 1

    def _apply(self, batch: Batch) -> None:
        begins = [begin for shard in self.shards.values() for begin in shard.open.values()]
        if not min([batch.sequence, *begins]) - 1 <= batch.last_confirmed < batch.sequence:
            raise BadLog(f"batch {batch.sequence}: last confirmed {batch.last_confirmed}")
        if batch.kind == SNAPSHOT:
            self._check_snapshot(msgpack(batch.body, 0)[0])
        elif batch.kind == CREATE:
            if batch.vchannel in self.shards:
                raise BadLog(f"VChannel {batch.vchannel} is created twice")
            self.shards[batch.vchannel] = Shard(*msgpack(batch.body, 0)[0])
        elif batch.vchannel:
            self._apply_to(self.shards[batch.vchannel], batch)

    def _apply_to(self, shard: Shard, batch: Batch) -> None:
        if shard.dropped:
            raise BadLog(f"batch {batch.sequence} stands behind the drop of its collection")
        if batch.kind == INSERT and batch.txn:
            if batch.txn not in shard.open or batch.first_offset != -1:
                raise BadLog(f"batch {batch.sequence}: rows of no open transaction")
        elif batch.kind == INSERT:
            _add(shard, batch.first_offset, batch.tso, [batch])
        elif batch.kind == BEGIN:
            shard.open[batch.txn] = batch.sequence
        elif batch.kind == COMMIT:
            del shard.open[batch.txn]
            shard.ended[batch.txn] = 0
            before = len(shard.rows)
            _add(shard, batch.first_offset, batch.tso, self._rows_of(batch))
            if len(shard.rows) != before + batch.count:
                raise BadLog(f"a commit of {batch.count} rows names {len(shard.rows) - before}")
        elif batch.kind == ROLLBACK:
            del shard.open[batch.txn]
            (shard.ended[batch.txn],) = msgpack(batch.body, 0)[0]
        elif batch.kind in (DROP, TRUNCATE, ADD_PARTITION, DROP_PARTITION, ALTER):
            _change(shard, batch)

    def _rows_of(self, commit: Batch) -> list[Batch]:
        """The Inserts that a CommitTxn makes visible, in order."""
        found = []
        ((*extents,),) = msgpack(commit.body, 0)[0]
        for term, first_sequence, start, end in extents:
            id = (term, first_sequence)
            at = start
            while at < end:
                batch = _batch_at(self.segments[id], at, id)
                if batch is None or batch.end > end:
                    raise BadLog(f"{id}: offset {at}: no batch where a commit says so")
                if (batch.kind, batch.vchannel, batch.txn) == (INSERT, commit.vchannel, commit.txn):
                    found.append(batch)
                at = batch.end
        return found

    def _check_snapshot(self, value: Any) -> None:
        if value["v"] not in (1, 2):
            raise BadLog(f"a snapshot of version {value['v']}")
        for entry in value["vchannels"]:
            shard = self.shards[entry[0]]
            said = [*entry[1:3], entry[4], entry[6] > 0, entry[7]]
            read = [shard.collection, shard.shards, len(shard.rows), shard.dropped, shard.first]
            if value["v"] == 2:
                _, txns, finished, partitions, _, settings, changes, _ = entry[8:16]
                said += [{id: txn[2] for id, txn in txns.items()}, partitions, settings, changes]
                read += [shard.open, shard.partitions, shard.settings, shard.changes]
                # Those that ended long ago are forgotten.
                said.append({id: how[0] for id, how in finished.items()})
                read.append({id: shard.ended.get(id) for id in finished})
            if said != read:
                raise BadLog(f"a snapshot that disagrees with the log: {said}, {read}")


def _add(shard: Shard, first_offset: int, tso: int, batches: list[Batch]) -> None:
    """Rows become visible."""
    if first_offset != len(shard.rows):
        raise BadLog(f"offset {first_offset} is not the next one")
    for batch in batches:
        plain = _decompress(batch.compression, batch.body)
        for one in _rows(batch.encoding, plain, batch.count, batch.properties):
            shard.rows.append(Row(len(shard.rows), tso, *one))


def _change(shard: Shard, batch: Batch) -> None:
    for txn in shard.open:
        shard.ended[txn] = 3
    shard.open = {}
    if batch.kind == DROP:
        shard.dropped = True
        return
    shard.changes, partition, name, settings = msgpack(batch.body, 0)[0]
    if batch.kind == TRUNCATE:
        shard.first = len(shard.rows)
    elif batch.kind == ADD_PARTITION:
        shard.partitions[partition] = name
    elif batch.kind == DROP_PARTITION:
        del shard.partitions[partition]
    else:
        merged = {**shard.settings, **settings}
        shard.settings = {key: value for key, value in merged.items() if value}


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
    if 0xC4 <= kind <= 0xC6:
        width = 1 << kind - 0xC4
        size = int.from_bytes(data[at : at + width], "big")
        at += width
        return data[at : at + size], at + size
    if 0xCC <= kind <= 0xD3:
        size = 1 << (kind & 3)
        return int.from_bytes(data[at : at + size], "big", signed=kind >= 0xD0), at + size
    if kind >= 0xE0:
        return kind - 256, at
    raise BadLog(f"msgpack {kind:#x}")


def _size(data: bytes, at: int, kind: int, wide: int) -> tuple[int, int]:
    if kind < 0xA0:
        return kind & 0x0F, at
    size = 2 if kind == wide else 4
    return int.from_bytes(data[at : at + size], "big"), at + size
