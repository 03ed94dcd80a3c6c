"""Turn what a reader asked for into offsets of one VChannel."""

from __future__ import annotations

from typing import NamedTuple

from wal_core.errors import OutOfRangeError, ProtocolError
from wal_core.frames import End, Start
from wal_daemon.wal.pchannel import PChannel


class Wanted(NamedTuple):
    """The fields of a SUBSCRIBE frame."""

    vchannel: int
    start_kind: int
    end_kind: int
    reserved: int
    start: int
    end: int


class Span(NamedTuple):
    first: int
    """The first offset that will come."""
    end: int | None
    """The offset behind the last one; None: follow."""
    next: int
    """The VChannel's next offset when the request was judged."""


def resolve(pchannel: PChannel, wanted: Wanted) -> Span:
    """May read the log (timestamps), so not on the event loop.

    Raises OutOfRangeError for an offset that is not there and is not waited for."""
    vchannel = wanted.vchannel
    latest = pchannel.next_offsets.get(vchannel, 0)
    # A truncation that is on its way to the disk is ahead of what is confirmed.
    earliest = min(pchannel.vchannels[vchannel].first_offset, latest)
    follows = wanted.end_kind in (End.NEVER, End.FOLLOW_OFFSET)
    first = _start(pchannel, wanted, earliest, latest)
    if first < earliest or (first > latest and not follows):
        raise OutOfRangeError(
            f"offset {first} is not there: the earliest is {earliest}, the next one {latest}",
            earliest=earliest,
            next=latest,
        )
    return Span(first, _end(pchannel, wanted, latest), latest)


def _start(pchannel: PChannel, wanted: Wanted, earliest: int, latest: int) -> int:
    kind = wanted.start_kind
    if kind == Start.EARLIEST:
        return earliest
    if kind == Start.LATEST:
        return latest
    if kind == Start.OFFSET:
        return wanted.start
    if kind == Start.LAST:
        return max(earliest, latest - wanted.start)
    if kind == Start.TSO:
        return max(earliest, _offset_at(pchannel, wanted.vchannel, wanted.start, latest))
    raise ProtocolError(f"a subscription that starts at {kind}")


def _end(pchannel: PChannel, wanted: Wanted, latest: int) -> int | None:
    kind = wanted.end_kind
    if kind == End.NEVER:
        return None
    if kind == End.NOW:
        return latest
    if kind == End.OFFSET:
        return min(wanted.end + 1, latest)
    if kind == End.FOLLOW_OFFSET:
        return wanted.end + 1
    if kind == End.TSO:
        return _offset_at(pchannel, wanted.vchannel, wanted.end + 1, latest)
    raise ProtocolError(f"a subscription that ends at {kind}")


def _offset_at(pchannel: PChannel, vchannel: int, tso: int, latest: int) -> int:
    offset = pchannel.wal.offset_at(vchannel, tso)
    return latest if offset < 0 else min(offset, latest)
