"""The raw disk: what nobody can beat."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.results import Latencies, quantiles

MIB = 1 << 20


def sequential(folder: Path, total: int, block: int = MIB) -> float:
    """Bytes a second of ``block``-sized writes with fdatasync each, into a preallocated file."""
    path = folder / "floor"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    data = os.urandom(block)
    started = time.perf_counter()
    os.posix_fallocate(fd, 0, total)
    for position in range(0, total, block):
        os.pwrite(fd, data, position)
        os.fdatasync(fd)
    seconds = time.perf_counter() - started
    os.close(fd)
    path.unlink()
    return total / seconds


def single(folder: Path, count: int, size: int = 4096) -> Latencies:
    """One write + fdatasync of ``size`` bytes, into a preallocated file."""
    path = folder / "floor"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(fd, 0, count * size)
    data = os.urandom(size)
    samples = []
    for number in range(count):
        started = time.perf_counter()
        os.pwrite(fd, data, number * size)
        os.fdatasync(fd)
        samples.append(time.perf_counter() - started)
    os.close(fd)
    path.unlink()
    return quantiles(samples)


def touch(folder: Path, total: int) -> None:
    """Write and free blocks, so that nobody pays for a virtual disk's first use of them."""
    path = folder / "touch"
    with path.open("wb") as file:
        for _ in range(total // (8 * MIB)):
            file.write(os.urandom(8 * MIB))
        os.fsync(file.fileno())
    path.unlink()


def read_cold(paths: list[Path]) -> float:
    """Bytes a second of plain reads of files that are not in the page cache."""
    forget(paths)
    buffer = bytearray(MIB)
    total = 0
    started = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                total += size
    return total / (time.perf_counter() - started)


def forget(paths: list[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
