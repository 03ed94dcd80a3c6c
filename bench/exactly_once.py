"""What transactions and producers that are written once cost."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench import load
from bench.daemon import BIN, Daemon
from bench.results import Row, median, spread
from bench.rows import LINE, MIB, Bench, rotate
from wal_client.sync import Client, connect

_LARGE_TXN_BYTES = 2048 * MIB
_MEMORY_MAX_BYTES = (64 + 16 + 32) * MIB
"""The limits that bound it: write-ahead buffer, rows of open transactions kept for tailing readers
(TXN_MEMORY_BYTES), and what one connection may have under way."""


def producer_ids(bench: Bench) -> Iterator[Row]:
    """The same load with and without producer ids, on one daemon, in turns."""
    for connections, pipeline in ((50, 1), (50, 16)):
        daemon = bench.daemon()
        requests = bench.requests * pipeline

        def run(
            producers: bool,
            daemon: Daemon = daemon,
            connections: int = connections,
            pipeline: int = pipeline,
            requests: int = requests,
        ) -> float:
            return load.run(
                str(daemon.folder),
                "rows",
                connections=connections,
                requests=requests,
                size=1024,
                pipeline=pipeline,
                producers=producers,
            ).rate

        on, off = rotate(2 * bench.rounds + 1, lambda: run(True), lambda: run(False))
        daemon.remove()
        yield Row.at_least(
            f"producer ids on / off, {connections} connections x {pipeline}",
            f"{median(on):,.0f}/s ({spread(on)})",
            f"{median(off):,.0f}/s ({spread(off)})",
            median(on) / median(off),
            0.95,
        )


def transactions(bench: Bench) -> Iterator[Row]:
    """What a small transaction costs in group commits, and a large one in memory."""
    daemon = bench.daemon()
    bodies = [b"%d" % number for number in range(1000)]
    with connect(daemon.folder) as client:
        client.append("small", [b"first"])
        before = _commits(client)
        client.append("small", bodies)
        plain = _commits(client) - before
        before = _commits(client)
        with client.begin("small") as transaction:
            transaction.append("small", bodies)
        staged = _commits(client) - before
    daemon.remove()
    yield Row.at_most(
        "fdatasyncs of a transaction of 1,000 records, beyond one batch",
        f"{staged}",
        f"one batch: {plain}",
        staged - plain,
        2,
    )
    yield from _large_transaction(bench)


def _large_transaction(bench: Bench) -> Iterator[Row]:
    daemon = bench.daemon()
    lines = (_LARGE_TXN_BYTES if bench.rounds > 1 else _LARGE_TXN_BYTES // 8) // len(LINE)
    source = bench.folder / "lines"
    with source.open("wb") as file:
        for _ in range(lines // 10000):
            file.write(LINE * 10000)
    before = daemon.resident_bytes()
    subprocess.run(
        [BIN / "wal", "append", "large", "-q", "--atomic", "-f", source],
        check=True,
        env=daemon.environment(),
    )
    after = _peak_bytes(daemon)
    if _digest_of_tail(daemon) != _digest(source):
        raise AssertionError("other rows came out than went in")
    size = source.stat().st_size
    source.unlink()
    daemon.remove()
    yield Row.at_most(
        f"memory of the daemon for a transaction of {size / (1 << 30):.2f} GiB",
        f"+{(after - before) / MIB:.0f} MiB at most (from {before / MIB:.0f})",
        f"its limits together: {_MEMORY_MAX_BYTES // MIB} MiB",
        (after - before) / MIB,
        _MEMORY_MAX_BYTES // MIB,
    )


def _commits(client: Client) -> int:
    """Group commits so far: one write and one fdatasync each."""
    for line in client.call("metrics").splitlines():
        if line.startswith("wal_commits_total"):
            return int(float(line.split()[-1]))
    raise AssertionError("no such metric")


def _peak_bytes(daemon: Daemon) -> int:
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _digest_of_tail(daemon: Daemon) -> bytes:
    digest = hashlib.sha256()
    with subprocess.Popen(
        [BIN / "wal", "tail", "large", "-o", "raw"],
        stdout=subprocess.PIPE,
        env=daemon.environment(),
    ) as tail:
        assert tail.stdout is not None
        while piece := tail.stdout.read(MIB):
            digest.update(piece)
    return digest.digest()


GROUPS = {"producers": producer_ids, "transactions": transactions}
