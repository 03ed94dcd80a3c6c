"""`wal status` and `wal metrics`: what the daemon says of itself. Neither starts one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wal_cli.context import Context, is_terminal
from wal_cli.options import with_context
from wal_cli.render import print_json, print_pairs, print_table, size_text
from wal_client.sync import Client
from wal_core.clock import sleep
from wal_core.errors import EXIT_OK

_WATCH_SECONDS = 1.0
_CLEAR = "\x1b[H\x1b[2J"


@with_context()
def status(
    context: Context,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
) -> int:
    """Say whether a daemon runs, and how it is.

    Exit status 69 where none does."""
    with context.client(autostart=False) as client:
        _show(context, client, clear=watch and is_terminal())
        while watch:
            sleep(_WATCH_SECONDS)
            if not context.json and not is_terminal():
                print()
            _show(context, client, clear=is_terminal())
    return EXIT_OK


@with_context(outputs=("text",))
def metrics(context: Context) -> int:
    """Print metrics in the Prometheus text format."""
    with context.client(autostart=False) as client:
        print(client.call("metrics"), end="")
    return EXIT_OK


def _show(context: Context, client: Client, *, clear: bool) -> None:
    found = client.call("status")
    if clear and not context.json:
        print(_CLEAR, end="")
    if context.json:
        print_json(found)
    else:
        _print_text(context, found)
    _flush()


def _print_text(context: Context, found: dict[str, Any]) -> None:
    names = ("node", "state", "pid", "version", "dir", "socket", "started")
    pairs: list[tuple[str, Any]] = [(name, found[name]) for name in names]
    pairs += [
        ("cpu", f"{found['cpu_seconds']} s"),
        ("memory", f"{size_text(found['memory_bytes'])} at most"),
        ("connections", found["connections"]),
        ("subscriptions", found["subscriptions"]),
        ("collections", found["collections"]),
    ]
    print_pairs(context, pairs)
    channels = found["pchannels"]
    if channels:
        print()
        columns = ("PCHANNEL", "TERM", "STATE", "SEGMENTS", "SEQUENCE", "TIP", "POSITION", "BUFFER")
        print_table(context, columns, [_row(channel) for channel in channels])
    for line in _remarks(channels):
        print(line)


def _row(channel: dict[str, Any]) -> tuple[Any, ...]:
    return (
        channel["pchannel"],
        channel["term"],
        channel["state"],
        channel["segments"],
        channel["next_sequence"],
        channel["tip"],
        channel["confirmed_position"],
        size_text(channel["buffer_bytes"]),
    )


def _remarks(channels: list[dict[str, Any]]) -> list[str]:
    """What asks for attention, a line each."""
    lines = []
    for channel in channels:
        name = f"PChannel {channel['pchannel']}"
        if channel["reason"]:
            lines.append(f"{name}: {channel['reason']}")
        if channel["clock_jumped"]:
            lines.append(f"{name}: the clock jumped ahead; timestamps go on without it")
        for cut in channel["cuts"]:
            lines.append(
                f"{name}: {cut['file']}: {cut['length']} bytes from {cut['offset']} on were torn "
                f"and cut, possibly acknowledged; saved as {cut['saved']} (wal check)"
            )
        if channel["void_segments"]:
            lines.append(f"{name}: {len(channel['void_segments'])} void segments of fenced owners")
    return lines


def _flush() -> None:
    print(end="", flush=True)
