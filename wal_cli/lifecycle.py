"""Start, find and stop the daemon of a data directory.

Whoever starts or stops a daemon holds a lock on the data directory meanwhile (flock on the folder
itself: no file is left behind), so two starters at once get one daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from wal_client.connection import Connection
from wal_client.endpoint import Endpoint
from wal_client.sync import Client
from wal_core.clock import SystemClock, sleep
from wal_core.errors import (
    BugError,
    ConfigError,
    NodeHeldError,
    NotReadyError,
    PermissionDeniedError,
    TimedOutError,
    UnreachableError,
    WalError,
    error_from_wire,
)
from wal_core.settings import Settings

LOG_NAME = "wald.log"
_POLL_SECONDS = 0.005
_ANSWER_SECONDS = 5.0
_LEAVING_HOLDER_SECONDS = 1.0
_ERROR_LINE = re.compile(r"wald: (.*) \[([a-z-]+)\]")
_HINT_PREFIX = "  try: "
_clock = SystemClock()


def start_daemon(settings: Settings, wait: float | None = None) -> dict[str, Any]:
    """Make sure that a ready daemon serves the directory. Returns what it says as `status`.

    ``wait``: seconds (default: the setting ``timeout``). Raises what kept the daemon from
    starting, or NotReadyError where it is still recovering when the time is over."""
    deadline = _clock.monotonic() + (settings["timeout"] if wait is None else wait)
    with _lock(settings.directory, deadline):
        found = _existing(settings, deadline)
        if found is not None:
            return found
        try:
            return wait_until_ready(settings, spawn(settings), deadline)
        except NodeHeldError as error:
            if not _holder_left(error):
                raise
        return wait_until_ready(settings, spawn(settings), deadline)


def stop_daemon(settings: Settings) -> int | None:
    """Stop the daemon and wait until its process is gone. Returns its pid; None: there was none.

    Raises NotReadyError where it is still there after ``timeout`` seconds."""
    deadline = _clock.monotonic() + settings["timeout"]
    if not os.path.isdir(settings.directory) and not os.path.exists(settings.socket):
        return None
    with contextlib.ExitStack() as stack:
        if os.path.isdir(settings.directory):
            stack.enter_context(_lock(settings.directory, deadline))
        try:
            connection = Connection(Endpoint.from_settings(settings), settings["timeout"])
        except UnreachableError:
            return None
        pid = connection.hello.pid
        try:
            fd = os.pidfd_open(pid)  # While it is connected the pid is nobody else's.
        except ProcessLookupError:
            return pid
        finally:
            connection.close()
        stack.callback(os.close, fd)
        try:
            signal.pidfd_send_signal(fd, signal.SIGTERM)
        except ProcessLookupError:
            return pid
        except PermissionError:
            raise PermissionDeniedError(f"pid {pid} belongs to another user") from None
        if not _gone(fd, deadline - _clock.monotonic()):
            raise NotReadyError(
                f"pid {pid} got SIGTERM and is still stopping", hint=f"kill -9 {pid}", pid=pid
            )
        return pid


def spawn(settings: Settings) -> subprocess.Popen[bytes]:
    """A daemon in a session of its own, which logs to DIR/wald.log and holds nothing of ours.

    Raises FormatError for a directory of a newer version, which is left untouched: no log in it."""
    directory = settings.directory
    _require_known_format(directory)
    _make_directory(directory)
    arguments = ["--dir", directory, "--node", settings.node]
    arguments += ["--socket", os.path.abspath(settings.socket)]
    with open(os.path.join(directory, LOG_NAME), "ab", opener=_open_log) as log:
        return subprocess.Popen(
            [*_program(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            close_fds=True,
            start_new_session=True,
        )


def wait_until_ready(
    settings: Settings, process: subprocess.Popen[bytes] | None, deadline: float
) -> dict[str, Any]:
    """The daemon's `status` once it is ready.

    Raises the error with which ``process`` ended; UnreachableError where there is no process to
    wait for and nobody answers (any more)."""
    answer = min(_ANSWER_SECONDS, max(deadline - _clock.monotonic(), _POLL_SECONDS))
    with Client(Endpoint.from_settings(settings), timeout=answer) as client:
        while True:
            try:
                status: dict[str, Any] = client.call("status")
                if status["state"] == "ready":
                    return status
                state = f"node {status['node']!r} is {status['state']}"
            except (UnreachableError, TimedOutError):
                if process is None:
                    raise
                state = "the daemon does not listen yet"
            if process is not None and process.poll() is not None:
                raise failure_of(settings, process)
            if _clock.monotonic() >= deadline:
                raise NotReadyError(f"{state}; the time to wait is over", hint="wal status")
            sleep(_POLL_SECONDS)


def failure_of(settings: Settings, process: subprocess.Popen[bytes]) -> WalError:
    """The error that a daemon which ended had printed last."""
    lines = log_lines(settings, 50)
    for number in range(len(lines) - 1, -1, -1):
        match = _ERROR_LINE.fullmatch(lines[number])
        if match:
            after = lines[number + 1] if number + 1 < len(lines) else ""
            hint = after.removeprefix(_HINT_PREFIX) if after.startswith(_HINT_PREFIX) else ""
            return error_from_wire(match[2], match[1], hint, {})
    last = f": {lines[-1]}" if lines else ""
    return BugError(f"the daemon ended with status {process.returncode}{last}")


def log_path(settings: Settings) -> str:
    return os.path.join(settings.directory, LOG_NAME)


def log_lines(settings: Settings, count: int) -> list[str]:
    """The last lines of the daemon's log. Raises FileNotFoundError."""
    with open(log_path(settings), "rb") as file:
        return last_lines(file.fileno(), count).decode("utf-8", "replace").splitlines()


def last_lines(fd: int, count: int) -> bytes:
    """The last ``count`` lines of an open file, read backwards in blocks."""
    end = os.fstat(fd).st_size
    data = b""
    while end and data.count(b"\n") <= count:
        start = max(0, end - 64 * 1024)
        data = os.pread(fd, end - start, start) + data
        end = start
    return b"".join(data.splitlines(keepends=True)[-count:]) if count else b""


def _existing(settings: Settings, deadline: float) -> dict[str, Any] | None:
    try:
        return wait_until_ready(settings, None, deadline)
    except UnreachableError:
        return None


def _program() -> list[str]:
    """The ``wald`` that was installed together with this ``wal``."""
    for beside in (sys.argv[0], sys.executable):
        path = os.path.join(os.path.dirname(os.path.abspath(beside)), "wald")
        if os.access(path, os.X_OK):
            return [path]
    return [sys.executable, "-m", "wal_daemon"]


def _require_known_format(directory: str) -> None:
    """Raises FormatError. Storage is not imported where the directory is a new one."""
    if os.path.exists(os.path.join(directory, "format")):
        from wal_cli.offline.checking import require_known_format

        require_known_format(directory)


def _make_directory(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o750, exist_ok=True)
    except PermissionError as error:
        raise PermissionDeniedError(f"{directory}: {error.strerror}") from None
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{directory} is not a directory") from None


def _open_log(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)


@contextlib.contextmanager
def _lock(directory: str, deadline: float) -> Iterator[None]:
    """The only one who starts or stops a daemon of this directory. Raises TimedOutError."""
    _make_directory(directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if _clock.monotonic() >= deadline:
                    raise TimedOutError(
                        f"another process starts or stops the daemon of {directory}"
                    ) from None
                sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(fd)


def _holder_left(error: NodeHeldError) -> bool:
    """Whether the daemon that holds the name was just stopping, and is gone now."""
    match = re.search(r"pid (\d+)", error.message)
    if match is None:
        return False
    try:
        fd = os.pidfd_open(int(match[1]))
    except OSError:
        return True
    try:
        return _gone(fd, _LEAVING_HOLDER_SECONDS)
    finally:
        os.close(fd)


def _gone(pidfd: int, seconds: float) -> bool:
    ready, _, _ = select.select([pidfd], [], [], max(seconds, 0))
    return bool(ready)
