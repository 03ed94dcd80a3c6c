"""Redis streams with ``appendfsync always``, measured with Redis' own load generator."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from bench.results import Latencies


class RedisResult(NamedTuple):
    rate: float
    latencies: Latencies


def is_there() -> bool:
    return shutil.which("redis-server") is not None and shutil.which("redis-benchmark") is not None


class Redis:
    """A server of its own on a Unix socket; its data is gone with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._socket = folder / "redis.sock"
        self._process = subprocess.Popen(
            [
                "redis-server",
                "--port",
                "0",
                "--unixsocket",
                str(self._socket),
                "--dir",
                str(folder),
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--save",
                "",
            ],
            stdout=subprocess.DEVNULL,
        )
        while not self._socket.exists():
            time.sleep(0.02)

    def append(
        self, *, connections: int, requests: int, size: int, pipeline: int = 1
    ) -> RedisResult:
        """XADD of one field of ``size`` bytes."""
        output = subprocess.run(
            [
                "redis-benchmark",
                "-s",
                str(self._socket),
                "-c",
                str(connections),
                "-n",
                str(requests),
                "-P",
                str(pipeline),
                "--csv",
                "XADD",
                "bench",
                "*",
                "f",
                "x" * size,
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        row = list(csv.reader(output.splitlines()))[-1]
        # command, rate, then milliseconds: average, minimum, p50, p95, p99, maximum
        return RedisResult(float(row[1]), Latencies(float(row[4]) / 1e3, float(row[6]) / 1e3))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)
