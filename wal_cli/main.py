"""The whole of `wal`, with Typer. `wal_cli.fast` comes here for all but the plainest append."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from wal_cli.commands import check, collection, config, cursor, explain, lifecycle, status, txn
from wal_cli.commands import run as run_command
from wal_cli.commands.append import append
from wal_cli.commands.tail import tail
from wal_cli.exits import command_name, guarded, report
from wal_cli.options import VALUE_FLAGS, Command, Group
from wal_core.errors import EXIT_OK, UnsupportedError, UsageError
from wal_core.version import VERSION

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Typer has a click of its own.
_COMPLETION_VARIABLE = "_WAL_COMPLETE"
_SWITCHES = frozenset(("--no-autostart",))
_RESERVED = frozenset(
    (
        *("backup", "bench", "checkpoint", "delete", "doctor", "export", "flush", "get"),
        *("import", "move", "node", "query", "recover", "restore", "search", "segment", "service"),
        *("shell-init", "sql", "top", "topology", "upsert"),
    )
)
"""Commands that later versions have."""

_EPILOG = """\b
Examples:
  wal append orders 'hello'              one record; a daemon starts by itself
  seq 1000 | wal append orders           a record a line from stdin
  wal tail orders                        all records up to now
  wal tail orders -f                     the last ten, then what comes
  wal run -- make test                   a daemon for the length of a command
  wal explain not-ready                  what an error means and what to do
"""

_DATA = "Write and read"
_DAEMON = "The daemon"
_CARE = "Look after the log"
_HELP = "Help"


def run(argv: list[str]) -> int:
    """Run one command line (without the program's name) to its exit status."""
    argv = _command_first(argv)
    return guarded(lambda: _dispatch(argv), argv)


def _dispatch(argv: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # Paths need not be UTF-8.
    if argv[:1] == ["--version"]:
        print(f"wal {VERSION}")
        return EXIT_OK
    if argv and argv[0] in _RESERVED:
        raise UnsupportedError(
            f"`wal {argv[0]}` is reserved; version {VERSION} does not have it", hint="wal --help"
        )
    rest: list[str] | None = None
    if (argv[:1] == ["run"] or argv[:2] == ["txn", "run"]) and "--" in argv:
        at = argv.index("--")
        argv, rest = argv[:at], argv[at + 1 :]
    return _invoke(argv or ["--help"], rest)


def _invoke(argv: list[str], rest: list[str] | None) -> int:
    """``rest``: what stands behind ``--`` in `wal run` and `wal txn run`."""
    program = typer.main.get_command(_app())
    if _COMPLETION_VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
        program.main(prog_name="wal", complete_var=_COMPLETION_VARIABLE)
    try:
        # Not ``program.main``: it has exit statuses and error texts of its own.
        with program.make_context("wal", list(argv), obj=rest) as context:
            return int(program.invoke(context) or EXIT_OK)
    except typer.Exit as ended:
        return int(ended.exit_code)
    except _UsageError as error:
        return _report_usage(error, argv)


def _report_usage(error: Exception, argv: list[str]) -> int:
    """Typer knows best which command it was: `wal` itself, where there is no such command."""
    found = getattr(error, "ctx", None)
    path = found.command_path if found is not None else command_name(argv)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    # Empty when it was raised to show the help of a group that was given no command.
    message = message.strip().rstrip(".") or f"{path} takes a command"
    return report(UsageError(message, hint=f"{path} --help"), argv, path)


def _command_first(argv: list[str]) -> list[str]:
    """Shared flags may stand before the command, too; move them behind it."""
    at = 0
    while at < len(argv):
        word = argv[at]
        if word in VALUE_FLAGS:
            at += 2
        elif word in _SWITCHES or word.split("=")[0] in VALUE_FLAGS or _is_output(word):
            at += 1
        else:
            break
    if at == 0 or at >= len(argv):
        return argv
    words = 2 if command_name(argv[at:]).count(" ") == 2 else 1
    return argv[at : at + words] + argv[:at] + argv[at + words :]


def _is_output(word: str) -> bool:
    """``-ojson``: the one short flag of all commands, and its value in one word."""
    return word.startswith("-o")


def _app() -> typer.Typer:
    app = typer.Typer(
        cls=Group,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="A write-ahead log as a service: append, tail, look after it.",
        epilog=_EPILOG,
    )

    @app.callback()
    def wal(
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None: ...

    for panel, name, function in (
        (_DATA, "append", append),
        (_DATA, "tail", tail),
        (_DATA, "run", run_command.run),
        (_DAEMON, "up", lifecycle.up),
        (_DAEMON, "down", lifecycle.down),
        (_DAEMON, "restart", lifecycle.restart),
        (_DAEMON, "status", status.status),
        (_DAEMON, "logs", lifecycle.logs),
        (_DAEMON, "metrics", status.metrics),
        (_CARE, "check", check.check),
        (_CARE, "dump", check.dump),
        (_HELP, "explain", explain.explain),
        (_HELP, "completion", explain.completion),
    ):
        app.command(name, cls=Command, rich_help_panel=panel)(function)
    app.add_typer(collection.app, name="collection", rich_help_panel=_DATA)
    app.add_typer(txn.app, name="txn", rich_help_panel=_DATA)
    app.add_typer(cursor.app, name="cursor", rich_help_panel=_DATA)
    app.add_typer(config.app, name="config", rich_help_panel=_HELP)
    return app
