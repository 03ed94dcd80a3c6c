"""What a VChannel knows of its transactions: the open ones, and how the last ones ended.

The rows of an open transaction lie in the log from their append on, without offsets. Memory holds
only where they lie, so a transaction may be far larger than memory. The CommitTxn message names
these places, and a reader that meets it fetches the rows from there: it needs neither to have read
the log since the BeginTxn nor to keep anything while it reads.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from wal_core.errors import (
    CorruptError,
    TxnExpiredError,
    TxnInvalidStateError,
    TxnTooLargeError,
    WalError,
)
from wal_core.limits import (
    TXN_EXTENTS_MAX,
    TXN_REMEMBERED_SECONDS,
    TXN_ROWS_MAX,
    TXN_SEGMENTS_MAX,
    TXNS_REMEMBERED_MAX,
)
from wal_core.tso import LOGICAL_BITS

_REMEMBERED_TSO = TXN_REMEMBERED_SECONDS * 1000 << LOGICAL_BITS


class Place(NamedTuple):
    """Where a message begins."""

    term: int
    first_sequence: int
    """With ``term`` the segment's id."""
    position: int


class Extent(msgspec.Struct, array_like=True, gc=False):
    """A range of a segment in which rows of a transaction lie, maybe beside others' messages."""

    term: int
    first_sequence: int
    start: int
    end: int


class End(enum.IntEnum):
    """How a transaction ended."""

    COMMITTED = 0
    ROLLED_BACK = 1
    EXPIRED = 2
    BROKEN = 3
    """A drop, a truncation or another change of the collection came in between."""


class Finished(msgspec.Struct, array_like=True, gc=False):
    """A transaction that ended; of a committed one what its rows got."""

    end: int
    tso: int
    first_offset: int = -1
    rows: int = 0

    def error(self) -> WalError:
        """Why nothing is possible any more with the transaction."""
        if self.end == End.EXPIRED:
            return TxnExpiredError("the transaction expired and was rolled back")
        how = {
            End.COMMITTED: "was committed",
            End.ROLLED_BACK: "was rolled back",
            End.BROKEN: "was rolled back because its collection was changed",
        }
        return TxnInvalidStateError(f"the transaction {how[End(self.end)]}")


class Txn(msgspec.Struct, array_like=True):
    """An open transaction in one VChannel."""

    id: int
    keepalive_ms: int
    begin_sequence: int
    begin_tso: int
    rows: int = 0
    size: int = 0
    """Bytes in the log."""
    segments: int = 0
    extents: list[Extent] = []

    def stage(self, place: Place, size: int, rows: int) -> None:
        """Rows were appended at ``place``."""
        self.rows += rows
        self.size += size
        extents = self.extents
        term, first_sequence, position = place
        if extents:
            last = extents[-1]
            if last.first_sequence == first_sequence and last.term == term:
                if last.end == position:
                    last.end = position + size
                    return
                extents.append(Extent(term, first_sequence, position, position + size))
                if len(extents) > TXN_EXTENTS_MAX:
                    self.extents = _joined(extents)
                return
        self.segments += 1
        extents.append(Extent(term, first_sequence, position, position + size))

    def check_room(self, place: Place, rows: int) -> None:
        """Raises TxnTooLargeError where an append at ``place`` is too much."""
        if self.rows + rows > TXN_ROWS_MAX:
            raise TxnTooLargeError(f"a transaction of more than {TXN_ROWS_MAX} rows")
        if self.segments < TXN_SEGMENTS_MAX or not self.extents:
            return
        last = self.extents[-1]
        if (last.term, last.first_sequence) != place[:2]:
            raise TxnTooLargeError(f"a transaction in more than {TXN_SEGMENTS_MAX} log segments")


def _joined(extents: list[Extent]) -> list[Extent]:
    """Half as many: each joined with its neighbour, where they share a segment."""
    joined: list[Extent] = []
    may_grow = False
    for one in extents:
        last = joined[-1] if joined else None
        if (
            may_grow
            and last is not None
            and (last.term, last.first_sequence) == (one.term, one.first_sequence)
        ):
            last.end = one.end
            may_grow = False
        else:
            joined.append(one)
            may_grow = True
    return joined


class Begin(msgspec.Struct, array_like=True):
    """Body of a BEGIN_TXN message."""

    keepalive_ms: int


class Commit(msgspec.Struct, array_like=True):
    """Body of a COMMIT_TXN message. Its header carries the first offset and the rows."""

    extents: list[Extent]


class Rollback(msgspec.Struct, array_like=True):
    """Body of a ROLLBACK_TXN message."""

    end: int


encode = msgspec.msgpack.Encoder().encode
_decode_begin = msgspec.msgpack.Decoder(Begin).decode
_decode_commit = msgspec.msgpack.Decoder(Commit).decode
_decode_rollback = msgspec.msgpack.Decoder(Rollback).decode


def decode_begin(body: memoryview | bytes) -> Begin:
    """Raises CorruptError; so do the next two."""
    with _readable("BeginTxn"):
        return _decode_begin(body)


def decode_commit(body: memoryview | bytes) -> Commit:
    with _readable("CommitTxn"):
        return _decode_commit(body)


def decode_rollback(body: memoryview | bytes) -> Rollback:
    with _readable("RollbackTxn"):
        return _decode_rollback(body)


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"a {what} that cannot be read: {error}") from None


def remember(finished: dict[int, Finished], txn_id: int, how: Finished) -> None:
    """Note how a transaction ended, and forget those that ended too long ago."""
    finished[txn_id] = how
    oldest = how.tso - _REMEMBERED_TSO
    while len(finished) > TXNS_REMEMBERED_MAX or finished[next(iter(finished))].tso < oldest:
        del finished[next(iter(finished))]
