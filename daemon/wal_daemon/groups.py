"""Groups of readers: the members of a group share the shards of a collection.

All of it is in memory and lives by the members' connections. A shard is granted to one member at a
time. It changes hands when its owner says that it has let go of it, or when the owner's connection
or lease is gone; so a member that is alive always has the time to save how far it came. The group's
position is the cursor of its name, and only the owner of a shard may move it there.

A member asks with what it holds (``sync``) and is answered when it should hold something else.
Nothing here wakes up but for a lease that runs out, and there are leases only while there are
members.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from wal_core.clock import Clock
from wal_core.errors import MemberFencedError, ProtocolError, ThrottledError
from wal_core.limits import MEMBERSHIPS_MAX
from wal_daemon.deadlines import Deadlines

log = logging.getLogger("wald.groups")


class Link(Protocol):
    """The connection of a member."""

    peer_pid: int
    on_lost: dict[str, Callable[[], None]]
    """Name of a member → what to call when the connection is lost."""

    def abort(self) -> None:
        """Hang up at once."""


class Assignment(NamedTuple):
    """What a member should hold."""

    generation: int
    """Grows with each grant; goes with the member's commits."""
    shards: list[int]


class Member:
    """One reader of a group."""

    def __init__(self, name: str, group: Group, link: Link, lease_seconds: float) -> None:
        self.name = name
        self.group = group
        self.link = link
        self.lease_seconds = lease_seconds
        self.told: set[int] = set()
        """Shards that it may be reading: it holds them, or was told to."""
        self.waiter: asyncio.Future[Assignment] | None = None


class Group:
    """Members, and who owns which shard since which generation."""

    def __init__(self, name: str, collection: str, collection_id: int, shards: int) -> None:
        self.name = name
        self.collection = collection
        self.collection_id = collection_id
        self.shards = shards
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.owners: dict[int, tuple[Member, int]] = {}

    def owned(self, member: Member) -> list[int]:
        """Shards granted to a member, those included that it is to give up."""
        return sorted(shard for shard, (owner, _) in self.owners.items() if owner is member)

    def settle(self) -> None:
        """Grant what is free, and answer the members whose shards change."""
        current = {shard: owner.name for shard, (owner, _) in self.owners.items()}
        target = share_out(self.shards, list(self.members), current)
        for shard, name in target.items():
            owner = self.owners.get(shard)
            if owner is not None and (owner[0].name == name or shard in owner[0].told):
                continue
            self.generation += 1
            self.owners[shard] = (self.members[name], self.generation)
        for member in self.members.values():
            wanted = [shard for shard in self.owned(member) if target[shard] == member.name]
            waiter = member.waiter
            if waiter is not None and not waiter.done() and set(wanted) != member.told:
                member.told |= set(wanted)
                member.waiter = None
                waiter.set_result(Assignment(self.generation, wanted))


class Groups:
    """The groups of a node. All methods are called on the event loop."""

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._loop = loop
        self._leases = Deadlines(loop)
        self._members: dict[str, Member] = {}
        self._groups: dict[tuple[str, int], Group] = {}

    def join(
        self,
        name: str,
        collection: str,
        collection_id: int,
        shards: int,
        link: Link,
        lease_seconds: float,
    ) -> Member:
        """A new member; it owns shards once it asks. Raises ThrottledError."""
        if len(link.on_lost) >= MEMBERSHIPS_MAX:
            raise ThrottledError(f"a connection has at most {MEMBERSHIPS_MAX} memberships")
        key = (name, collection_id)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(name, collection, collection_id, shards)
        member = Member(f"{self._clock.token():016x}", group, link, lease_seconds)
        self._members[member.name] = group.members[member.name] = member
        link.on_lost[member.name] = lambda: self._remove(member, "its connection is gone")
        self.renew(member.name)
        group.settle()
        return member

    def renew(self, member: str) -> None:
        """The member lives. Raises MemberFencedError."""
        found = self._member(member)
        self._leases.clear(member)
        self._leases.set(member, found.lease_seconds, lambda: self._expire(found))

    def leave(self, member: str) -> None:
        """A member ends in good order."""
        self._remove(self._member(member), "it left")

    async def sync(self, member: str, held: Collection[int]) -> Assignment:
        """Take back what the member holds no more, and wait until it should hold something else.

        Raises MemberFencedError, also when it is removed meanwhile."""
        found = self._member(member)
        if found.waiter is not None:
            raise ProtocolError("a member asked twice at a time")
        found.told &= set(held)
        waiter: asyncio.Future[Assignment] = self._loop.create_future()
        found.waiter = waiter
        found.group.settle()
        return await waiter

    def check_commit(
        self, name: str, member: str | None, generation: int, moves: Mapping[int, Collection[int]]
    ) -> None:
        """Whether a cursor may be moved so. ``moves``: collection id → shards.

        Raises MemberFencedError for a member that does not own them, and for anybody else while
        the group has members."""
        for collection_id, shards in moves.items():
            group = self._groups.get((name, collection_id))
            if member is None:
                if group is not None:
                    raise _occupied(group)
                continue
            for shard in shards:
                owner = None if group is None else group.owners.get(shard)
                if owner is None or owner[0].name != member or generation < owner[1]:
                    raise MemberFencedError(
                        f"shard {shard} of group {name!r} belongs to another member by now",
                        hint=f"wal cursor show {name}",
                        shard=shard,
                    )

    def members(self, name: str, collection_id: int) -> Sequence[dict[str, object]]:
        """What ``wal cursor show`` says of the members. Not their names: these prove who one is."""
        group = self._groups.get((name, collection_id))
        if group is None:
            return []
        return [
            {"pid": one.link.peer_pid, "shards": group.owned(one)} for one in group.members.values()
        ]

    def _member(self, name: str) -> Member:
        found = self._members.get(name)
        if found is None:
            raise MemberFencedError("this member is in no group (any more)", member=name)
        return found

    def _expire(self, member: Member) -> None:
        self._remove(member, f"it did not renew for {member.lease_seconds:g} s")
        member.link.abort()  # It is not to print the rows of others when it wakes up.

    def _remove(self, member: Member, why: str) -> None:
        if self._members.pop(member.name, None) is None:
            return
        member.link.on_lost.pop(member.name, None)
        self._leases.clear(member.name)
        group = member.group
        log.info(
            "a member is gone",
            extra={"group": group.name, "collection": group.collection, "why": why},
        )
        del group.members[member.name]
        for shard in group.owned(member):
            del group.owners[shard]
        if member.waiter is not None and not member.waiter.done():
            member.waiter.set_exception(MemberFencedError(f"the member was removed: {why}"))
        if group.members:
            group.settle()
        else:
            del self._groups[group.name, group.collection_id]


def share_out(shards: int, members: Sequence[str], current: Mapping[int, str]) -> dict[int, str]:
    """Which member each shard should have: as evenly as can be, moving as few as can be.

    Of unequal shares the larger go to those that hold most, and then to those that stand first in
    ``members``. ``current``: owners now; those that are no members count for nothing."""
    held: dict[str, list[int]] = {name: [] for name in members}
    free: list[int] = []
    for shard in range(shards):
        owner = held.get(current.get(shard, ""))
        (free if owner is None else owner).append(shard)
    least, larger = divmod(shards, len(members))
    order = sorted(members, key=lambda name: -len(held[name]))
    quota = {name: least + (place < larger) for place, name in enumerate(order)}
    for name, own in held.items():
        free += own[quota[name] :]
        del own[quota[name] :]
    for name, own in held.items():
        while len(own) < quota[name]:
            own.append(free.pop(0))
    return {shard: name for name, own in held.items() for shard in own}


def _occupied(group: Group) -> MemberFencedError:
    count = len(group.members)
    return MemberFencedError(
        f"group {group.name!r} has {count} {'member' if count == 1 else 'members'} on "
        f"{group.collection!r}; only they move its cursor",
        hint=f"end them first; wal cursor show {group.name}",
        members=count,
    )
