"""Transactions on the append path: what may be staged, committed and rolled back, and until when.

What is open and how things ended is part of the log's state (``wal_storage.transactions``). Leases
are not: they run on the monotonic clock and begin anew, in full, after a restart.
"""

from __future__ import annotations

from collections.abc import Callable

from wal_core.errors import ThrottledError, TxnExpiredError, UnknownTxnError, WalError
from wal_core.limits import TXNS_OPEN_MAX
from wal_core.message import Encoding, MessageType, message
from wal_daemon.wal.requests import AppendRequest
from wal_storage.state import ChannelState, VChannelState
from wal_storage.transactions import (
    Commit,
    End,
    Finished,
    Place,
    Txn,
    decode_begin,
    decode_rollback,
    encode,
)


class Leases:
    """Until when each open transaction of a node lives, unless it is renewed."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._leases: dict[int, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, txn_id: int) -> bool:
        return txn_id in self._leases

    def start(self, txn_id: int, seconds: float) -> None:
        """Begin a lease, or begin it anew."""
        self._leases[txn_id] = (self._monotonic() + seconds, seconds)

    def renew(self, txn_id: int) -> None:
        lease = self._leases.get(txn_id)
        if lease is not None:
            self.start(txn_id, lease[1])

    def end(self, txn_id: int) -> None:
        self._leases.pop(txn_id, None)

    def is_over(self, txn_id: int) -> bool:
        lease = self._leases.get(txn_id)
        return lease is None or lease[0] <= self._monotonic()

    def left(self, txn_id: int) -> float:
        """Seconds until a lease is over."""
        lease = self._leases.get(txn_id)
        return 0.0 if lease is None else max(0.0, lease[0] - self._monotonic())

    def over(self) -> tuple[list[int], float | None]:
        """(transactions whose lease is over, seconds until the next one is; None: there is none).
        Sequencers renew leases in threads of their own meanwhile."""
        now = self._monotonic()
        over: list[int] = []
        next_end: float | None = None
        for txn_id, (end, _) in list(self._leases.items()):
            if end <= now:
                over.append(txn_id)
            elif next_end is None or end < next_end:
                next_end = end
        return over, None if next_end is None else next_end - now


class Transactions:
    """The interceptor: judges and applies in the order of the log."""

    def __init__(self, state: ChannelState, leases: Leases) -> None:
        self._state = state
        self._leases = leases

    def begin(self, vchannel: VChannelState, request: AppendRequest, sequence: int) -> None:
        if len(vchannel.txns) >= TXNS_OPEN_MAX:
            raise ThrottledError(f"{TXNS_OPEN_MAX} transactions are open in this shard")
        what = decode_begin(bytes(request.body))
        self._state.begin(vchannel, request.txn_id, what, sequence, request.tso)

    def stage(self, vchannel: VChannelState, request: AppendRequest, place: Place) -> None:
        """Rows of a transaction, which will lie at ``place``. Renews the lease."""
        txn = self.open(vchannel, request.txn_id)
        txn.check_room(place, request.rows)
        txn.stage(place, request.size, request.rows)
        self._leases.renew(request.txn_id)

    def open(self, vchannel: VChannelState, txn_id: int) -> Txn:
        """A transaction that is open. Raises what became of it otherwise."""
        txn = vchannel.txns.get(txn_id)
        if txn is None:
            raise self._why_not(vchannel, txn_id)
        return txn

    def committed(self, vchannel: VChannelState, txn_id: int) -> Finished | None:
        """What a transaction got that was committed before: the answer to a repeated commit."""
        finished = vchannel.finished.get(txn_id)
        return finished if finished is not None and finished.end == End.COMMITTED else None

    def commit(self, vchannel: VChannelState, request: AppendRequest) -> None:
        """Give the rows their offsets, and the message its body: where the rows lie."""
        txn = self.open(vchannel, request.txn_id)
        request.replace(
            message(
                MessageType.COMMIT_TXN,
                request.vchannel,
                encode(Commit(txn.extents)),
                encoding=Encoding.MSGPACK,
                rows=txn.rows,
                producer_id=request.producer_id,
                producer_epoch=request.producer_epoch,
                producer_sequence=request.producer_sequence,
                txn_id=request.txn_id,
            )
        )
        request.first_offset = vchannel.next_offset
        self._state.commit(vchannel, request.txn_id, txn.rows, request.tso)

    def roll_back(self, vchannel: VChannelState, request: AppendRequest) -> None:
        self.open(vchannel, request.txn_id)
        end = decode_rollback(bytes(request.body)).end
        if end == End.EXPIRED and not self._leases.is_over(request.txn_id):
            raise TxnExpiredError("it was renewed in the last moment")  # Nobody sees this one.
        self._state.roll_back(vchannel, request.txn_id, end, request.tso)

    def _why_not(self, vchannel: VChannelState, txn_id: int) -> WalError:
        finished = vchannel.finished.get(txn_id)
        if finished is not None:
            return finished.error()
        return UnknownTxnError(f"no transaction {txn_id:016x} in this collection")
