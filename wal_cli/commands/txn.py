"""`wal txn begin|commit|rollback|ls|run`: transactions for scripts.

A transaction is an id. Rows enter by ``wal append --txn ID``, or by any ``wal append`` that finds
the id in WAL_TXN, as in the command of ``wal txn run``.
"""

from __future__ import annotations

import contextlib
import re
from typing import Annotated, Any

import typer

from wal_cli.children import environment_of, run_child
from wal_cli.context import Context
from wal_cli.keepalive import kept_alive
from wal_cli.options import Command, Group, with_context
from wal_cli.render import print_json, print_table, size_text
from wal_client.receipts import Receipt
from wal_client.txn import Transaction
from wal_core.errors import EXIT_OK, UsageError, WalError
from wal_core.limits import TXN_KEEPALIVE_SECONDS

app = typer.Typer(cls=Group, rich_markup_mode=None)
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


@app.callback()
def txn() -> None:
    """Rows that become visible together, or never."""


Id = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
Collections = Annotated[list[str], typer.Argument(metavar="COLLECTION…", show_default=False)]
Keepalive = Annotated[
    str,
    typer.Option(
        "--keepalive", metavar="TIME", help="Rolled back after so long without an append."
    ),
]
_KEEPALIVE = f"{TXN_KEEPALIVE_SECONDS:g}s"


@app.command(cls=Command)
@with_context()
def begin(
    context: Context,
    collections: Collections,
    keepalive: Keepalive = _KEEPALIVE,
    no_create: Annotated[
        bool, typer.Option("--no-create", help="Fail where a collection does not exist.")
    ] = False,
) -> int:
    """Begin a transaction and print its id.

    Over several collections or shards it is one transaction in each: atomic one by one, not as a
    set."""
    seconds = _seconds(keepalive)
    with context.client() as client:
        begun = client.begin(*collections, keepalive=seconds, create=not no_create)
    if context.json:
        print_json({"id": begun.id, "collections": collections, "keepalive_seconds": seconds})
    else:
        print(begun.id)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def commit(context: Context, id: Id) -> int:
    """Make the rows of a transaction visible. Repeating it gives the first answer again."""
    with context.client(autostart=False) as client:
        receipts = Transaction(client, id).commit()
    _print_receipts(context, id, receipts)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def rollback(context: Context, id: Id) -> int:
    """End a transaction whose rows will never be seen."""
    with context.client(autostart=False) as client:
        Transaction(client, id).rollback()
    if context.json:
        print_json({"id": id, "rolled_back": True})
    else:
        print(f"rolled back {id}")
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def ls(context: Context) -> int:
    """List the open transactions."""
    with context.client() as client:
        found = client.call("txn_list")
    if context.output == "ndjson":
        for one in found:
            print_json(one)
    elif context.json:
        print_json(found)
    else:
        rows = [
            (
                *(one["id"], ",".join(one["collections"]), one["rows"], size_text(one["bytes"])),
                *(one["begun"], f"{one['expires_in_seconds']:.1f} s"),
            )
            for one in found
        ]
        print_table(context, ("ID", "COLLECTIONS", "ROWS", "SIZE", "BEGUN", "EXPIRES IN"), rows)
    return EXIT_OK


@app.command(cls=Command)
@with_context()
def run(
    context: Context,
    invocation: typer.Context,
    collections: Collections,
    keepalive: Keepalive = _KEEPALIVE,
    no_create: Annotated[
        bool, typer.Option("--no-create", help="Fail where a collection does not exist.")
    ] = False,
) -> int:
    """Run a command whose appends belong to one transaction: `wal txn run COLLECTION… -- CMD…`.

    The command sees WAL_TXN, and the transaction is kept alive while it runs. It is committed when
    the command exits with 0, and rolled back otherwise; the exit status is the command's, or that
    of the commit."""
    command: list[str] | None = invocation.obj
    if not command:
        raise UsageError("no command was given", hint="wal txn run COLLECTION… -- CMD …")
    seconds = _seconds(keepalive)
    with context.client() as client:
        begun = client.begin(*collections, keepalive=seconds, create=not no_create)
        environment = environment_of(context.settings) | {"WAL_TXN": begun.id}
        try:
            with kept_alive(context.endpoint, begun.id, seconds, context.settings["timeout"]):
                status = run_child(command, environment, "wal txn run")
        except BaseException:
            _roll_back(begun)
            raise
        if status != EXIT_OK:
            _roll_back(begun)
            return status
        receipts = begun.commit()
    _print_receipts(context, begun.id, receipts)
    return EXIT_OK


def _roll_back(transaction: Transaction) -> None:
    """As good as possible: its lease ends anyway."""
    with contextlib.suppress(WalError, OSError):
        transaction.rollback()


def _print_receipts(context: Context, id: str, receipts: dict[str, Receipt]) -> None:
    if context.json:
        parts: list[dict[str, Any]] = [
            {"collection": receipt.collection, **part.as_dict()}
            for receipt in receipts.values()
            for part in receipt.parts
        ]
        print_json({"id": id, "count": sum(part["count"] for part in parts), "parts": parts})
        return
    from wal_cli.commands.append import summary

    if not receipts:
        print(f"committed {id}  no rows")
    for receipt in receipts.values():
        print(summary(receipt, verb="committed"))


def _seconds(text: str) -> float:
    """``10s``, ``500ms``, ``2m``, ``1h``, or a number of seconds."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise UsageError(f"--keepalive {text!r} is no length of time", hint="for example 10s or 2m")
    return float(match[1]) * _UNITS[match[2]]
