"""Control operations: CALL frames, one function an operation. Arguments and results are maps."""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from wal_core.errors import CorruptError, UsageError
from wal_core.tso import ms_of, rfc3339
from wal_core.version import VERSION
from wal_daemon import cursor_operations
from wal_storage.catalog.collections import Collection

if TYPE_CHECKING:
    from wal_daemon.node import Node
    from wal_daemon.server import Connection

Operation = Callable[["Node", dict[str, Any]], Awaitable[Any]]


async def status(node: Node, _: dict[str, Any]) -> dict[str, Any]:
    """What ``wal status -o json`` prints."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "node": node.name,
        "state": node.state,
        "pid": node.pid,
        "version": VERSION,
        "dir": node.directory_name,
        "socket": node.socket_path,
        "started": rfc3339(node.started_ms),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "memory_bytes": usage.ru_maxrss * 1024,
        "connections": len(node.server.connections),
        "subscriptions": sum(one.subscriptions for one in node.server.connections),
        "collections": len(node.collections.by_name) if node.ready else 0,
        "pchannels": [_pchannel(node, number) for number in range(len(node.pchannels))],
    }


def _pchannel(node: Node, number: int) -> dict[str, Any]:
    pchannel = node.pchannels[number]
    wal = node.wals[number]
    return {
        "pchannel": number,
        "term": wal.term,
        "state": pchannel.closed.code if pchannel.closed is not None else "assigned",
        "reason": pchannel.closed.message if pchannel.closed is not None else "",
        "segments": len(wal.segments),
        "tip": wal.tip_id.file_name,
        "confirmed_position": wal.confirmed[1],
        "next_sequence": pchannel.next_sequence,
        "last_tso": str(pchannel.last_tso),
        "clock_jumped": pchannel.clock_jumped,
        "cuts": [cut._asdict() for cut in pchannel.cuts],
        "void_segments": [id.file_name for id in wal.void],
        "buffer_bytes": pchannel.buffer.size,
    }


async def metrics(node: Node, _: dict[str, Any]) -> str:
    """The Prometheus text format."""
    from wal_daemon.metrics import render

    try:
        found = await node.cursors.all()
    except CorruptError:  # `wal cursor ls` says which; the other metrics are fine.
        found = []
    return render(node, [node.cursors.entry(one) for one in found])


async def list_collections(node: Node, _: dict[str, Any]) -> list[dict[str, Any]]:
    found = sorted(node.collections.by_name.values(), key=lambda one: one.name)
    return [_describe(node, one) for one in found]


async def describe(node: Node, arguments: dict[str, Any]) -> dict[str, Any]:
    return _describe(node, node.collections.get(str(arguments["name"])))


async def create(node: Node, arguments: dict[str, Any]) -> dict[str, Any]:
    created = await node.collections.create(
        str(arguments["name"]), int(arguments.get("shards", 1)), exist_ok=False
    )
    return _describe(node, created)


async def drop(node: Node, arguments: dict[str, Any]) -> dict[str, Any]:
    described = _describe(node, node.collections.get(str(arguments["name"])))
    await node.cursors.forget(await node.collections.drop(described["collection"]))
    return described


async def bounds(node: Node, _: dict[str, Any]) -> list[dict[str, Any]]:
    """How far each PChannel is confirmed: what an offline check of a live log may read."""
    return [
        {"pchannel": number, "tip": wal.tip_id.file_name, "position": wal.confirmed[1]}
        for number, wal in enumerate(node.wals)
    ]


OPERATIONS: dict[str, Operation] = {
    "status": status,
    "metrics": metrics,
    "list": list_collections,
    "describe": describe,
    "create": create,
    "drop": drop,
    "bounds": bounds,
    **cursor_operations.OPERATIONS,
}
WHILE_RECOVERING = frozenset(("status",))


def operation(name: str, connection: Connection) -> Operation:
    """Raises UsageError for an unknown one. ``connection``: whose request it is."""
    found = OPERATIONS.get(name)
    if found is None and name in cursor_operations.MEMBERSHIP:
        bound = cursor_operations.MEMBERSHIP[name]
        return lambda node, arguments: bound(node, connection, arguments)
    if found is None:
        raise UsageError(f"no operation {name!r}")
    return found


def _describe(node: Node, collection: Collection) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    for number, shard in enumerate(collection.shards):
        pchannel = node.pchannels[shard.pchannel]
        state = pchannel.vchannels[shard.vchannel]
        shards.append(
            {
                "shard": number,
                "vchannel": shard.name,
                "id": str(shard.vchannel),
                "first": state.first_offset,
                "next": pchannel.next_offsets.get(shard.vchannel, 0),
                "last_tso": str(state.last_tso),
            }
        )
    return {
        "collection": collection.name,
        "id": collection.id,
        "kind": "raw",
        "created": rfc3339(ms_of(collection.created_tso)),
        "rows": sum(shard["next"] - shard["first"] for shard in shards),
        "shards": shards,
    }
