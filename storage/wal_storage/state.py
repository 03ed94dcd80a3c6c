"""What a PChannel's log knows: a fold over its messages.

The same object is the daemon's live state, the result of replay, and the content of the snapshot
that opens each segment. Replay of a log and life after it end in equal states; tests rely on that.
"""

from __future__ import annotations

from typing import Any

import msgspec

from wal_core.errors import CorruptError, FormatError
from wal_core.message import NO_OFFSET, Header, MessageType
from wal_core.names import split_vchannel_id

SNAPSHOT_VERSION = 1


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
    """The earliest offset that the log still has."""

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


class _Snapshot(msgspec.Struct):
    v: int
    next_sequence: int
    tso: int
    vchannels: list[VChannelState]
    # Places for what later versions remember. This one writes them empty: a version that fills
    # them raises SNAPSHOT_VERSION, so that this one refuses its log instead of dropping them.
    producers: list[Any] = []
    transactions: list[Any] = []
    cursors: list[Any] = []
    data_segments: list[Any] = []


_encode = msgspec.msgpack.Encoder().encode
_decode_snapshot = msgspec.msgpack.Decoder(_Snapshot).decode
_decode_create = msgspec.msgpack.Decoder(CreateCollection).decode


class ChannelState:
    """VChannels, next sequence and highest timestamp of one PChannel."""

    def __init__(self) -> None:
        self.next_sequence = 1
        self.tso = 0
        self.vchannels: dict[int, VChannelState] = {}

    def snapshot(self) -> bytes:
        """The state as the body of a SNAPSHOT message."""
        return _encode(
            _Snapshot(SNAPSHOT_VERSION, self.next_sequence, self.tso, list(self.vchannels.values()))
        )

    @classmethod
    def from_snapshot(cls, body: bytes | memoryview) -> ChannelState:
        """Raises CorruptError for a body that is no snapshot."""
        try:
            snapshot = _decode_snapshot(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptError(f"a snapshot that cannot be read: {error}") from None
        if snapshot.v != SNAPSHOT_VERSION:
            raise FormatError(
                f"a snapshot of format {snapshot.v}; this version reads {SNAPSHOT_VERSION}"
            )
        state = cls()
        state.next_sequence = snapshot.next_sequence
        state.tso = snapshot.tso
        state.vchannels = {vchannel.id: vchannel for vchannel in snapshot.vchannels}
        return state

    def apply(self, header: Header, body: memoryview | bytes) -> None:
        """Replay one message of the log."""
        self.next_sequence = header.sequence + 1
        self.tso = max(self.tso, header.tso)
        if header.type == MessageType.INSERT:
            self._apply_insert(header)
        elif header.type == MessageType.CREATE_COLLECTION:
            self.create(header.vchannel, decode_create(body), header.tso)
        elif header.type == MessageType.DROP_COLLECTION:
            if header.vchannel not in self.vchannels:
                raise CorruptError(f"a drop of VChannel {header.vchannel}, which was never created")
            self.drop(header.vchannel, header.tso)

    def create(self, vchannel: int, what: CreateCollection, tso: int) -> VChannelState:
        state = VChannelState(vchannel, what.collection, what.shards, tso, last_tso=tso)
        self.vchannels[vchannel] = state
        return state

    def drop(self, vchannel: int, tso: int) -> None:
        self.vchannels[vchannel].dropped_tso = tso

    def _apply_insert(self, header: Header) -> None:
        vchannel = self.vchannels.get(header.vchannel)
        if vchannel is None:
            raise CorruptError(f"rows of VChannel {header.vchannel}, which was never created")
        if header.first_offset == NO_OFFSET:
            return
        if header.first_offset != vchannel.next_offset:
            raise CorruptError(
                f"rows at offset {header.first_offset} where {vchannel.next_offset} is due"
            )
        vchannel.next_offset += header.rows
        vchannel.last_tso = header.tso


def encode_create(what: CreateCollection) -> bytes:
    return _encode(what)


def decode_create(body: memoryview | bytes) -> CreateCollection:
    try:
        return _decode_create(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"a CreateCollection that cannot be read: {error}") from None
