"""The file WAL storage: one folder a PChannel, one term at a time.

Order of an open (durability.md, Fencing): take the term durably, then list and scan what former
owners left, make it durable, then install the first segment of one's own.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future

from wal_core.clock import Clock
from wal_core.errors import BugError, FencedError, WalError
from wal_core.failpoints import failpoint
from wal_core.limits import SEGMENT_SIZE_BYTES
from wal_core.message import Header, Message
from wal_storage import fence
from wal_storage.disk import Disk
from wal_storage.log.chain import Segment, read_chain, scan_segment, start_of
from wal_storage.log.format import (
    HEADER_SIZE_BYTES,
    Predecessor,
    SegmentHeader,
    SegmentId,
    parse_file_name,
)
from wal_storage.log.index import SparseIndex
from wal_storage.log.repair import Cut, repair_tail
from wal_storage.log.scan import ScanEnd
from wal_storage.log.writer import (
    Prepared,
    SegmentWriter,
    prepare,
    reserve_bytes,
    snapshot_message,
)
from wal_storage.state import ChannelState
from wal_storage.tso_mark import TsoMark
from wal_storage.walstore.base import Recovered
from wal_storage.walstore.file_scanner import FileScanner

_TEMPORARY_PREFIX = ".segment."


class FileWal:
    """One PChannel as files. ``recover`` and the appends are called by one thread at a time;
    scanners may run in other threads beside them."""

    ordered = True
    fences = False

    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        housekeeper: Executor,
        pchannel: int,
        node: str,
        *,
        takeover: bool = False,
        segment_size: int = SEGMENT_SIZE_BYTES,
    ) -> None:
        """Take the next term of the folder. Raises NodeHeldError."""
        seen = max((id.term for name in disk.names() if (id := parse_file_name(name))), default=0)
        what = f"PChannel {pchannel}"
        self._disk = disk
        self._clock = clock
        self._housekeeper = housekeeper
        self._pchannel = pchannel
        self._segment_size = segment_size
        self._term = fence.acquire(disk, clock, node, what, takeover=takeover, seen=seen)
        self.term = self._term.number
        try:
            self._mark = TsoMark(disk, self.term)
        except (OSError, WalError):
            self._term.release()
            raise
        self._tip: SegmentWriter | None = None
        self._prepared: Future[Prepared] | None = None
        self._preparations = 0
        self._closed = False
        self._seals: list[Future[None]] = []
        self.void: list[SegmentId] = []
        self.segments: list[Segment] = []
        self.confirmed = (0, 0)
        """(ordinal of the tip in ``segments``, position behind its last confirmed batch)."""

    # -- opening -----------------------------------------------------------------------------------

    def recover(
        self,
        progress: Callable[[int, int], None] = lambda done, total: None,
        complete: Callable[[ChannelState], None] = lambda state: None,
    ) -> Recovered:
        """Replay the tip on top of its opening snapshot, cut a torn tail, start a new segment,
        whose snapshot is the state as ``complete`` leaves it."""
        self._remove_temporaries()
        chain = read_chain(self._disk)
        self.segments = chain.segments
        self.void = chain.void
        progress(0, len(chain.segments))
        state, scanned = ChannelState(), 0
        cuts: list[Cut] = []
        if chain.segments:
            state, cuts, scanned = self._replay(chain.segments[-1])
        state.tso = max(state.tso, self._mark.value)
        complete(state)
        self.make_room(0, state, reserve=0)
        progress(len(chain.segments), len(chain.segments))
        return Recovered(state, cuts, scanned)

    def _replay(self, tip: Segment) -> tuple[ChannelState, list[Cut], int]:
        fd = self._disk.open_write(tip.file_name)
        try:
            # After kill -9 the last records may be in the page cache alone; after a failed fsync
            # the cache may hold what the device does not. So: make durable, then ask the device.
            self._disk.sync(fd)
            self._disk.reread_from_device(fd)
            state, index, data, end = self._scan_tip(tip)
            view = memoryview(data)
            cuts = repair_tail(self._disk, fd, view, tip.id, end)
        finally:
            os.close(fd)
        tip.valid_length = end.valid_length
        tip.index = index
        self._tip_end = Predecessor(tip.id, end.valid_length, end.running)
        return state, cuts, end.valid_length

    def _scan_tip(self, tip: Segment) -> tuple[ChannelState, SparseIndex, bytearray, ScanEnd]:
        state = tip.opening()
        index = SparseIndex()
        first = tip.id.first_sequence

        def visit(header: Header, batch: memoryview) -> None:
            index.note(header)
            if header.sequence != first:
                state.apply(header, batch[len(batch) - header.body_length :])

        data, end = scan_segment(self._disk, tip, visit)
        return state, index, data, end

    def _remove_temporaries(self) -> None:
        for name in self._disk.names():
            if name.startswith(_TEMPORARY_PREFIX):
                with contextlib.suppress(FileNotFoundError):
                    self._disk.unlink(name)

    # -- appending ---------------------------------------------------------------------------------

    @property
    def tip(self) -> SegmentWriter:
        assert self._tip is not None, "recover() comes first"
        return self._tip

    @property
    def tip_id(self) -> SegmentId:
        return self.tip.id

    def has_room(self, size: int) -> bool:
        return self.tip.has_room(size)

    def make_room(self, size: int, state: ChannelState, *, reserve: int | None = None) -> None:
        """Rotate. ``reserve``: bytes to leave free on the disk; recovery itself may use them."""
        sequence = state.next_sequence
        snapshot = state.snapshot()
        opening = snapshot_message(snapshot, sequence, state.tso)
        needed = HEADER_SIZE_BYTES + opening.size + size
        prepared = self._take_prepared(needed, reserve)
        id = SegmentId(self.term, sequence)
        header = SegmentHeader(
            self._pchannel, id, self._predecessor(), self._log_start(id), self._clock.wall_ms()
        )
        failpoint("rotate-before-link")
        try:
            tip = SegmentWriter(self._disk, prepared, header, opening)
        except OSError:
            os.close(prepared.fd)
            if not self.is_current():  # The new owner has swept the file away from under it.
                raise self._fenced() from None
            raise
        old, self._tip = self._tip, tip
        if not self.is_current():
            raise self._fenced()
        state.next_sequence += 1
        segment = Segment(self._disk, header, None)
        segment.start = start_of(state)
        state.segment = (id.term, id.first_sequence)
        segment.index = self._tip.index
        if old is not None:
            self.segments[-1].valid_length = old.position
            self._seals = [seal for seal in self._seals if not seal.done()]
            self._seals.append(self._housekeeper.submit(old.seal))
        self.segments.append(segment)
        self.confirmed = (len(self.segments) - 1, self._tip.position)

    @property
    def position(self) -> int:
        return self.tip.position

    def append(self, messages: Sequence[Message], confirmed_below: int) -> None:
        tip = self.tip
        if not self._term.is_mine:
            raise BugError("a forked child appends to the log of its parent")
        tip.append(messages, confirmed_below)
        if not self._term.is_current():
            raise self._fenced()
        failpoint("append-after-check")
        self.confirmed = (len(self.segments) - 1, tip.position)
        if self._prepared is None and tip.position * 2 > tip.capacity:
            self._prepared = self._housekeeper.submit(self._prepare, self._segment_size, 0, None)

    def cover(self, tso: int) -> None:
        """Make sure that the durable high-water mark is at or above ``tso``."""
        if tso > self._mark.value:
            self._mark.cover(tso)

    def is_current(self) -> bool:
        return self._term.is_current()

    def _fenced(self) -> FencedError:
        who = fence.holder(self._disk, self.term + 1)
        return FencedError(
            f"PChannel {self._pchannel} was taken over by node {who.get('node', '?')}, "
            f"pid {who.get('pid', '?')} (term {self.term + 1})",
            **who,
        )

    def _predecessor(self) -> Predecessor:
        if self._tip is not None:
            return Predecessor(self._tip.id, self._tip.position, self._tip.running)
        return self._tip_end if self.segments else Predecessor()

    def _log_start(self, new: SegmentId) -> SegmentId:
        return self.segments[0].id if self.segments else new

    def _prepare(self, size: int, needed: int, reserve: int | None) -> Prepared:
        self._preparations += 1
        name = f"{_TEMPORARY_PREFIX}{self.term}.{self._preparations}.tmp"
        keep = reserve_bytes(self._disk) if reserve is None else reserve
        return prepare(self._disk, name, max(size, needed), needed, keep)

    def _take_prepared(self, needed: int, reserve: int | None) -> Prepared:
        future, self._prepared = self._prepared, None
        if future is not None:
            with contextlib.suppress(WalError, OSError):
                prepared = future.result()
                if prepared.capacity >= needed:
                    return prepared
                os.close(prepared.fd)
                self._disk.unlink(prepared.name)
        return self._prepare(self._segment_size, needed, reserve)

    # -- reading -----------------------------------------------------------------------------------

    def scanner(self, vchannel: int, offset: int) -> FileScanner:
        tip, _ = self.confirmed
        ordinal = bisect.bisect_right(
            self.segments, offset, 1, tip + 1, key=lambda one: one.next_offset_at_start(vchannel)
        )
        segment = self.segments[ordinal - 1]
        entry = segment.index.floor_offset(vchannel, offset)
        return self._scanner_at(vchannel, ordinal - 1, entry and (entry.position, entry.sequence))

    def offset_at(self, vchannel: int, tso: int) -> int:
        """The offset of the first row at or after a timestamp; -1 where all are before it."""
        tip, _ = self.confirmed
        ordinal = bisect.bisect_left(self.segments, tso, 1, tip + 1, key=lambda s: s.start.tso)
        entry = self.segments[ordinal - 1].index.floor_tso(vchannel, tso)
        place = entry and (entry.position, entry.sequence)
        with contextlib.closing(self._scanner_at(vchannel, ordinal - 1, place)) as scanner:
            return scanner.first_offset_since(tso)

    def _scanner_at(
        self, vchannel: int, ordinal: int, place: tuple[int, int] | None
    ) -> FileScanner:
        first = self.segments[ordinal].id.first_sequence
        position, sequence = place or (HEADER_SIZE_BYTES, first)
        return FileScanner(self, self._disk, vchannel, ordinal, position, sequence)

    # -- closing -----------------------------------------------------------------------------------

    def close(self, *, seal: bool) -> None:
        """End the ownership. ``seal``: a clean stop, which writes the tip's footer. A second call
        does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._prepared is not None:
            with contextlib.suppress(WalError, OSError):
                prepared = self._prepared.result()
                os.close(prepared.fd)
                self._disk.unlink(prepared.name)
        for future in self._seals:
            with contextlib.suppress(OSError):
                future.result()
        try:
            if self._tip is not None:
                if seal and self.is_current():
                    self._tip.seal()
                else:
                    self._tip.close()
        finally:
            self._term.release()
