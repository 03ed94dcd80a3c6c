"""`wal collection create|ls|describe|alter|truncate|drop`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wal_cli.context import Context
from wal_cli.options import Command, Group, with_context
from wal_cli.render import confirm, print_json, print_pairs, print_table
from wal_core.errors import EXIT_OK, UnsupportedError, UsageError
from wal_core.names import check_name, check_setting

app = typer.Typer(cls=Group, rich_markup_mode=None)


@app.callback()
def collection() -> None:
    """Create, list, describe, change and drop collections."""


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
    """Show a collection: partitions, settings, and first and next offsets of its shards."""
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
def alter(
    context: Context,
    name: Name,
    add_partition: Annotated[
        list[str] | None, typer.Option("--add-partition", metavar="P", help="Create a partition.")
    ] = None,
    drop_partition: Annotated[
        list[str] | None,
        typer.Option("--drop-partition", metavar="P", help="Take no more rows for a partition."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="KEY", help="Take a setting away.")
    ] = None,
) -> int:
    """Change partitions and settings; each option may be repeated.

    Transactions that are open in the collection fail."""
    check_name(name)
    added, dropped = add_partition or [], drop_partition or []
    for one in (*added, *dropped):
        check_name(one, "partition")
    settings = _settings(set_ or [], unset or [])
    if not (added or dropped or settings):
        raise UsageError("nothing to change", hint="wal collection alter --help")
    with context.client() as client:
        altered = client.call(
            "alter", name=name, add_partitions=added, drop_partitions=dropped, settings=settings
        )
    if context.json:
        print_json(altered)
    else:
        print(f"altered {name}  {'  '.join(' '.join(pair) for pair in _changeable(altered))}")
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def truncate(
    context: Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """Hide all rows that a collection has now; offsets go on.

    Transactions that are open in it fail."""
    check_name(name)
    with context.client() as client:
        rows = client.call("describe", name=name)["rows"]
        if not yes:
            confirm(
                f"truncating {name!r}",
                f"truncate {name} with {rows} rows?",
                f"wal collection truncate {name} --yes",
            )
        truncated = client.call("truncate", name=name)
    if context.json:
        print_json(truncated)
    else:
        print(f"truncated {name}  rows {truncated['truncated_rows']}")
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


def _settings(assignments: list[str], unset: list[str]) -> dict[str, str]:
    """What ``--set`` and ``--unset`` say; an empty value takes a setting away."""
    settings: dict[str, str] = {}
    for one in assignments:
        key, equals, value = one.partition("=")
        if not equals:
            raise UsageError(f"--set takes KEY=VALUE, not {one!r}")
        if not value:
            raise UsageError(f"--set {one} has no value", hint=f"--unset {key}")
        settings[key] = value
    for key in unset:
        if key in settings:
            raise UsageError(f"--set and --unset of the same setting {key!r}")
        settings[key] = ""
    for key, value in settings.items():
        check_setting(key, value)
    return settings


def _changeable(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Partitions and settings of a description as text; `-` where there are none."""
    partitions = " ".join(found["partitions"])
    settings = " ".join(f"{key}={value}" for key, value in sorted(found["settings"].items()))
    return [("partitions", partitions or "-"), ("settings", settings or "-")]


def _print_description(context: Context, found: dict[str, Any]) -> None:
    pairs = [(key, found[key]) for key in ("collection", "id", "kind", "created", "rows")]
    print_pairs(context, [*pairs, *_changeable(found)])
    print()
    rows = [
        (one["shard"], one["vchannel"], one["first"], one["next"], one["last_tso"])
        for one in found["shards"]
    ]
    print_table(context, ("SHARD", "VCHANNEL", "FIRST", "NEXT", "LAST TSO"), rows)
