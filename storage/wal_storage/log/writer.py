"""Write one segment: made whole under a temporary name, filled, sealed.

A segment comes into being by ``link()`` after its header and opening snapshot were fsynced, so
under its own name it is never half made. It is not zero-filled ahead and never recycled.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

from wal_core.checksum import crc32c
from wal_core.errors import BugError, DiskFullError
from wal_core.failpoints import failpoint
from wal_core.limits import DISK_RESERVE_BYTES, INDEX_INTERVAL_BYTES, SEGMENT_SIZE_MIN_BYTES
from wal_core.message import Encoding, Message, MessageType, identity_seed, message, pack_header
from wal_storage.disk import Buffer, Disk
from wal_storage.log.format import (
    HEADER_SIZE_BYTES,
    Footer,
    SegmentHeader,
    pack_footer,
    pack_segment_header,
)
from wal_storage.log.index import SparseIndex

_JOIN_MAX_BYTES = 1 << 18
"""Up to here one copy costs less than the kernel's walk over many buffers."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Prepared:
    """A file with its space taken and nothing in it yet, under a temporary name."""

    def __init__(self, fd: int, name: str, capacity: int) -> None:
        self.fd = fd
        self.name = name
        self.capacity = capacity


def prepare(disk: Disk, name: str, size: int, needed: int, reserve: int) -> Prepared:
    """Take space for a segment of ``size`` bytes, or as much above ``needed`` as there is.

    ``reserve`` bytes of the file system are left alone. Raises DiskFullError; then no file is left.
    """
    while True:
        if disk.free_bytes() - size >= reserve:
            try:
                return _allocate(disk, name, size)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
        if size <= max(needed, SEGMENT_SIZE_MIN_BYTES):
            raise DiskFullError(
                f"no room for a log segment of {size} bytes: {disk.free_bytes()} are free, "
                f"{reserve} of them are kept for recovery"
            )
        size = max(size // 2, needed, SEGMENT_SIZE_MIN_BYTES)


def _allocate(disk: Disk, name: str, size: int) -> Prepared:
    fd = disk.create(name)
    try:
        disk.allocate(fd, size)
    except OSError:
        os.close(fd)
        disk.unlink(name)
        raise
    return Prepared(fd, name, size)


def reserve_bytes(disk: Disk) -> int:
    """How much of this file system is kept free: 8 MiB, on very small ones an eighth."""
    return min(DISK_RESERVE_BYTES, disk.free_bytes() // 8)


class SegmentWriter:
    """The tip of a log. Only ``append`` moves it, and only after ``sync`` is a batch durable."""

    def __init__(
        self, disk: Disk, prepared: Prepared, header: SegmentHeader, snapshot: Message
    ) -> None:
        """Install a prepared file as a segment that opens with ``snapshot``. Durable on return."""
        self._disk = disk
        self._fd = prepared.fd
        self.header = header
        self.id = header.id
        self.capacity = prepared.capacity
        self.failed = False
        self.index = SparseIndex()
        self.running = header.predecessor.running
        self._seed = identity_seed(*header.id)
        self.position = HEADER_SIZE_BYTES
        self.next_sequence = header.id.first_sequence
        buffers: list[Buffer] = [pack_segment_header(header)]
        buffers += self._pack([snapshot], snapshot.sequence - 1, snapshot.sequence)
        disk.write(self._fd, buffers, 0)
        disk.sync(self._fd)
        failpoint("segment-written")
        disk.link(prepared.name, header.id.file_name)
        disk.unlink(prepared.name)
        disk.sync_folder()
        failpoint("segment-linked")

    @property
    def durable_sequence(self) -> int:
        """The PChannel sequence of the last batch written; durable once ``append`` returned."""
        return self.next_sequence - 1

    def has_room(self, size: int) -> bool:
        return self.position + size <= self.capacity

    def append(self, messages: Sequence[Message], confirmed_below: int) -> None:
        """One write and one fdatasync for the whole group. After an OSError the segment is final:
        it must not be written or synced again. ``confirmed_below``: see ``pack_header``."""
        if self.failed:
            raise BugError(f"{self.id.file_name}: an append after a failed one")
        start = self.position
        buffers = self._pack(messages, self.durable_sequence, confirmed_below)
        failpoint("append-before-write")
        try:
            self._disk.write(self._fd, buffers, start)
            failpoint("append-after-write")
            self._disk.sync_data(self._fd)
        except OSError:
            self.failed = True
            raise
        failpoint("append-after-sync")

    def seal(self) -> None:
        """Write the footer and give back the space behind it. After a failure: only close."""
        if self.failed:
            self.close()
            return
        footer = Footer(self.position, self.next_sequence, self.running, self.index.entries())
        data = pack_footer(footer)
        failpoint("seal-before-footer")
        try:
            self._disk.write(self._fd, [data], self.position)
            self._disk.truncate(self._fd, self.position + len(data))
            self._disk.sync(self._fd)
        finally:
            self.close()
        failpoint("seal-after-footer")

    def close(self) -> None:
        """May be called twice: the number of a closed descriptor soon names another file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _pack(
        self, messages: Sequence[Message], synced_upto: int, confirmed_below: int
    ) -> list[Buffer]:
        """Headers and bodies of a group, and the tip moved behind them."""
        buffers: list[Buffer] = []
        add = buffers.append
        checksums: list[bytes] = []
        position = self.position
        term = self.id.term
        seed = self._seed
        indexed = None
        for one in messages:
            head, checksum = pack_header(one, term, position, synced_upto, confirmed_below, seed)
            one.header = head
            if one.vchannel != indexed or one.size >= INDEX_INTERVAL_BYTES // 2:
                indexed = one.vchannel
                self.index.add(indexed, one.first_offset, one.tso, position, one.sequence)
            checksums.append(checksum)
            add(head)
            if one.body:
                add(one.body)
            position += one.size
        size = position - self.position
        self.position = position
        self.running = crc32c(b"".join(checksums), self.running)
        self.next_sequence = messages[-1].sequence + 1
        if size <= _JOIN_MAX_BYTES:
            return [b"".join(buffers)]
        return buffers


def snapshot_message(body: bytes, sequence: int, tso: int) -> Message:
    """The message that opens a segment."""
    opening = message(MessageType.SNAPSHOT, 0, body, encoding=Encoding.MSGPACK)
    opening.sequence = sequence
    opening.tso = tso
    return opening
