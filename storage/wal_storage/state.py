"""What a PChannel's log knows: a fold over its messages.

The same object is the daemon's live state, the result of replay, and the content of the snapshot
that opens each segment. Replay of a log and life after it end in equal states; tests rely on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from wal_core.errors import CorruptError, FormatError
from wal_core.message import NO_OFFSET, Header, MessageType
from wal_core.names import split_vchannel_id
from wal_storage.producers import Producer, Producers
from wal_storage.transactions import (
    Begin,
    End,
    Finished,
    Place,
    Txn,
    decode_begin,
    decode_commit,
    decode_rollback,
    remember,
)

SNAPSHOT_VERSION = 2
"""2: producers, transactions, partitions, settings and cursors."""
_READABLE = (1, 2)
DEFAULT_PARTITION = 0
_NEVER = 1 << 63


class VChannelState(msgspec.Struct, array_like=True):
    """One shard of a collection, as the log left it."""

    id: int
    collection: str
    shards: int
    """How many shards the collection has, this one included."""
    created_tso: int
    next_offset: int = 0
    last_tso: int = 0
    dropped_tso: int = 0
    """0 while it lives; ids of dropped ones are never given again."""
    first_offset: int = 0
    """The earliest offset that is to be seen: the log may start later, a truncation hides more."""
    producers_by_id: dict[int, Producer] = {}
    txns: dict[int, Txn] = {}
    """Open transactions, in order of their BeginTxn."""
    finished: dict[int, Finished] = {}
    """Transactions that ended lately, in that order."""
    partitions: dict[int, str] = {}
    """Besides the default one, which has no name and id 0."""
    last_partition: int = 0
    """Ids of dropped ones are never given again."""
    settings: dict[str, str] = {}
    ddl: int = 0
    """Number of the last change of the collection that reached this shard."""
    last_change: tuple[int, bytes] = (0, b"")
    """Its type and body: what a shard that it did not reach before a crash still has to get."""

    @property
    def collection_id(self) -> int:
        return split_vchannel_id(self.id)[0]

    @property
    def shard(self) -> int:
        return split_vchannel_id(self.id)[1]


class CreateCollection(msgspec.Struct, array_like=True):
    """Body of a CREATE_COLLECTION message. Sent to each shard; each carries the whole, so replay
    can finish a creation that was cut short."""

    collection: str
    shards: int


class Change(msgspec.Struct, array_like=True):
    """Body of the other DDL messages but DROP_COLLECTION. Each shard gets the same."""

    number: int
    """Of the collection's changes, from 1."""
    partition: int = 0
    name: str = ""
    """Of a partition that is created."""
    settings: dict[str, str] = {}
    """What ALTER_COLLECTION sets; an empty value takes a setting away."""


class _Snapshot(msgspec.Struct):
    v: int
    next_sequence: int
    tso: int
    vchannels: list[VChannelState]
    # Places of version 1, always empty there. This version keeps what belongs to a VChannel with
    # it; `cursors` is what a lost catalog gets back, `data_segments` still has to be filled: a
    # version that does so raises SNAPSHOT_VERSION, so that older ones refuse its log.
    producers: list[Any] = []
    transactions: list[Any] = []
    cursors: list[tuple[bytes, bytes]] = []
    data_segments: list[Any] = []


_encode = msgspec.msgpack.Encoder().encode
_decode_snapshot = msgspec.msgpack.Decoder(_Snapshot).decode
_decode_create = msgspec.msgpack.Decoder(CreateCollection).decode
_decode_change = msgspec.msgpack.Decoder(Change).decode


class ChannelState:
    """VChannels, next sequence and highest timestamp of one PChannel."""

    def __init__(self) -> None:
        self.next_sequence = 1
        self.tso = 0
        self.segment = (0, 0)
        """Term and first sequence of the segment that the next message belongs to."""
        self.vchannels: dict[int, VChannelState] = {}
        self.cursors: dict[bytes, bytes] = {}
        """Values of the catalog's cursors as of a moment: what a lost catalog gets back."""
        self.producers: dict[int, Producers] = {}
        """VChannel → its producers."""
        self._open: dict[tuple[int, int], int] = {}
        """(VChannel, transaction) → sequence of its BeginTxn, oldest first."""

    def snapshot(self) -> bytes:
        """The state as the body of a SNAPSHOT message."""
        for producers in self.producers.values():
            producers.forget_expired(self.tso)
        return _encode(
            _Snapshot(
                SNAPSHOT_VERSION,
                self.next_sequence,
                self.tso,
                list(self.vchannels.values()),
                cursors=list(self.cursors.items()),
            )
        )

    @classmethod
    def from_snapshot(cls, body: bytes | memoryview) -> ChannelState:
        """Raises CorruptError for a body that is no snapshot."""
        try:
            snapshot = _decode_snapshot(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptError(f"a snapshot that cannot be read: {error}") from None
        if snapshot.v not in _READABLE:
            raise FormatError(
                f"a snapshot of format {snapshot.v}; this version reads up to {SNAPSHOT_VERSION}"
            )
        state = cls()
        state.next_sequence = snapshot.next_sequence
        state.tso = snapshot.tso
        state.cursors = dict(snapshot.cursors)
        for vchannel in snapshot.vchannels:
            state._add(vchannel)
        begun = [
            (txn.begin_sequence, (vchannel.id, txn.id))
            for vchannel in snapshot.vchannels
            for txn in vchannel.txns.values()
        ]
        state._open = {key: sequence for sequence, key in sorted(begun)}
        return state

    @property
    def confirmed_below(self) -> int:
        """Sequence of the oldest BeginTxn that is still open; where none is, one never reached."""
        return next(iter(self._open.values()), _NEVER)

    # -- replay ------------------------------------------------------------------------------------

    def apply(self, header: Header, body: memoryview | bytes) -> None:
        """Replay one message of the log."""
        self.next_sequence = header.sequence + 1
        self.tso = max(self.tso, header.tso)
        kind = header.type
        if kind == MessageType.CREATE_COLLECTION:
            self.create(header.vchannel, decode_create(body), header.tso)
            return
        if header.vchannel == 0:
            return
        vchannel = self.vchannels.get(header.vchannel)
        if vchannel is None:
            raise CorruptError(
                f"a message of type {kind} in VChannel {header.vchannel}, which was never created"
            )
        if kind == MessageType.INSERT:
            self._apply_insert(vchannel, header)
        elif kind == MessageType.BEGIN_TXN:
            self.begin(vchannel, header.txn_id, decode_begin(body), header.sequence, header.tso)
        elif kind == MessageType.COMMIT_TXN:
            decode_commit(body)
            _check_offset(vchannel, header)
            if header.txn_id not in vchannel.txns:
                raise CorruptError(f"a commit of transaction {header.txn_id}, which is not open")
            self.commit(vchannel, header.txn_id, header.rows, header.tso)
            self._note_producer(vchannel, header)
        elif kind == MessageType.ROLLBACK_TXN:
            self.roll_back(vchannel, header.txn_id, decode_rollback(body).end, header.tso)
        elif kind == MessageType.DROP_COLLECTION:
            self.drop(vchannel, header.tso)
        elif kind in CHANGES:
            self.change(vchannel, kind, bytes(body), header.tso)

    def _apply_insert(self, vchannel: VChannelState, header: Header) -> None:
        if header.txn_id:
            txn = vchannel.txns.get(header.txn_id)
            if txn is None:
                raise CorruptError(f"rows of transaction {header.txn_id}, which is not open")
            txn.stage(Place(*self.segment, header.position), header.size, header.rows)
        else:
            _check_offset(vchannel, header)
            vchannel.next_offset += header.rows
            vchannel.last_tso = header.tso
        self._note_producer(vchannel, header)

    def _note_producer(self, vchannel: VChannelState, header: Header) -> None:
        if header.producer_id:
            result = (header.producer_sequence, header.first_offset, header.rows, header.tso)
            producers = self.producers[vchannel.id]
            producers.note(header.producer_id, header.producer_epoch, result)

    # -- what a message does; replay calls these for old messages, the daemon for new ones ---------

    def create(self, vchannel: int, what: CreateCollection, tso: int) -> VChannelState:
        state = VChannelState(vchannel, what.collection, what.shards, tso, last_tso=tso)
        self._add(state)
        return state

    def drop(self, vchannel: VChannelState, tso: int) -> None:
        vchannel.dropped_tso = tso
        self._break_transactions(vchannel, tso)
        self.producers[vchannel.id].by_id.clear()

    def change(self, vchannel: VChannelState, kind: int, body: bytes, tso: int) -> None:
        """Any DDL but creation and drop."""
        what = decode_change(body)
        vchannel.ddl = what.number
        vchannel.last_change = (kind, body)
        if kind == MessageType.TRUNCATE_COLLECTION:
            vchannel.first_offset = vchannel.next_offset
        elif kind == MessageType.CREATE_PARTITION:
            vchannel.partitions[what.partition] = what.name
            vchannel.last_partition = what.partition
        elif kind == MessageType.DROP_PARTITION:
            vchannel.partitions.pop(what.partition, None)
        elif kind == MessageType.ALTER_COLLECTION:
            merged = vchannel.settings | what.settings
            vchannel.settings = {key: value for key, value in merged.items() if value}
        self._break_transactions(vchannel, tso)

    def begin(
        self, vchannel: VChannelState, txn_id: int, what: Begin, sequence: int, tso: int
    ) -> None:
        vchannel.txns[txn_id] = Txn(txn_id, what.keepalive_ms, sequence, tso)
        self._open[vchannel.id, txn_id] = sequence

    def commit(self, vchannel: VChannelState, txn_id: int, rows: int, tso: int) -> Finished:
        """The rows of a transaction take the next offsets."""
        del vchannel.txns[txn_id]
        del self._open[vchannel.id, txn_id]
        how = Finished(End.COMMITTED, tso, vchannel.next_offset, rows)
        vchannel.next_offset += rows
        if rows:
            vchannel.last_tso = tso
        remember(vchannel.finished, txn_id, how)
        return how

    def roll_back(self, vchannel: VChannelState, txn_id: int, end: int, tso: int) -> None:
        if vchannel.txns.pop(txn_id, None) is not None:
            del self._open[vchannel.id, txn_id]
            remember(vchannel.finished, txn_id, Finished(end, tso))

    def _break_transactions(self, vchannel: VChannelState, tso: int) -> None:
        for txn_id in list(vchannel.txns):
            self.roll_back(vchannel, txn_id, End.BROKEN, tso)

    def _add(self, vchannel: VChannelState) -> None:
        self.vchannels[vchannel.id] = vchannel
        self.producers[vchannel.id] = Producers(vchannel.producers_by_id)


CHANGES: Mapping[int, None] = dict.fromkeys(
    map(
        int,
        (
            MessageType.TRUNCATE_COLLECTION,
            MessageType.CREATE_PARTITION,
            MessageType.DROP_PARTITION,
            MessageType.ALTER_COLLECTION,
        ),
    )
)
"""Types of DDL whose body is a ``Change``."""


def _check_offset(vchannel: VChannelState, header: Header) -> None:
    if header.first_offset != vchannel.next_offset or header.first_offset == NO_OFFSET:
        raise CorruptError(
            f"rows at offset {header.first_offset} where {vchannel.next_offset} is due"
        )


def encode_create(what: CreateCollection) -> bytes:
    return _encode(what)


def decode_create(body: memoryview | bytes) -> CreateCollection:
    try:
        return _decode_create(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"a CreateCollection that cannot be read: {error}") from None


def encode_change(what: Change) -> bytes:
    return _encode(what)


def decode_change(body: memoryview | bytes) -> Change:
    try:
        return _decode_change(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"a change of a collection that cannot be read: {error}") from None
