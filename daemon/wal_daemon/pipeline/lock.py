"""Locks of VChannels. A change of a collection takes those of all its shards, so that no row gets
in between the change of one shard and that of the next. Everything else shares them.

Only what is submitted later waits: what is in the queue already sorts before the change.
"""

from __future__ import annotations

from collections.abc import Iterable

from wal_core.message import MessageType
from wal_daemon.wal.requests import AppendRequest

EXCLUSIVE = frozenset(
    map(
        int,
        (
            MessageType.CREATE_COLLECTION,
            MessageType.DROP_COLLECTION,
            MessageType.TRUNCATE_COLLECTION,
            MessageType.CREATE_PARTITION,
            MessageType.DROP_PARTITION,
            MessageType.ALTER_COLLECTION,
        ),
    )
)
"""Messages that go through while their VChannel is locked: the change itself."""


class Locks:
    """The VChannels of one PChannel that are locked at the moment."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def take(self, vchannels: Iterable[int]) -> None:
        """Changes of one collection never overlap (``Collections`` sees to it)."""
        self.held.update(vchannels)

    def release(self, vchannels: Iterable[int]) -> None:
        self.held.difference_update(vchannels)

    def stops(self, request: AppendRequest) -> bool:
        """Whether the request has to wait."""
        return request.vchannel in self.held and request.type not in EXCLUSIVE
