"""Collections by name: created, dropped, found. The logs hold the truth, the catalog mirrors it."""

from __future__ import annotations

import asyncio
import zlib

from wal_core.errors import AlreadyExistsError, NotFoundError, UsageError
from wal_core.limits import SHARDS_MAX
from wal_core.message import Encoding, MessageType, message
from wal_core.names import check_name, vchannel_id
from wal_daemon.wal.pchannel import PChannel
from wal_storage.catalog import collections as family
from wal_storage.catalog.base import Catalog
from wal_storage.catalog.collections import Collection, Shard
from wal_storage.state import CreateCollection, encode_create


class Collections:
    """The collections of a node. All methods are called on the event loop."""

    def __init__(self, catalog: Catalog, pchannels: list[PChannel]) -> None:
        self._catalog = catalog
        self._pchannels = pchannels
        self._lock = asyncio.Lock()
        self.by_name: dict[str, Collection] = {}
        self._last_id = 0

    async def rebuild(self) -> None:
        """Learn the collections from the logs, finish a creation or drop that was cut short,
        and make the catalog say the same."""
        shards: dict[int, list[Shard]] = {}
        known: dict[int, tuple[CreateCollection, int, bool]] = {}
        for pchannel in self._pchannels:
            for state in pchannel.vchannels.values():
                collection_id = state.collection_id
                self._last_id = max(self._last_id, collection_id)
                shards.setdefault(collection_id, []).append(Shard(pchannel.number, state.id))
                what = CreateCollection(state.collection, state.shards)
                _, tso, dropped = known.get(collection_id, (what, 0, False))
                known[collection_id] = (
                    what,
                    max(tso, state.created_tso),
                    dropped or state.dropped_tso > 0,
                )
        for collection_id, (what, tso, dropped) in known.items():
            if dropped:
                await self._drop_shards(shards[collection_id])
            else:
                created = await self._create_shards(collection_id, what)
                self.by_name[what.collection] = Collection(
                    what.collection, collection_id, tso, created
                )
        if self._mirror_differs():
            family.replace_all(self._catalog, self.by_name.values())

    def get(self, name: str) -> Collection:
        """Raises NotFoundError."""
        collection = self.by_name.get(name)
        if collection is None:
            check_name(name)
            raise NotFoundError(f"collection {name!r} does not exist", collection=name)
        return collection

    def pchannel_of(self, vchannel: int) -> PChannel | None:
        """Where a VChannel lives; None where there is no such VChannel."""
        for pchannel in self._pchannels:
            if vchannel in pchannel.vchannels:
                return pchannel
        return None

    async def create(self, name: str, shards: int, *, exist_ok: bool) -> Collection:
        """Create a collection; of two at once, one does. Raises AlreadyExistsError."""
        check_name(name)
        if not 0 < shards <= SHARDS_MAX:
            raise UsageError(f"{shards} shards; 1 to {SHARDS_MAX} are possible")
        async with self._lock:
            existing = self.by_name.get(name)
            if existing is not None:
                if exist_ok:
                    return existing
                raise AlreadyExistsError(f"collection {name!r} exists", collection=name)
            self._last_id += 1
            what = CreateCollection(name, shards)
            created = await self._create_shards(self._last_id, what)
            tso = max(
                self._pchannels[shard.pchannel].vchannels[shard.vchannel].created_tso
                for shard in created
            )
            collection = Collection(name, self._last_id, tso, created)
            family.put(self._catalog, collection)
            self.by_name[name] = collection
            return collection

    async def drop(self, name: str) -> Collection:
        """Drop a collection: appends are refused from now on. Raises NotFoundError."""
        async with self._lock:
            collection = self.get(name)
            del self.by_name[name]
            await self._drop_shards(collection.shards)
            family.remove(self._catalog, name)
            return collection

    async def _create_shards(self, collection_id: int, what: CreateCollection) -> list[Shard]:
        """Create the shards that do not exist yet, each where its number and name put it."""
        body = encode_create(what)
        shift = zlib.crc32(what.collection.encode())
        shards = []
        for number in range(what.shards):
            vchannel = vchannel_id(collection_id, number)
            pchannel = self._pchannels[(shift + number) % len(self._pchannels)]
            if vchannel not in pchannel.vchannels:
                await pchannel.append(
                    message(
                        MessageType.CREATE_COLLECTION, vchannel, body, encoding=Encoding.MSGPACK
                    )
                )
            shards.append(Shard(pchannel.number, vchannel))
        return shards

    async def _drop_shards(self, shards: list[Shard]) -> None:
        for shard in shards:
            pchannel = self._pchannels[shard.pchannel]
            if not pchannel.vchannels[shard.vchannel].dropped_tso:
                await pchannel.append(message(MessageType.DROP_COLLECTION, shard.vchannel))

    def _mirror_differs(self) -> bool:
        return family.read_all(self._catalog) != self.by_name
