"""Row 9 with real processes: kill -9 the daemon, or the client, at every step of a transaction."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.daemon import Daemon
from tests.crash.recorder import COLLECTION, Recorder, is_unknown, named
from tests.faults.history import Key, Kind, check
from wal_client.sync import Client
from wal_client.txn import Transaction
from wal_core.errors import TxnExpiredError, UnknownTxnError

PLACES = ("append-before-write", "append-after-write", "append-after-sync", "append-after-check")


class Steps:
    """A client that runs transactions, each step until it is answered: the daemon may be killed and
    come back in between."""

    def __init__(self, client: Client, seed: int, was_killed: Callable[[], bool]) -> None:
        self.recorder = Recorder()
        self._client = client
        self._was_killed = was_killed
        self._chance = random.Random(seed)

    def run(self) -> None:
        kept = self._begin()
        self._stage(kept)
        self._append(1)
        self._stage(kept)
        first = self._commit(kept)
        assert self._commit(kept) == first, "a repeated commit got another answer"
        dropped = self._begin()
        self._stage(dropped)
        self._until_answered(lambda: self.recorder.roll_back(dropped))
        killed_before = self._was_killed()
        late = self._begin(keepalive=0.2)
        self._stage(late, may_expire=True)
        time.sleep(0.7)
        self._append(2)
        self._begin()
        answer = self._ask(late)
        if self._was_killed() == killed_before:
            assert isinstance(answer, TxnExpiredError | UnknownTxnError)
        # else its lease began anew with the daemon, and it may be in time; the checker judges.
        self._append(3)

    def _begin(self, keepalive: float = 20.0) -> Transaction:
        recorder = self.recorder
        txn = self._until_answered(
            lambda: recorder.note(
                Kind.BEGIN, lambda: self._client.begin(COLLECTION, keepalive=keepalive)
            )
        )
        assert isinstance(txn, Transaction)
        return txn

    def _stage(self, txn: Transaction, *, may_expire: bool = False) -> None:
        """The producer sends it again by itself, so there is one answer in the end."""
        answer = self.recorder.stage(txn, self.recorder.rows(self._chance))
        if not may_expire or not isinstance(answer, TxnExpiredError):
            assert answer is not None
            assert not isinstance(answer, Exception), answer

    def _append(self, number: int) -> None:
        key = Key(named(number), 0, 1)
        answer = self.recorder.append(self._client, key, self.recorder.rows(self._chance))
        assert not isinstance(answer, Exception), answer

    def _commit(self, txn: Transaction) -> Any:
        receipts = self._until_answered(lambda: self.recorder.commit(txn))
        assert not isinstance(receipts, Exception), receipts
        return receipts[COLLECTION].as_dict()

    def _ask(self, txn: Transaction) -> Any:
        return self._until_answered(lambda: self.recorder.commit(txn))

    def _until_answered(self, call: Any) -> Any:
        deadline = time.monotonic() + 20
        while is_unknown(answer := call()):
            assert time.monotonic() < deadline, answer
            time.sleep(0.01)
        return answer


def kill_daemon_at(tmp_path: Path, place: str, nth: int) -> bool:
    """Whether the place was reached so often."""
    daemon = Daemon(tmp_path / "wal")
    with daemon.client() as client:
        client.open(COLLECTION, create=True)
    daemon.stop()
    daemon.start("--failpoint", f"{place}=kill:{nth}")
    guard = _Restarter(daemon)
    steps = Steps(daemon.client(), nth, lambda: guard.killed)
    killed = False
    try:
        with guard:
            steps.run()
        killed = guard.killed
        with daemon.client() as client:
            steps.recorder.read(client, "at the end")
            assert not [one for one in client.call("txn_list") if one["rows"]]
        assert check(steps.recorder.operations, steps.recorder.reads) > 4
    finally:
        steps._client.close()
        daemon.stop()
    return killed


class _Restarter:
    """Starts the daemon again once it has died."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.killed = False

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            if self._daemon.poll() is not None:
                assert self._daemon.poll() == -signal.SIGKILL
                self.killed = True
                self._daemon.start()
                return


STEPS = 14
"""Messages that the run puts into the log, at least."""


@pytest.mark.parametrize("nth", range(1, STEPS + 1))
def test_kill_the_daemon_at_every_step(tmp_path: Path, nth: int) -> None:
    """Each step at one of the places; the places in turn. Torture has all of them."""
    place = PLACES[nth % len(PLACES)]
    assert kill_daemon_at(tmp_path, place, nth), f"{place} was not reached {nth} times"


@pytest.mark.torture
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("nth", range(1, STEPS + 1))
def test_kill_the_daemon_at_every_place_of_every_step(tmp_path: Path, place: str, nth: int) -> None:
    assert kill_daemon_at(tmp_path, place, nth), f"{place} was not reached {nth} times"


CLIENT = """
import os, signal, sys
import wal_client
from wal_client.connection import Connection

left = int(sys.argv[2])

def counted(plain):
    def call(self, *args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(self, *args)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

Connection.send = counted(Connection.send)
Connection.receive = counted(Connection.receive)
client = wal_client.connect(sys.argv[1])
for name in ("committed", "rolled back", "left"):
    txn = client.begin("history", keepalive=0.4)
    print(name, "begun", txn.number, flush=True)
    txn.append("history", [f"{name} 1".encode(), f"{name} 2".encode()])
    txn.append("history", [f"{name} 3".encode()])
    print(name, "staged", flush=True)
    if name == "committed":
        txn.commit()
    elif name == "rolled back":
        txn.rollback()
    print(name, "done", flush=True)
"""


def test_kill_the_client_at_every_step(tmp_path: Path) -> None:
    """Before and after each frame that it sends or waits for: whatever is not committed expires,
    and never shows."""
    daemon = Daemon(tmp_path / "wal")
    try:
        with daemon.client() as client:
            client.open(COLLECTION, create=True)
        commits: list[bool] = []
        """Of those that may have happened, whether they were answered."""
        for step in range(1, 200):
            client_run = subprocess.run(
                [sys.executable, "-c", CLIENT, daemon.folder, str(step)],
                capture_output=True, text=True, check=False, timeout=20,
            )  # fmt: skip
            said = client_run.stdout.splitlines()
            if "committed staged" in said:
                commits.append("committed done" in said)
            if client_run.returncode == 0:
                break
            assert client_run.returncode == -signal.SIGKILL, client_run.stderr
        assert step > 40
        time.sleep(0.8)
        with daemon.client() as client:
            assert client.call("txn_list") == [], "a transaction of a dead client lives on"
            rows = [row for batch in client.tail(COLLECTION) for row in batch.bodies()]
        whole = [b"committed 1", b"committed 2", b"committed 3"]
        count = len(rows) // 3
        assert rows == whole * count, "a part of a transaction, or one that was not committed"
        assert sum(commits) <= count <= len(commits)
    finally:
        daemon.stop()
