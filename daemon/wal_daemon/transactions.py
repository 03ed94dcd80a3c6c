"""Transactions of a node: begun over collections, one in each of their shards, under one id.

Each shard's part is atomic by itself; the set of them is not (it lies in several VChannels). While
a transaction is open one timer waits for the first lease that ends; without one there is no timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, NamedTuple, Protocol

from wal_core.clock import Clock
from wal_core.errors import (
    TxnExpiredError,
    TxnInvalidStateError,
    UnknownTxnError,
    UsageError,
    WalError,
)
from wal_core.limits import TXN_KEEPALIVE_MAX_SECONDS, TXNS_REMEMBERED_MAX
from wal_core.message import Encoding, Message, MessageType, message
from wal_core.tso import ms_of, rfc3339
from wal_daemon.pipeline.txn import Leases
from wal_daemon.wal.pchannel import PChannel
from wal_daemon.wal.requests import ANY_OFFSET
from wal_storage.catalog.collections import Shard
from wal_storage.transactions import Begin, End, Finished, Rollback, Txn, encode

log = logging.getLogger("wald.transactions")


class ProducerOf(NamedTuple):
    """Whose batch a commit is, for a commit that may be repeated by another transaction."""

    id: int = 0
    epoch: int = 0
    sequence: int = 0


class Spawn(Protocol):
    def __call__(self, work: Coroutine[Any, Any, None]) -> None: ...


class _Part(NamedTuple):
    pchannel: PChannel
    vchannel: int


class Transactions:
    """All methods are called on the event loop."""

    def __init__(self, clock: Clock, leases: Leases, spawn: Spawn) -> None:
        self._clock = clock
        self._leases = leases
        self._spawn = spawn
        self._parts: dict[int, list[_Part]] = {}
        """Transaction → where it was begun; those that ended are forgotten in their turn."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_end = 0.0
        """When it rings, on the monotonic clock."""
        self._none_open = asyncio.Event()
        self._none_open.set()

    @property
    def open(self) -> int:
        """How many are open."""
        return len(self._leases)

    def revive(self, pchannel: PChannel) -> None:
        """Take over what the log of a PChannel left open, each with its full keepalive, and what
        ended lately."""
        for vchannel in pchannel.vchannels.values():
            part = _Part(pchannel, vchannel.id)
            for txn_id in vchannel.finished:
                self._note(txn_id, part)
            for txn in vchannel.txns.values():
                self._note(txn.id, part)
                self._start_lease(txn.id, txn.keepalive_ms / 1000)
                self._wind(txn.keepalive_ms / 1000)

    async def begin(self, scope: Iterable[tuple[PChannel, int]], keepalive: float) -> int:
        """Begin in all VChannels of ``scope``. ``keepalive``: seconds. Returns the id."""
        if not 0 < keepalive <= TXN_KEEPALIVE_MAX_SECONDS:
            raise UsageError(f"a keepalive of {keepalive:g} s; up to a day is possible")
        txn_id = self._clock.token()
        body = encode(Begin(round(keepalive * 1000)))
        parts = [_Part(*one) for one in scope]
        for part in parts:
            self._note(txn_id, part)
        self._start_lease(txn_id, keepalive)
        begun = await self._append(
            parts,
            [
                message(
                    MessageType.BEGIN_TXN,
                    part.vchannel,
                    body,
                    encoding=Encoding.MSGPACK,
                    txn_id=txn_id,
                )
                for part in parts
            ],
        )
        for answer in begun:
            if isinstance(answer, WalError):
                await self.roll_back(txn_id)
                raise answer
        self._start_lease(txn_id, keepalive)
        self._wind(keepalive)
        return txn_id

    async def commit(
        self, txn_id: int, producer: ProducerOf, expect: int = ANY_OFFSET
    ) -> list[tuple[PChannel, Message]]:
        """Make the rows visible, in each VChannel at once. Returns (PChannel, the CommitTxn) by
        VChannel; the same again for a commit that is repeated, and what the first try got for one
        whose producer and sequence were committed before by another transaction.

        Raises TxnExpiredError, TxnInvalidStateError, UnknownTxnError, ExpectationFailedError …"""
        parts = self._find(txn_id)
        for part in parts:
            finished = _finished_in(part, txn_id)
            if finished is not None and finished.end != End.COMMITTED:
                await self.roll_back(txn_id)  # What a change of one collection left of the set.
                raise finished.error()
        answers = await self._append(
            parts,
            [
                message(
                    MessageType.COMMIT_TXN,
                    part.vchannel,
                    encoding=Encoding.MSGPACK,
                    producer_id=producer.id,
                    producer_epoch=producer.epoch,
                    producer_sequence=producer.sequence,
                    txn_id=txn_id,
                )
                for part in parts
            ],
            expect,
        )
        committed: list[tuple[PChannel, Message]] = []
        failure: WalError | None = None
        for part, answer in zip(parts, answers, strict=True):
            if isinstance(answer, WalError):
                failure = failure or answer
            else:
                committed.append((part.pchannel, answer))
        if failure is None or not failure.retryable:
            # What is still open now: refused, or written before by the same producer.
            await self.roll_back(txn_id, missing_ok=True)
        if failure is not None:
            raise failure
        return committed

    async def roll_back(
        self, txn_id: int, end: End = End.ROLLED_BACK, *, missing_ok: bool = False
    ) -> None:
        """End a transaction; none of its rows will be seen. Repeating it does nothing.

        Raises TxnInvalidStateError for one that was committed, UnknownTxnError."""
        parts = self._find(txn_id)
        open_parts = [part for part in parts if _open_in(part, txn_id)]
        if not open_parts:
            self._end_lease(txn_id)
            self._refuse_ended(txn_id, parts, missing_ok=missing_ok)
            return
        body = encode(Rollback(end))
        answers = await self._append(
            open_parts,
            [
                message(
                    MessageType.ROLLBACK_TXN,
                    part.vchannel,
                    body,
                    encoding=Encoding.MSGPACK,
                    txn_id=txn_id,
                )
                for part in open_parts
            ],
        )
        if not any(_open_in(part, txn_id) for part in parts):
            self._end_lease(txn_id)
        for answer in answers:
            if isinstance(answer, WalError) and not missing_ok:
                raise answer

    def keep_alive(self, txn_id: int) -> float:
        """Renew the lease without a write. Returns the seconds of a lease that are left.

        Raises what became of a transaction that is not open."""
        parts = self._find(txn_id)
        for part in parts:
            finished = _finished_in(part, txn_id)
            if finished is not None:
                raise finished.error()
        self._leases.renew(txn_id)
        return self._leases.left(txn_id)

    def check_scope(self, txn_id: int, name: str, shards: Iterable[Shard]) -> None:
        """Raises TxnInvalidStateError where a collection (its name and shards; none where it does
        not exist) is outside of the transaction's scope."""
        inside = {part.vchannel for part in self._find(txn_id)}
        if inside.isdisjoint(shard.vchannel for shard in shards):
            raise TxnInvalidStateError(
                f"collection {name!r} is outside of the scope of transaction {txn_id:016x}",
                hint="begin the transaction over all collections that it writes to",
            )

    def list_open(self) -> list[dict[str, Any]]:
        """The open ones, oldest first: what ``wal txn ls -o json`` prints."""
        found = []
        for txn_id, parts in self._parts.items():
            txns = [
                (part.pchannel.vchannels[part.vchannel], txn)
                for part in parts
                if (txn := _open_in(part, txn_id)) is not None
            ]
            if not txns:
                continue
            found.append(
                {
                    "id": f"{txn_id:016x}",
                    "collections": sorted({vchannel.collection for vchannel, _ in txns}),
                    "rows": sum(txn.rows for _, txn in txns),
                    "bytes": sum(txn.size for _, txn in txns),
                    "begun": rfc3339(ms_of(min(txn.begin_tso for _, txn in txns))),
                    "keepalive_seconds": txns[0][1].keepalive_ms / 1000,
                    "expires_in_seconds": round(self._leases.left(txn_id), 3),
                }
            )
        return found

    def end_broken(self) -> None:
        """After a change of a collection: nobody waits for those that it left open nowhere."""
        for txn_id, parts in self._parts.items():
            if (
                txn_id in self._leases
                and any(_finished_in(part, txn_id) for part in parts)
                and not any(_open_in(part, txn_id) for part in parts)
            ):
                self._end_lease(txn_id)

    async def wait_until_none_is_open(self) -> None:
        await self._none_open.wait()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # -- leases ------------------------------------------------------------------------------------

    def _start_lease(self, txn_id: int, seconds: float) -> None:
        self._leases.start(txn_id, seconds)
        self._none_open.clear()

    def _end_lease(self, txn_id: int) -> None:
        self._leases.end(txn_id)
        if not self._leases:
            self._none_open.set()

    def _wind(self, seconds: float) -> None:
        """Look at the leases in ``seconds``, if not before. A new lease may end earlier than all
        others; renewals do not move the timer: it looks again."""
        end = self._clock.monotonic() + max(seconds, 0.001)
        if self._timer is not None:
            if self._timer_end <= end:
                return
            self._timer.cancel()
        self._timer_end = end
        self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.001), self._ring)

    def _ring(self) -> None:
        self._timer = None
        over, next_end = self._leases.over()
        for txn_id in over:
            self._spawn(self._expire(txn_id))
        if over:
            next_end = min(0.05, next_end or 0.05)  # Ended, or renewed: known in a moment.
        if next_end is not None:
            self._wind(next_end)

    async def _expire(self, txn_id: int) -> None:
        if txn_id not in self._leases:
            return
        try:
            await self.roll_back(txn_id, End.EXPIRED, missing_ok=True)
            log.info("a transaction expired", extra={"txn": f"{txn_id:016x}"})
        except (UnknownTxnError, TxnExpiredError):
            self._end_lease(txn_id)

    # -- parts -------------------------------------------------------------------------------------

    def _find(self, txn_id: int) -> list[_Part]:
        parts = self._parts.get(txn_id)
        if parts is None:
            raise UnknownTxnError(f"there is no transaction {txn_id:016x}")
        return parts

    def _refuse_ended(self, txn_id: int, parts: list[_Part], *, missing_ok: bool) -> None:
        for part in parts:
            finished = _finished_in(part, txn_id)
            if finished is not None and finished.end == End.COMMITTED and not missing_ok:
                raise finished.error()

    def _note(self, txn_id: int, part: _Part) -> None:
        parts = self._parts.setdefault(txn_id, [])
        if part not in parts:
            parts.append(part)
        if len(self._parts) > 2 * TXNS_REMEMBERED_MAX:
            ended = [one for one in self._parts if one not in self._leases]
            for one in ended[: len(ended) // 2]:
                del self._parts[one]

    async def _append(
        self, parts: list[_Part], messages: list[Message], expect: int = ANY_OFFSET
    ) -> list[Message | WalError]:
        """One message to each part, submitted together: they share a group commit."""
        answers = await asyncio.gather(
            *(part.pchannel.append(one, expect) for part, one in zip(parts, messages, strict=True)),
            return_exceptions=True,
        )
        found: list[Message | WalError] = []
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, WalError):
                raise answer
            found.append(answer)
        return found


def _open_in(part: _Part, txn_id: int) -> Txn | None:
    vchannel = part.pchannel.vchannels.get(part.vchannel)
    return None if vchannel is None else vchannel.txns.get(txn_id)


def _finished_in(part: _Part, txn_id: int) -> Finished | None:
    vchannel = part.pchannel.vchannels.get(part.vchannel)
    return None if vchannel is None else vchannel.finished.get(txn_id)
