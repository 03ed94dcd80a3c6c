"""Collections by name: created, changed, dropped, found. The logs hold the truth, the catalog
mirrors it.

A change goes to all shards, which may lie in several PChannels. Once one of them has it (or may
have it) it is finished, whatever it takes, before anybody appends to the collection again; what a
crash cuts short, ``rebuild`` finishes (docs/decisions/0012-changes-of-collections.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from weakref import WeakValueDictionary

from wal_core.errors import (
    AlreadyExistsError,
    NotFoundError,
    NotReadyError,
    UsageError,
    WalError,
)
from wal_core.limits import (
    DISK_RETRY_SECONDS,
    PARTITIONS_MAX,
    SETTINGS_MAX,
    SHARDS_MAX,
)
from wal_core.message import Encoding, MessageType, message
from wal_core.names import check_name, check_setting, vchannel_id
from wal_daemon.wal.pchannel import PChannel
from wal_storage.catalog import collections as family
from wal_storage.catalog.base import Catalog
from wal_storage.catalog.collections import Collection, Shard
from wal_storage.state import Change, CreateCollection, VChannelState, encode_change, encode_create

log = logging.getLogger("wald.collections")


class Collections:
    """The collections of a node. All methods are called on the event loop."""

    def __init__(self, catalog: Catalog, pchannels: list[PChannel]) -> None:
        self._catalog = catalog
        self._pchannels = pchannels
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Names that are being created, changed or dropped."""
        self.by_name: dict[str, Collection] = {}
        self._last_id = 0

    async def rebuild(self) -> None:
        """Learn the collections from the logs, finish a creation, change or drop that was cut
        short, and make the catalog say the same."""
        shards: dict[int, list[Shard]] = {}
        known: dict[int, tuple[CreateCollection, bool]] = {}
        for pchannel in self._pchannels:
            for state in pchannel.vchannels.values():
                collection_id = state.collection_id
                self._last_id = max(self._last_id, collection_id)
                shards.setdefault(collection_id, []).append(Shard(pchannel.number, state.id))
                _, dropped = known.get(collection_id, (None, False))
                known[collection_id] = (
                    CreateCollection(state.collection, state.shards),
                    dropped or state.dropped_tso > 0,
                )
        for collection_id, (what, dropped) in known.items():
            if dropped:
                await self._reach(shards[collection_id], _DROP, b"", _is_dropped, patient=False)
            else:
                collection = await self._create(collection_id, what, patient=False)
                await self._finish_change(collection.shards)
                self.by_name[what.collection] = collection
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

    def partition(self, name: str, partition: str) -> int:
        """The id of a partition. Raises NotFoundError."""
        for id, known in self._state(self.get(name).shards[0]).partitions.items():
            if known == partition:
                return id
        raise NotFoundError(
            f"collection {name!r} has no partition {partition!r}",
            hint=f"wal collection alter {name} --add-partition {partition}",
            partition=partition,
        )

    async def create(self, name: str, shards: int, *, exist_ok: bool) -> Collection:
        """Create a collection; of two at once, one does. Raises AlreadyExistsError."""
        check_name(name)
        if not 0 < shards <= SHARDS_MAX:
            raise UsageError(f"{shards} shards; 1 to {SHARDS_MAX} are possible")
        async with self._change_of(name):
            existing = self.by_name.get(name)
            if existing is not None:
                if exist_ok:
                    return existing
                raise AlreadyExistsError(f"collection {name!r} exists", collection=name)
            self._last_id += 1
            collection = await self._create(self._last_id, CreateCollection(name, shards))
            family.put(self._catalog, collection)
            self.by_name[name] = collection
            return collection

    async def drop(self, name: str) -> Collection:
        """Drop a collection: appends are refused from now on. Raises NotFoundError."""
        async with self._change_of(name):
            collection = self.get(name)
            with self._locked(collection.shards):
                await self._reach(collection.shards, _DROP, b"", _is_dropped)
            del self.by_name[name]
            family.remove(self._catalog, name)
            return collection

    async def truncate(self, name: str) -> int:
        """Hide all rows that are there now. Returns how many. Raises NotFoundError."""
        async with self._change_of(name):
            collection = self.get(name)
            before = self._first_offsets(collection)
            with self._locked(collection.shards):
                await self._change(collection, MessageType.TRUNCATE_COLLECTION)
            return self._first_offsets(collection) - before

    async def alter(
        self,
        name: str,
        *,
        add: Sequence[str] = (),
        drop: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> Collection:
        """Add partitions, drop others (nothing can be appended to them any more) and set settings;
        an empty value takes one away. All is judged before anything is changed.

        Raises AlreadyExistsError, NotFoundError, BadNameError, UsageError."""
        settings = dict(settings or {})
        async with self._change_of(name):
            collection = self.get(name)
            self._check_alteration(collection, add, drop, settings)
            with self._locked(collection.shards):
                for partition in add:
                    await self._change(collection, MessageType.CREATE_PARTITION, new=partition)
                for partition in drop:
                    id = self.partition(name, partition)
                    await self._change(collection, MessageType.DROP_PARTITION, partition=id)
                if settings:
                    kind = MessageType.ALTER_COLLECTION
                    await self._change(collection, kind, settings=settings)
            return collection

    def _check_alteration(
        self,
        collection: Collection,
        add: Sequence[str],
        drop: Sequence[str],
        settings: Mapping[str, str],
    ) -> None:
        name, state = collection.name, self._state(collection.shards[0])
        named = [*add, *drop]
        if len(set(named)) < len(named):
            raise UsageError("a partition is named twice")
        for partition in add:
            check_name(partition, "partition")
            if partition in state.partitions.values():
                raise AlreadyExistsError(f"collection {name!r} has a partition {partition!r}")
        for partition in drop:
            self.partition(name, partition)
        if add and len(state.partitions) + len(add) > PARTITIONS_MAX:
            raise UsageError(f"a collection has at most {PARTITIONS_MAX} partitions")
        for key, value in settings.items():
            check_setting(key, value)
        if len(state.settings.keys() | settings.keys()) > SETTINGS_MAX:
            raise UsageError(f"a collection has at most {SETTINGS_MAX} settings")

    # -- changes -----------------------------------------------------------------------------------

    def _change_of(self, name: str) -> asyncio.Lock:
        """Held by whoever changes a collection, so that its changes never overlap. Those of others
        do not wait for one whose PChannel is in trouble."""
        lock = self._changing.get(name)
        if lock is None:
            lock = self._changing[name] = asyncio.Lock()
        return lock

    async def _change(
        self,
        collection: Collection,
        kind: MessageType,
        *,
        partition: int = 0,
        new: str = "",
        settings: dict[str, str] | None = None,
    ) -> None:
        """One change, to all shards; their locks are held. Open transactions in them fail."""
        states = [self._state(shard) for shard in collection.shards]
        number = max(state.ddl for state in states) + 1
        if new:
            partition = max(state.last_partition for state in states) + 1
        body = encode_change(Change(number, partition, new, settings or {}))
        await self._reach(collection.shards, kind, body, lambda state: state.ddl >= number)

    async def _finish_change(self, shards: list[Shard]) -> None:
        """Bring the shards that the last change did not reach before a crash up to the others."""
        ahead = max(map(self._state, shards), key=lambda state: state.ddl)
        kind, body = ahead.last_change
        await self._reach(shards, kind, body, lambda state: state.ddl >= ahead.ddl, patient=False)

    async def _create(
        self, collection_id: int, what: CreateCollection, *, patient: bool = True
    ) -> Collection:
        """Create the shards that do not exist yet, each where its number and name put it."""
        shift = zlib.crc32(what.collection.encode())
        shards = [
            Shard(
                self._pchannels[(shift + number) % len(self._pchannels)].number,
                vchannel_id(collection_id, number),
            )
            for number in range(what.shards)
        ]
        kind, body = MessageType.CREATE_COLLECTION, encode_create(what)
        await self._reach(shards, kind, body, lambda _: True, patient=patient)
        tso = max(self._state(shard).created_tso for shard in shards)
        return Collection(what.collection, collection_id, tso, shards)

    async def _reach(
        self,
        shards: list[Shard],
        kind: int,
        body: bytes,
        has: Callable[[VChannelState], bool],
        *,
        patient: bool = True,
    ) -> None:
        """Append a change to all shards that do not have it yet.

        Fails only where no shard can have it. Otherwise a PChannel that refuses (its disk is full,
        or it is being opened anew) is asked again until it takes the change: rows that were
        acknowledged behind half a truncation would be lost when it is finished. Not ``patient``:
        fails at once, for a start that finishes what there is."""
        while True:
            missing = [shard for shard in shards if not self._has(shard, has)]
            failures = await self._append(missing, kind, body)
            if not failures:
                return
            unknown = any("outcome_unknown" in failure.details for failure in failures)
            if not patient or (len(failures) == len(shards) and not unknown):
                raise failures[0]
            log.error("a change of a collection waits", extra={"error": failures[0].message})
            waiting = NotReadyError(
                f"a change of the collection is not finished yet: {failures[0].message}"
            )
            for pchannel, vchannels in self._by_pchannel(shards):
                pchannel.refuse_parked(vchannels, waiting)
            await asyncio.sleep(DISK_RETRY_SECONDS)

    async def _append(self, shards: list[Shard], kind: int, body: bytes) -> list[WalError]:
        """The same message to some shards; what failed."""
        encoding = Encoding.MSGPACK if body else Encoding.NONE
        answers = await asyncio.gather(
            *(
                self._pchannels[shard.pchannel].append(
                    message(kind, shard.vchannel, body, encoding=encoding)
                )
                for shard in shards
            ),
            return_exceptions=True,
        )
        failures: list[WalError] = []
        for answer in answers:
            if isinstance(answer, WalError):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
        return failures

    def _has(self, shard: Shard, has: Callable[[VChannelState], bool]) -> bool:
        pchannel = self._pchannels[shard.pchannel]
        state = pchannel.vchannels.get(shard.vchannel)
        # What a closed one believes may not be in its log.
        return pchannel.closed is None and state is not None and has(state)

    def _state(self, shard: Shard) -> VChannelState:
        return self._pchannels[shard.pchannel].vchannels[shard.vchannel]

    def _first_offsets(self, collection: Collection) -> int:
        """Of all shards together."""
        return sum(self._state(shard).first_offset for shard in collection.shards)

    def _by_pchannel(self, shards: list[Shard]) -> list[tuple[PChannel, list[int]]]:
        found: dict[int, list[int]] = {}
        for shard in shards:
            found.setdefault(shard.pchannel, []).append(shard.vchannel)
        return [(self._pchannels[number], vchannels) for number, vchannels in found.items()]

    @contextlib.contextmanager
    def _locked(self, shards: list[Shard]) -> Iterator[None]:
        """No row gets in between the change of one shard and that of the next."""
        locked = self._by_pchannel(shards)
        for pchannel, vchannels in locked:
            pchannel.lock(vchannels)
        try:
            yield
        finally:
            for pchannel, vchannels in locked:
                pchannel.unlock(vchannels)

    def _mirror_differs(self) -> bool:
        return family.read_all(self._catalog) != self.by_name


_DROP = int(MessageType.DROP_COLLECTION)


def _is_dropped(state: VChannelState) -> bool:
    return state.dropped_tso > 0
