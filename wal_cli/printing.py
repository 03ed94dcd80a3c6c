"""Batches to stdout, and the position behind them to whoever keeps it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from collections.abc import Iterator
from typing import Protocol

from wal_cli.keeping import Keeper
from wal_cli.rows import Format
from wal_client.ranges import RowBatch
from wal_core.limits import MIB

_WRITE_BYTES = 256 * 1024
"""What gathers before it is written, unless nothing more is there."""


class Source(Protocol):
    """Where batches come from."""

    def __iter__(self) -> Iterator[RowBatch]: ...

    def has_more(self, seconds: float = 0) -> bool:
        """Whether there is something to go on with, now or within some seconds."""


class Printer:
    """Prints what comes. ``keeper`` is told what went out."""

    def __init__(self) -> None:
        self.keeper = Keeper()
        self._out = _Out()

    def copy(self, source: Source, format: Format, count: int | None) -> None:
        """``count``: rows in all. Each row is written before the next is waited for.

        Raises BrokenPipeError."""
        out = self._out
        left = count
        if left == 0:
            return
        for batch in source:
            if left is not None:
                batch.limit(left)
                left -= batch.count
            self.keeper.wrote(batch)
            out.write(format(batch))
            if left == 0:
                break
            if not source.has_more():
                out.flush()
            if out.is_empty:
                self._keep(source)
        out.flush()
        self.keeper.flushed()

    def settle(self) -> None:
        """Print and save all that came, at once."""
        self._out.flush()
        self.keeper.flushed()
        self.keeper.save()

    def _keep(self, source: Source) -> None:
        """Save what is out when it is due, or let it be where rows come before that."""
        self.keeper.flushed()
        while (seconds := self.keeper.due_in()) is not None:
            if seconds and source.has_more(seconds):
                return
            self.keeper.save()


class _Out:
    """stdout as a descriptor: large pieces go straight through, small ones gather."""

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []
        self._size = 0
        with contextlib.suppress(OSError):  # No pipe, or over what the user may have.
            fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, MIB)

    def write(self, data: bytes | memoryview) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _WRITE_BYTES:
            self.flush()

    @property
    def is_empty(self) -> bool:
        """Whether all went to stdout."""
        return not self._parts

    def flush(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        if parts:
            _write_all(parts[0] if len(parts) == 1 else b"".join(parts))


def _write_all(data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(1, left) :]
        except BlockingIOError:  # Somebody else made our stdout non-blocking.
            poll = select.poll()
            poll.register(1, select.POLLOUT)
            poll.poll()
