"""The interface of a WAL storage: what one PChannel is written to and read from.

Files are the first implementation. Object storage with conditional writes, Kafka or Pulsar come
behind the same interface, so nothing above may assume that ``append`` is local or cheap.

A storage may land messages in another order than that of their timestamps, also later than their
``append`` returned. It says so (``ordered``), keeps one promise (a confirmed TIME_TICK has landed,
behind all that was confirmed before it) and leaves the order to its readers: ``LogScanner``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from wal_core.message import Message
from wal_storage.log.format import SegmentId
from wal_storage.log.repair import Cut
from wal_storage.state import ChannelState


class Recovered(NamedTuple):
    """What opening a PChannel found."""

    state: ChannelState
    cuts: list[Cut]
    bytes_scanned: int


class Committed(NamedTuple):
    """What the rows of a transaction got at its commit, beside what their headers say."""

    first_offset: int
    """Of the first row of a run."""
    tso: int


class Run(NamedTuple):
    """Whole batches just as they lie in the log, one behind the other. Of an unordered storage:
    one message of any type; the fields from ``end_offset`` on mean nothing."""

    term: int
    first_sequence: int
    """Of the segment; with ``term`` what header checksums are seeded with."""
    data: memoryview
    end_offset: int
    """Behind the last row."""
    committed: Committed | None = None
    """Set for rows of a transaction."""


class LogScanner(Protocol):
    """One reader's place in a VChannel. Sees confirmed batches only; not for several threads.

    That of an ordered storage returns rows, in the order of their offsets, transactions whole and
    at their commit's place. That of an unordered one returns all messages of the VChannel and the
    TIME_TICKs of the PChannel, each once, in the order in which they landed."""

    def read(self) -> list[Run]:
        """What comes next, about a MiB; empty at the confirmed end. Blocks for I/O.

        Raises CorruptError with file and offset, after all rows before the damage were returned."""

    def close(self) -> None: ...


class WalStorage(Protocol):
    """One PChannel, opened under one term."""

    ordered: bool
    """Whether physical order equals TSO order. Where it does not, TIME_TICKs are appended."""
    fences: bool
    """Whether a write of a former owner fails by itself."""
    term: int

    @property
    def tip_id(self) -> SegmentId:
        """The segment that the last group went to."""

    def recover(self) -> Recovered:
        """Replay, repair, and make ready for appends. Once, before anything else."""

    def has_room(self, size: int) -> bool:
        """Whether a group of so many bytes goes in without a rotation."""

    def make_room(self, size: int, state: ChannelState) -> None:
        """Rotate to a new segment that opens with ``state``. Raises DiskFullError: then nothing
        changed. Takes one sequence of ``state``."""

    @property
    def position(self) -> int:
        """Where in the tip the next message will lie, once there is room; those of a group lie one
        behind the other. Of an unordered storage: a number that grows, and that nobody reads by."""

    def append(self, messages: Sequence[Message], confirmed_below: int) -> None:
        """Write a group and return when it is confirmed: on stable storage, under an ownership
        that was still valid afterwards. Raises FencedError or OSError: the outcome is unknown.
        ``confirmed_below``: sequence of the oldest BeginTxn that is still open."""

    def cover(self, tso: int) -> None:
        """Make sure that no later owner gives a timestamp at or below ``tso``."""

    def scanner(self, vchannel: int, offset: int) -> LogScanner:
        """A reader that returns the batch that holds ``offset`` first. That of an unordered storage
        starts so early that all messages which rows from ``offset`` on rest upon are to come (their
        transactions whole, with BeginTxn and CommitTxn), and may return others before them."""

    def offset_at(self, vchannel: int, tso: int) -> int:
        """The offset of the first row at or after a timestamp."""

    def is_current(self) -> bool:
        """Whether the ownership still holds."""

    def close(self, *, seal: bool) -> None: ...
