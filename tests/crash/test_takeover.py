"""faults.md, rows 7 and 8: a stopped owner, a newcomer that takes over, and the owner's return."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from bench.daemon import BIN, Daemon
from tests.crash.ledger import Ledger

PLACES = (
    "append-before-write",
    "append-after-write",
    "append-after-sync",
    "append-after-check",
    "rotate-before-link",
    "segment-written",
    "segment-linked",
)
CONFIG = "segment_size = 1048576\n"


def _take_over(tmp_path: Path, seed: int | str, failpoint: str | None) -> None:
    randomness = random.Random(seed)
    config = tmp_path / "wal.toml"
    config.write_text(CONFIG)
    common = ("--config", str(config))
    ledger = Ledger()
    old = Daemon(tmp_path / "wal", *common)
    assert ledger.write(old.client(), randomness, 20) is None
    old.stop()
    armed = ("--failpoint", f"{failpoint}=stop:{randomness.randint(2, 40)}") if failpoint else ()
    old.start(*common, *armed)
    client = old.client()
    client.connection.set_timeout(5)
    writer = threading.Thread(target=ledger.write, args=(client, randomness, 400))
    writer.start()
    if failpoint is None:
        time.sleep(randomness.uniform(0, 0.05))
        old.signal(signal.SIGSTOP)
    else:
        _wait_until_stopped(old, writer)
    new = Daemon(tmp_path / "wal", *common, "--takeover")
    other = Ledger()
    other._next = 1_000_000
    try:
        assert other.write(new.client(), random.Random(1), 20) is None
        old.signal(signal.SIGCONT)
        assert old.wait(3) == 3, "the old owner did not give up"
        writer.join(10)
        assert not writer.is_alive()
        assert other.write(new.client(), random.Random(2), 20) is None
        ledger.sent |= other.sent
        ledger.acknowledged |= other.acknowledged
        ledger.producers += other.producers
        with new.client() as reader:
            ledger.check(reader)
    finally:
        if old.poll() is None:
            old.kill()
        new.stop()


def _wait_until_stopped(daemon: Daemon, writer: threading.Thread) -> None:
    status = Path(f"/proc/{daemon.pid}/stat")
    while writer.is_alive():
        if status.read_text().rsplit(")", 1)[1].split()[0] == "T":
            return
        time.sleep(0.002)
    daemon.signal(signal.SIGSTOP)  # The place was not reached under this load; stop it idle.


@pytest.mark.parametrize("failpoint", PLACES)
def test_stop_at_failpoint_take_over_continue(tmp_path: Path, failpoint: str) -> None:
    _take_over(tmp_path, failpoint, failpoint)


@pytest.mark.parametrize("seed", range(8))
def test_stop_at_random_take_over_continue(tmp_path: Path, seed: int) -> None:
    _take_over(tmp_path, seed, None)


@pytest.mark.torture
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(2000, 2500))
def test_takeovers_for_long(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    _take_over(tmp_path, seed, random.Random(seed).choice((*PLACES, None)))


def test_an_idle_owner_gives_up_within_a_second(tmp_path: Path) -> None:
    old = Daemon(tmp_path / "wal")
    new = Daemon(tmp_path / "wal", "--takeover")
    try:
        started = time.monotonic()
        assert old.wait(3) == 3
        assert time.monotonic() - started < 1
    finally:
        new.stop()


def test_a_second_daemon_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    first = Daemon(tmp_path / "wal")
    try:
        second = subprocess.run(
            [BIN / "wald", "--dir", tmp_path / "wal"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert second.returncode == 78
        assert f"pid {first.pid}" in second.stderr
        assert "[node-held]" in second.stderr
        with first.client() as client:  # The first one was not disturbed.
            client.append("demo", [b"still here"])
    finally:
        first.stop()
    assert not (tmp_path / "wal" / "wald.sock").exists()
