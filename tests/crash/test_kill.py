"""faults.md, row 1: kill -9 at random moments and at every named failpoint."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from pathlib import Path

import pytest

from bench.daemon import Daemon
from tests.crash.ledger import Ledger
from wal_core import failpoints
from wal_core.errors import WalError

SMALL_SEGMENTS = "segment_size = 1048576\n"
"""So that rotations, preparations and seals are met as often as appends."""


def _daemon(tmp_path: Path, *arguments: str) -> Daemon:
    config = tmp_path / "wal.toml"
    config.write_text(SMALL_SEGMENTS)
    return Daemon(tmp_path / "wal", "--config", str(config), *arguments)


def _kill_and_check(tmp_path: Path, seed: int, kills: int) -> Ledger:
    randomness = random.Random(seed)
    ledger = Ledger()
    daemon = _daemon(tmp_path)
    config = str(tmp_path / "wal.toml")
    try:
        for kill in range(kills):
            timer = threading.Timer(randomness.uniform(0.001, 0.06), daemon.kill)
            timer.start()
            failure = ledger.write(daemon.client(), randomness, 10_000)
            timer.join()
            assert failure is not None
            daemon.start("--config", config)
            assert daemon.ready_seconds < 5
            if kill % 10 == 9:
                with daemon.client() as client:
                    ledger.check(client)
        with daemon.client() as client:
            ledger.check(client)
    finally:
        daemon.stop()
    assert ledger.acknowledged
    return ledger


@pytest.mark.parametrize("seed", range(4))
def test_random_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    _kill_and_check(tmp_path, seed, 50)


@pytest.mark.torture
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_random_kills_for_long(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    _kill_and_check(tmp_path, seed, 100)


ON_APPEND = (
    "rotate-before-link",
    "segment-written",
    "segment-linked",
    "append-before-write",
    "append-after-write",
    "append-after-sync",
    "append-after-check",
    "seal-before-footer",
    "seal-after-footer",
    "mark-before-write",
    "tso-before-rename",
    "catalog-before-commit",
)


ONCE_IN_TEN_SECONDS = "tso-before-rename"


@pytest.mark.parametrize(
    ("name", "nth"),
    [
        (name, nth)
        for name in ON_APPEND
        for nth in (1, 3)
        if nth == 1 or name != ONCE_IN_TEN_SECONDS
    ],
)
def test_kill_at_failpoint(tmp_path: Path, name: str, nth: int) -> None:
    randomness = random.Random(f"{name}{nth}")
    ledger = Ledger()
    daemon = _daemon(tmp_path)
    assert ledger.write(daemon.client(), randomness, 20) is None
    daemon.stop()
    # The first of each is met while the daemon opens; what follows it is met under load.
    daemon.spawn("--config", str(tmp_path / "wal.toml"), "--failpoint", f"{name}=kill:{nth}")
    deadline = time.monotonic() + 15
    while daemon.poll() is None and time.monotonic() < deadline:
        failure = ledger.write(daemon.client(), randomness, 200)
        if failure is not None:
            time.sleep(0.02)  # Not there yet, or just killed.
        elif name == "mark-before-write":
            time.sleep(0.15)
        elif name == "catalog-before-commit":
            _create_one_more(daemon)
    died = daemon.poll()
    if died is None:
        daemon.stop()
    assert died == -9, f"failpoint {name} was not reached {nth} times"
    daemon.start("--config", str(tmp_path / "wal.toml"))
    try:
        with daemon.client() as client:
            assert ledger.check(client) > 0
        assert ledger.write(daemon.client(), randomness, 20) is None
        with daemon.client() as client:
            ledger.check(client)
    finally:
        daemon.stop()


def test_every_failpoint_is_killed_at_somewhere() -> None:
    elsewhere = {"term-created", "recovery-before-cut", "recovery-after-cut"}
    assert set(ON_APPEND) | elsewhere == set(failpoints.NAMES)


@pytest.mark.parametrize("name", ["term-created", "recovery-before-cut", "recovery-after-cut"])
def test_kill_while_recovering(tmp_path: Path, name: str) -> None:
    randomness = random.Random(name)
    ledger = Ledger()
    daemon = _daemon(tmp_path)
    assert ledger.write(daemon.client(), randomness, 20) is None
    daemon.kill()
    if name.startswith("recovery"):
        tip = daemon.segments()[-1]
        with tip.open("r+b") as file:  # A torn write: half a header behind the last batch.
            position = len(tip.read_bytes().rstrip(b"\0"))
            file.seek(position + 7)
            file.write(b"WALB torn")
    daemon.spawn("--failpoint", f"{name}=kill")
    assert daemon.wait(10) == -9
    daemon.start()
    try:
        with daemon.client() as client:
            assert ledger.check(client) > 0
    finally:
        daemon.stop()


def _create_one_more(daemon: Daemon) -> None:
    with contextlib.suppress(WalError, OSError), daemon.client() as client:
        client.call("create", name=f"c-{uuid.uuid4().hex}")
