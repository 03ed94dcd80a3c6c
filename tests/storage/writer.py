"""The least that writes and reads a log: what the daemon's sequencer does, without a daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from wal_core.batch import decode_bodies, encode_bodies
from wal_core.errors import WalError
from wal_core.message import Message, MessageType, message, unpack_header
from wal_core.tso import TsoSource
from wal_storage.disk import Disk
from wal_storage.log.format import parse_file_name
from wal_storage.state import CreateCollection, decode_create, encode_create
from wal_storage.walstore.file import FileWal

SMALL_SEGMENT = 256 * 1024
V1 = 1 << 16
V2 = 2 << 16


class ManualClock:
    """Stands still until it is told to move."""

    def __init__(self, ms: int = 1_700_000_000_000) -> None:
        self.ms = ms
        self.steady = 0

    def wall_ms(self) -> int:
        return self.ms

    def elapsed_ms(self) -> int:
        return self.steady

    def monotonic(self) -> float:
        return self.steady / 1000

    def token(self) -> int:
        return 4

    def pass_ms(self, ms: int) -> None:
        self.ms += ms
        self.steady += ms


class Inline(Executor):
    """Runs everything at once, so that a test sees one order only."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except (OSError, WalError) as error:
            future.set_exception(error)
            self.failures.append(error)
        return future


class Writer:
    """An open log, with a sequencer that numbers what is appended."""

    def __init__(
        self,
        disk: Disk,
        *,
        clock: ManualClock | None = None,
        node: str = "main",
        takeover: bool = False,
        segment_size: int = SMALL_SEGMENT,
    ) -> None:
        self.disk = disk
        self.clock = clock or ManualClock()
        self.housekeeper = Inline()
        self.wal = FileWal(
            disk,
            self.clock,
            self.housekeeper,
            0,
            node,
            takeover=takeover,
            segment_size=segment_size,
        )
        try:
            recovered = self.wal.recover()
        except BaseException:
            self.wal.close(seal=False)
            raise
        self.state = recovered.state
        self.cuts = recovered.cuts
        self.tso = TsoSource(self.clock, self.state.tso)

    def create(self, vchannel: int = V1, name: str = "demo") -> None:
        body = encode_create(CreateCollection(name, 1))
        self.write([message(MessageType.CREATE_COLLECTION, vchannel, body)])

    def append(self, bodies: Sequence[bytes], vchannel: int = V1) -> int:
        """One batch in a group of its own; the offset of its first row."""
        return self.group([(vchannel, bodies)])[0]

    def group(self, batches: Sequence[tuple[int, Sequence[bytes]]]) -> list[int]:
        """Several batches in one write; their first offsets."""
        messages = []
        for vchannel, bodies in batches:
            encoding, body = encode_bodies(bodies)
            messages.append(
                message(MessageType.INSERT, vchannel, body, encoding=encoding, rows=len(bodies))
            )
        self.write(messages)
        return [one.first_offset for one in messages]

    def mark(self) -> None:
        self.write([message(MessageType.MARK, 0)])

    def write(self, messages: list[Message]) -> None:
        """One group: numbered, and confirmed on return."""
        size = sum(one.size for one in messages)
        if not self.wal.has_room(size):
            self.wal.make_room(size, self.state)
        for one in messages:
            one.sequence = self.state.next_sequence
            one.tso = self.tso.next()
            if one.type == MessageType.INSERT:
                one.first_offset = self.state.vchannels[one.vchannel].next_offset
                self.state.vchannels[one.vchannel].next_offset += one.rows
                self.state.vchannels[one.vchannel].last_tso = one.tso
            elif one.type == MessageType.CREATE_COLLECTION:
                self.state.create(one.vchannel, decode_create(one.body), one.tso)
            self.state.next_sequence = one.sequence + 1
            self.state.tso = one.tso
        self.wal.cover(self.tso.last)
        self.wal.append(messages, self.state.confirmed_below)

    def rows(
        self, vchannel: int = V1, offset: int = 0, found: list[bytes] | None = None
    ) -> list[bytes]:
        """All rows from an offset to the confirmed end; offsets are checked to be dense.

        ``found`` keeps what was read before an error."""
        found = [] if found is None else found
        due = None
        with contextlib.closing(self.wal.scanner(vchannel, offset)) as scanner:
            while runs := scanner.read():
                for run in runs:
                    for header, bodies in batches_of(run.data):
                        assert due in (None, header.first_offset), "a gap or a repeat"
                        due = header.first_offset + header.rows
                        skip = max(0, offset - header.first_offset)
                        found += bodies[skip:]
        return found

    def offset_at(self, tso: int, vchannel: int = V1) -> int:
        return self.wal.offset_at(vchannel, tso)

    def close(self, *, seal: bool = True) -> None:
        self.wal.close(seal=seal)


def batches_of(data: memoryview) -> list[tuple[Any, list[bytes]]]:
    """(header, bodies) of all batches that lie in ``data`` one behind the other."""
    found = []
    at = 0
    while at < len(data):
        header = unpack_header(data, at)
        body = data[at + header.size - header.body_length : at + header.size]
        found.append((header, decode_bodies(header.encoding, body, header.rows)))
        at += header.size
    return found


def segment_names(disk: Disk) -> list[str]:
    return sorted(name for name in disk.names() if parse_file_name(name))
