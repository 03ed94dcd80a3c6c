"""All of an input as one unit: written whole, or not at all.

What fits one batch is sent as one. More becomes a transaction, which begins when that is known:
its rows go to the log as they come, so the input may be larger than memory. With an identity
(``--seq``, ``--dedup``) the unit is one batch of that producer, so repeating the command never
writes it twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from wal_cli.framing import Batch, Keyed
from wal_cli.keepalive import kept_alive
from wal_cli.pump import Sender, runs_of
from wal_client.batcher import Identity
from wal_client.producer import Producer
from wal_client.receipts import Receipt
from wal_client.sync import Client
from wal_client.txn import Transaction
from wal_core.errors import WalError
from wal_core.limits import BATCH_TARGET_BYTES, TXN_KEEPALIVE_SECONDS
from wal_core.message import Encoding

MakeProducer = Callable[[Transaction | None, Identity | None], Producer]


class AtomicSender:
    """Takes the place of a ``Sender``: holds the first batch back until there is a second one."""

    def __init__(
        self,
        client: Client,
        make: MakeProducer,
        identity: Identity | None,
        expect: int,
        timeout: float,
    ) -> None:
        """``expect``: the offset that the first row must get (-1: any)."""
        self.producer = make(None, identity)
        self._client = client
        self._make = make
        self._identity = identity
        self._expect = expect
        self._timeout = timeout
        self._held: list[Batch | Keyed] = []
        self._transaction: Transaction | None = None
        self._sender: Sender | None = None
        self._alive = ExitStack()

    @property
    def gathers(self) -> bool:
        """Whether small pieces are better kept together."""
        return self._transaction is None

    def send(self, batches: Sequence[Batch | Keyed], end: int | None = None) -> None:
        if self._sender is not None:
            self._sender.send(batches)
            return
        for batch in batches:
            self._hold(batch)
        if self._fits_one_batch():
            return
        name = self.producer.opened.name
        self._transaction = begun = self._client.begin(name)
        self._alive.enter_context(
            kept_alive(self._client.endpoint, begun.id, TXN_KEEPALIVE_SECONDS, self._timeout)
        )
        self.producer = self._make(begun, None)
        self._sender = Sender(self.producer, -1)
        held, self._held = self._held, []
        self._sender.send(held)

    def finish(self) -> Receipt:
        """Write the unit. Returns what it got, now or at its first try."""
        if self._transaction is None:
            Sender(self.producer, self._expect).send(self._held)
            return self.producer.flush()
        self.producer.flush()
        receipts = self._transaction.commit(self._identity, self._expect)
        self._transaction = None
        self._alive.close()
        name = self.producer.opened.name
        return receipts.get(name) or Receipt(name)

    def abort(self) -> None:
        """Write nothing. As good as possible: the lease ends anyway."""
        self._alive.close()
        if self._transaction is not None:
            with contextlib.suppress(WalError, OSError):
                self._transaction.rollback()

    def _hold(self, batch: Batch | Keyed) -> None:
        last = self._held[-1] if self._held else None
        if isinstance(batch, Keyed) and isinstance(last, Keyed):
            self._held[-1] = Keyed(last.records + batch.records)
            return
        if (
            isinstance(batch, Batch)
            and isinstance(last, Batch)
            and batch.encoding == last.encoding == Encoding.LINES
            and len(last.body) + len(batch.body) <= 2 * BATCH_TARGET_BYTES
        ):
            body = bytes(last.body) + bytes(batch.body)
            self._held[-1] = Batch(Encoding.LINES, body, last.rows + batch.rows)
            return
        self._held.append(batch)

    def _fits_one_batch(self) -> bool:
        runs = 0
        for batch in self._held:
            if isinstance(batch, Keyed):
                runs += len(runs_of(self.producer, batch.records))
            else:
                runs += 1
        return runs <= 1
