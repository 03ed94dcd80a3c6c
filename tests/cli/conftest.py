"""Fixtures of the command-line tests: the installed `wal`, run as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from wal_client.connection import Connection
from wal_client.endpoint import Endpoint
from wal_core.errors import WalError

PROGRAM = str(Path(sys.executable).with_name("wal"))


class Result(NamedTuple):
    """What a run of `wal` left: exit status and bytes."""

    status: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def errors(self) -> str:
        return self.err.decode()

    @property
    def json(self) -> Any:
        """stdout as one JSON value."""
        return json.loads(self.out)

    @property
    def error_json(self) -> Any:
        """The object under ``error`` on stderr."""
        return json.loads(self.err)["error"]


class Wal:
    """Runs `wal` in a home of its own; ``dir`` is the data directory that WAL_DIR names."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.dir = home / "data"
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "TMPDIR": str(home / "tmp"),
            "LC_ALL": "C.UTF-8",
            "WAL_DIR": str(self.dir),
        }
        (home / "tmp").mkdir()
        self._started: list[subprocess.Popen[bytes]] = []

    def __call__(
        self,
        *args: str | bytes | Path,
        input: str | bytes | None = None,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 30,
    ) -> Result:
        """Run to the end. ``input``: what stdin gives (None: /dev/null); ``env``: changes to the
        environment (a value of None removes the variable)."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            [PROGRAM, *args],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            env=self.environment(env),
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *args: str | bytes | Path, **kwargs: Any) -> Result:
        """Run to the end and expect exit status 0."""
        result = self(*args, **kwargs)
        assert result.status == 0, result
        return result

    def start(
        self, *args: str | bytes | Path, env: Mapping[str, str | None] | None = None, **kwargs: Any
    ) -> subprocess.Popen[bytes]:
        """A running `wal`; pipes unless ``kwargs`` say otherwise. Ended at the end of the test."""
        return self.start_program(PROGRAM, *args, env=env, **kwargs)

    def start_program(
        self, *argv: str | bytes | Path, env: Mapping[str, str | None] | None = None, **kwargs: Any
    ) -> subprocess.Popen[bytes]:
        """Any program in the same way."""
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(argv, env=self.environment(env), **(pipes | kwargs))
        self._started.append(process)
        return process

    def environment(self, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
        merged = {**self.env, **(changes or {})}
        return {name: value for name, value in merged.items() if value is not None}

    def close(self) -> None:
        """End everything that was started and every daemon that listens below the home."""
        for process in self._started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        for socket in self.home.rglob("wald*.sock"):
            with contextlib.suppress(WalError, OSError):
                connection = Connection(Endpoint(str(socket)), 5)
                connection.close()
                stop_process(connection.hello.pid)


def stop_process(pid: int, number: int = signal.SIGTERM) -> None:
    """Signal a process and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, number)
            select.select([fd], [], [], 10)
        finally:
            os.close(fd)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wal]:
    """`wal` with a running daemon that the tests of a module share: for those that mind no
    collections of others."""
    runner = Wal(tmp_path_factory.mktemp("served"))
    runner.ok("up")
    yield runner
    runner.close()


@pytest.fixture
def wal(tmp_path: Path) -> Iterator[Wal]:
    """`wal` with a data directory of its own; its daemons are stopped at the end."""
    runner = Wal(tmp_path)
    yield runner
    runner.close()
