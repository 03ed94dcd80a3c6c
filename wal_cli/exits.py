"""Exit statuses and error lines: the one place where an exception becomes what a script sees."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from wal_core.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    BugError,
    IoFailureError,
    PermissionDeniedError,
    WalError,
)

GROUPS = frozenset(
    ("checkpoint", "collection", "config", "cursor", "node", "segment", "service", "txn")
)
"""Commands of two words."""


class Terminated(BaseException):
    """SIGTERM came. Not an Exception, so that nothing but ``guarded`` swallows it."""


def guarded(work: Callable[[], int], argv: Sequence[str]) -> int:
    """Run a command to its exit status. ``argv`` (without the program) names it in errors.

    Whatever is raised ends here; a broken pipe is found out also when stdout is flushed last."""
    _open_missing_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = work()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        silence_stdout()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        silence_stdout()
        return EXIT_INTERRUPTED
    except Terminated:
        silence_stdout()
        return EXIT_TERMINATED
    except WalError as error:
        return report(error, argv)
    except OSError as error:
        silence_stdout()
        return report(_from_os(error), argv)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        return report(_bug(error, argv), argv)


def report(error: WalError, argv: Sequence[str], command: str | None = None) -> int:
    """Print an error to stderr, as JSON where the command line asks for JSON. Returns its exit
    status. ``command``: whose error it is (None: what ``argv`` names)."""
    try:
        sys.stdout.flush()  # What was done before the error stands before it.
    except OSError:
        silence_stdout()
    try:
        print(_described(error, argv, command), file=sys.stderr, flush=True)
    except OSError:
        _redirect_to_null(2)
    return error.exit_status


def command_name(argv: Sequence[str]) -> str:
    """``wal append``, ``wal collection ls``: the words of the command line that name a command."""
    words = ["wal"]
    if argv and not argv[0].startswith("-"):
        words.append(argv[0])
        if argv[0] in GROUPS and len(argv) > 1 and not argv[1].startswith("-"):
            words.append(argv[1])
    return " ".join(words)


def flag_value(argv: Sequence[str], long: str, short: str = "") -> str | None:
    """The last value that ``argv`` gives a flag, found without parsing the rest; None: not there.
    What stands behind ``--`` is not looked at."""
    found = None
    words = iter(argv)
    for word in words:
        if word == "--":
            break
        if word in (long, short):
            found = next(words, None)
        elif word.startswith(long + "="):
            found = word[len(long) + 1 :]
        elif short and word.startswith(short) and not word.startswith("--"):
            found = word[len(short) :].removeprefix("=")
    return found


def wants_json(argv: Sequence[str]) -> bool:
    """Whether errors are to be JSON, known before the command line is parsed."""
    return flag_value(argv, "--output", "-o") in ("json", "ndjson")


def silence_stdout() -> None:
    """Let the interpreter's own flush at exit go nowhere, after stdout broke."""
    _redirect_to_null(1)


def _open_missing_streams() -> None:
    """Put /dev/null where a standard stream was closed (``>&-``), before a socket takes its
    number. Reading stdin must fail then, and not look like an empty input: it is for writing."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        os.open(os.devnull, os.O_WRONLY)  # The lowest free number, which is ``fd``.
        if name != "stdin":
            setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115 - until the end


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _described(error: WalError, argv: Sequence[str], command: str | None) -> str:
    if wants_json(argv):
        import json

        from wal_core.frames import details_of

        return json.dumps(details_of(error), default=str)
    line = f"{command or command_name(argv)}: {_one_line(error.message)} [{error.code}]"
    return f"{line}\n  try: {_one_line(error.hint)}" if error.hint else line


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _from_os(error: OSError) -> WalError:
    name = error.filename
    shown = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) else ""
    message = f"{shown}{error.strerror or error}"
    if isinstance(error, PermissionError):
        return PermissionDeniedError(message)
    return IoFailureError(message, hint="df -h; dmesg | tail")


def _bug(error: Exception, argv: Sequence[str]) -> BugError:
    saved = _save_traceback(error, argv)
    details: dict[str, Any] = {"traceback": saved} if saved else {}
    return BugError(
        f"{type(error).__name__}: {error}",
        hint=f"report it with {saved}" if saved else "report it with the command line",
        **details,
    )


def _save_traceback(error: Exception, argv: Sequence[str]) -> str:
    """Write the traceback to DIR/wal-bug.log. Returns that path, or nothing where it cannot."""
    import traceback

    from wal_core.settings import resolve

    try:
        folder = resolve({"dir": flag_value(argv, "--dir")}, os.environ).directory
        path = os.path.join(folder, "wal-bug.log")
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
        return path
    except (OSError, WalError):
        return ""


def _redirect_to_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)
