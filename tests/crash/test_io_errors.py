"""Row 5 of faults: fdatasync fails in the real daemon (strace fails it without calling it)."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from bench.daemon import BIN, Daemon
from tests.crash.ledger import Ledger
from wal_core.errors import OutcomeUnknownError


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("call", [2, 9, 30])
def test_a_failed_fdatasync_acknowledges_nothing_and_the_log_goes_on(
    tmp_path: Path, call: int
) -> None:
    daemon = Daemon(tmp_path / "wal")
    daemon.stop()
    log = daemon.log.open("ab")
    traced = subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", "-e", "trace=fdatasync",
         "-e", f"inject=fdatasync:error=EIO:when={call}",
         BIN / "wald", "--dir", tmp_path / "wal"],
        stderr=log,
    )  # fmt: skip
    ledger = Ledger()
    try:
        deadline = time.monotonic() + 20
        failure = None
        while not isinstance(failure, OutcomeUnknownError) and time.monotonic() < deadline:
            failure = ledger.write(daemon.client(), random.Random(call), 20)
            time.sleep(0.02)
        assert isinstance(failure, OutcomeUnknownError)
        assert failure.details["cause"] == "io-error"
        while ledger.write(daemon.client(), random.Random(call + 1), 20) is not None:
            assert time.monotonic() < deadline, "the log did not come back"
            time.sleep(0.05)
        with daemon.client() as client:
            status = client.call("status")["pchannels"][0]
            assert status["term"] == 3, "it went on under the old term"
            ledger.check(client)
    finally:
        subprocess.run([BIN / "wal", "down", "--dir", tmp_path / "wal"], check=True)
        traced.wait(10)
        log.close()
    assert "reopened" in daemon.log.read_text()
