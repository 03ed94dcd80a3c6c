"""Disks that watch, fail, fill up and forget."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from wal_storage.disk import Buffer, Disk

Probe = Callable[[str, str, int], None]
"""Called with the operation, ``before`` or ``after``, and its descriptor (-1: a name)."""


class ProbeDisk(Disk):
    """A disk that tells of every call. ``probe`` may raise in place of the call.

    With ``lazy`` the real fsync is left out: what is durable is a matter of the model."""

    def __init__(self, path: bytes, probe: Probe | None = None, *, lazy: bool = True) -> None:
        super().__init__(path)
        self.probe: Probe = probe or (lambda operation, moment, fd: None)
        self.lazy = lazy

    def done(self, operation: str, fd: int, names: tuple[str, ...]) -> None:
        """A call has had its effect. A place for models."""

    def _around(
        self, operation: str, call: Callable[[], Any], fd: int = -1, names: tuple[str, ...] = ()
    ) -> Any:
        self.probe(operation, "before", fd)
        result = call()
        if operation == "create":
            fd = result
        self.done(operation, fd, names)
        self.probe(operation, "after", fd)
        return result

    def write(self, fd: int, buffers: Sequence[Buffer], position: int) -> None:
        plain = super().write
        self._around("write", lambda: plain(fd, buffers, position), fd)

    def sync_data(self, fd: int) -> None:
        plain = super().sync_data
        self._around("sync_data", lambda: self.lazy or plain(fd), fd)

    def sync(self, fd: int) -> None:
        plain = super().sync
        self._around("sync", lambda: self.lazy or plain(fd), fd)

    def sync_folder(self) -> None:
        plain = super().sync_folder
        self._around("sync_folder", lambda: self.lazy or plain())

    def exists(self, name: str) -> bool:
        plain = super().exists
        return bool(self._around("exists", lambda: plain(name)))

    def create(self, name: str) -> int:
        plain = super().create
        return int(self._around("create", lambda: plain(name), names=(name,)))

    def link(self, existing: str, new: str) -> None:
        plain = super().link
        self._around("link", lambda: plain(existing, new), names=(existing, new))

    def unlink(self, name: str) -> None:
        plain = super().unlink
        self._around("unlink", lambda: plain(name), names=(name,))

    def rename(self, old: str, new: str) -> None:
        plain = super().rename
        self._around("rename", lambda: plain(old, new), names=(old, new))

    def allocate(self, fd: int, size: int) -> None:
        self._around("allocate", lambda: os.ftruncate(fd, size), fd)

    def truncate(self, fd: int, size: int) -> None:
        plain = super().truncate
        self._around("truncate", lambda: plain(fd, size), fd)


class ForgetfulDisk(ProbeDisk):
    """Remembers what was made durable, and builds the folder that a power cut leaves.

    A file's bytes are durable after its own sync, a name after a sync of the folder. Of what was
    not synced any part may have reached the device, sector by sector."""

    SECTOR = 512

    def __init__(self, path: bytes, probe: Probe | None = None) -> None:
        super().__init__(path, probe)
        self._next = 0
        self._of_inode: dict[int, int] = {}
        self._content: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        for name in super().names():
            data = bytes(super().read_all(name))
            inode = os.stat(os.path.join(os.fsdecode(path), name)).st_ino
            if inode not in self._of_inode:
                self._identify(inode, data)
            self._names[name] = self._of_inode[inode]
        self._durable_names = dict(self._names)

    def _identify(self, inode: int, data: bytes) -> None:
        self._next += 1
        self._of_inode[inode] = self._next
        self._content[self._next] = data

    def file_of(self, fd: int) -> int:
        """A number that no two files share, unlike descriptors and inodes."""
        return self._of_inode[os.fstat(fd).st_ino]

    def done(self, operation: str, fd: int, names: tuple[str, ...]) -> None:
        if operation == "create":
            self._identify(os.fstat(fd).st_ino, b"")
            self._names[names[0]] = self.file_of(fd)
        elif operation == "link":
            self._names[names[1]] = self._names[names[0]]
        elif operation == "rename":
            self._names[names[1]] = self._names.pop(names[0])
        elif operation == "unlink":
            self._names.pop(names[0], None)
        elif operation in ("sync", "sync_data"):
            self._content[self.file_of(fd)] = _all_of(fd)
        elif operation == "sync_folder":
            self._durable_names = dict(self._names)

    def cut_power(self, target: bytes, chance: random.Random) -> None:
        """Write to ``target`` what is left after a power cut at this moment."""
        os.makedirs(target)
        for name, file in self._durable_names.items():
            data = self._content[file]
            if self._names.get(name) == file:
                data = self._torn(data, bytes(self.read_all(name)), chance)
            with open(os.path.join(target, name.encode()), "wb") as out:
                out.write(data)

    def _torn(self, durable: bytes, current: bytes, chance: random.Random) -> bytes:
        if durable == current or chance.random() < 0.3:
            return durable
        size = max(len(durable), len(current))
        result = bytearray(durable.ljust(len(current), b"\0"))
        keep = chance.choice((0.0, 0.5, 1.0))
        for at in range(0, size, self.SECTOR):
            end = min(at + self.SECTOR, len(current))
            if result[at:end] != current[at:end] and chance.random() < keep:
                result[at:end] = current[at:end]
        return bytes(result)


def _all_of(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
