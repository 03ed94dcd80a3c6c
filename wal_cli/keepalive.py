"""Keep a transaction alive beside other work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from wal_client.endpoint import Endpoint
from wal_client.sync import Client
from wal_client.txn import Transaction
from wal_core.errors import TxnExpiredError, TxnInvalidStateError, UnknownTxnError, WalError

_RENEWALS = 3
"""Within a keepalive: one may come late."""


@contextlib.contextmanager
def kept_alive(endpoint: Endpoint, id: str, keepalive: float, timeout: float) -> Iterator[None]:
    """Renew a lease of ``keepalive`` seconds, from a thread with a connection of its own, until
    the block is left. What became of the transaction is for the commit to tell."""
    ended = threading.Event()

    def renew() -> None:
        with Client(endpoint, timeout=timeout) as client:
            transaction = Transaction(client, id)
            while not ended.wait(keepalive / _RENEWALS):
                try:
                    transaction.keep_alive()
                except (TxnExpiredError, TxnInvalidStateError, UnknownTxnError):
                    return
                except WalError:
                    continue  # The daemon may be back for the next one.

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.0)
