"""Row 6 of faults: a real daemon on a real small file system that fills up, and room again."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.daemon import BIN, Daemon
from tests.crash.ledger import Ledger
from wal_core.errors import DiskFullError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system"),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "wal-test", folder], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not possible here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (16 << 20))
    daemon = Daemon(small_disk / "wal")
    ledger = Ledger()
    randomness = random.Random(6)
    try:
        failure = None
        while failure is None:
            failure = ledger.write(daemon.client(), randomness, 50)
        assert isinstance(failure, DiskFullError)
        with daemon.client() as client:
            rows = ledger.check(client)
        assert rows > 100
        refused = subprocess.run(
            [BIN / "wal", "append", "ledger", "-f", ballast, "--framing", "whole"],
            env=daemon.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert refused.returncode == 75
        assert "[disk-full]" in refused.stderr
        ballast.unlink()
        freed = time.monotonic()
        while ledger.write(daemon.client(), randomness, 5) is not None:
            assert time.monotonic() - freed < 5
            time.sleep(0.05)
        with daemon.client() as client:
            assert ledger.check(client) > rows
    finally:
        daemon.stop()
