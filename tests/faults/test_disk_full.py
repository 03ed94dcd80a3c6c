"""Row 6: a full disk refuses before anything was written, reads go on, writes come back."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.disks import ProbeDisk
from tests.storage.writer import Writer, segment_names
from wal_core.errors import DiskFullError
from wal_storage.disk import Disk
from wal_storage.log.writer import prepare


class SmallDisk(ProbeDisk):
    """A disk of so many bytes; all that is allocated counts."""

    room = 1 << 40
    lies = False

    def free_bytes(self) -> int:
        return 1 << 40 if self.lies else self.room

    def allocate(self, fd: int, size: int) -> None:
        if size > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(fd, size)
        self.room -= size


def fill(writer: Writer) -> list[bytes]:
    """Append until the disk is full; what was acknowledged."""
    rows: list[bytes] = []
    for number in range(1000):
        body = b"%04d" % number * 10_000
        try:
            writer.append([body])
        except DiskFullError:
            return rows
        rows.append(body)
    raise AssertionError("the disk is never full")


@pytest.mark.parametrize("lies", [False, True])
def test_refused_before_anything_was_written(tmp_path: Path, lies: bool) -> None:
    """``lies``: the free space that the system tells is not there when it is asked for."""
    disk = SmallDisk(os.fsencode(tmp_path))
    disk.lies = lies
    writer = Writer(disk)
    writer.create()
    disk.room = 0
    rows = fill(writer)
    assert len(rows) > 3
    before = (writer.state.next_sequence, writer.state.snapshot(), sorted(disk.names()))
    with pytest.raises(DiskFullError):
        writer.append([b"x" * 200_000])
    assert before == (writer.state.next_sequence, writer.state.snapshot(), sorted(disk.names()))
    assert writer.rows() == rows
    disk.room = 1 << 40
    writer.append([b"back"])
    assert writer.rows() == [*rows, b"back"]
    writer.close()
    again = Writer(disk)
    assert again.rows() == [*rows, b"back"]
    again.close()


def test_recovery_may_use_the_reserve(tmp_path: Path) -> None:
    disk = SmallDisk(os.fsencode(tmp_path))
    writer = Writer(disk)
    writer.create()
    writer.append([b"kept"])
    writer.close(seal=False)
    disk.room = 300 * 1024
    again = Writer(disk)
    assert again.rows() == [b"kept"]
    again.close()


def test_no_room_even_for_a_name(tmp_path: Path) -> None:
    """Out of inodes: creating the file fails already."""
    disk = SmallDisk(os.fsencode(tmp_path))

    def probe(operation: str, moment: str, fd: int) -> None:
        if operation == "create":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.probe = probe
    with pytest.raises(DiskFullError):
        prepare(disk, "x", 1 << 20, 0, 0)
    assert disk.names() == []


def test_a_smaller_segment_where_there_is_no_room_for_a_large_one(tmp_path: Path) -> None:
    disk = SmallDisk(os.fsencode(tmp_path))
    disk.room = 700 * 1024
    prepared = prepare(disk, "x", 4 << 20, 1000, 100 * 1024)
    assert prepared.capacity == 512 * 1024
    os.close(prepared.fd)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "mount"
    where.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=False)


@pytest.mark.root
def test_a_real_small_file_system(tmpfs: Path) -> None:
    log = tmpfs / "log"
    log.mkdir()
    disk = Disk(os.fsencode(log))
    writer = Writer(disk, segment_size=1 << 20)
    writer.create()
    ballast = tmpfs / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    rows = fill(writer)
    assert rows
    assert writer.rows() == rows
    os.unlink(ballast)
    writer.append([b"back"])
    assert writer.rows() == [*rows, b"back"]
    writer.close()
    again = Writer(disk, segment_size=1 << 20)
    assert again.rows() == [*rows, b"back"]
    assert len(segment_names(disk)) >= 2
    again.close()
    disk.close()
