"""Shards: the invariants of a VChannel, judged where offsets are given.

Source of the rules: semantics.md, Messages, and Producers. In the order of the log a collection is
created first and nothing follows its drop; rows go to partitions that exist; a producer's batches
follow one another; a conditional append gets just the offset that it expects.
"""

from __future__ import annotations

from wal_core.checksum import crc32c
from wal_core.errors import (
    AlreadyExistsError,
    BadInputError,
    BugError,
    ExpectationFailedError,
    NotFoundError,
    WalError,
)
from wal_core.limits import BATCH_RECORDS_MAX
from wal_core.message import MessageType
from wal_daemon.wal.requests import ANY_OFFSET, AppendRequest
from wal_storage.producers import Result
from wal_storage.state import (
    CHANGES,
    ChannelState,
    VChannelState,
    decode_change,
    decode_create,
)


class Shards:
    """The interceptor of one PChannel."""

    def __init__(self, state: ChannelState) -> None:
        self._state = state

    def check_rows(self, vchannel: VChannelState | None, request: AppendRequest) -> VChannelState:
        """Rows may go in, as far as the collection is concerned."""
        vchannel = living(vchannel)
        if request.partition and request.partition not in vchannel.partitions:
            raise NotFoundError(
                f"collection {vchannel.collection!r} has no partition {request.partition}: "
                "it was dropped, or never created",
                hint=f"wal collection describe {vchannel.collection}",
            )
        if crc32c(request.body) != request.body_checksum:
            raise BadInputError("the checksum of the batch does not hold: damaged on its way")
        if not 0 < request.rows <= BATCH_RECORDS_MAX:
            raise BadInputError(f"a batch of {request.rows} rows")
        return vchannel

    def first_result(self, vchannel: VChannelState, request: AppendRequest) -> Result | None:
        """What a batch got that was written before; None: it is the next one of its producer.

        Raises OutOfSequenceError, ProducerFencedError, ThrottledError."""
        producers = self._state.producers[vchannel.id]
        result = producers.judge(
            request.producer_id,
            request.producer_epoch,
            request.producer_sequence,
            dense=vchannel.shards == 1,
        )
        if result is None:
            producers.check_room(request.producer_id, self._state.tso)
        return result

    def note(self, vchannel: VChannelState, request: AppendRequest) -> None:
        """A batch of a producer got its place."""
        self._state.producers[vchannel.id].note(
            request.producer_id,
            request.producer_epoch,
            (request.producer_sequence, request.first_offset, request.rows, request.tso),
        )

    def check_expectation(self, vchannel: VChannelState, request: AppendRequest) -> None:
        """Raises ExpectationFailedError with the true offset."""
        if request.expect not in (ANY_OFFSET, vchannel.next_offset):
            earlier = min(request.expect, vchannel.next_offset)
            raise ExpectationFailedError(
                f"offset {request.expect} was expected, the next one is {vchannel.next_offset}",
                hint=f"wal tail {vchannel.collection} --from {earlier}",
                expected=request.expect,
                next=vchannel.next_offset,
            )

    def change(self, vchannel: VChannelState | None, request: AppendRequest) -> None:
        """DDL: judge it, then apply it."""
        state = self._state
        kind = request.type
        if kind == MessageType.CREATE_COLLECTION:
            what = decode_create(bytes(request.body))
            if vchannel is not None:
                raise AlreadyExistsError(f"a shard of collection {what.collection!r} exists")
            state.create(request.vchannel, what, request.tso)
            return
        vchannel = living(vchannel)
        if kind == MessageType.DROP_COLLECTION:
            state.drop(vchannel, request.tso)
            return
        if kind not in CHANGES:
            raise BugError(f"a message of type {kind} on the append path")
        body = bytes(request.body)
        change = decode_change(body)
        name = vchannel.collection
        if kind == MessageType.CREATE_PARTITION and change.name in vchannel.partitions.values():
            raise AlreadyExistsError(f"collection {name!r} has a partition {change.name!r}")
        if kind == MessageType.DROP_PARTITION and change.partition not in vchannel.partitions:
            raise NotFoundError(f"collection {name!r} has no partition {change.partition}")
        state.change(vchannel, kind, body, request.tso)


def living(vchannel: VChannelState | None) -> VChannelState:
    """Raises NotFoundError for a collection that was dropped, or never created."""
    if vchannel is not None and not vchannel.dropped_tso:
        return vchannel
    what = "it was dropped" if vchannel is not None else "it was never created"
    raise _no_collection(what)


def _no_collection(what: str) -> WalError:
    return NotFoundError(f"no such collection: {what}")
