"""The durable high-water mark of a PChannel's timestamps.

Raised ahead of use: no timestamp above it leaves the process. Whoever opens the PChannel next
starts above it, so timestamps never go back, even where the last ones reached no log.
"""

from __future__ import annotations

import struct

from wal_core.checksum import crc32c
from wal_core.errors import CorruptError
from wal_core.failpoints import failpoint
from wal_core.limits import TSO_AHEAD_MS
from wal_core.tso import ms_of, tso_from_ms
from wal_storage.disk import Disk

NAME = "tso"
_MARK = struct.Struct("<8sQI")
_MAGIC = b"WALTSO\0\1"


class TsoMark:
    """The mark in the folder of one PChannel."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.value = read_mark(disk)

    def cover(self, tso: int) -> None:
        """Make sure that the durable mark is at or above ``tso``. One rename in ten seconds."""
        if tso <= self.value:
            return
        mark = tso_from_ms(ms_of(tso) + TSO_AHEAD_MS)
        body = _MARK.pack(_MAGIC, mark, 0)[:-4]
        failpoint("tso-before-rename")
        self._disk.write_whole(NAME, body + struct.pack("<I", crc32c(body)))
        self.value = mark


def read_mark(disk: Disk) -> int:
    """The mark of a folder; 0 where none was written yet. Raises CorruptError."""
    if not disk.exists(NAME):
        return 0
    data = bytes(disk.read_all(NAME))
    if len(data) != _MARK.size or data[:8] != _MAGIC:
        raise CorruptError(f"{NAME}: not a timestamp mark", file=NAME, offset=0)
    _, mark, checksum = _MARK.unpack(data)
    if crc32c(data[:-4]) != checksum:
        raise CorruptError(f"{NAME}: checksum does not hold", file=NAME, offset=0)
    return int(mark)
