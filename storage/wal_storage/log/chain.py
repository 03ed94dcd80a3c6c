"""The log as a chain of segments, found backwards from the newest one of the highest term."""

from __future__ import annotations

import os
from typing import NamedTuple

from wal_core.checksum import crc32c
from wal_core.errors import CorruptError
from wal_core.message import HEADER_SIZE_BYTES as BATCH_HEADER_SIZE_BYTES
from wal_core.message import Header, MessageType, header_is_valid, identity_seed, unpack_header
from wal_storage.disk import Disk
from wal_storage.log.format import (
    HEADER_SIZE_BYTES,
    NO_SEGMENT,
    TRAILER_SIZE_BYTES,
    Footer,
    SegmentHeader,
    SegmentId,
    footer_size,
    parse_file_name,
    unpack_footer,
    unpack_segment_header,
)
from wal_storage.log.index import SparseIndex
from wal_storage.log.scan import ScanEnd, Visit, scan
from wal_storage.state import ChannelState


class Start(NamedTuple):
    """What readers must know of the state in which a segment began."""

    tso: int
    next_offsets: dict[int, int]


def start_of(state: ChannelState) -> Start:
    return Start(state.tso, {one.id: one.next_offset for one in state.vchannels.values()})


class Segment:
    """A segment as readers know it. Snapshot and index are read when first asked for."""

    def __init__(self, disk: Disk, header: SegmentHeader, valid_length: int | None) -> None:
        self._disk = disk
        self.header = header
        self.id = header.id
        self.valid_length = valid_length
        """Bytes that belong to the log; None while it is the tip and not yet scanned."""
        self._index: SparseIndex | None = None
        self._start: Start | None = None

    @property
    def file_name(self) -> str:
        return self.id.file_name

    def opening(self) -> ChannelState:
        """The state that the segment's snapshot carries; read anew each time. Raises
        CorruptError."""
        return read_opening(self._disk, self.id)

    @property
    def start(self) -> Start:
        """Kept, unlike the whole state, which may remember many thousand producers."""
        if self._start is None:
            self._start = start_of(self.opening())
        return self._start

    @start.setter
    def start(self, start: Start) -> None:
        self._start = start

    @property
    def index(self) -> SparseIndex:
        """From the footer, or rebuilt from the data where there is none."""
        if self._index is None:
            footer = read_footer(self._disk, self.file_name)
            if footer is not None and footer.valid_length == self.valid_length:
                self._index = SparseIndex(footer.entries)
            else:
                self._index = self._rebuild_index()
        return self._index

    @index.setter
    def index(self, index: SparseIndex) -> None:
        self._index = index

    def next_offset_at_start(self, vchannel: int) -> int:
        """The VChannel's next offset when the segment began; -1 where it did not exist."""
        return self.start.next_offsets.get(vchannel, -1)

    def _rebuild_index(self) -> SparseIndex:
        index = SparseIndex()

        def note(header: Header, _: memoryview) -> None:
            index.note(header)

        scan_segment(self._disk, self, note)
        return index


def scan_segment(disk: Disk, segment: Segment, visit: Visit) -> tuple[bytearray, ScanEnd]:
    """Visit all batches of a segment up to its valid length, or the first bad one."""
    data = disk.read_all(segment.file_name)
    view = memoryview(data)
    if segment.valid_length is not None:
        view = view[: segment.valid_length]
    header = segment.header
    end = scan(
        view,
        HEADER_SIZE_BYTES,
        header.id,
        header.id.first_sequence,
        header.predecessor.running,
        visit,
    )
    return data, end


class Chain(NamedTuple):
    segments: list[Segment]
    """Oldest first; the last one is the tip."""
    void: list[SegmentId]
    """Segments that are not reached: a fenced owner's, worth nothing."""


def read_chain(disk: Disk) -> Chain:
    """Follow the predecessors from the tip. Raises CorruptError where one is missing or damaged."""
    ids = {id for name in disk.names() if (id := parse_file_name(name))}
    if not ids:
        return Chain([], [])
    segments: list[Segment] = []
    at, valid_length = max(ids), None
    log_start = None
    while at != NO_SEGMENT:
        if at not in ids:
            raise CorruptError(f"{at.file_name}: missing", file=at.file_name, offset=0)
        segment = Segment(disk, read_segment_header(disk, at.file_name), valid_length)
        segments.append(segment)
        log_start = log_start or segment.header.log_start
        if at == log_start:
            break
        if segment.header.predecessor.id >= at:
            raise CorruptError(
                f"{at.file_name}: offset 0: its predecessor is not older",
                file=at.file_name,
                offset=0,
            )
        at = segment.header.predecessor.id
        valid_length = segment.header.predecessor.valid_length
    segments.reverse()
    return Chain(segments, sorted(ids - {segment.id for segment in segments}))


def read_segment_header(disk: Disk, name: str) -> SegmentHeader:
    fd = disk.open_read(name)
    try:
        return unpack_segment_header(disk.read(fd, HEADER_SIZE_BYTES, 0), name)
    finally:
        os.close(fd)


def read_opening(disk: Disk, id: SegmentId) -> ChannelState:
    """The state in a segment's opening snapshot."""
    name = id.file_name
    fd = disk.open_read(name)
    try:
        head = disk.read(fd, BATCH_HEADER_SIZE_BYTES, HEADER_SIZE_BYTES)
        problem = len(head) < BATCH_HEADER_SIZE_BYTES
        if not problem:
            header = unpack_header(bytes(head))
            view = memoryview(head)
            problem = (
                not header_is_valid(view, 0, header, identity_seed(*id))
                or header.type != MessageType.SNAPSHOT
                or header.position != HEADER_SIZE_BYTES
            )
        if problem:
            raise CorruptError(
                f"{name}: offset {HEADER_SIZE_BYTES}: no opening snapshot",
                file=name,
                offset=HEADER_SIZE_BYTES,
            )
        body = disk.read(fd, header.body_length, HEADER_SIZE_BYTES + BATCH_HEADER_SIZE_BYTES)
    finally:
        os.close(fd)
    # The snapshot was fsynced before the segment got its name: it can be damaged, never torn.
    if len(body) != header.body_length or crc32c(body) != header.body_checksum:
        raise CorruptError(
            f"{name}: offset {HEADER_SIZE_BYTES}: the opening snapshot's checksum fails",
            file=name,
            offset=HEADER_SIZE_BYTES,
        )
    return opening_state(bytes(body), id)


def opening_state(body: bytes | memoryview, id: SegmentId) -> ChannelState:
    """The state behind the opening snapshot itself, which takes the first sequence."""
    state = ChannelState.from_snapshot(body)
    state.next_sequence = id.first_sequence + 1
    state.segment = (id.term, id.first_sequence)
    return state


def read_footer(disk: Disk, name: str) -> Footer | None:
    """The footer at the end of a file, or None where it is not sealed (or the footer damaged)."""
    fd = disk.open_read(name)
    try:
        size = os.fstat(fd).st_size
        trailer = disk.read(fd, TRAILER_SIZE_BYTES, max(0, size - TRAILER_SIZE_BYTES))
        length = footer_size(bytes(trailer))
        if not length or length > size:
            return None
        return unpack_footer(memoryview(disk.read(fd, length, size - length)))
    finally:
        os.close(fd)
