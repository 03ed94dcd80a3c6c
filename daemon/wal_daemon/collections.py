"""Collections by name: created, dropped, found. The logs hold the truth, the catalog mirrors it."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Iterator

from wal_core.errors import AlreadyExistsError, NotFoundError, UsageError
from wal_core.limits import SHARDS_MAX
from wal_core.message import Encoding, MessageType, message
from wal_core.names import check_name, vchannel_id
from wal_daemon.wal.pchannel import PChannel
from wal_storage.catalog import collections as family
from wal_storage.catalog.base import Catalog
from wal_storage.catalog.collections import Collection, Shard
from wal_storage.state import Change, CreateCollection, encode_change, encode_create


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
                await self._finish_change(created)
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
            with self._locked(collection.shards):
                await self._drop_shards(collection.shards)
            family.remove(self._catalog, name)
            return collection

    async def truncate(self, name: str) -> Collection:
        """Hide all rows that are there now. Raises NotFoundError."""
        return await self._change(name, MessageType.TRUNCATE_COLLECTION)

    async def add_partition(self, name: str, partition: str) -> Collection:
        """Raises AlreadyExistsError, BadNameError."""
        check_name(partition, "partition")
        return await self._change(name, MessageType.CREATE_PARTITION, new=partition)

    async def drop_partition(self, name: str, partition: str) -> Collection:
        """Nothing can be appended to it any more. Raises NotFoundError."""
        return await self._change(name, MessageType.DROP_PARTITION, old=partition)

    async def alter(self, name: str, settings: dict[str, str]) -> Collection:
        """Set settings of a collection; an empty value takes one away."""
        for key in settings:
            check_name(key, "setting")
        return await self._change(name, MessageType.ALTER_COLLECTION, settings=settings)

    def partition(self, name: str, partition: str) -> int:
        """The id of a partition. Raises NotFoundError."""
        shard = self.get(name).shards[0]
        state = self._pchannels[shard.pchannel].vchannels[shard.vchannel]
        for id, known in state.partitions.items():
            if known == partition:
                return id
        raise NotFoundError(
            f"collection {name!r} has no partition {partition!r}",
            hint=f"wal collection alter {name} --add-partition {partition}",
            partition=partition,
        )

    async def _change(
        self,
        name: str,
        kind: MessageType,
        *,
        new: str = "",
        old: str = "",
        settings: dict[str, str] | None = None,
    ) -> Collection:
        """One change, to all shards: with their locks held, so that no row gets in between. Their
        open transactions fail. What a crash cuts short is finished by ``rebuild``."""
        async with self._lock:
            collection = self.get(name)
            states = [
                self._pchannels[shard.pchannel].vchannels[shard.vchannel]
                for shard in collection.shards
            ]
            first = states[0]
            if new and new in first.partitions.values():
                raise AlreadyExistsError(f"collection {name!r} has a partition {new!r}")
            partition = self.partition(name, old) if old else 0
            if new:
                partition = max(state.last_partition for state in states) + 1
            number = max(state.ddl for state in states) + 1
            body = encode_change(Change(number, partition, new, settings or {}))
            with self._locked(collection.shards):
                await self._change_shards(collection.shards, kind, body)
            return collection

    async def _change_shards(self, shards: list[Shard], kind: int, body: bytes) -> None:
        await asyncio.gather(
            *(
                self._pchannels[shard.pchannel].append(
                    message(kind, shard.vchannel, body, encoding=Encoding.MSGPACK)
                )
                for shard in shards
            )
        )

    @contextlib.contextmanager
    def _locked(self, shards: list[Shard]) -> Iterator[None]:
        by_pchannel: dict[int, list[int]] = {}
        for shard in shards:
            by_pchannel.setdefault(shard.pchannel, []).append(shard.vchannel)
        for number, vchannels in by_pchannel.items():
            self._pchannels[number].lock(vchannels)
        try:
            yield
        finally:
            for number, vchannels in by_pchannel.items():
                self._pchannels[number].unlock(vchannels)

    async def _finish_change(self, shards: list[Shard]) -> None:
        """Bring the shards that the last change did not reach before a crash up to the others."""
        states = {
            shard.vchannel: self._pchannels[shard.pchannel].vchannels[shard.vchannel]
            for shard in shards
        }
        ahead = max(states.values(), key=lambda state: state.ddl)
        behind = [shard for shard in shards if states[shard.vchannel].ddl < ahead.ddl]
        kind, body = ahead.last_change
        await self._change_shards(behind, kind, body)

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
