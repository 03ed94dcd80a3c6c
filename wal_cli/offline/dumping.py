"""What `wal dump` prints: a log segment as maps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from wal_core.errors import CorruptError, NotFoundError
from wal_core.message import (
    NO_OFFSET,
    Compression,
    Encoding,
    Header,
    MessageType,
)
from wal_core.tso import ms_of, rfc3339
from wal_storage.log.chain import opening_state
from wal_storage.log.format import (
    HEADER_SIZE_BYTES,
    TRAILER_SIZE_BYTES,
    SegmentHeader,
    SegmentId,
    footer_size,
    unpack_footer,
    unpack_segment_header,
)
from wal_storage.log.repair import judge_tail
from wal_storage.log.scan import ScanEnd, scan
from wal_storage.state import ChannelState


def dump(path: str) -> Iterator[dict[str, Any]]:
    """A log segment, piece by piece: maps with ``kind`` header, snapshot, batch, footer, end.

    Raises NotFoundError, CorruptError (no segment at all), FormatError."""
    try:
        with open(path, "rb") as file:
            data = bytearray(file.read())
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}", hint="ls DIR/pchannels/*/*.seg") from None
    header = unpack_segment_header(data, os.path.basename(path))
    yield _header_map(header)
    pieces: list[dict[str, Any]] = []

    def visit(batch: Header, whole: memoryview) -> None:
        if batch.type == MessageType.SNAPSHOT:
            body = whole[len(whole) - batch.body_length :]
            pieces.append(_snapshot_map(opening_state(body, header.id), batch))
        else:
            pieces.append(_batch_map(batch))

    view = memoryview(data)
    running = header.predecessor.running
    end = scan(view, HEADER_SIZE_BYTES, header.id, header.id.first_sequence, running, visit)
    yield from pieces
    footer = unpack_footer(view)
    if footer is not None:
        yield {
            "kind": "footer",
            "valid_length": footer.valid_length,
            "next_sequence": footer.next_sequence,
            "running": f"{footer.running:08x}",
            "index_entries": len(footer.entries),
        }
    yield _end_map(view, header.id, end)


def _header_map(header: SegmentHeader) -> dict[str, Any]:
    before = header.predecessor
    return {
        "kind": "header",
        "segment": header.id.file_name,
        "pchannel": header.pchannel,
        "term": header.id.term,
        "first_sequence": header.id.first_sequence,
        "created": rfc3339(header.created_ms),
        "log_start": header.log_start.file_name,
        "predecessor": before.id.file_name if before.id.term else None,
        "predecessor_length": before.valid_length,
        "predecessor_running": f"{before.running:08x}",
    }


def _snapshot_map(state: ChannelState, batch: Header) -> dict[str, Any]:
    vchannels: Sequence[dict[str, Any]] = [
        {
            "vchannel": str(one.id),
            "collection": one.collection,
            "shard": one.shard,
            "shards": one.shards,
            "first": one.first_offset,
            "next": one.next_offset,
            "created_tso": str(one.created_tso),
            "last_tso": str(one.last_tso),
            "dropped_tso": str(one.dropped_tso) if one.dropped_tso else None,
            "producers": len(one.producers_by_id),
            "open_transactions": [f"{txn_id:016x}" for txn_id in one.txns],
            "partitions": sorted(one.partitions.values()),
        }
        for one in state.vchannels.values()
    ]
    return {
        "kind": "snapshot",
        "position": batch.position,
        "sequence": batch.sequence,
        "tso": str(state.tso),
        "vchannels": vchannels,
    }


def _batch_map(header: Header) -> dict[str, Any]:
    has_rows = header.first_offset != NO_OFFSET
    return {
        "kind": "batch",
        "position": header.position,
        "type": _name(MessageType, header.type),
        "sequence": header.sequence,
        "tso": str(header.tso),
        "time": rfc3339(ms_of(header.tso)),
        "vchannel": str(header.vchannel),
        "first": header.first_offset if has_rows else None,
        "last": header.first_offset + header.rows - 1 if has_rows else None,
        "rows": header.rows,
        "encoding": _name(Encoding, header.encoding),
        "compression": _name(Compression, header.compression),
        "body_bytes": header.body_length,
        "properties_bytes": header.properties_length,
        "producer": str(header.producer_id),
        "producer_epoch": header.producer_epoch,
        "producer_sequence": header.producer_sequence,
        "partition": header.partition,
        "txn": f"{header.txn_id:016x}" if header.txn_id else None,
        "synced_upto": header.synced_upto,
        "last_confirmed": header.last_confirmed,
    }


def _end_map(view: memoryview, id: SegmentId, end: ScanEnd) -> dict[str, Any]:
    rest = len(view) - end.valid_length
    found = {"kind": "end", "valid_length": end.valid_length, "rest_bytes": rest, "problem": ""}
    try:
        tail = judge_tail(view, id, end)
    except CorruptError:
        return {**found, "what": "damaged", "problem": end.problem or "the batches end too early"}
    if tail.sealed:
        return {**found, "what": "sealed"}
    if tail.torn:
        text = end.problem if not footer_size(bytes(view[-TRAILER_SIZE_BYTES:])) else "torn footer"
        return {**found, "what": "torn", "problem": text}
    return {**found, "what": "zeros" if rest else "end of file"}


def _name(kind: type[MessageType] | type[Encoding] | type[Compression], value: int) -> str:
    try:
        return kind(value).name.lower()
    except ValueError:
        return str(value)
