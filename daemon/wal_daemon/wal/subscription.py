"""A tailing reader: served from the write-ahead buffer, or from the log when it is behind.

It moves between the two by itself. What it is sent are whole batches, byte for byte as they lie in
the log; the client cuts the first and the last to the rows it asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

from wal_core import frames
from wal_core.errors import CorruptError, IoFailureError, WalError
from wal_core.limits import SCAN_CHUNK_BYTES
from wal_daemon.wal.pchannel import PChannel
from wal_daemon.wal.reorder import scanner_of
from wal_storage.disk import Buffer
from wal_storage.walstore.base import LogScanner, Run


class Outlet(Protocol):
    """The connection behind a subscription."""

    @property
    def paused(self) -> bool:
        """Whether its socket takes nothing at the moment."""

    def send(self, buffers: Sequence[Buffer]) -> None: ...
    def finished(self, request_id: int) -> None: ...


class Subscription:
    """Rows of one VChannel from an offset on, up to ``end`` (exclusive; None: for ever)."""

    def __init__(
        self,
        pchannel: PChannel,
        vchannel: int,
        offset: int,
        end: int | None,
        outlet: Outlet,
        request_id: int,
        readers: Executor,
    ) -> None:
        self.pchannel = pchannel
        self._vchannel = vchannel
        self._offset = offset
        self._end = end
        self._outlet = outlet
        self._request_id = request_id
        self._readers = readers
        self._loop = asyncio.get_running_loop()
        self._scanner: LogScanner | None = None
        self._wal = pchannel.wal
        self._told = 0
        """The last time tick when the log was read for the last time."""
        self._reading = False
        self._closed = False
        pchannel.listeners.setdefault(vchannel, set()).add(self.wake)

    def wake(self) -> None:
        """Send what there is, as long as the socket takes it."""
        while not (self._closed or self._reading or self._outlet.paused):
            if self._end is not None and self._offset >= self._end:
                self._finish(frames.pack_frame(frames.Kind.END, self._request_id))
                return
            if self._offset >= self.pchannel.next_offsets.get(self._vchannel, 0):
                return
            buffer = self.pchannel.buffer
            rows = buffer.read(self._vchannel, self._offset, SCAN_CHUNK_BYTES)
            if rows is None:
                self._read_log()
                return
            self._drop_scanner()
            parts: list[Buffer] = []
            for batch in rows.batches:
                parts.append(batch.header)
                parts.append(batch.body)
            committed = (rows.first_offset, rows.committed_tso) if rows.committed_tso else None
            self._send(rows.segment, parts, rows.end_offset, committed)

    @property
    def lag(self) -> int:
        """Confirmed rows that are still to be sent."""
        end = self.pchannel.next_offsets.get(self._vchannel, 0)
        if self._end is not None:
            end = min(end, self._end)
        return max(0, end - self._offset)

    def close(self) -> None:
        """Stop; nothing is sent any more."""
        self._closed = True
        self.pchannel.listeners.get(self._vchannel, set()).discard(self.wake)
        if not self._reading:
            self._drop_scanner()

    def _read_log(self) -> None:
        self._reading = True
        if self._wal is not self.pchannel.wal:
            self._drop_scanner()  # The log was opened anew after a failure.
            self._wal = self.pchannel.wal
        self._told = self.pchannel.told
        future = self._loop.run_in_executor(self._readers, self._read)
        future.add_done_callback(self._on_read)

    def _read(self) -> list[Run]:
        if self._scanner is None:
            self._scanner = scanner_of(self._wal, self._vchannel, self._offset, self._violated)
        while runs := self._scanner.read():
            # A scanner starts at an index entry, up to a MiB before the row asked for.
            wanted = [run for run in runs if run.end_offset > self._offset]
            if wanted:
                return wanted
        return []

    def _on_read(self, future: asyncio.Future[list[Run]]) -> None:
        self._reading = False
        if self._closed:
            self._drop_scanner()
            return
        try:
            runs = future.result()
        except WalError as error:
            self._finish(frames.pack_error(self._request_id, error))
            return
        except OSError as error:
            failure = IoFailureError(f"the log cannot be read: {error.strerror}")
            self._finish(frames.pack_error(self._request_id, failure))
            return
        for run in runs:
            segment = (run.term, run.first_sequence)
            self._send(segment, [run.data], run.end_offset, run.committed)
        if not runs:
            if not self._wal.ordered and self._wal is self.pchannel.wal:
                self._await_tick()
                return
            self._drop_scanner()
        self.wake()

    def _await_tick(self) -> None:
        """The row is confirmed, but in an unordered log nobody knows yet what lies before it. The
        next tick wakes this reader, unless it came while the log was read."""
        if self._told != self.pchannel.told:
            self.wake()
        elif not self.pchannel.owes_tick:
            error = CorruptError(f"the row of offset {self._offset} is missing in the log")
            self._finish(frames.pack_error(self._request_id, error))

    def _violated(self) -> None:
        self._loop.call_soon_threadsafe(self.pchannel.count_violation)

    def _send(
        self,
        segment: tuple[int, int],
        parts: list[Buffer],
        end: int,
        committed: tuple[int, int] | None,
    ) -> None:
        if committed is None:
            kind, meta = frames.Kind.BATCHES, frames.BATCHES.pack(*segment)
        else:
            kind, meta = frames.Kind.TXN_BATCHES, frames.TXN_BATCHES.pack(*segment, *committed)
        head = frames.frame_head(kind, self._request_id, meta, sum(map(len, parts)))
        self._offset = max(self._offset, end)
        self._outlet.send([head, *parts])

    def _finish(self, last: bytes) -> None:
        self._outlet.send([last])
        self.close()
        self._outlet.finished(self._request_id)

    def _drop_scanner(self) -> None:
        if self._scanner is not None:
            self._scanner.close()
            self._scanner = None
