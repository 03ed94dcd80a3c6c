"""The order of the interceptors: a group of appends goes in, each comes out with its place in the
log, or with the answer that it got before, or with an error.

No I/O. One thread at a time; the state it changes is worth nothing any more if the group then
cannot be written, and is read back from the log.
"""

from __future__ import annotations

from typing import NamedTuple

from wal_core.checksum import crc32c
from wal_core.errors import WalError
from wal_core.limits import BATCH_RECORDS_MAX, PRODUCER_RESULTS_MAX
from wal_core.message import NO_OFFSET, MessageType
from wal_daemon.pipeline.shard import Shards, living
from wal_daemon.pipeline.timetick import TimeTick
from wal_daemon.pipeline.txn import Leases, Transactions
from wal_daemon.wal.requests import ANY_OFFSET, AppendRequest
from wal_storage.producers import Result
from wal_storage.state import ChannelState, VChannelState
from wal_storage.transactions import Place

_INSERT = int(MessageType.INSERT)
_COMMIT = int(MessageType.COMMIT_TXN)
_TIME_TICK = int(MessageType.TIME_TICK)
_OF_A_TXN = frozenset(
    map(int, (MessageType.BEGIN_TXN, MessageType.COMMIT_TXN, MessageType.ROLLBACK_TXN))
)


class Sequenced(NamedTuple):
    """What became of a group."""

    written: list[AppendRequest]
    """Go to the log, in this order."""
    repeated: list[AppendRequest]
    """Were written before; they carry what they got then. To be answered once the group is
    confirmed: the first one may be in it."""
    refused: list[tuple[AppendRequest, WalError]]


class Sequencer:
    """Gives sequence, timestamp and offsets, in the order of arrival."""

    def __init__(self, state: ChannelState, timetick: TimeTick, leases: Leases) -> None:
        self.state = state
        self._timetick = timetick
        self._transactions = Transactions(state, leases)
        self._shards = Shards(state)

    def assign(self, group: list[AppendRequest], first_tso: int, position: int) -> Sequenced:
        """``first_tso``: of as many timestamps as there are requests. ``position``: where in the
        tip the first message will lie."""
        state = self.state
        vchannels = state.vchannels
        all_producers = state.producers
        sequence = state.next_sequence
        tso = first_tso
        outcome = Sequenced([], [], [])
        add = outcome.written.append
        for request in group:
            request.tso = tso
            request.first_offset = NO_OFFSET
            vchannel = vchannels.get(request.vchannel)
            kind = request.type
            if (
                kind == _INSERT
                and vchannel is not None
                and not vchannel.dropped_tso
                and not request.txn_id
                and not request.partition
                and request.expect == ANY_OFFSET
                and 0 < request.rows <= BATCH_RECORDS_MAX
                and crc32c(request.body) == request.body_checksum
            ):
                # The plain case, judged without a call: nearly all requests are.
                offset = vchannel.next_offset
                producer_id = request.producer_id
                if producer_id:
                    producer = all_producers[request.vchannel].by_id.get(producer_id)
                    number = request.producer_sequence
                    if (
                        producer is None
                        or number != producer.sequence + 1
                        or request.producer_epoch != producer.epoch
                    ):
                        if not self._admit(vchannel, request, outcome):
                            continue
                        request.first_offset = offset
                        self._shards.note(vchannel, request)
                    else:
                        producer.sequence = number
                        producer.tso = tso
                        results = producer.results
                        results.append((number, offset, request.rows, tso))
                        if len(results) > PRODUCER_RESULTS_MAX:
                            del results[0]
                request.first_offset = offset
                vchannel.next_offset = offset + request.rows
                vchannel.last_tso = tso
            elif not self._special(
                vchannel, request, outcome, sequence, Place(*state.segment, position)
            ):
                continue
            request.sequence = sequence
            sequence += 1
            tso += 1
            position += request.size
            add(request)
        state.next_sequence = sequence
        state.tso = self._timetick.last
        return outcome

    def _admit(self, vchannel: VChannelState, request: AppendRequest, outcome: Sequenced) -> bool:
        """Whether a batch that is not plainly its producer's next one is to be written."""
        try:
            result = self._shards.first_result(vchannel, request)
        except WalError as error:
            outcome.refused.append((request, error))
            return False
        if result is not None:
            _repeat(request, result, outcome)
        return result is None

    def _special(
        self,
        vchannel: VChannelState | None,
        request: AppendRequest,
        outcome: Sequenced,
        sequence: int,
        place: Place,
    ) -> bool:
        """Everything but plain rows. Whether it is to be written."""
        try:
            kind = request.type
            if kind == _INSERT:
                return self._rows(vchannel, request, outcome, place)
            if kind in _OF_A_TXN:
                return self._transaction(living(vchannel), request, outcome, sequence)
            if request.vchannel:
                self._shards.change(vchannel, request)
            elif kind == _TIME_TICK:
                # What it promises, not its own place: the rest of its group may land before it.
                request.tso = self._timetick.confirmed
        except WalError as error:
            outcome.refused.append((request, error))
            return False
        return True

    def _rows(
        self,
        vchannel: VChannelState | None,
        request: AppendRequest,
        outcome: Sequenced,
        place: Place,
    ) -> bool:
        vchannel = self._shards.check_rows(vchannel, request)
        if request.producer_id:
            # Before the expectation: a conditional append that is repeated did get its offset.
            result = self._shards.first_result(vchannel, request)
            if result is not None:
                _repeat(request, result, outcome)
                return False
        if request.txn_id:
            self._transactions.stage(vchannel, request, place)
        else:
            self._shards.check_expectation(vchannel, request)
            request.first_offset = vchannel.next_offset
            vchannel.next_offset += request.rows
            vchannel.last_tso = request.tso
        if request.producer_id:
            self._shards.note(vchannel, request)
        return True

    def _transaction(
        self, vchannel: VChannelState, request: AppendRequest, outcome: Sequenced, sequence: int
    ) -> bool:
        transactions = self._transactions
        if request.type == MessageType.BEGIN_TXN:
            transactions.begin(vchannel, request, sequence)
        elif request.type == _COMMIT:
            return self._commit(vchannel, request, outcome)
        else:
            transactions.roll_back(vchannel, request)
        return True

    def _commit(self, vchannel: VChannelState, request: AppendRequest, outcome: Sequenced) -> bool:
        before = self._transactions.committed(vchannel, request.txn_id)
        if before is not None:
            _repeat(request, (0, before.first_offset, before.rows, before.tso), outcome)
            return False
        txn = self._transactions.open(vchannel, request.txn_id)
        if not txn.rows:
            request.producer_id = 0  # Nothing in this shard that could be written twice.
        if request.producer_id:
            result = self._shards.first_result(vchannel, request)
            if result is not None:
                _repeat(request, result, outcome)
                return False
        self._shards.check_expectation(vchannel, request)
        self._transactions.commit(vchannel, request)
        if request.producer_id:
            self._shards.note(vchannel, request)
        return True


def _repeat(request: AppendRequest, result: Result, outcome: Sequenced) -> None:
    _, request.first_offset, request.rows, request.tso = result
    outcome.repeated.append(request)
