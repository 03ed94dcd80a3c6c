"""The file of ``wal tail --cursor-file``: one JSON object, replaced as a whole at each save.

``{"version":1,"collections":{"orders":{"id":1,"created":"2026-…Z","next":{"0":812,"1":90}}}}``:
for each collection the next offset to read of each shard. ``id`` and ``created`` say which
collection of that name it was, so that the position is not taken for one in another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from wal_client.cursors import Position, check_position
from wal_core.errors import CursorFileError

_VERSION = 1


class _Place(msgspec.Struct):
    id: int
    created: str
    next: dict[str, int]


class _Content(msgspec.Struct):
    version: int
    collections: dict[str, _Place]


class CursorFile:
    """Positions of one reader in some collections."""

    def __init__(self, path: str, places: dict[str, _Place]) -> None:
        self.path = path
        self._places = places

    @classmethod
    def read(cls, path: str) -> Self:
        """An absent or empty file has no positions. Raises CursorFileError, OSError."""
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        if not data:  # As `mktemp` makes it.
            return cls(path, {})
        try:
            content = msgspec.json.decode(data, type=_Content)
            for place in content.collections.values():
                _check_numbers(place)
        except (msgspec.DecodeError, ValueError) as error:
            raise CursorFileError(f"{path} is no cursor file: {error}", file=path) from None
        if content.version != _VERSION:
            raise CursorFileError(
                f"{path} is a cursor file of version {content.version}; known is {_VERSION}",
                file=path,
            )
        return cls(path, content.collections)

    def has(self, description: Mapping[str, Any]) -> bool:
        """Whether there is a position in a collection, as ``describe`` tells of it.

        Raises CursorFileError where it is one in another collection of that name."""
        name = description["collection"]
        place = self._places.get(name)
        if place is None:
            return False
        if (place.id, place.created) != (description["id"], description["created"]):
            raise CursorFileError(
                f"{self.path} stands in another collection {name!r}, created {place.created}",
                hint=f"remove {self.path} to begin anew",
                file=self.path,
            )
        return True

    def check(self, description: Mapping[str, Any]) -> None:
        """Raises OutOfRangeError for a position behind the end, CursorFileError for shards that
        the collection does not have."""
        name = description["collection"]
        position = self.position(name)
        shards = description["shards"]
        if sorted(position) != [one["shard"] for one in shards]:
            raise CursorFileError(f"{self.path} names other shards than {name!r} has")
        places = [{**one, "offset": position[one["shard"]]} for one in shards]
        entry = {"collection": name, "shards": places}
        check_position(self.path, entry, f"remove {self.path} to begin anew")

    def place(self, description: Mapping[str, Any], position: Position) -> None:
        """A first position in a collection."""
        self._places[description["collection"]] = _Place(
            description["id"], description["created"], _named(position)
        )

    def position(self, collection: str) -> Position:
        return {int(shard): next for shard, next in self._places[collection].next.items()}

    def move(self, collection: str, position: Position) -> None:
        """New offsets of some shards."""
        self._places[collection].next |= _named(position)

    def write(self) -> None:
        """Replace the file: the old content or the new one, whatever happens. Raises OSError."""
        path = os.path.realpath(self.path)  # Of a link the target is replaced.
        temporary = f"{path}.{os.getpid()}.tmp"
        data = msgspec.json.encode(_Content(_VERSION, self._places)) + b"\n"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _named(position: Position) -> dict[str, int]:
    return {str(shard): next for shard, next in position.items()}


def _check_numbers(place: _Place) -> None:
    for shard, next in place.next.items():
        if not (shard.isascii() and shard.isdigit()) or next < 0:
            raise ValueError(f"{shard!r}: {next} is no offset of a shard")
