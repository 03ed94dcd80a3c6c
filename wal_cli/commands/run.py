"""`wal run -- CMD…`: a daemon for the length of a command."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

import typer

from wal_cli.context import Context
from wal_cli.lifecycle import failure_of, spawn, wait_until_ready
from wal_cli.options import with_context
from wal_client.connection import Connection
from wal_client.endpoint import Endpoint
from wal_core.clock import SystemClock
from wal_core.errors import EXIT_OK, NodeHeldError, UnreachableError, UsageError, WalError
from wal_core.settings import Settings, default_socket, resolve

EXIT_NOT_EXECUTABLE = 126
EXIT_COMMAND_NOT_FOUND = 127
_FROM_KERNEL = 0x80
"""si_code SI_KERNEL: the terminal sent the signal, and sent it to the command too."""
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
        environment = os.environ | {
            "WAL_DIR": self._settings.directory,
            "WAL_SOCKET": self._settings.socket,
            "WAL_AUTOSTART": "0",
        }
        sys.stdout.flush()
        passed = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, passed | {signal.SIGCHLD})
        try:
            pid = os.posix_spawnp(command[0], command, environment, setsigmask=before)
            return _wait(pid, passed)
        except FileNotFoundError:
            print(f"wal run: {command[0]}: command not found", file=sys.stderr)
            return EXIT_COMMAND_NOT_FOUND
        except (PermissionError, OSError) as error:
            print(f"wal run: {command[0]}: {error.strerror}", file=sys.stderr)
            return EXIT_NOT_EXECUTABLE
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _stop(self, process: subprocess.Popen[bytes]) -> int:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            return process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _wait(pid: int, passed: set[signal.Signals]) -> int:
    """Wait for a child and pass signals on to it that others send to us."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        came = signal.sigwaitinfo(passed | {signal.SIGCHLD})
        if came.si_signo != signal.SIGCHLD and came.si_code != _FROM_KERNEL:
            os.kill(pid, came.si_signo)


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
