"""A worker that turns rows of one collection into rows of another, each once, whatever is killed.

Its output goes out under a name, and a batch of it has the number of the input batch that it came
from. The log remembers the last one, so a worker that starts again knows where to go on; taking the
name also fences the one before, should it still be alive. Needs a daemon: ``wal up`` starts one.
"""

from __future__ import annotations

import wal_client

ROWS_A_BATCH = 10
NAME = "doubler"


def work(until: int | None = None) -> int:
    """Double all of ``numbers`` into ``doubled``; ``until``: fall dead before this batch. Returns
    how many batches were written."""
    with wal_client.connect() as client:
        client.open("doubled", create=True)
        done = client.last_sequence("doubled", NAME)
        start = wal_client.from_offset(done * ROWS_A_BATCH)
        rows = [int(body) for batch in client.tail("numbers", start) for body in batch.bodies()]
        sent = 0
        with client.named_producer("doubled", NAME, next_sequence=done + 1) as producer:
            for first in range(0, len(rows), ROWS_A_BATCH):
                if done + sent + 1 == until:
                    break
                doubled = [b"%d" % (2 * row) for row in rows[first : first + ROWS_A_BATCH]]
                producer.records([wal_client.Record(body) for body in doubled])
                sent += 1
        return sent


if __name__ == "__main__":
    with wal_client.connect() as client:
        client.append("numbers", [b"%d" % number for number in range(100)])
    print(f"the first worker wrote {work(until=7)} batches and died")
    print(f"the second one wrote {work()}")
    print(f"a third one wrote {work()}")
    with wal_client.connect() as client:
        seen = [int(body) for batch in client.tail("doubled") for body in batch.bodies()]
    print(f"{len(seen)} rows, in order, each once: {seen == list(range(0, 200, 2))}")
