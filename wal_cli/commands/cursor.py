"""`wal cursor ls|show|commit|seek|rm`: how far named readers and groups have come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from wal_cli.context import Context
from wal_cli.options import Command, Group, with_context
from wal_cli.render import print_json, print_pairs, print_table
from wal_cli.times import parse_from
from wal_client import cursors
from wal_client.cursors import Position, Step
from wal_client.ranges import From
from wal_core.clock import SystemClock
from wal_core.errors import EXIT_OK, UsageError
from wal_core.frames import Start
from wal_core.names import check_name

app = typer.Typer(cls=Group, rich_markup_mode=None)
_Entry = dict[str, Any]


@app.callback()
def cursor() -> None:
    """Look at and move the cursors of readers and groups."""


Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Collection = Annotated[str, typer.Argument(metavar="COLLECTION", show_default=False)]


@app.command(cls=Command)
@with_context()
def ls(context: Context) -> int:
    """List the cursors. LAG: rows that are still to be read."""
    with context.client() as client:
        found = client.call("cursor_list")
    if context.json:
        _print_json(context, found, found)
    else:
        rows = [
            (
                one["cursor"],
                one["collection"],
                _offsets(one),
                one["lag"],
                len(one["members"]),
                one["committed"],
            )
            for one in found
        ]
        columns = ("CURSOR", "COLLECTION", "OFFSETS", "LAG", "MEMBERS", "COMMITTED")
        print_table(context, columns, rows)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def show(context: Context, name: Name) -> int:
    """Show a cursor: for each shard the next offset to read and how many rows are left.

    Of a group also its members and their shards."""
    check_name(name, "cursor")
    with context.client() as client:
        found = client.call("cursor_get", cursor=name)
    if context.json:
        lag = sum(one["lag"] for one in found)
        _print_json(context, {"cursor": name, "lag": lag, "collections": found}, found)
    else:
        for number, entry in enumerate(found):
            if number:
                print()
            _print_entry(context, entry)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def commit(
    context: Context,
    name: Name,
    collection: Collection,
    offsets: Annotated[str, typer.Argument(metavar="OFFSETS", show_default=False)],
) -> int:
    """Move a cursor on, or make one: to OFFSET, or SHARD:OFFSET,… of some shards.

    OFFSET is the next one to read. A commit never moves back: that is for `seek`."""
    _check(name, collection)
    position = _position(offsets)
    with context.client() as client:
        opened = client.open(collection)
        if position is None:
            if len(opened.vchannels) > 1:
                raise UsageError(
                    f"{collection!r} has {len(opened.vchannels)} shards; say which",
                    hint=f"wal cursor commit {name} {collection} 0:{offsets}",
                )
            position = {0: int(offsets)}
        cursors.commit(client, name, [Step(collection, opened.id, position)])
        (entry,) = client.call("cursor_get", cursor=name, collection=collection)
    _print_moved(context, "committed", entry)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def seek(
    context: Context,
    name: Name,
    collection: Collection,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="WHERE",
            help="earliest, latest, OFFSET, SHARD:OFFSET,…, tso:T, -1h or a time.",
            show_default=False,
        ),
    ],
) -> int:
    """Move a cursor anywhere, also back. Shards that WHERE does not name stay."""
    _check(name, collection)
    start = parse_from(to, SystemClock().wall_ms(), flag="--to")
    with context.client() as client:
        entry = cursors.seek(client, name, collection, start)
    _print_moved(context, "moved", entry)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def rm(
    context: Context,
    name: Name,
    collection: Annotated[
        str | None, typer.Argument(metavar="[COLLECTION]", show_default=False)
    ] = None,
) -> int:
    """Remove a cursor, in one collection or in all."""
    check_name(name, "cursor")
    arguments = {} if collection is None else {"collection": check_name(collection)}
    with context.client() as client:
        found = client.call("cursor_remove", cursor=name, **arguments)
    if context.json:
        _print_json(context, found, found)
        return EXIT_OK
    for one in found:  # A slip can be mended by `commit`.
        print(f"removed {name}  {one['collection']} {_offsets(one)}")
    if not found:
        print(f"removed {name}  {collection}")
    return EXIT_OK


def _check(name: str, collection: str) -> None:
    check_name(name, "cursor")
    check_name(collection)


def _position(offsets: str) -> Position | None:
    """{shard: offset}; None where no shard is named."""
    found = parse_from(offsets, 0, flag="OFFSETS")
    if not isinstance(found, From):
        return {shard: start.value for shard, start in found.items()}
    if found.kind != Start.OFFSET:
        raise UsageError(f"{offsets!r} is neither OFFSET nor SHARD:OFFSET,…")
    return None


def _offsets(entry: _Entry) -> str:
    return ",".join(f"{one['shard']}:{one['offset']}" for one in entry["shards"])


def _print_json(context: Context, whole: Any, entries: Iterable[_Entry]) -> None:
    """``-o ndjson``: an entry a line."""
    if context.output == "ndjson":
        for one in entries:
            print_json(one)
    else:
        print_json(whole)


def _print_moved(context: Context, what: str, entry: _Entry) -> None:
    if context.json:
        print_json(entry)
    else:
        where = f"{entry['collection']} {_offsets(entry)}"
        print(f"{what} {entry['cursor']}  {where}  lag {entry['lag']}")


def _print_entry(context: Context, entry: _Entry) -> None:
    names = ("cursor", "collection", "committed", "lag")
    print_pairs(context, [(name, entry[name]) for name in names])
    print()
    readers = {shard: one["pid"] for one in entry["members"] for shard in one["shards"]}
    columns = ["SHARD", "OFFSET", "NEXT", "LAG"] + (["PID"] if entry["members"] else [])
    rows = []
    for one in entry["shards"]:
        row = [one["shard"], one["offset"], one["next"], one["lag"]]
        rows.append([*row, readers.get(one["shard"], "-")] if entry["members"] else row)
    print_table(context, columns, rows)
    idle = [one["pid"] for one in entry["members"] if not one["shards"]]
    if idle:
        print(f"waiting for a shard: pid {', '.join(map(str, idle))}")
