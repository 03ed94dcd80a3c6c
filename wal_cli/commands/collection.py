"""`wal collection create|ls|describe|drop`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wal_cli.context import Context
from wal_cli.options import Command, Group, with_context
from wal_cli.render import confirm, print_json, print_pairs, print_table
from wal_core.errors import EXIT_OK, UnsupportedError
from wal_core.names import check_name

app = typer.Typer(cls=Group, rich_markup_mode=None)


@app.callback()
def collection() -> None:
    """Create, list, describe and drop collections."""


Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@app.command(cls=Command)
@with_context()
def create(
    context: Context,
    name: Name,
    shards: Annotated[
        int, typer.Option("--shards", metavar="N", help="Parts with an order of their own.")
    ] = 1,
    schema: Annotated[str | None, typer.Option("--schema", metavar="FILE", hidden=True)] = None,
    field: Annotated[list[str] | None, typer.Option("--field", hidden=True)] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", hidden=True)] = None,
) -> int:
    """Create a raw collection (key, headers, body)."""
    check_name(name)
    for flag, value in (("--schema", schema), ("--field", field), ("--replicas", replicas)):
        if value:
            raise UnsupportedError(f"{flag} is reserved; this version has raw collections only")
    with context.client() as client:
        created = client.call("create", name=name, shards=shards)
    if context.json:
        print_json(created)
    else:
        print(f"created {name}  shards {len(created['shards'])}")
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def ls(context: Context) -> int:
    """List the collections."""
    with context.client() as client:
        found = client.call("list")
    if context.output == "ndjson":
        for one in found:
            print_json(one)
    elif context.json:
        print_json(found)
    else:
        rows = [
            (one["collection"], one["kind"], len(one["shards"]), one["rows"], one["created"])
            for one in found
        ]
        print_table(context, ("COLLECTION", "KIND", "SHARDS", "ROWS", "CREATED"), rows)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def describe(context: Context, name: Name) -> int:
    """Show a collection and its shards: first and next offsets."""
    check_name(name)
    with context.client() as client:
        found = client.call("describe", name=name)
    if context.json:
        print_json(found)
    else:
        _print_description(context, found)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def drop(
    context: Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """Drop a collection with all its rows."""
    check_name(name)
    with context.client() as client:
        rows = client.call("describe", name=name)["rows"]
        if not yes:
            confirm(
                f"dropping {name!r}",
                f"drop {name} with {rows} rows?",
                f"wal collection drop {name} --yes",
            )
        dropped = client.call("drop", name=name)
    if context.json:
        print_json(dropped)
    else:
        print(f"dropped {name}  rows {dropped['rows']}")
    return EXIT_OK


def _print_description(context: Context, found: dict[str, Any]) -> None:
    print_pairs(context, [(key, found[key]) for key in ("collection", "id", "kind", "created")])
    print_pairs(context, [("rows", found["rows"])])
    print()
    rows = [
        (one["shard"], one["vchannel"], one["first"], one["next"], one["last_tso"])
        for one in found["shards"]
    ]
    print_table(context, ("SHARD", "VCHANNEL", "FIRST", "NEXT", "LAST TSO"), rows)
