"""Real clients of a real daemon that write down what they did, for ``tests.faults.history``."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.faults.history import NEVER, Key, Kind, Operation, Outcome, Read, Seen
from wal_client.batcher import Identity
from wal_client.ranges import from_offset, until_offset
from wal_client.sync import Client
from wal_client.txn import Transaction
from wal_core.errors import OutcomeUnknownError, WalError
from wal_core.names import producer_id

COLLECTION = "history"


class Recorder:
    """Operations and reads of all threads of one history; one collection of one shard."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.reads: list[Read] = []
        self._lock = threading.Lock()
        self._rows = 0

    def rows(self, chance: random.Random) -> tuple[bytes, ...]:
        """One batch, of rows that nobody sent before."""
        with self._lock:
            self._rows += 1
            number = self._rows
        padding = b"." * chance.choice((0, 0, 0, 100, 20_000))
        return tuple(b"%d.%d%s" % (number, row, padding) for row in range(chance.randint(1, 3)))

    def note(
        self, kind: Kind, call: Callable[[], Any], first: Callable[[Any], Any] = id, **what: Any
    ) -> Any:
        """Make a call and write down how it ended. Returns its answer, or its error."""
        began = time.monotonic()
        try:
            answer = call()
            outcome, ended = Outcome.OK, time.monotonic()
        except (WalError, OSError) as error:
            answer = error
            outcome, ended = Outcome.FAILED, time.monotonic()
            if is_unknown(error):
                outcome, ended = Outcome.UNKNOWN, NEVER
        place = first(answer) if outcome is Outcome.OK and first is not id else None
        operation = Operation(kind, began, ended, outcome, first=place, **what)
        self.operations.append(operation)
        return answer

    def append(self, client: Client, key: Key, rows: tuple[bytes, ...]) -> Any:
        """One batch under an identity of its own choice: it may be sent any number of times."""

        def call() -> int:
            identity = Identity(key.producer, key.epoch, key.sequence)
            producer = client.producer(COLLECTION, identity=identity)
            producer.lines(b"".join(row + b"\n" for row in rows), len(rows))
            return producer.flush().parts[0].first

        return self.note(Kind.APPEND, call, lambda answer: answer, rows=rows, key=key)

    def stage(self, txn: Transaction, rows: tuple[bytes, ...]) -> Any:
        return self.note(
            Kind.STAGE, lambda: txn.append(COLLECTION, rows), rows=rows, txn=txn.number
        )

    def commit(self, txn: Transaction) -> Any:
        return self.note(Kind.COMMIT, txn.commit, first_of, txn=txn.number)

    def roll_back(self, txn: Transaction) -> Any:
        return self.note(Kind.ROLLBACK, txn.rollback, txn=txn.number)

    def read(self, client: Client, name: str) -> None:
        """All there is now."""
        since = time.monotonic()
        seen: list[Seen] = []
        for batch in client.tail(COLLECTION):
            _take(seen, batch.first, batch.bodies())
        self.reads.append(Read(name, seen, 0, since))

    def follow(self, client: Client, name: str, stop: threading.Event) -> None:
        """Everything from the first row on, until told to stop, and then what is there."""
        seen: list[Seen] = []
        self.reads.append(Read(name, seen))
        while not stop.is_set():
            due = len(seen)
            # To the next row, and whatever comes with it.
            for batch in client.tail(COLLECTION, from_offset(due), until_offset(due, follow=True)):
                _take(seen, batch.first, batch.bodies())


def _take(seen: list[Seen], first: int, rows: Iterable[bytes]) -> None:
    now = time.monotonic()
    seen += [Seen(offset, row, now) for offset, row in enumerate(rows, first)]


def first_of(receipts: Any) -> int | None:
    """The first offset that a commit gave."""
    return receipts[COLLECTION].parts[0].first if COLLECTION in receipts else None


def is_unknown(error: object) -> bool:
    """Whether it may have happened all the same."""
    if isinstance(error, OSError | OutcomeUnknownError):
        return True
    return isinstance(error, WalError) and (
        "outcome_unknown" in error.details or error.code in ("unreachable", "timeout")
    )


def named(number: int) -> int:
    """The id of a producer with a name."""
    return producer_id("producer", f"p{number}")
