"""Row 10: a batch that is sent again, over a wire that loses frames, is in the log once."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.daemon import Daemon
from tests.faults.proxy import Plan, Proxy
from wal_client.batcher import Identity
from wal_client.endpoint import Endpoint
from wal_client.receipts import Ack
from wal_client.sync import Client
from wal_client.txn import Transaction
from wal_core.batch import Record
from wal_core.errors import OutcomeUnknownError, WalError
from wal_core.names import producer_id

SEEDS = range(6)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path / "wal")
    yield running
    running.remove()


def _first(client: Client, name: str) -> list[Ack]:
    """A name may begin at any number, so the first batch that comes decides: a real stream never
    turns the first two around, as the proxy does."""
    acks: list[Ack] = []
    with client.producer(
        "rows", identity=Identity(producer_id("producer", name), 0, 1), on_ack=acks.append
    ) as producer:
        producer.records([Record(b"%s.0.%d" % (name.encode(), n)) for n in (0, 1)])
    return acks


def _write(client: Client, name: str, acks: list[Ack], batches: int, seconds: float) -> None:
    """Batches of two rows under a name, until all are answered. A producer that gave up begins
    again at the first batch that has no answer, with its number: as a restarted program would."""
    id = producer_id("producer", name)
    deadline = time.monotonic() + seconds
    errors: collections.deque[str] = collections.deque(maxlen=4)
    while time.monotonic() < deadline:
        done = len(acks)
        try:
            with client.producer(
                "rows", identity=Identity(id, 0, done + 1), on_ack=acks.append
            ) as p:
                for number in range(done, batches):
                    p.records([Record(b"%s.%d.%d" % (name.encode(), number, n)) for n in (0, 1)])
            return
        except OutcomeUnknownError as error:
            errors.append(f"{len(acks)} answered: {error}")
            client.close()
        except WalError as error:
            # A held frame may leave a hole when the connection is given up; nothing was written.
            if error.code not in ("out-of-sequence", "unreachable", "timeout", "not-ready"):
                raise
            errors.append(f"{len(acks)} answered: {error}")
            client.close()
            time.sleep(0.02)
    raise AssertionError(f"no end: {list(errors)}")


@pytest.mark.parametrize("seed", SEEDS)
def test_each_batch_is_there_once_at_its_acknowledged_place(
    daemon: Daemon, tmp_path: Path, seed: int
) -> None:
    """Two producers at once, and the daemon is killed and started again meanwhile."""
    with daemon.client() as direct:
        direct.open("rows", create=True)
        acks = {name: _first(direct, name) for name in ("a", "b")}
    plan = Plan(seed, rate=0.08)
    proxy = Proxy(tmp_path / "proxy.sock", daemon.folder / "wald.sock", plan)
    batches = 120

    def work(name: str) -> None:
        with Client(Endpoint(str(tmp_path / "proxy.sock")), timeout=0.6) as client:
            _write(client, name, acks[name], batches, seconds=40)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for _ in range(2):
        time.sleep(0.15)
        daemon.kill()
        daemon.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), f"seed {seed}"
    proxy.close()
    assert sum(plan.done.values()) > 5, "nothing was done to the frames"
    _check(daemon, acks, batches, seed)


def _check(daemon: Daemon, acks: dict[str, list[Ack]], batches: int, seed: int) -> None:
    with daemon.client() as direct:
        rows = [row for batch in direct.tail("rows") for row in batch.bodies()]
    expected = {
        b"%s.%d.%d" % (name.encode(), number, n)
        for name in acks
        for number in range(batches)
        for n in (0, 1)
    }
    assert len(rows) == len(expected), f"seed {seed}: {len(rows)} rows"
    assert set(rows) == expected, f"seed {seed}"
    for name, answers in acks.items():
        assert len(answers) == batches
        for number, ack in enumerate(answers):
            assert rows[ack.first] == b"%s.%d.0" % (name.encode(), number), f"seed {seed}"


def test_a_commit_that_lost_its_answer(daemon: Daemon, tmp_path: Path) -> None:
    """Cut after the commit and before the answer, again and again: one commit, one answer."""
    with daemon.client() as direct:
        direct.open("rows", create=True)
    for seed in range(12):
        plan = Plan(seed, rate=0.25)
        path = tmp_path / f"proxy{seed}.sock"
        proxy = Proxy(path, daemon.folder / "wald.sock", plan)
        with daemon.client() as direct:
            begun = direct.begin("rows")
            begun.append("rows", [b"%d" % seed])
        with Client(Endpoint(str(path)), timeout=0.5) as client:
            answers = []
            for _ in range(40):
                with contextlib.suppress(WalError):
                    client.close()
                    answers.append(Transaction(client, begun.id).commit()["rows"].as_dict())
                    if len(answers) == 2:
                        break
        proxy.close()
        assert len(answers) == 2, f"seed {seed}"
        assert answers[0] == answers[1], f"seed {seed}"
    with daemon.client() as direct:
        rows = [row for batch in direct.tail("rows") for row in batch.bodies()]
    assert rows == [b"%d" % seed for seed in range(12)]
