"""A ledger of acknowledgements, kept outside the daemon, and the check against what readers see.

Every batch carries rows that name it, so that a row that is lost, repeated or moved is seen:
``<batch>.<row>``. The rules (faults.md, rows 1 and 7):

- an acknowledged batch stands at the offsets of its acknowledgement, whole;
- a batch whose answer never came stands nowhere, or once and whole;
- offsets are dense, and batches of one producer come in the order in which they were sent.
"""

from __future__ import annotations

import random

from wal_client.producer import Producer
from wal_client.receipts import Ack
from wal_client.sync import Client
from wal_core.errors import WalError


class Ledger:
    """What one test sent and what it was told."""

    def __init__(self, collection: str = "ledger", *, resend: bool = False) -> None:
        """``resend``: producers send again what was not answered; then nothing may be missing or
        twice, whatever broke in between."""
        self.collection = collection
        self._resend = resend
        self.sent: dict[int, list[bytes]] = {}
        self.acknowledged: dict[int, Ack] = {}
        self.producers: list[list[int]] = []
        self._next = 0

    def write(self, client: Client, randomness: random.Random, batches: int) -> WalError | None:
        """Send batches through a producer of its own until all are done or one fails."""
        numbers: list[int] = []
        self.producers.append(numbers)
        try:
            producer = client.producer(self.collection, on_ack=self._on_ack, resend=self._resend)
            for _ in range(batches):
                self._send(producer, randomness, numbers)
                if randomness.random() < 0.3:
                    producer.flush()
            producer.flush()
        except WalError as error:
            return error
        finally:
            client.close()
        return None

    def check(self, client: Client) -> int:
        """Compare with what a reader sees. Returns the number of rows."""
        rows: list[bytes] = []
        for batch in client.tail(self.collection):
            assert batch.first == len(rows), f"offset {batch.first} where {len(rows)} is due"
            rows += batch.bodies()
        places = self._places(rows)
        for number, ack in self.acknowledged.items():
            assert places.get(number) == ack.first, (
                f"batch {number} was acknowledged at {ack.first} and stands at {places.get(number)}"
            )
        for numbers in self.producers:
            there = [places[number] for number in numbers if number in places]
            assert there == sorted(there), "batches of a producer changed their order"
        return len(rows)

    def _places(self, rows: list[bytes]) -> dict[int, int]:
        places: dict[int, int] = {}
        at = 0
        while at < len(rows):
            number = int(rows[at].split(b".")[0])
            wanted = self.sent[number]
            assert rows[at : at + len(wanted)] == wanted, f"batch {number} is not whole at {at}"
            assert number not in places, f"batch {number} stands twice"
            places[number] = at
            at += len(wanted)
        return places

    def _send(self, producer: Producer, randomness: random.Random, numbers: list[int]) -> None:
        number = self._next
        self._next += 1
        padding = b"x" * randomness.choice((0, 10, 1000, 100_000))
        rows = [b"%d.%d%s" % (number, row, padding) for row in range(randomness.randint(1, 4))]
        self.sent[number] = rows
        numbers.append(number)
        producer.lines(b"\n".join(rows) + b"\n", len(rows), tag=number)

    def _on_ack(self, ack: Ack) -> None:
        self.acknowledged[ack.tag] = ack
