"""Control operations on cursors and groups: what CALL frames of these names take and answer.

An entry is a cursor in one collection, ``Cursors.entry`` and the group's members:
``{"cursor","collection","id","committed","lag","shards":[{"shard","offset","next","lag"}],
"members":[{"pid","shards"}]}``. A start is (``Start``, value), as in a SUBSCRIBE frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from wal_core.errors import CorruptError, UsageError
from wal_core.frames import End, Start
from wal_core.limits import (
    GROUP_LEASE_MAX_SECONDS,
    GROUP_LEASE_MIN_SECONDS,
    GROUP_LEASE_SECONDS,
)
from wal_core.names import check_name
from wal_daemon import ranges
from wal_daemon.cursors import Extent, Step, unknown_cursor
from wal_storage.catalog.cursors import CursorRecord

if TYPE_CHECKING:
    from wal_daemon.node import Node
    from wal_daemon.server import Connection

_Arguments = dict[str, Any]
_T = TypeVar("_T")


class _Where(msgspec.Struct):
    """A start for all shards, or for those named; what neither names is left alone."""

    collection: str
    start: tuple[int, int] | None = None
    shards: dict[int, tuple[int, int]] = {}
    cursor: str = ""
    id: int | None = None


class _Commit(msgspec.Struct):
    cursor: str
    steps: list[Step]
    member: str | None = None
    generation: int = 0


class _Named(msgspec.Struct):
    cursor: str = ""
    collection: str | None = None


class _Join(msgspec.Struct):
    group: str
    collection: str
    id: int | None = None
    lease_seconds: float = GROUP_LEASE_SECONDS


class _Sync(msgspec.Struct):
    member: str
    held: list[int] = []


async def cursor_resolve(node: Node, arguments: _Arguments) -> dict[int, int]:
    """{shard: offset} of a start."""
    where = _convert(arguments, _Where)
    return await _resolve(node, node.cursors.extent(where.collection, where.id), where)


async def cursor_place(node: Node, arguments: _Arguments) -> _Arguments:
    """The entry of a cursor, which is created at a start where there is none."""
    where = _convert(arguments, _Where)
    check_name(where.cursor, "cursor")
    extent = node.cursors.extent(where.collection, where.id)
    found = await node.cursors.find(where.cursor, where.collection)
    if found is None:
        offsets = await _resolve(node, extent, where)
        found = await node.cursors.place(where.cursor, extent, offsets)
    return _entry(node, found)


async def cursor_seek(node: Node, arguments: _Arguments) -> _Arguments:
    """Move a cursor; the entry. Refused while a group of the name has members."""
    where = _convert(arguments, _Where)
    check_name(where.cursor, "cursor")
    extent = node.cursors.extent(where.collection, where.id)
    node.groups.check_commit(where.cursor, None, 0, {extent.collection.id: ()})
    offsets = await _resolve(node, extent, where)
    return _entry(node, await node.cursors.seek(where.cursor, extent, offsets))


async def cursor_commit(node: Node, arguments: _Arguments) -> list[_Arguments]:
    """Move a cursor on in some collections at once; their entries."""
    commit = _convert(arguments, _Commit)
    check_name(commit.cursor, "cursor")
    moves = {node.cursors.extent(one.collection, one.id).collection.id: one for one in commit.steps}
    if len(moves) != len(commit.steps):
        raise UsageError("a commit names a collection twice")
    node.groups.check_commit(
        commit.cursor, commit.member, commit.generation, {id: one.next for id, one in moves.items()}
    )
    found = await node.cursors.commit(commit.cursor, commit.steps)
    return [_entry(node, one) for one in found]


async def cursor_get(node: Node, arguments: _Arguments) -> list[_Arguments]:
    """The entries of one cursor. Raises NotFoundError where there is none."""
    named = _convert(arguments, _Named)
    check_name(named.cursor, "cursor")
    found = await node.cursors.all(named.cursor)
    if named.collection is not None:
        node.collections.get(named.collection)
        found = [one for one in found if one.collection == named.collection]
    if not found:
        raise unknown_cursor(named.cursor, named.collection or "")
    return [_entry(node, one) for one in found]


async def cursor_list(node: Node, _: _Arguments) -> list[_Arguments]:
    """The entries of all cursors."""
    return [_entry(node, one) for one in await node.cursors.all()]


async def cursor_remove(node: Node, arguments: _Arguments) -> list[_Arguments]:
    """Remove a cursor, in one collection or in all; what it was. Raises NotFoundError."""
    named = _convert(arguments, _Named)
    check_name(named.cursor, "cursor")
    if named.collection is not None:
        try:
            one = await node.cursors.find(named.cursor, named.collection)
        except CorruptError:  # Removing it is the way out.
            await node.cursors.remove(named.cursor, [named.collection])
            return []
        found = [] if one is None else [one]
    else:
        found = await node.cursors.all(named.cursor)
    if not found:
        raise unknown_cursor(named.cursor, named.collection or "")
    node.groups.check_commit(named.cursor, None, 0, {one.collection_id: () for one in found})
    entries = [_entry(node, one) for one in found]
    await node.cursors.remove(named.cursor, [one.collection for one in found])
    return entries


async def group_join(node: Node, link: Connection, arguments: _Arguments) -> _Arguments:
    """A member of a group on one collection; it lives as long as this connection."""
    wanted = _convert(arguments, _Join)
    check_name(wanted.group, "group")
    if not GROUP_LEASE_MIN_SECONDS <= wanted.lease_seconds <= GROUP_LEASE_MAX_SECONDS:
        raise UsageError(f"a lease of {wanted.lease_seconds} s is not possible")
    collection = node.cursors.extent(wanted.collection, wanted.id).collection
    member = node.groups.join(
        wanted.group,
        collection.name,
        collection.id,
        len(collection.shards),
        link,
        wanted.lease_seconds,
    )
    return {"member": member.name}


async def group_sync(node: Node, arguments: _Arguments) -> _Arguments:
    """Say which shards a member holds; answered when it should hold others."""
    wanted = _convert(arguments, _Sync)
    assignment = await node.groups.sync(wanted.member, wanted.held)
    return assignment._asdict()


async def group_renew(node: Node, arguments: _Arguments) -> None:
    """A member says that it lives, over any connection."""
    node.groups.renew(_convert(arguments, _Sync).member)


async def group_leave(node: Node, arguments: _Arguments) -> None:
    """A member ends; its shards go to the others."""
    node.groups.leave(_convert(arguments, _Sync).member)


OPERATIONS: dict[str, Callable[[Node, _Arguments], Awaitable[Any]]] = {
    "cursor_resolve": cursor_resolve,
    "cursor_place": cursor_place,
    "cursor_seek": cursor_seek,
    "cursor_commit": cursor_commit,
    "cursor_get": cursor_get,
    "cursor_list": cursor_list,
    "cursor_remove": cursor_remove,
    "group_sync": group_sync,
    "group_renew": group_renew,
    "group_leave": group_leave,
}
MEMBERSHIP: dict[str, Callable[[Node, Connection, _Arguments], Awaitable[Any]]] = {
    "group_join": group_join,
}
"""Operations that belong to the connection they came over."""


def _convert(arguments: _Arguments, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"arguments that cannot be used: {error}") from None


def _entry(node: Node, record: CursorRecord) -> _Arguments:
    members = node.groups.members(record.name, record.collection_id)
    return {**node.cursors.entry(record), "members": members}


async def _resolve(node: Node, extent: Extent, where: _Where) -> dict[int, int]:
    """Offsets of a start; the log is read for times, so not on the event loop."""
    count = len(extent.next)
    if max(where.shards, default=0) >= count or min(where.shards, default=0) < 0:
        raise UsageError(f"collection {where.collection!r} has shards 0 to {count - 1}")
    loop = asyncio.get_running_loop()
    offsets = {}
    for number, shard in enumerate(extent.collection.shards):
        start = where.shards.get(number, where.start)
        if start is None:
            continue
        wanted = ranges.Wanted(shard.vchannel, start[0], End.NOW, 0, start[1], 0)
        if start[0] not in list(Start):
            raise UsageError(f"no start of kind {start[0]}")
        pchannel = node.pchannels[shard.pchannel]
        span = await loop.run_in_executor(node.readers, ranges.resolve, pchannel, wanted)
        offsets[number] = span.first
    return offsets
