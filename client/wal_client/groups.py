"""A member of a group: reads the shards of a collection that the daemon gives it.

The group's position is the cursor of its name. A member commits there as long as it owns a shard.
Before a shard goes to another member it is asked to ``settle``: to deal with what it has read and
commit that. Delivery is at least once: rows that a member had read and not committed when it was
lost come again from another one.

>>> with wal_client.connect() as client:        # doctest: +SKIP
...     with client.member("workers", "orders", until=FOLLOW) as member:
...         for batch in member:
...             handle(batch.bodies())
...             member.commit({batch.shard: batch.end})
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from wal_client import cursors
from wal_client.batcher import Opened
from wal_client.cursors import Step
from wal_client.lease import Lease
from wal_client.ranges import (
    EARLIEST,
    FOLLOW,
    NOW,
    From,
    RowBatch,
    ShardReader,
    Until,
    from_offset,
    until_offset,
)
from wal_core import frames
from wal_core.clock import Clock, sleep
from wal_core.errors import (
    MemberFencedError,
    NotFoundError,
    NotReadyError,
    ProtocolError,
    TimedOutError,
    UnreachableError,
    WalError,
)
from wal_core.frames import End, Frame, Kind, Start
from wal_core.limits import GROUP_LEASE_SECONDS
from wal_core.names import vchannel_id

if TYPE_CHECKING:
    from wal_client.sync import Client

_POLL_SECONDS = 0.02
_DRAIN_POLL_SECONDS = 0.5
"""How often a member that is through looks whether the others are."""
_AWAY = (UnreachableError, NotReadyError, TimedOutError, MemberFencedError)
"""What ends a membership and not the member: it joins anew."""


class _Share:
    """A member's part of one collection."""

    def __init__(self, opened: Opened, ends: Mapping[int, int] | None) -> None:
        """``ends``: the offset behind the last row of each shard; None: follow for ever."""
        self.opened = opened
        self.ends = ends
        self.member = ""
        self.generation = 0
        self.readers: dict[int, ShardReader] = {}
        """By shard: those that it holds."""

    @property
    def is_read(self) -> bool:
        return self.ends is not None and all(one.done for one in self.readers.values())

    def reader(self, shard: int, offset: int) -> ShardReader:
        until = FOLLOW
        if self.ends is not None:
            until = until_offset(max(self.ends[shard] - 1, 0), follow=True)
        vchannel = vchannel_id(self.opened.id, shard)
        reader = ShardReader(vchannel, from_offset(offset), until, self.opened.name)
        reader.done = self.ends is not None and offset >= self.ends[shard]
        return reader


class Member:
    """Iterates over the rows of the shards it holds. Needs the client's connection for itself.

    Survives a lost connection and a lost lease: it joins again as another member, waiting for the
    daemon as long as the client's timeout. It goes on then at the group's committed position."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        group: str,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
        until: Until | Mapping[int, Until] = NOW,
        *,
        settle: Callable[[], None] = lambda: None,
        on_lost: Callable[[WalError], None] = lambda error: None,
        lease_seconds: float = GROUP_LEASE_SECONDS,
    ) -> None:
        """``start`` places a new group. Without FOLLOW it ends when the group has committed all up
        to ``until``. ``settle``: deal with what was read, and commit it. ``on_lost``: it is no
        member any more (nothing can be committed) and joins anew. Raises NotFoundError."""
        self.group = group
        self._client = client
        self._beside = client.sibling()
        self._settle = settle
        self._on_lost = on_lost
        self._lease = Lease(client.sibling(), clock, lease_seconds)
        self._shares: list[_Share] = []
        self._syncs: dict[int, _Share] = {}
        self._requests: dict[int, tuple[_Share, int]] = {}
        self._lost: WalError | None = MemberFencedError("it has not joined yet")
        self.add(collection, start, until)

    def add(
        self,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
        until: Until | Mapping[int, Until] = NOW,
    ) -> None:
        """Another collection, before the iteration begins. Raises NotFoundError."""
        opened = self._client.open(collection)
        entry = cursors.place(self._client, self.group, collection, start)
        nexts = {one["shard"]: one["next"] for one in entry["shards"]}
        self._shares.append(_Share(opened, _ends(self._client, collection, nexts, until)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[RowBatch]:
        self._join()
        while not self._is_over():
            frame = self._receive()
            if frame is not None:
                yield from self._take(frame)

    def has_more(self, seconds: float = 0) -> bool:
        """Whether there is something to go on with, now or within some seconds."""
        return self._lost is not None or self._client.connection.has_frame(seconds)

    @property
    def shards(self) -> int:
        """How many its collections have together."""
        return sum(len(share.opened.vchannels) for share in self._shares)

    def held(self, collection: str | None = None) -> set[int]:
        """The shards that it holds at the moment, of one collection (None: of the only one)."""
        return set(self._share(collection).readers)

    def commit(self, position: Mapping[int, int], collection: str | None = None) -> None:
        """Move the group on to the next offsets of shards that this member holds, durably.

        Raises MemberFencedError where it does not hold them any more: nothing was changed, and the
        rows come again from their new owner."""
        share = self._share(collection)
        step = Step(share.opened.name, share.opened.id, position)
        try:
            cursors.commit(
                self._beside,
                self.group,
                [step],
                member=share.member,
                generation=share.generation,
            )
        except MemberFencedError as error:
            self._lost = error
            raise

    def reconnect(self) -> None:
        """Make the next commit over a new connection: the last request may have been cut short by
        a signal."""
        self._beside.close()

    def close(self) -> None:
        """Leave the group: the shards go to the others at once."""
        self._lease.stop()
        for share in self._shares:
            with contextlib.suppress(WalError):  # It is no member, or there is no daemon.
                if share.member:
                    self._beside.call("group_leave", member=share.member)
            share.member = ""
        self._beside.close()

    # -- frames ------------------------------------------------------------------------------------

    def _receive(self) -> Frame | None:
        """None: nothing came; look again."""
        if self._is_lost() and self._lost is not None:
            self._on_lost(self._lost)
            self._join()
        try:
            connection = self._client.connection
            if self._is_read() and not connection.has_frame(_DRAIN_POLL_SECONDS):
                return None
            return connection.receive()
        except OSError as error:
            self._lost = UnreachableError(f"the daemon hung up ({error})")
            return None

    def _take(self, frame: Frame) -> Iterator[RowBatch]:
        if frame.kind == Kind.ERROR:
            error = frames.unpack_error(frame)
            if not isinstance(error, _AWAY):
                raise error
            self._lost = error
        elif frame.request_id in self._syncs:
            self._reassign(self._syncs.pop(frame.request_id), msgspec.msgpack.decode(frame.body))
        elif frame.request_id in self._requests:
            share, shard = self._requests[frame.request_id]
            yield from self._rows(share.readers[shard], frame)
        elif frame.kind == Kind.SUBSCRIBED:
            self._cancel(frame.request_id)  # It was given up before it had begun.

    def _rows(self, reader: ShardReader, frame: Frame) -> Iterator[RowBatch]:
        if frame.kind == Kind.SUBSCRIBED:
            reader.subscribed(frame)
        elif frame.kind == Kind.BATCHES:
            for batch in reader.batches(frame):
                if self._is_lost():
                    return
                yield batch
        elif frame.kind == Kind.END:
            reader.done = True
        else:
            raise ProtocolError(f"a frame of kind {frame.kind} in a tail")

    def _is_lost(self) -> bool:
        """Whether it is a member no more: others may read what it held."""
        if self._lost is None and self._lease.is_over:
            self._lost = MemberFencedError(f"it did not renew for {self._lease.seconds:g} s")
        return self._lost is not None

    # -- membership --------------------------------------------------------------------------------

    def _join(self) -> None:
        """Become a member, of a daemon that is away once it is back."""
        deadline = self._client.deadline()
        while True:
            self._client.close()
            self._syncs.clear()
            self._requests.clear()
            try:
                self._join_once()
                self._lost = None
                return
            except _AWAY as error:
                failure: WalError = error
            except OSError as error:
                failure = UnreachableError(f"the daemon hung up ({error})")
            if self._client.is_over(deadline):
                raise failure
            sleep(_POLL_SECONDS)

    def _join_once(self) -> None:
        # All at first: a request drops the frames that are not its answer.
        for share in self._shares:
            share.readers.clear()
            share.member = ""
        for share in self._shares:
            joined = self._client.call(
                "group_join",
                group=self.group,
                collection=share.opened.name,
                id=share.opened.id,
                lease_seconds=self._lease.seconds,
            )
            share.member = joined["member"]
        self._lease.start([share.member for share in self._shares])
        self._client.connection.set_timeout(None)
        for share in self._shares:
            self._sync(share)

    def _sync(self, share: _Share) -> None:
        """Say what is held; the answer comes when it should be something else."""
        request_id = self._client.next_id()
        self._syncs[request_id] = share
        arguments = {"member": share.member, "held": sorted(share.readers)}
        body = msgspec.msgpack.encode(["group_sync", arguments])
        self._client.connection.send([frames.pack_frame(Kind.CALL, request_id, body=body)])

    def _reassign(self, share: _Share, assignment: Mapping[str, Any]) -> None:
        """Give up what goes to others, once that is settled, and begin what is new."""
        share.generation = assignment["generation"]
        wanted = set(assignment["shards"])
        revoked = share.readers.keys() - wanted
        if revoked:
            self._settle()
        if self._lost is not None:
            return
        try:
            self._give_up(share, revoked)
            self._begin(share, wanted - share.readers.keys())
            self._sync(share)
        except _AWAY as error:
            self._lost = error
        except OSError as error:
            self._lost = UnreachableError(f"the daemon hung up ({error})")

    def _give_up(self, share: _Share, shards: set[int]) -> None:
        for request_id, (of, shard) in tuple(self._requests.items()):
            if of is share and shard in shards:
                del self._requests[request_id]
                self._cancel(request_id)
        for shard in shards:
            del share.readers[shard]

    def _cancel(self, request_id: int) -> None:
        with contextlib.suppress(OSError):  # It will be met where something is awaited.
            self._client.connection.send([frames.pack_frame(Kind.CANCEL, request_id)])

    def _begin(self, share: _Share, shards: set[int]) -> None:
        if not shards:
            return
        entry = self._entry(share)
        hint = f"wal cursor seek {self.group} {share.opened.name} --to latest"
        cursors.check_position(f"group {self.group!r}", entry, hint)
        for shard, offset in sorted(cursors.position_of(entry).items()):
            if shard not in shards:
                continue
            share.readers[shard] = reader = share.reader(shard, offset)
            if not reader.done:
                request_id = self._client.next_id()
                self._requests[request_id] = (share, shard)
                self._client.connection.send([reader.request(request_id)])

    # -- the end -----------------------------------------------------------------------------------

    def _is_read(self) -> bool:
        return all(share.is_read for share in self._shares)

    def _is_over(self) -> bool:
        """Whether there is an end, and the group has come to it."""
        if self._lost is not None or not self._is_read():
            return False
        self._settle()
        try:
            return all(map(self._others_are_through, self._shares))
        except _AWAY as error:
            self._lost = error
            return False

    def _others_are_through(self, share: _Share) -> bool:
        assert share.ends is not None
        position = cursors.position_of(self._entry(share))
        return all(
            shard in share.readers or offset >= share.ends[shard]
            for shard, offset in position.items()
        )

    def _entry(self, share: _Share) -> Mapping[str, Any]:
        """The group's position. Raises NotFoundError where somebody removed it."""
        name = share.opened.name
        entry: dict[str, Any]
        (entry,) = self._beside.call("cursor_get", cursor=self.group, collection=name)
        if entry["id"] != share.opened.id:
            raise NotFoundError(f"collection {name!r} was dropped meanwhile")
        return entry

    def _share(self, collection: str | None) -> _Share:
        for share in self._shares:
            if collection in (None, share.opened.name):
                return share
        raise NotFoundError(f"collection {collection!r} is not read by this member")


def _ends(
    client: Client, collection: str, nexts: Mapping[int, int], until: Until | Mapping[int, Until]
) -> dict[int, int] | None:
    """The offset behind the last row of each shard; None: there is no end. Shards that ``until``
    does not name are not read."""
    if until == FOLLOW:
        return None
    named = dict.fromkeys(nexts, until) if isinstance(until, Until) else until
    ends = dict.fromkeys(nexts, 0)
    for shard, one in named.items():
        if shard not in nexts:
            raise NotFoundError(f"collection {collection!r} has no shard {shard}")
        if one.kind == End.NOW:
            ends[shard] = nexts[shard]
        elif one.kind == End.OFFSET:
            ends[shard] = min(one.value + 1, nexts[shard])
        elif one.kind == End.FOLLOW_OFFSET:
            ends[shard] = one.value + 1
        else:
            behind = {shard: From(Start.TSO, one.value + 1)}
            ends[shard] = cursors.resolve(client, collection, behind)[shard]
    return ends
