"""Commands that `wal run` and `wal txn run` start: environment, signals, exit status."""

from __future__ import annotations

import os
import signal
import sys

from wal_core.settings import Settings

EXIT_NOT_EXECUTABLE = 126
EXIT_COMMAND_NOT_FOUND = 127
_FROM_KERNEL = 0x80
"""si_code SI_KERNEL: the terminal sent the signal, and sent it to the command too."""


def environment_of(settings: Settings) -> dict[str, str]:
    """Ours, with the daemon that we use named, so that the command reaches the same one."""
    return os.environ | {
        "WAL_DIR": settings.directory,
        "WAL_SOCKET": settings.socket,
        "WAL_AUTOSTART": "0",
    }


def run_child(command: list[str], environment: dict[str, str], who: str) -> int:
    """Run a command to its exit status, as a shell would give it. ``who``: in error lines."""
    sys.stdout.flush()
    passed = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, passed | {signal.SIGCHLD})
    try:
        pid = os.posix_spawnp(command[0], command, environment, setsigmask=before)
        return _wait(pid, passed)
    except FileNotFoundError:
        print(f"{who}: {command[0]}: command not found", file=sys.stderr)
        return EXIT_COMMAND_NOT_FOUND
    except (PermissionError, OSError) as error:
        print(f"{who}: {command[0]}: {error.strerror}", file=sys.stderr)
        return EXIT_NOT_EXECUTABLE
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
