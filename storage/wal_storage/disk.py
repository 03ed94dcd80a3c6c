"""The calls that touch the disk, in one place, so that a test can hand in a disk that fails.

Errors are the operating system's own OSError; who calls decides what they mean.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Disk:
    """A folder of the file system below an open descriptor; paths are names in that folder."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        os.makedirs(path, mode=0o750, exist_ok=True)
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._folder)

    @property
    def descriptor(self) -> int:
        """The folder's own descriptor, to watch it."""
        return self._folder

    def names(self) -> list[str]:
        """All names in the folder, unsorted."""
        return os.listdir(self._folder)

    def exists(self, name: str) -> bool:
        """Whether the folder has this name. Raises OSError where that cannot be known: fencing
        rests on a "no" from here, and ``access`` says "no" to an I/O error as well."""
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def open_read(self, name: str) -> int:
        return os.open(name, _READ, dir_fd=self._folder)

    def open_write(self, name: str) -> int:
        return os.open(name, _WRITE, dir_fd=self._folder)

    def create(self, name: str) -> int:
        """A new file, exclusively; what an earlier try left under this name is removed."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)
        return os.open(name, _CREATE, 0o640, dir_fd=self._folder)

    def link(self, existing: str, new: str) -> None:
        """The second name of a file. Raises FileExistsError: of two that link, one wins."""
        os.link(existing, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._folder)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def sync_folder(self) -> None:
        os.fsync(self._folder)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        os.fdatasync(fd)

    def allocate(self, fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def free_bytes(self) -> int:
        """What an ordinary user may still write on this file system."""
        stat = os.fstatvfs(self._folder)
        return stat.f_bavail * stat.f_frsize

    def write(self, fd: int, buffers: Sequence[Buffer], position: int) -> None:
        """All buffers at ``position``; a short write goes on where it stopped."""
        total = sum(map(len, buffers))
        written = os.pwritev(fd, buffers, position)
        if written == total:
            return
        rest = memoryview(b"".join(buffers))
        while written < total:
            written += os.pwritev(fd, [rest[written:]], position + written)

    def read(self, fd: int, size: int, position: int) -> bytearray:
        """Up to ``size`` bytes; fewer only at the end of the file."""
        data = bytearray(size)
        view = memoryview(data)
        got = 0
        while got < size:
            count = os.preadv(fd, [view[got:]], position + got)
            if count == 0:
                view.release()
                del data[got:]
                return data
            got += count
        return data

    def read_all(self, name: str) -> bytearray:
        """A whole file."""
        fd = self.open_read(name)
        try:
            return self.read(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    def prefetch(self, fd: int, size: int, position: int) -> None:
        """Have the kernel begin to read what will be asked for soon."""
        os.posix_fadvise(fd, position, size, os.POSIX_FADV_WILLNEED)

    def prefetch_all(self, name: str) -> None:
        """The same for a whole file."""
        fd = self.open_read(name)
        try:
            self.prefetch(fd, 0, 0)
        finally:
            os.close(fd)

    def reread_from_device(self, fd: int) -> None:
        """Make the next read see the device: after a failed fsync the page cache may hold bytes
        that are marked clean and were never written."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def write_whole(self, name: str, data: bytes) -> None:
        """Replace a small file at once, durably: the old one or the new one, never a mixture."""
        temporary = name + ".tmp"
        fd = self.create(temporary)
        try:
            self.write(fd, [data], 0)
            self.sync(fd)
        finally:
            os.close(fd)
        self.rename(temporary, name)
        self.sync_folder()
