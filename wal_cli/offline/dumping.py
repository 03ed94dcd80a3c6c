"""What `wal dump` prints: a log segment as maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from wal_core.errors import CorruptError, NotFoundError
from wal_core.message import (
    NO_OFFSET,
    Compression,
    Encoding,
    Header,
    MessageType,
)
from wal_core.names import split_vchannel_id
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
from wal_storage.state import CHANGES, ChannelState, decode_change, decode_create
from wal_storage.transactions import End, decode_begin, decode_commit, decode_rollback


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
    collections: dict[int, str] = {}

    def visit(batch: Header, whole: memoryview) -> None:
        body = whole[len(whole) - batch.body_length :]
        if batch.type == MessageType.SNAPSHOT:
            state = opening_state(body, header.id)
            collections.update((one.id, one.collection) for one in state.vchannels.values())
            pieces.append(_snapshot_map(state, batch))
            return
        details = _details(batch.type, body)
        if batch.type == MessageType.CREATE_COLLECTION:
            collections[batch.vchannel] = details.get("collection", "")
        pieces.append(_batch_map(batch, collections.get(batch.vchannel), details))

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
            "settings": one.settings,
            "changes": one.ddl,
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


def _batch_map(header: Header, collection: str | None, details: dict[str, Any]) -> dict[str, Any]:
    has_rows = header.first_offset != NO_OFFSET and header.rows > 0
    return {
        "kind": "batch",
        "position": header.position,
        "type": _name(MessageType, header.type),
        "sequence": header.sequence,
        "tso": str(header.tso),
        "time": rfc3339(ms_of(header.tso)),
        "vchannel": str(header.vchannel),
        "collection": collection,
        "shard": split_vchannel_id(header.vchannel)[1] if header.vchannel else None,
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
        "details": details,
    }


def _details(kind: int, body: memoryview) -> dict[str, Any]:
    """What the body of a message of the service says; empty for rows."""
    decode = _DETAILS.get(kind)
    if decode is None:
        return {}
    try:
        return decode(body)
    except (CorruptError, ValueError) as error:
        return {"unreadable": str(error)}


def _create_details(body: memoryview) -> dict[str, Any]:
    what = decode_create(body)
    return {"collection": what.collection, "shards": what.shards}


def _change_details(body: memoryview) -> dict[str, Any]:
    """``partition``: an id; a setting that was taken away is null."""
    what = decode_change(body)
    details: dict[str, Any] = {"change": what.number}
    if what.partition:
        details["partition"] = what.partition
    if what.name:
        details["name"] = what.name
    if what.settings:
        details["settings"] = {key: value or None for key, value in what.settings.items()}
    return details


def _begin_details(body: memoryview) -> dict[str, Any]:
    return {"keepalive_seconds": decode_begin(body).keepalive_ms / 1000}


def _commit_details(body: memoryview) -> dict[str, Any]:
    """Where the rows lie: ranges of segments, maybe with others' messages in between."""
    return {
        "extents": [
            {
                "segment": SegmentId(one.term, one.first_sequence).file_name,
                "start": one.start,
                "end": one.end,
            }
            for one in decode_commit(body).extents
        ]
    }


def _rollback_details(body: memoryview) -> dict[str, Any]:
    return {"end": End(decode_rollback(body).end).name.lower()}


_DETAILS: dict[int, Callable[[memoryview], dict[str, Any]]] = {
    MessageType.CREATE_COLLECTION: _create_details,
    **dict.fromkeys(CHANGES, _change_details),
    MessageType.BEGIN_TXN: _begin_details,
    MessageType.COMMIT_TXN: _commit_details,
    MessageType.ROLLBACK_TXN: _rollback_details,
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
