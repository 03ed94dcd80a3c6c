"""A daemon process for benchmarks and crash tests, and what the kernel says of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from wal_client.endpoint import Endpoint
from wal_client.sync import Client
from wal_core.errors import NotReadyError, TimedOutError, UnreachableError

BIN = Path(sys.executable).parent


class Daemon:
    """``wald`` on a folder, with further arguments at each start."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        self.ready_seconds = 0.0
        self.start(*arguments)

    def start(self, *arguments: str) -> None:
        """Start, and measure the time until a request is served."""
        started = time.perf_counter()
        self.spawn(*arguments)
        while True:
            try:
                # A stopped former owner may still listen; it never answers.
                with self.client(timeout=0.5) as client:
                    client.call("bounds")
                    if client.hello.pid == self.pid:
                        break
            except (UnreachableError, NotReadyError, TimedOutError, OSError):
                if self._process.poll() is not None:
                    raise RuntimeError(self.log.read_text()) from None
                time.sleep(0.002)
        self.ready_seconds = time.perf_counter() - started

    def spawn(self, *arguments: str) -> None:
        """Start without waiting."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "wald", "--dir", str(self.folder), *arguments], stderr=log, stdout=log
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def poll(self) -> int | None:
        """The exit status, once it has ended."""
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def client(self, timeout: float = 30.0) -> Client:
        return Client(Endpoint(str(self.folder / "wald.sock")), timeout=timeout)

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("pchannels/*/*.seg"))

    def resident_bytes(self) -> int:
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def context_switches(self) -> int:
        """Wake-ups of all threads so far."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith(("voluntary_ctxt", "nonvoluntary_ctxt")):
                    total += int(line.split()[1])
        return total

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
        self.log.unlink()

    def environment(self) -> dict[str, str]:
        """For ``wal`` commands."""
        return {
            "PATH": os.environ["PATH"],
            "WAL_DIR": str(self.folder),
            "WAL_AUTOSTART": "0",
            "HOME": str(self.folder),
        }
