"""Control operations: CALL frames, one function an operation. Arguments and results are maps."""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from wal_core.errors import CorruptError, UnknownTxnError, UsageError
from wal_core.names import vchannel_name
from wal_core.tso import ms_of, rfc3339
from wal_core.version import VERSION
from wal_daemon import cursor_operations
from wal_daemon.transactions import ProducerOf
from wal_daemon.wal.requests import ANY_OFFSET
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
        "subscriptions": sum(len(one.subscriptions) for one in node.server.connections),
        "collections": len(node.collections.by_name) if node.ready else 0,
        "open_transactions": node.transactions.open,
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
    node.transactions.end_broken()
    return described


async def truncate(node: Node, arguments: dict[str, Any]) -> dict[str, Any]:
    """The description afterwards, and ``truncated_rows``: how many were hidden."""
    name = str(arguments["name"])
    hidden = await node.collections.truncate(name)
    node.transactions.end_broken()
    return _describe(node, node.collections.get(name)) | {"truncated_rows": hidden}


async def alter(node: Node, arguments: dict[str, Any]) -> dict[str, Any]:
    """Partitions to add and to drop, and settings."""
    altered = await node.collections.alter(
        str(arguments["name"]),
        add=[str(one) for one in arguments.get("add_partitions", ())],
        drop=[str(one) for one in arguments.get("drop_partitions", ())],
        settings={str(key): str(value) for key, value in arguments.get("settings", {}).items()},
    )
    node.transactions.end_broken()
    return _describe(node, altered)


async def partition(node: Node, arguments: dict[str, Any]) -> int:
    """The id of a partition."""
    return node.collections.partition(str(arguments["name"]), str(arguments["partition"]))


async def producer(node: Node, arguments: dict[str, Any]) -> list[int]:
    """Of a producer in a collection: its highest epoch (-1: it never wrote) and the last sequence
    of that in any shard."""
    collection = node.collections.get(str(arguments["collection"]))
    id = int(arguments["producer"])
    last = [-1, 0]
    for shard in collection.shards:
        state = node.pchannels[shard.pchannel].vchannels[shard.vchannel]
        known = state.producers_by_id.get(id)
        if known is not None:
            last = max(last, [known.epoch, known.sequence])
    return last


async def txn_begin(node: Node, arguments: dict[str, Any]) -> str:
    """The id of a transaction over all shards of some collections."""
    found = [node.collections.get(str(name)) for name in arguments["collections"]]
    scope = [
        (node.pchannels[shard.pchannel], shard.vchannel)
        for collection in found
        for shard in collection.shards
    ]
    return txn_text(await node.transactions.begin(scope, float(arguments["keepalive"])))


async def txn_commit(node: Node, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """What the rows got: a map for each shard that has rows of the transaction."""
    whose = ProducerOf(*map(int, arguments.get("producer", ())))
    expect = int(arguments.get("expect", ANY_OFFSET))
    committed = await node.transactions.commit(txn_of(arguments["id"]), whose, expect)
    return [
        {
            "collection": pchannel.vchannels[one.vchannel].collection,
            "vchannel": vchannel_name(pchannel.number, one.vchannel),
            "first": one.first_offset,
            "count": one.rows,
            "tso": str(one.tso),
        }
        for pchannel, one in committed
        if one.rows
    ]


async def txn_rollback(node: Node, arguments: dict[str, Any]) -> None:
    await node.transactions.roll_back(txn_of(arguments["id"]))


async def txn_keepalive(node: Node, arguments: dict[str, Any]) -> float:
    """Seconds that are left now."""
    return node.transactions.keep_alive(txn_of(arguments["id"]))


async def txn_check(node: Node, arguments: dict[str, Any]) -> None:
    """Whether a collection is in the scope of a transaction."""
    name = str(arguments["collection"])
    collection = node.collections.by_name.get(name)
    shards = [] if collection is None else collection.shards
    node.transactions.check_scope(txn_of(arguments["id"]), name, shards)


async def txn_list(node: Node, _: dict[str, Any]) -> list[dict[str, Any]]:
    return node.transactions.list_open()


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
    "truncate": truncate,
    "alter": alter,
    "partition": partition,
    "producer": producer,
    "txn_begin": txn_begin,
    "txn_commit": txn_commit,
    "txn_rollback": txn_rollback,
    "txn_keepalive": txn_keepalive,
    "txn_check": txn_check,
    "txn_list": txn_list,
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


def txn_text(txn_id: int) -> str:
    """A transaction's id as users see it: 16 hexadecimal digits."""
    return f"{txn_id:016x}"


def txn_of(text: object) -> int:
    """Raises UnknownTxnError for what is no id at all."""
    try:
        return int(str(text), 16)
    except ValueError:
        raise UnknownTxnError(f"{text!r} is no transaction id") from None


def _describe(node: Node, collection: Collection) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    for number, shard in enumerate(collection.shards):
        pchannel = node.pchannels[shard.pchannel]
        state = pchannel.vchannels[shard.vchannel]
        end = pchannel.next_offsets.get(shard.vchannel, 0)
        shards.append(
            {
                "shard": number,
                "vchannel": shard.name,
                "id": str(shard.vchannel),
                "first": min(state.first_offset, end),
                "next": end,
                "last_tso": str(state.last_tso),
            }
        )
    return {
        "collection": collection.name,
        "id": collection.id,
        "kind": "raw",
        "created": rfc3339(ms_of(collection.created_tso)),
        "partitions": sorted(state.partitions.values()),
        "settings": dict(state.settings),
        "rows": sum(shard["next"] - shard["first"] for shard in shards),
        "shards": shards,
    }
