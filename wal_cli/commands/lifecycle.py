"""`wal up`, `down`, `restart` and `logs`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from wal_cli.context import Context
from wal_cli.lifecycle import last_lines, log_path, start_daemon, stop_daemon
from wal_cli.options import with_context
from wal_cli.render import print_json
from wal_core.clock import sleep
from wal_core.errors import EXIT_OK, NotFoundError, UsageError

_FOLLOW_SECONDS = 0.2
_BLOCK_BYTES = 64 * 1024

Wait = Annotated[
    float | None,
    typer.Option("--wait", metavar="SECONDS", help="How long to wait until it is ready."),
]


@with_context()
def up(context: Context, wait: Wait = None) -> int:
    """Start a daemon and return when it is ready.

    Returns 0 also where one runs already."""
    _print_started(context, start_daemon(context.settings, wait))
    return EXIT_OK


@with_context()
def down(context: Context) -> int:
    """Stop the daemon; return when its process is gone.

    Returns 0 also where there was none. Never starts one."""
    pid = stop_daemon(context.settings)
    if context.json:
        print_json({"pid": pid, "dir": context.settings.directory})
    elif pid is None:
        print(f"no daemon runs for {context.settings.directory}")
    else:
        print(f"stopped  pid {pid}  dir {context.settings.directory}")
    return EXIT_OK


@with_context()
def restart(context: Context, wait: Wait = None) -> int:
    """Stop the daemon, if one runs, and start it anew."""
    stop_daemon(context.settings)
    _print_started(context, start_daemon(context.settings, wait))
    return EXIT_OK


@with_context(outputs=("text",))
def logs(
    context: Context,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="N", help="The last N lines first.")
    ] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
) -> int:
    """Print the end of the daemon's log.

    The file is DIR/wald.log; a daemon under systemd logs to the journal instead."""
    if lines < 0:
        raise UsageError(f"-n {lines}: a number of lines is 0 or more")
    path = log_path(context.settings)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no {path}", hint="wal up   or, for the service, journalctl -u wald"
        ) from None
    try:
        position = os.fstat(fd).st_size
        _write(last_lines(fd, lines))
        while follow:
            position = min(position, os.fstat(fd).st_size)  # It was emptied by somebody.
            new = os.pread(fd, _BLOCK_BYTES, position)
            position += len(new)
            _write(new)
            if not new:
                sleep(_FOLLOW_SECONDS)
    finally:
        os.close(fd)
    return EXIT_OK


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _print_started(context: Context, status: dict[str, Any]) -> None:
    started = {name: status[name] for name in ("pid", "dir", "socket", "started", "version")}
    if context.json:
        print_json(started)
    else:
        print(
            f"ready  pid {started['pid']}  dir {started['dir']}  socket {started['socket']}  "
            f"version {started['version']}"
        )
