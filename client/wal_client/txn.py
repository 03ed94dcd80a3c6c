"""Transactions: begin, append, commit or roll back, keep alive.

Each shard's rows become visible together, at the commit; the shards of a transaction do so one by
one. A transaction is an id, so another process can go on with it: ``Transaction(client, id)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from wal_client.receipts import Receipt, receipts_of
from wal_core.clock import sleep
from wal_core.errors import (
    JUDGED_IN_ORDER,
    NotReadyError,
    OutcomeUnknownError,
    TimedOutError,
    UnknownTxnError,
    UnreachableError,
    WalError,
)

if TYPE_CHECKING:
    from wal_client.batcher import Identity
    from wal_client.producer import Producer
    from wal_client.sync import Client

_POLL_SECONDS = 0.02


class Transaction:
    """As a context manager it commits at the end, and rolls back where an exception leaves."""

    def __init__(self, client: Client, id: str) -> None:
        """``id``: 16 hexadecimal digits, as ``Client.begin`` and `wal txn begin` give them."""
        self.id = id
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()

    @property
    def number(self) -> int:
        """The id as the log has it. Raises UnknownTxnError for what is no id."""
        try:
            return int(self.id, 16)
        except ValueError:
            raise UnknownTxnError(f"{self.id!r} is no transaction id") from None

    def check(self, collection: str) -> None:
        """Raises TxnInvalidStateError for a collection outside of the scope."""
        self._client.call("txn_check", id=self.id, collection=collection)

    def producer(self, collection: str, **options: Any) -> Producer:
        """A producer whose rows belong to the transaction. ``options``: see ``Client.producer``."""
        return self._client.producer(collection, txn=self, **options)

    def append(self, collection: str, bodies: Iterable[bytes], *, key: bytes | None = None) -> int:
        """Stage rows; durable on return, visible after the commit. Returns how many."""
        with self.producer(collection, key=key) as producer:
            for body in bodies:
                producer.append(body)
            return producer.flush().count

    def keep_alive(self) -> float:
        """Renew the lease. Returns the seconds until it ends."""
        return float(self._client.call("txn_keepalive", id=self.id))

    def commit(self, identity: Identity | None = None, expect: int = -1) -> dict[str, Receipt]:
        """Make the rows visible. Returns receipts by collection. May be repeated: the answer is
        the first one's. ``identity``: makes the transaction one batch of a producer, which is
        written once however often it is tried. ``expect``: the offset that its first row must get.

        Raises OutcomeUnknownError where no answer came in time; repeat it then."""
        arguments: dict[str, Any] = {"id": self.id, "expect": expect}
        if identity is not None:
            arguments["producer"] = [identity.id, identity.epoch, identity.next_sequence]
        return receipts_of(self._repeatedly("txn_commit", arguments))

    def rollback(self) -> None:
        """None of the rows will ever be seen. May be repeated."""
        self._client.call("txn_rollback", id=self.id)

    def _repeatedly(self, operation: str, arguments: dict[str, Any]) -> Any:
        """A call that is safe to repeat, until it is answered or the client's timeout is over."""
        deadline = self._client.deadline()
        self._client.connection  # noqa: B018 - Where nobody answers nothing was sent.
        uncertain = False
        while True:
            try:
                return self._client.call(operation, **arguments)
            except JUDGED_IN_ORDER:
                raise
            except (UnreachableError, TimedOutError) as error:
                failure: WalError = error
                uncertain = True
            except WalError as error:
                failure = error
                uncertain = uncertain or "outcome_unknown" in error.details
                if not uncertain and not isinstance(error, NotReadyError):
                    raise
            if self._client.is_over(deadline) and not uncertain:
                raise failure
            if self._client.is_over(deadline):
                raise OutcomeUnknownError(
                    f"{failure.message} [{failure.code}]; the commit of {self.id} may have "
                    "happened or not",
                    hint=f"wal txn commit {self.id}   gives the answer, and may be repeated",
                )
            sleep(_POLL_SECONDS)
