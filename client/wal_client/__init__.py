"""Append to and tail walstream from Python. ``connect()`` is the way in.

>>> import wal_client
>>> with wal_client.connect() as client:        # doctest: +SKIP
...     client.append("orders", [b"one", b"two"])
...     for batch in client.tail("orders"):
...         print(batch.first, batch.bodies())
"""

from typing import TYPE_CHECKING, Any

from wal_client.batcher import Identity
from wal_client.consumer import Tail
from wal_client.cursors import Cursor
from wal_client.endpoint import Endpoint
from wal_client.groups import Member
from wal_client.producer import Producer
from wal_client.ranges import (
    EARLIEST,
    FOLLOW,
    LATEST,
    NOW,
    From,
    RowBatch,
    Until,
    from_last,
    from_ms,
    from_offset,
    until_ms,
    until_offset,
)
from wal_client.receipts import Ack, Receipt
from wal_client.sync import Client, connect
from wal_client.txn import Transaction
from wal_core.batch import Record
from wal_core.errors import WalError

if TYPE_CHECKING:
    from wal_client.aio import AsyncClient, AsyncProducer, AsyncTransaction, connect_async

__all__ = [
    "EARLIEST",
    "FOLLOW",
    "LATEST",
    "NOW",
    "Ack",
    "AsyncClient",
    "AsyncProducer",
    "AsyncTransaction",
    "Client",
    "Cursor",
    "Endpoint",
    "From",
    "Identity",
    "Member",
    "Producer",
    "Receipt",
    "Record",
    "RowBatch",
    "Tail",
    "Transaction",
    "Until",
    "WalError",
    "connect",
    "connect_async",
    "from_last",
    "from_ms",
    "from_offset",
    "until_ms",
    "until_offset",
]


def __getattr__(name: str) -> Any:
    """The asyncio half is loaded when it is used: asyncio alone takes longer than all the rest."""
    if name in ("AsyncClient", "AsyncProducer", "AsyncTransaction", "connect_async"):
        from wal_client import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
