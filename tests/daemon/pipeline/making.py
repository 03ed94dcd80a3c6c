"""Requests by the kind, and a sequencer whose log can be replayed."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.storage.writer import ManualClock
from wal_core.errors import WalError
from wal_core.message import (
    Header,
    Message,
    MessageType,
    identity_seed,
    message,
    pack_header,
    unpack_header,
)
from wal_core.tso import TsoSource
from wal_daemon.pipeline.sequencer import Sequenced, Sequencer
from wal_daemon.pipeline.timetick import TimeTick
from wal_daemon.pipeline.txn import Leases
from wal_daemon.wal.requests import ANY_OFFSET, NOBODY, AppendRequest, own_request
from wal_storage.state import (
    Change,
    ChannelState,
    CreateCollection,
    VChannelState,
    encode_change,
    encode_create,
)
from wal_storage.transactions import Begin, End, Rollback, encode

V1 = 1 << 16
V2 = 2 << 16
NAMED = 1 << 63
"""Added to a producer's id: one with a name."""


def request_of(made: Message, expect: int = ANY_OFFSET) -> AppendRequest:
    return own_request(made, NOBODY, expect)


def rows(
    count: int = 1, vchannel: int = V1, *, expect: int = ANY_OFFSET, **fields: Any
) -> AppendRequest:
    """An Insert; ``fields`` as ``message`` takes them. ``producer``: id, epoch, sequence."""
    if "producer" in fields:
        id, epoch, sequence = fields.pop("producer")
        fields |= {"producer_id": id, "producer_epoch": epoch, "producer_sequence": sequence}
    return request_of(
        message(MessageType.INSERT, vchannel, b"r\n" * count, rows=count, **fields), expect
    )


def begin(txn: int, vchannel: int = V1, keepalive_ms: int = 10_000) -> AppendRequest:
    body = encode(Begin(keepalive_ms))
    return request_of(message(MessageType.BEGIN_TXN, vchannel, body, txn_id=txn))


def commit(
    txn: int,
    vchannel: int = V1,
    *,
    expect: int = ANY_OFFSET,
    producer: tuple[int, int, int] = (0, 0, 0),
) -> AppendRequest:
    id, epoch, sequence = producer
    return request_of(
        message(
            MessageType.COMMIT_TXN,
            vchannel,
            txn_id=txn,
            producer_id=id,
            producer_epoch=epoch,
            producer_sequence=sequence,
        ),
        expect,
    )


def rollback(txn: int, vchannel: int = V1, end: End = End.ROLLED_BACK) -> AppendRequest:
    body = encode(Rollback(end))
    return request_of(message(MessageType.ROLLBACK_TXN, vchannel, body, txn_id=txn))


def create(vchannel: int = V1, shards: int = 1) -> AppendRequest:
    body = encode_create(CreateCollection(f"c{vchannel >> 16}", shards))
    return request_of(message(MessageType.CREATE_COLLECTION, vchannel, body))


def drop(vchannel: int = V1) -> AppendRequest:
    return request_of(message(MessageType.DROP_COLLECTION, vchannel))


def change(kind: MessageType, vchannel: int = V1, **fields: Any) -> AppendRequest:
    """Any other DDL; ``fields`` of a ``Change``."""
    body = encode_change(Change(**{"number": 1, **fields}))
    return request_of(message(kind, vchannel, body))


class Rotated(NamedTuple):
    """A new segment began here; it opened with ``snapshot``."""

    segment: tuple[int, int]
    snapshot: bytes


class Line:
    """A sequencer with all that it needs, and the log that it wrote."""

    def __init__(self, *created: int) -> None:
        self.clock = ManualClock()
        self.state = ChannelState()
        self.state.segment = (1, 1)
        self.timetick = TimeTick(TsoSource(self.clock, 0))
        self.leases = Leases(self.clock.monotonic)
        self.sequencer = Sequencer(self.state, self.timetick, self.leases)
        self.position = 256
        self.log: list[tuple[Header, bytes] | Rotated] = []
        for vchannel in created:
            self.write(create(vchannel))

    def write(self, *group: AppendRequest) -> Sequenced:
        """One group, confirmed at once."""
        first = self.timetick.begin(len(group))
        outcome = self.sequencer.assign(list(group), first, self.position)
        seed = identity_seed(*self.state.segment)
        for one in outcome.written:
            below = self.state.confirmed_below
            head, _ = pack_header(one, 1, self.position, 0, below, seed)
            self.log.append((unpack_header(head), bytes(one.body)))
            self.position += one.size
        self.timetick.done(first)
        return outcome

    def refusal(self, request: AppendRequest) -> WalError:
        """The error that a request gets which is alone in its group."""
        outcome = self.write(request)
        assert outcome.written == outcome.repeated == []
        ((refused, error),) = outcome.refused
        assert refused is request
        return error

    def rotate(self) -> None:
        """Begin a new segment, as a WAL storage does."""
        sequence = self.state.next_sequence
        snapshot = self.state.snapshot()
        self.state.next_sequence += 1
        self.state.segment = (1, sequence)
        self.position = 256
        self.log.append(Rotated(self.state.segment, snapshot))

    def replayed(self, *, from_snapshot: bool) -> ChannelState:
        """The state that recovery makes of the log: all of it, or of its last segment."""
        state = ChannelState()
        state.segment = (1, 1)
        for entry in self.log:
            if isinstance(entry, Rotated):
                opening = ChannelState.from_snapshot(entry.snapshot)
                if from_snapshot:
                    state = opening
                else:
                    state.tso = opening.tso
                    # It forgets the producers that have expired.
                    assert state.snapshot() == entry.snapshot
                state.segment = entry.segment
                state.next_sequence = entry.segment[1] + 1
            else:
                state.apply(*entry)
        return state

    def __getitem__(self, vchannel: int) -> VChannelState:
        return self.state.vchannels[vchannel]
