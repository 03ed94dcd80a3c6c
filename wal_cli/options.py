"""The flags that every command has, and help that groups them apart from the command's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from wal_cli.context import Context

_SHARED: dict[str, tuple[Any, Any]] = {
    "dir": (
        Annotated[
            str | None,
            typer.Option(
                "--dir", metavar="DIR", help="Data directory (WAL_DIR; $XDG_STATE_HOME/wal)."
            ),
        ],
        None,
    ),
    "socket": (
        Annotated[
            str | None,
            typer.Option("--socket", metavar="PATH", help="Socket (WAL_SOCKET; DIR/wald.sock)."),
        ],
        None,
    ),
    "node": (
        Annotated[
            str | None,
            typer.Option("--node", metavar="NAME", help="Name of the daemon (WAL_NODE; main)."),
        ],
        None,
    ),
    "timeout": (
        Annotated[
            float | None,
            typer.Option("--timeout", metavar="S", help="Seconds to wait (WAL_TIMEOUT; 30)."),
        ],
        None,
    ),
    "no_autostart": (
        Annotated[bool, typer.Option("--no-autostart", help="Start no daemon (WAL_AUTOSTART=0).")],
        False,
    ),
    "color": (
        Annotated[
            str | None,
            typer.Option("--color", metavar="WHEN", help="auto, always or never (WAL_COLOR)."),
        ],
        None,
    ),
    "output": (
        Annotated[
            str | None,
            typer.Option("--output", "-o", metavar="FORMAT", help="text, json, ndjson or raw."),
        ],
        None,
    ),
}
"""Parameter name → (annotation, default)."""

VALUE_FLAGS = frozenset(("--dir", "--socket", "--node", "--timeout", "--color", "--output", "-o"))
"""Shared flags that take a value."""


def with_context(
    outputs: Sequence[str] = ("text", "json", "ndjson"),
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command function the shared flags. It takes the ``Context`` made of them first.

    ``outputs``: the formats of ``-o`` that the command knows."""

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]

        @functools.wraps(function)
        def command(**values: Any) -> int:
            flags = {name: values.pop(name) for name in _SHARED}
            output = flags.pop("output")
            flags["autostart"] = False if flags.pop("no_autostart") else None
            return function(Context(flags, output, outputs), **values)

        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for name, (kind, default) in _SHARED.items()
        ]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + shared
        # Typer reads both of these.
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


class Command(TyperCommand):
    """A command whose help lists the shared flags last."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments: list[tuple[str, str]] = []
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                arguments.append(record)
            else:
                (shared if parameter.name in _SHARED else own).append(record)
        for title, records in (
            ("Arguments", arguments),
            ("Options", own),
            ("Options of every command", shared),
        ):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(TyperGroup):
    """A group whose help lists its commands by what they are for, in the order of registration."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                title = panel if isinstance(panel, str) else "Commands"
                panels.setdefault(title, []).append((name, command.get_short_help_str(70)))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)
