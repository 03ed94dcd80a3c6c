"""The durable high-water mark of a PChannel's timestamps.

Raised ahead of use: no timestamp above it leaves the process. Whoever opens the PChannel next
starts above it, so timestamps never go back, even where the last ones reached no log.

Each term has a mark of its own, ``tso.<term>``, and the mark of a folder is the highest of them:
an owner that was stopped before its rename and wakes up fenced must not lower its successor's.
"""

from __future__ import annotations

import contextlib
import struct

from wal_core.checksum import crc32c
from wal_core.errors import CorruptError
from wal_core.failpoints import failpoint
from wal_core.limits import TSO_AHEAD_MS
from wal_core.tso import ms_of, tso_from_ms
from wal_storage.disk import Disk

_PREFIX = "tso."
_MARK = struct.Struct("<8sQI")
_MAGIC = b"WALTSO\0\1"


class TsoMark:
    """The mark in the folder of one PChannel, raised by the owner of ``term``."""

    def __init__(self, disk: Disk, term: int) -> None:
        self._disk = disk
        self._name = f"{_PREFIX}{term}"
        self._older = _marks(disk)
        self.value = read_mark(disk)

    def cover(self, tso: int) -> None:
        """Make sure that the durable mark is at or above ``tso``. One rename in ten seconds."""
        if tso <= self.value:
            return
        mark = tso_from_ms(ms_of(tso) + TSO_AHEAD_MS)
        body = _MARK.pack(_MAGIC, mark, 0)[:-4]
        failpoint("tso-before-rename")
        self._disk.write_whole(self._name, body + struct.pack("<I", crc32c(body)))
        self.value = mark
        for name in self._older:  # The new one is durable and above them.
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(name)
        self._older = []


def read_mark(disk: Disk) -> int:
    """The highest mark of a folder; 0 where none was written yet. Raises CorruptError."""
    return max((_read(disk, name) for name in _marks(disk)), default=0)


def _marks(disk: Disk) -> list[str]:
    names = disk.names()
    return [name for name in names if name[: len(_PREFIX)] == _PREFIX and name[4:].isdecimal()]


def _read(disk: Disk, name: str) -> int:
    try:
        data = bytes(disk.read_all(name))
    except FileNotFoundError:
        return 0  # Its owner has just put a higher one in its place.
    if len(data) != _MARK.size or data[:8] != _MAGIC:
        raise CorruptError(f"{name}: not a timestamp mark", file=name, offset=0)
    _, mark, checksum = _MARK.unpack(data)
    if crc32c(data[:-4]) != checksum:
        raise CorruptError(f"{name}: checksum does not hold", file=name, offset=0)
    return int(mark)
