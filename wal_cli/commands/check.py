"""`wal check` and `wal dump`: look at the files themselves.

`wal_cli.offline` is imported by the functions: storage would slow down the start of every command.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wal_cli.context import Context
from wal_cli.options import with_context
from wal_cli.render import Progress, confirm, print_json, size_text
from wal_client.sync import Client
from wal_core.clock import SystemClock
from wal_core.errors import (
    EXIT_CHECK_FAILED,
    EXIT_CORRUPT,
    EXIT_OK,
    UnreachableError,
)

if TYPE_CHECKING:
    from wal_cli.offline.checking import Bound, Report


@with_context()
def check(
    context: Context,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every batch of every segment.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Accept torn tails that were cut (asks).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """Check checksums, chain, offsets and catalog.

    Works with and without a daemon. Exit status 0: all is well; 1: something to look at; 5:
    corruption. Changes nothing, except that --repair takes your word for records that were cut off
    and possibly acknowledged."""
    from wal_cli.offline import checking

    directory = checking.open_directory(context.settings.directory)
    if repair:
        if not yes:
            confirm(
                "--repair",
                "accept that the cut records, possibly acknowledged, are lost?",
                "wal check --repair --yes",
            )
        for name in checking.accept_cuts(directory):
            print(f"accepted {name}", file=sys.stderr)
    progress = Progress(SystemClock(), "checking", checking.bytes_to_read(directory))
    client = _daemon(context)
    try:
        report = checking.check_logs(
            directory, deep=deep, bounds=_bounds(client), advance=progress.advance
        )
        if client is None:
            checking.check_catalog(directory, report)
        elif len(report.states) == len(directory.pchannels()):
            checking.compare_collections(report, _listed(client), "the daemon")
    finally:
        progress.close()
        if client is not None:
            client.close()
    _print_report(context, report)
    if any(problem.is_corruption for problem in report.problems):
        return EXIT_CORRUPT
    return EXIT_CHECK_FAILED if report.problems else EXIT_OK


@with_context()
def dump(
    context: Context,
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False)],
) -> int:
    """Print a log segment in readable form.

    Needs no daemon. Exit status 5 where the segment is damaged."""
    from wal_cli.offline import dumping

    status = EXIT_OK
    pieces = []
    for piece in dumping.dump(file):
        if piece["kind"] == "end" and piece["what"] == "damaged":
            status = EXIT_CORRUPT
        if context.output == "json":
            pieces.append(piece)
        elif context.output == "ndjson":
            print_json(piece)
        else:
            _print_piece(piece)
    if context.output == "json":
        print_json(_as_one(pieces))
    return status


def _daemon(context: Context) -> Client | None:
    try:
        return context.client(autostart=False)
    except UnreachableError:
        return None


def _bounds(client: Client | None) -> dict[int, Bound] | None:
    from wal_cli.offline.checking import Bound

    if client is None:
        return None
    return {one["pchannel"]: Bound(one["tip"], one["position"]) for one in client.call("bounds")}


def _listed(client: Client) -> dict[str, dict[int, int]]:
    """Collections that the daemon has now. Rows may have come since the logs were read, so no
    offsets are asked for."""
    return {
        one["collection"]: {int(shard["id"]): 0 for shard in one["shards"]}
        for one in client.call("list")
    }


def _print_report(context: Context, report: Report) -> None:
    if context.json:
        print_json(report.as_json())
        return
    for kind, file, offset, problem in report.problems:
        place = file if offset is None else f"{file}: offset {offset}"
        print(f"{kind}: {place}: {problem}" if place else f"{kind}: {problem}")
    print(
        f"{'ok' if not report.problems else f'{len(report.problems)} problems'}  "
        f"segments {report.segments}  batches {report.batches}  rows {report.rows}  "
        f"{size_text(report.bytes)}"
    )
    if any(problem.kind == "cut" for problem in report.problems):
        print("  try: wal check --repair --yes   once you have accepted the cuts", file=sys.stderr)


def _as_one(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The pieces under their kinds; ``batches`` is a list."""
    one: dict[str, Any] = {"header": None, "snapshot": None, "batches": [], "footer": None}
    for piece in pieces:
        kind = piece.pop("kind")
        if kind == "batch":
            one["batches"].append(piece)
        else:
            one[kind] = piece
    return one


def _print_piece(piece: dict[str, Any]) -> None:
    kind = piece.pop("kind")
    if kind == "batch":
        print(_batch_line(piece))
        return
    vchannels = piece.pop("vchannels", [])
    words = [f"{name} {value}" for name, value in piece.items() if value not in (None, "")]
    print(f"{kind}  {'  '.join(words)}")
    for one in vchannels:
        print(_vchannel_line(one))


def _vchannel_line(one: dict[str, Any]) -> str:
    words = [
        f"vchannel {one['vchannel']}",
        f"{one['collection']} shard {one['shard']} of {one['shards']}",
        f"first {one['first']}",
        f"next {one['next']}",
    ]
    if one["dropped_tso"]:
        words.append("dropped")
    for name in ("partitions", "open_transactions"):
        if one[name]:
            words.append(f"{name.replace('_', ' ')} {' '.join(one[name])}")
    if one["settings"]:
        words.append(f"settings {_settings(one['settings'])}")
    if one["producers"]:
        words.append(f"producers {one['producers']}")
    return f"  {'  '.join(words)}"


def _batch_line(batch: dict[str, Any]) -> str:
    words = [
        f"{batch['position']}",
        batch["type"],
        f"seq {batch['sequence']}",
        f"tso {batch['tso']}",
        batch["time"],
    ]
    if batch["vchannel"] != "0":
        words.append(f"vchannel {batch['vchannel']}")
        if batch["collection"] is not None:
            words.append(f"{batch['collection']} shard {batch['shard']}")
    if batch["txn"] is not None:
        words.append(f"txn {batch['txn']}")
    if batch["first"] is not None:
        words.append(f"offsets {batch['first']}..{batch['last']}")
    if batch["rows"] or not batch["details"]:
        words.append(f"rows {batch['rows']}")
    if batch["details"]:
        words += _detail_words(batch["details"])
    else:
        words.append(f"{batch['encoding']} {batch['body_bytes']} B")
    if batch["compression"] != "none":
        words.append(batch["compression"])
    if batch["partition"]:
        words.append(f"partition {batch['partition']}")
    if batch["producer"] != "0":
        words.append(
            f"producer {batch['producer']} epoch {batch['producer_epoch']} "
            f"batch {batch['producer_sequence']}"
        )
    words.append(f"synced {batch['synced_upto']}")
    return "  ".join(words)


def _detail_words(details: dict[str, Any]) -> list[str]:
    words = []
    for name, value in details.items():
        if name == "extents":
            words += [f"in {one['segment']} {one['start']}..{one['end']}" for one in value]
        elif name == "settings":
            words.append(f"settings {_settings(value)}")
        elif name == "keepalive_seconds":
            words.append(f"keepalive {value:g} s")
        elif name == "end":
            words.append(value.replace("_", " "))
        else:
            words.append(f"{name} {value}")
    return words


def _settings(settings: dict[str, str | None]) -> str:
    """``a=1 -b``: b was taken away."""
    return " ".join(
        f"-{key}" if value is None else f"{key}={value}" for key, value in settings.items()
    )
