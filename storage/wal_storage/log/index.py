"""The sparse index of a segment: for each VChannel an entry about every MiB of log.

Rebuildable from the data and never trusted over it: a reader that starts at an entry checks the
batch it finds there.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import NamedTuple

from wal_core.limits import INDEX_INTERVAL_BYTES
from wal_core.message import NO_OFFSET, Header


class Entry(NamedTuple):
    vchannel: int
    first_offset: int
    tso: int
    position: int
    sequence: int


class SparseIndex:
    """Entries of one segment, grouped by VChannel, each group in order of position."""

    def __init__(self, entries: Iterable[tuple[int, int, int, int, int]] = ()) -> None:
        self._groups: dict[int, list[Entry]] = {}
        for entry in entries:
            self._groups.setdefault(entry[0], []).append(Entry(*entry))

    def add(self, vchannel: int, first_offset: int, tso: int, position: int, sequence: int) -> None:
        """Note a batch, unless the VChannel has an entry less than a MiB before."""
        if first_offset == NO_OFFSET:
            return
        group = self._groups.get(vchannel)
        if group is None:
            group = self._groups[vchannel] = []
        elif position - group[-1].position < INDEX_INTERVAL_BYTES:
            return
        group.append(Entry(vchannel, first_offset, tso, position, sequence))

    def note(self, header: Header) -> None:
        """Add a batch that was read."""
        self.add(header.vchannel, header.first_offset, header.tso, header.position, header.sequence)

    def entries(self) -> list[Entry]:
        return [entry for group in self._groups.values() for entry in group]

    def floor_offset(self, vchannel: int, offset: int) -> Entry | None:
        """The last entry at or before an offset."""
        group = self._groups.get(vchannel, [])
        at = bisect.bisect_right(group, offset, key=lambda entry: entry.first_offset)
        return group[at - 1] if at else None

    def floor_tso(self, vchannel: int, tso: int) -> Entry | None:
        """The last entry strictly before a timestamp."""
        group = self._groups.get(vchannel, [])
        at = bisect.bisect_left(group, tso, key=lambda entry: entry.tso)
        return group[at - 1] if at else None
