"""Cursors: how far a reader came, kept by the daemon under a name.

>>> with wal_client.connect() as client:        # doctest: +SKIP
...     cursor = client.cursor("loader", "orders")
...     for batch in cursor.tail():
...         handle(batch.bodies())
...         cursor.commit({batch.shard: batch.end})

Commit after the rows are dealt with: what was not committed comes again (at least once).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wal_client.ranges import EARLIEST, NOW, From, RowBatch, Until, from_offset
from wal_core.errors import OutOfRangeError

if TYPE_CHECKING:
    from wal_client.sync import Client

Position = dict[int, int]
"""Shard → the next offset to read."""


class Cursor:
    """A named cursor of one collection. ``tail`` has the client's connection for itself while it
    runs; so commits and seeks go over a connection of their own, made when first needed."""

    def __init__(
        self,
        client: Client,
        name: str,
        collection: str,
        start: From | Mapping[int, From] = EARLIEST,
    ) -> None:
        """Finds the cursor; where there is none, a new one is placed at ``start`` (shards that it
        does not name: the first row). Raises NotFoundError for the collection, BadNameError."""
        self.name = name
        self.collection = collection
        self._client = client
        self._beside = client.sibling()
        entry = place(client, name, collection, start)
        self._id: int = entry["id"]
        self._saved = position_of(entry)

    def position(self) -> Position:
        """Where the cursor stands: placed, or last committed by this object."""
        return dict(self._saved)

    def tail(self, until: Until | Mapping[int, Until] = NOW) -> Iterator[RowBatch]:
        """Rows from the position on. Nothing is committed by itself."""
        starts = {shard: from_offset(offset) for shard, offset in self._saved.items()}
        return self._client.tail(self.collection, starts, until)

    def commit(self, position: Mapping[int, int]) -> None:
        """Move on to the next offsets of some shards, durably.

        Raises CursorMovedError where somebody else moved or removed the cursor meanwhile: then
        nothing changed. OutOfRangeError: such an offset is not there yet."""
        step = Step(self.collection, self._id, dict(position), self._saved)
        commit(self._beside, self.name, [step])
        self._saved |= position

    def seek(self, start: From | Mapping[int, From]) -> Position:
        """Move anywhere, also back. Raises OutOfRangeError."""
        entry = seek(self._beside, self.name, self.collection, start)
        self._saved = position_of(entry)
        return self.position()

    def close(self) -> None:
        """Close the connection of its own."""
        self._beside.close()


class Step:
    """Where a commit puts a cursor in one collection."""

    def __init__(
        self,
        collection: str,
        id: int,
        next: Mapping[int, int],
        expect: Mapping[int, int] | None = None,
    ) -> None:
        """``expect``: where it stands; the commit is refused where it does not. ``id``: of the
        collection as it was opened, so that one of the same name is not taken for it."""
        self.collection = collection
        self.id = id
        self.next = dict(next)
        self.expect = (
            None if expect is None else {key: expect[key] for key in next if key in expect}
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "collection": self.collection,
            "id": self.id,
            "next": self.next,
            "expect": self.expect,
        }


def commit(client: Client, name: str, steps: Sequence[Step], **member: Any) -> None:
    """Commit a cursor in some collections, all or none. ``member``: who does so in a group.

    May be repeated: the same commit again changes nothing."""
    client.call("cursor_commit", cursor=name, steps=[one.as_dict() for one in steps], **member)


def place(
    client: Client, name: str, collection: str, start: From | Mapping[int, From]
) -> dict[str, Any]:
    """The entry of a cursor, which is created at ``start`` where there is none.

    Raises OutOfRangeError for one that stands behind the end."""
    where = _where(start, EARLIEST)
    entry = client.call("cursor_place", cursor=name, collection=collection, **where)
    check_position(f"cursor {name!r}", entry, f"wal cursor seek {name} {collection} --to latest")
    return dict(entry)


def seek(
    client: Client, name: str, collection: str, start: From | Mapping[int, From]
) -> dict[str, Any]:
    """Move a cursor; shards that ``start`` does not name stay. Returns the entry."""
    where = _where(start, None)
    return dict(client.call("cursor_seek", cursor=name, collection=collection, **where))


def resolve(
    client: Client, collection: str, start: From | Mapping[int, From], others: From = EARLIEST
) -> Position:
    """The offsets that a start means now; ``others``: for shards that it does not name."""
    return dict(client.call("cursor_resolve", collection=collection, **_where(start, others)))


def position_of(entry: Mapping[str, Any]) -> Position:
    return {one["shard"]: one["offset"] for one in entry["shards"]}


def check_position(what: str, entry: Mapping[str, Any], hint: str) -> None:
    """A log that was put back to an earlier state has fewer rows than were read of it. Waiting
    until it has as many again would skip the new ones. Raises OutOfRangeError."""
    for one in entry["shards"]:
        if one["offset"] > one["next"]:
            raise OutOfRangeError(
                f"{what} of {entry['collection']!r} stands at offset {one['offset']} of shard "
                f"{one['shard']}, behind the end {one['next']}: rows were lost or put back",
                hint=hint,
            )


def _where(start: From | Mapping[int, From], others: From | None) -> dict[str, Any]:
    if isinstance(start, From):
        return {"start": list(start), "shards": {}}
    shards = {shard: list(one) for shard, one in start.items()}
    return {"start": None if others is None else list(others), "shards": shards}
