"""What an append got: offsets, timestamps, and whether it is durable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Ack(NamedTuple):
    """One acknowledged batch."""

    vchannel: str
    first: int
    rows: int
    tso: int
    durable: bool
    tag: Any
    """What the producer's caller gave with the batch."""

    @property
    def last(self) -> int:
        return self.first + self.rows - 1


class Part:
    """A contiguous range of offsets in one VChannel."""

    __slots__ = ("count", "first", "last", "tso", "vchannel")

    def __init__(self, ack: Ack) -> None:
        self.vchannel = ack.vchannel
        self.first = ack.first
        self.last = ack.last
        self.count = ack.rows
        self.tso = ack.tso

    def as_dict(self) -> dict[str, Any]:
        return {
            "vchannel": self.vchannel,
            "first": self.first,
            "last": self.last,
            "count": self.count,
            "tso": str(self.tso),
        }


class Receipt:
    """All that one producer got acknowledged, as ranges. Feed it with ``add``."""

    def __init__(self, collection: str) -> None:
        self.collection = collection
        self.count = 0
        self.tso = 0
        self.durable = True
        self.parts: list[Part] = []
        self._open: dict[str, Part] = {}

    def add(self, ack: Ack) -> None:
        self.count += ack.rows
        if ack.first < 0:  # Staged in a transaction: offsets come with its commit.
            return
        self.tso = max(self.tso, ack.tso)
        self.durable = self.durable and ack.durable
        part = self._open.get(ack.vchannel)
        if part is not None and part.last + 1 == ack.first:
            part.last = ack.last
            part.count += ack.rows
            part.tso = ack.tso
            return
        self._open[ack.vchannel] = part = Part(ack)
        self.parts.append(part)

    def as_dict(self) -> dict[str, Any]:
        """The stable JSON object of ``wal append -o json``."""
        only = self.parts[0] if len(self.parts) == 1 else None
        return {
            "collection": self.collection,
            "vchannel": only.vchannel if only else None,
            "first": only.first if only else None,
            "last": only.last if only else None,
            "count": self.count,
            "tso": str(self.tso) if self.parts else None,
            "durable": self.durable,
            "parts": [part.as_dict() for part in self.parts],
        }


def receipts_of(parts: Iterable[Mapping[str, Any]]) -> dict[str, Receipt]:
    """By collection, of what the daemon answers to a commit."""
    receipts: dict[str, Receipt] = {}
    for part in parts:
        name = part["collection"]
        receipt = receipts.setdefault(name, Receipt(name))
        first, count, tso = part["first"], part["count"], int(part["tso"])
        receipt.add(Ack(part["vchannel"], first, count, tso, True, None))
    return receipts
