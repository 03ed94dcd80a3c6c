"""Named cursors: the next offset of each shard, kept in the catalog under a name.

All reads and writes of cursors go through one thread, in the order in which they were asked for: a
commit is judged on the event loop and written before whatever is asked for after it. A write is
durable when it returns. Whether a commit may move a cursor is decided against what is stored, and
the catalog is written only if that is still there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

import msgspec

from wal_core.clock import Clock
from wal_core.errors import (
    CorruptError,
    CursorMovedError,
    FencedError,
    IoFailureError,
    NotFoundError,
    OutOfRangeError,
    WalError,
)
from wal_core.tso import rfc3339
from wal_daemon.collections import Collections
from wal_daemon.wal.pchannel import PChannel
from wal_storage.catalog import cursors as family
from wal_storage.catalog.base import Catalog, CatalogConflict
from wal_storage.catalog.collections import Collection
from wal_storage.catalog.cursors import CursorRecord

log = logging.getLogger("wald.cursors")
_T = TypeVar("_T")


class Step(msgspec.Struct):
    """Where a commit puts the cursor in one collection."""

    collection: str
    next: dict[int, int]
    id: int | None = None
    """Of the collection that was read; None: whichever has the name."""
    expect: dict[int, int] | None = None
    """Where the reader left the cursor; None: anywhere, but not further on."""


class Extent(NamedTuple):
    """What a collection holds: the earliest and the next offset of each shard."""

    collection: Collection
    first: list[int]
    next: list[int]


_Decide = Callable[[list[int] | None], list[int]]
"""From the offsets that are stored (None: nothing) to those to store. Raises what refuses."""


class Cursors:
    """The cursors of a node. All methods are called on the event loop."""

    def __init__(
        self,
        catalog: Catalog,
        collections: Collections,
        pchannels: Sequence[PChannel],
        executor: Executor,
        clock: Clock,
        is_owner: Callable[[], bool],
    ) -> None:
        """``executor``: one thread. ``is_owner``: whether this node still has its name."""
        self._catalog = catalog
        self._collections = collections
        self._pchannels = pchannels
        self._executor = executor
        self._clock = clock
        self._is_owner = is_owner
        self._copy = pchannels[0].cursors

    async def rebuild(self) -> None:
        """A catalog that never had cursors gets those of the log's last snapshot: older, so that
        their readers repeat rows and skip none. Otherwise the snapshots to come get the catalog's.
        """
        await self._run(self._rebuild)

    def extent(self, name: str, collection_id: int | None = None) -> Extent:
        """Raises NotFoundError, also where the collection has another id by now."""
        collection = self._collections.get(name)
        if collection_id not in (None, collection.id):
            raise NotFoundError(f"collection {name!r} was dropped meanwhile", collection=name)
        first, next = [], []
        for shard in collection.shards:
            pchannel = self._pchannels[shard.pchannel]
            first.append(pchannel.vchannels[shard.vchannel].first_offset)
            next.append(pchannel.next_offsets.get(shard.vchannel, 0))
        return Extent(collection, first, next)

    async def find(self, name: str, collection: str) -> CursorRecord | None:
        """The cursor of a live collection, or None. Raises NotFoundError for the collection."""
        wanted = self._collections.get(collection)

        def read() -> CursorRecord | None:
            record = self._read(name, collection)[1]
            return record if record and record.collection_id == wanted.id else None

        return await self._run(read)

    async def all(self, name: str = "") -> list[CursorRecord]:
        """Cursors of live collections, of one name or of all."""
        found = await self._run(lambda: self._read_all(name))
        live = {one.id for one in self._collections.by_name.values()}
        return [one for one in found if one.collection_id in live]

    async def commit(self, name: str, steps: Sequence[Step]) -> list[CursorRecord]:
        """Move a cursor on, in one or more collections at once; a missing one is created.

        Raises OutOfRangeError behind the end, CursorMovedError where it is not as expected."""
        changes = []
        for step in steps:
            extent = self.extent(step.collection, step.id)
            _check_range(extent, step.next)
            changes.append((extent.collection, _moving_on(name, extent, step)))
        return await self._run(lambda: self._write(name, changes))

    async def place(self, name: str, extent: Extent, offsets: Mapping[int, int]) -> CursorRecord:
        """The cursor; where there is none, a new one at ``offsets``."""

        def decide(stored: list[int] | None) -> list[int]:
            return _merged(extent, None, offsets) if stored is None else stored

        records = await self._run(lambda: self._write(name, [(extent.collection, decide)]))
        return records[0]

    async def seek(self, name: str, extent: Extent, offsets: Mapping[int, int]) -> CursorRecord:
        """Move a cursor anywhere. Raises NotFoundError, OutOfRangeError."""
        _check_range(extent, offsets)

        def decide(stored: list[int] | None) -> list[int]:
            if stored is None:
                raise unknown_cursor(name, extent.collection.name)
            return _merged(extent, stored, offsets)

        records = await self._run(lambda: self._write(name, [(extent.collection, decide)]))
        return records[0]

    async def remove(self, name: str, collections: Sequence[str]) -> None:
        """Remove a cursor in some collections, damaged ones too."""
        await self._run(lambda: self._drop([family.key(name, one) for one in collections]))

    async def forget(self, collection: Collection) -> None:
        """Remove the cursors of a collection that was dropped. What stays is inherited by none."""

        def forget() -> None:
            ours = [one for one in self._read_all("") if one.collection_id == collection.id]
            self._drop([family.key(one.name, one.collection) for one in ours])

        try:
            await self._run(forget)
        except WalError as error:
            log.warning("cursors of a dropped collection stay", extra={"error": error.message})

    def entry(self, record: CursorRecord) -> dict[str, Any]:
        """What ``wal cursor show -o json`` prints of a cursor in one collection."""
        next = self.extent(record.collection).next
        shards = [
            {"shard": number, "offset": at, "next": end, "lag": max(end - at, 0)}
            for number, (at, end) in enumerate(zip(record.offsets, next, strict=True))
        ]
        return {
            "cursor": record.name,
            "collection": record.collection,
            "id": record.collection_id,
            "committed": rfc3339(record.committed_ms),
            "lag": sum(shard["lag"] for shard in shards),
            "shards": shards,
        }

    # -- in the thread of the cursors --------------------------------------------------------------

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _read(self, name: str, collection: str) -> tuple[bytes | None, CursorRecord | None]:
        key = family.key(name, collection)
        try:
            value = self._catalog.get(key)
            return value, None if value is None else family.decode(key, value)
        except CorruptError as error:
            error.hint = f"wal cursor rm {name} {collection}"
            raise

    def _read_all(self, name: str) -> list[CursorRecord]:
        try:
            return family.read_all(self._catalog, name)
        except CorruptError as error:
            error.hint = "wal cursor rm NAME COLLECTION"
            raise

    def _rebuild(self) -> None:
        if self._catalog.get(family.MARKER) is None:
            self._catalog.commit({**self._copy, family.MARKER: b""})
        stored = family.copy(self._catalog)
        if stored:
            self._copy.clear()
            self._copy.update(stored)

    def _drop(self, keys: Sequence[bytes]) -> None:
        if keys:
            self._catalog.commit(dict.fromkeys(keys))
        for key in keys:
            self._copy.pop(key, None)

    def _require_ownership(self) -> None:
        try:
            if self._is_owner():
                return
        except OSError as error:
            raise IoFailureError(f"the folder of the node cannot be read: {error}") from error
        raise FencedError("this node was taken over; the cursor was not moved")

    def _write(
        self, name: str, changes: Sequence[tuple[Collection, _Decide]]
    ) -> list[CursorRecord]:
        while True:
            self._require_ownership()
            expect: dict[bytes, bytes | None] = {}
            records: dict[bytes, CursorRecord] = {}
            for collection, decide in changes:
                key = family.key(name, collection.name)
                expect[key], stored = self._read(name, collection.name)
                if stored is not None and stored.collection_id != collection.id:
                    stored = None
                offsets = decide(None if stored is None else stored.offsets)
                if stored is not None and stored.offsets == offsets:
                    records[key] = stored
                    continue
                records[key] = CursorRecord(
                    name, collection.name, collection.id, self._clock.wall_ms(), offsets
                )
            try:
                new = {key: family.encode(one) for key, one in records.items()}
                if new != expect:
                    self._catalog.commit(new, expect)
                    self._copy.update(new)
                return list(records.values())
            except CatalogConflict:
                continue


def unknown_cursor(name: str, collection: str = "") -> WalError:
    """For whoever asks for a cursor that is not there."""
    where = f" of collection {collection!r}" if collection else ""
    return NotFoundError(f"there is no cursor {name!r}{where}", hint="wal cursor ls", cursor=name)


def shown(offsets: Mapping[int, int]) -> str:
    """``0:812,1:90``."""
    return ",".join(f"{shard}:{offset}" for shard, offset in sorted(offsets.items()))


def _check_range(extent: Extent, offsets: Mapping[int, int]) -> None:
    name = extent.collection.name
    for shard, offset in offsets.items():
        if not 0 <= shard < len(extent.next):
            count = len(extent.next)
            raise NotFoundError(f"collection {name!r} has no shard {shard}; it has {count}")
        if not extent.first[shard] <= offset <= extent.next[shard]:
            raise OutOfRangeError(
                f"a cursor cannot stand at offset {offset} of shard {shard} of {name!r}: the "
                f"earliest is {extent.first[shard]}, the next one {extent.next[shard]}",
                earliest=extent.first[shard],
                next=extent.next[shard],
            )


def _merged(extent: Extent, stored: Sequence[int] | None, offsets: Mapping[int, int]) -> list[int]:
    """Shards that are not named stay; of a new cursor they are at the first row."""
    merged = list(extent.first if stored is None else stored)
    for shard, offset in offsets.items():
        merged[shard] = offset
    return merged


def _moving_on(name: str, extent: Extent, step: Step) -> _Decide:
    collection = extent.collection.name

    def moved(why: str, stored: Sequence[int] | None) -> CursorMovedError:
        at = None if stored is None else shown(dict(enumerate(stored)))
        return CursorMovedError(
            f"cursor {name!r} of {collection!r} {why}",
            hint=f"wal cursor show {name}",
            cursor=name,
            collection=collection,
            stands_at=at,
        )

    def decide(stored: list[int] | None) -> list[int]:
        if stored is None and step.expect is not None:
            raise moved("was removed meanwhile", stored)
        for shard, next in step.next.items():
            at = None if stored is None else stored[shard]
            if at is None or at == next:  # The same commit, sent again after a lost answer.
                continue
            if step.expect is not None and at != step.expect.get(shard):
                was = step.expect.get(shard)
                raise moved(
                    f"was moved by somebody else: shard {shard} is at {at}, not at {was}", stored
                )
            if next < at:
                raise moved(f"stands at {at} in shard {shard}; a commit never moves back", stored)
        return _merged(extent, stored, step.next)

    return decide
