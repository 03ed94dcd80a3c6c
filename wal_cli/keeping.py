"""Where a tail's position is kept: under a name in the daemon, or in a file.

A row counts as delivered once stdout was flushed behind it. The position is saved then, at most
once a second, and at the end, whatever the end is. So a tail that is killed repeats up to a second
of rows, one that ends otherwise repeats none, and none ever skips any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from wal_cli.cursor_file import CursorFile
from wal_client import cursors
from wal_client.cursors import Position, Step
from wal_client.groups import Member
from wal_client.ranges import From, RowBatch, from_offset
from wal_client.sync import Client
from wal_core.clock import Clock, SystemClock
from wal_core.errors import MemberFencedError, WalError
from wal_core.limits import CURSOR_COMMIT_SECONDS

Start = From | Mapping[int, From]


class Keeper:
    """Keeps nothing: the base of those that do, and what a tail without a cursor has."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._written: dict[str, Position] = {}
        self._delivered: dict[str, Position] = {}
        self._next_save = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Of two errors the first is the one to tell.
        with contextlib.suppress(*(WalError,) if isinstance(error, WalError) else ()):
            self.close()

    def start(self, collection: str) -> Start:
        """Where to read on. Raises NotFoundError."""
        raise NotImplementedError

    def wrote(self, batch: RowBatch) -> None:
        """A batch is on its way to stdout."""

    def flushed(self) -> None:
        """All that was written is out."""

    def due_in(self) -> float | None:
        """Seconds until a save is due; None: there is nothing to save."""
        return None

    def save(self) -> None:
        """Save what was delivered; later, where the daemon is away or its disk is full."""

    def close(self) -> None:
        """Save for the last time. Raises what prevents it."""


class Saving(Keeper):
    """When to save, for those that say how."""

    def wrote(self, batch: RowBatch) -> None:
        self._written.setdefault(batch.collection, {})[batch.shard] = batch.end

    def flushed(self) -> None:
        for collection, position in self._written.items():
            self._delivered.setdefault(collection, {}).update(position)
        self._written.clear()

    def due_in(self) -> float | None:
        if not self._delivered:
            return None
        return max(self._next_save - self._clock.monotonic(), 0)

    def save(self) -> None:
        self._next_save = self._clock.monotonic() + CURSOR_COMMIT_SECONDS
        try:
            self._save()
        except WalError as error:
            if not error.retryable:
                raise

    def close(self) -> None:
        self._save()

    def _save(self) -> None:
        if not self._delivered:
            return
        try:
            self._store(self._delivered)
        except WalError as error:
            if not error.retryable:
                self._delivered = {}  # It was refused, and would be again.
            raise
        self._delivered = {}

    def _store(self, delivered: Mapping[str, Position]) -> None:
        raise NotImplementedError


class NamedKeeper(Saving):
    """A named cursor: one name, a position in each collection."""

    def __init__(self, client: Client, name: str, collections: Iterable[str], start: Start) -> None:
        """``start``: for where the cursor is new. Raises NotFoundError, OutOfRangeError."""
        super().__init__()
        self._name = name
        # Beside the connection of the tail, and sound when that was interrupted half-way.
        self._beside = client.sibling()
        entries = [cursors.place(client, name, one, start) for one in collections]
        self._ids: dict[str, int] = {one["collection"]: one["id"] for one in entries}
        self._saved = {one["collection"]: cursors.position_of(one) for one in entries}

    def start(self, collection: str) -> Start:
        return _starts(self._saved[collection])

    def close(self) -> None:
        self._beside.close()  # It may have been interrupted, too.
        try:
            super().close()
        finally:
            self._beside.close()

    def _store(self, delivered: Mapping[str, Position]) -> None:
        steps = [
            Step(collection, self._ids[collection], position, self._saved[collection])
            for collection, position in delivered.items()
        ]
        cursors.commit(self._beside, self._name, steps)
        for collection, position in delivered.items():
            self._saved[collection] |= position


class GroupKeeper(Saving):
    """The cursor of a group, as far as this member's shards go."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self._member = member

    def forget(self) -> None:
        """Its shards are others' now, who go on where it last saved."""
        self._written.clear()
        self._delivered.clear()

    def save(self) -> None:
        with contextlib.suppress(MemberFencedError):  # The member joins anew, and says so.
            super().save()

    def close(self) -> None:
        self._member.reconnect()
        try:
            super().close()
        finally:
            self._member.close()

    def _store(self, delivered: Mapping[str, Position]) -> None:
        for collection, position in delivered.items():
            held = self._member.held(collection)
            own = {shard: next for shard, next in position.items() if shard in held}
            if own:
                self._member.commit(own, collection)


class FileKeeper(Saving):
    """A cursor file, replaced at each save."""

    def __init__(self, client: Client, path: str, collections: Iterable[str], start: Start) -> None:
        """Raises CursorFileError, NotFoundError, OutOfRangeError."""
        super().__init__()
        self._file = file = CursorFile.read(path)
        for name in collections:
            found = client.call("describe", name=name)
            if not file.has(found):
                file.place(found, cursors.resolve(client, name, start))
            file.check(found)
        file.write()  # A place that cannot be written to is known before anything is printed.

    def start(self, collection: str) -> Start:
        return _starts(self._file.position(collection))

    def _store(self, delivered: Mapping[str, Position]) -> None:
        for collection, position in delivered.items():
            self._file.move(collection, position)
        self._file.write()


def _starts(position: Position) -> dict[int, From]:
    return {shard: from_offset(offset) for shard, offset in position.items()}
