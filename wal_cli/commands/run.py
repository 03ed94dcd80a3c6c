"""`wal run -- CMD…`: a daemon for the length of a command."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import typer

from wal_cli.children import environment_of, run_child
from wal_cli.context import Context
from wal_cli.lifecycle import failure_of, spawn, wait_until_ready
from wal_cli.options import with_context
from wal_client.connection import Connection
from wal_client.endpoint import Endpoint
from wal_core.clock import SystemClock
from wal_core.errors import EXIT_OK, NodeHeldError, UnreachableError, UsageError, WalError
from wal_core.settings import Settings, default_socket, resolve

_STOP_SECONDS = 10.0


@with_context(outputs=("text", "json"))
def run(context: Context, invocation: typer.Context) -> int:
    """Start a daemon, run a command, stop the daemon.

    Without --dir the data lie in a temporary directory that is deleted afterwards. The command
    sees WAL_DIR, WAL_SOCKET and WAL_AUTOSTART=0; its exit status is that of `wal run`."""
    command: list[str] | None = invocation.obj
    if not command:
        raise UsageError("no command was given", hint="wal run -- CMD …")
    directory = context.flags["dir"]
    if directory is not None:
        with _Served(_settings(context, directory)) as served:
            return served.run(command)
    directory = tempfile.mkdtemp(prefix="wal-run-")
    served = _Served(_settings(context, directory))
    try:
        with served:
            return served.run(command)
    finally:
        if served.failed:
            print(
                f"wal run: the daemon failed; its directory is kept: {directory}", file=sys.stderr
            )
        else:
            shutil.rmtree(directory, ignore_errors=True)


class _Served:
    """A daemon of ours, from ``__enter__`` on until ``__exit__``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.failed = False
        """Whether the daemon did not start, ended by itself, or did not stop cleanly."""

    def __enter__(self) -> _Served:
        settings = self._settings
        _refuse_served(settings)
        self._process = spawn(settings)
        deadline = SystemClock().monotonic() + settings["timeout"]
        try:
            wait_until_ready(settings, self._process, deadline)
        except WalError:
            self.failed = True
            self._stop(self._process)
            raise
        except BaseException:
            self._stop(self._process)
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            self.failed = True
            error = failure_of(self._settings, self._process)
            print(f"wal run: {error.message} [{error.code}]", file=sys.stderr)
        elif self._stop(self._process) != EXIT_OK:
            self.failed = True

    def run(self, command: list[str]) -> int:
        """The command's exit status, as a shell would give it."""
        return run_child(command, environment_of(self._settings), "wal run")

    def _stop(self, process: subprocess.Popen[bytes]) -> int:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            return process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _settings(context: Context, directory: str) -> Settings:
    """The directory decides about the socket, unless a flag names one: never the environment."""
    flags = dict(context.flags) | {"dir": directory}
    if flags["socket"] is None:
        flags["socket"] = default_socket(os.path.abspath(directory), context.settings.node)
    return resolve(flags, os.environ)


def _refuse_served(settings: Settings) -> None:
    """Raises NodeHeldError where a daemon listens already."""
    try:
        connection = Connection(Endpoint.from_settings(settings), settings["timeout"])
    except UnreachableError:
        return
    connection.close()
    raise NodeHeldError(
        f"{settings.directory} is already served by pid {connection.hello.pid}",
        hint=f"wal down --dir {settings.directory}   or run the command without `wal run`",
        pid=connection.hello.pid,
    )
