"""``wal tail``: rows of collections to stdout.

What is printed is described in ``wal_cli.rows``, what ``--from`` and ``--until`` take in
``wal_cli.times``. With ``-n`` and several shards the last N rows of all shards together are shown.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple

import typer

from wal_cli import rows
from wal_cli.context import Context, is_terminal
from wal_cli.keeping import FileKeeper, GroupKeeper, Keeper, NamedKeeper
from wal_cli.options import with_context
from wal_cli.printing import Printer, Source
from wal_cli.times import parse_from, parse_until
from wal_client.consumer import Tail
from wal_client.groups import Member
from wal_client.ranges import (
    EARLIEST,
    FOLLOW,
    NOW,
    From,
    Until,
    from_last,
    from_offset,
)
from wal_client.sync import Client
from wal_core.clock import SystemClock
from wal_core.errors import EXIT_OK, MemberFencedError, UnsupportedError, UsageError, WalError
from wal_core.frames import End
from wal_core.names import check_name
from wal_core.tso import ms_of

_FOLLOW_ROWS = 10


class _Range(NamedTuple):
    start: From | Mapping[int, From]
    until: Until | Mapping[int, Until]
    last: int | None
    """So many rows before the end; in place of ``start``."""


@with_context(("text", "json", "ndjson", "raw", "len32"))
def tail(
    context: Context,
    collections: Annotated[list[str], typer.Argument(metavar="COLLECTION…", show_default=False)],
    last: Annotated[
        int | None,
        typer.Option("--lines", "-n", metavar="N", min=0, help="The last N rows (-f: 10)."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="WHERE", help="earliest, latest, OFFSET, tso:T, -1h or a time."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="WHERE", help="end, OFFSET, tso:T, -1h or a time."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=0, help="The first N rows.")
    ] = None,
    cursor: Annotated[
        str | None,
        typer.Option("--cursor", metavar="NAME", help="Read on where this cursor stands."),
    ] = None,
    cursor_file: Annotated[
        str | None,
        typer.Option("--cursor-file", metavar="F", help="The same, kept in a file of yours."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="G", help="Share the shards with others of the group."),
    ] = None,
    framing: Annotated[
        str | None,
        typer.Option("--framing", metavar="HOW", help="With -o raw: line, nul, len32 or whole."),
    ] = None,
) -> int:
    """Print rows: up to now, or with -f for ever.

    A cursor or group is kept as far as rows went to stdout, at most once a second and at the end.
    Rows are delivered at least once: after kill -9 up to a second of them come again. --from places
    a new cursor only (default: earliest)."""
    kept = _the_one(cursor, cursor_file, group)
    if last is not None and start is not None:
        raise UsageError("-n and --from both say where to start")
    if last is not None and kept:
        raise UsageError(f"-n and {kept} both say where to start")
    wanted = _range(last, start, until, follow, ten=not kept)
    output = _output(context.output, framing)
    raw = rows.raw(framing or ("len32" if output == "len32" else "line"))
    printer = Printer()
    names = list(dict.fromkeys(collections))
    with context.client() as client:
        source, shards = _source(client, names, wanted, printer, cursor, cursor_file, group)
        if output == "text":
            format = rows.text(with_collection=len(names) > 1, with_shard=shards > len(names))
        else:
            format = rows.ndjson if output == "ndjson" else raw
        with printer.keeper:
            printer.copy(source, format, count)
    return EXIT_OK


def _the_one(cursor: str | None, cursor_file: str | None, group: str | None) -> str | None:
    """The flag that says where the position is kept."""
    flags = {"--cursor": cursor, "--cursor-file": cursor_file, "--group": group}
    given = [flag for flag, value in flags.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} both say where the position is kept")
    if cursor is not None:
        check_name(cursor, "cursor")
    if group is not None:
        check_name(group, "group")
    return given[0] if given else None


def _source(
    client: Client,
    collections: list[str],
    wanted: _Range,
    printer: Printer,
    cursor: str | None,
    cursor_file: str | None,
    group: str | None,
) -> tuple[Source, int]:
    """What to read, and of how many shards; the printer is given who keeps the position."""
    if group is not None:
        member = _member(client, group, collections, wanted, printer)
        return member, member.shards
    keeper: Keeper | None = None
    if cursor is not None:
        keeper = NamedKeeper(client, cursor, collections, wanted.start)
    elif cursor_file is not None:
        keeper = FileKeeper(client, cursor_file, collections, wanted.start)
    tail = _tail(client, collections, wanted, keeper)
    if keeper is not None:
        printer.keeper = keeper
    return tail, len(tail.shards)


def _member(
    client: Client, group: str, collections: list[str], wanted: _Range, printer: Printer
) -> Member:
    def lost(error: WalError) -> None:
        keeper.forget()
        if isinstance(error, MemberFencedError):
            print(
                f"wal tail: group {group!r}: {error.message}; it joins again, and what it printed "
                "last may come twice",
                file=sys.stderr,
                flush=True,
            )

    first, *others = collections
    member = client.member(
        group, first, wanted.start, wanted.until, settle=printer.settle, on_lost=lost
    )
    for name in others:
        member.add(name, wanted.start, wanted.until)
    printer.keeper = keeper = GroupKeeper(member)
    return member


def _range(
    last: int | None, start: str | None, until: str | None, follow: bool, *, ten: bool
) -> _Range:
    """``ten``: start ten rows before the end, where a follower is not told where."""
    now_ms = SystemClock().wall_ms()
    end: Until | Mapping[int, Until] = FOLLOW if follow else NOW
    if until is not None:
        end = parse_until(until, now_ms, follow=follow)
        if follow and isinstance(end, Until) and end.kind == End.TSO and ms_of(end.value) > now_ms:
            raise UnsupportedError("-f up to a time to come is not in this version yet")
    if start is not None:
        return _Range(parse_from(start, now_ms), end, None)
    if last is None and follow and ten:
        last = _FOLLOW_ROWS
    return _Range(EARLIEST, end, last)


def _output(asked: str | None, framing: str | None) -> str:
    if asked is None:
        if framing is not None:
            return "raw"
        return "text" if is_terminal() else "ndjson"
    if framing is not None and asked != "raw":
        raise UsageError(f"--framing goes with -o raw, not with -o {asked}")
    return "ndjson" if asked == "json" else asked


def _tail(client: Client, collections: list[str], wanted: _Range, keeper: Keeper | None) -> Tail:
    """``keeper``: whose position comes before what is wanted."""
    tail: Tail | None = None
    for name in collections:
        start = wanted.start
        if keeper is not None:
            start = keeper.start(name)
        elif wanted.last is not None:
            start = _last_rows(client, name, wanted.last, wanted.until)
        if tail is None:
            tail = Tail(client, name, start, wanted.until)
        else:
            tail.add(name, start, wanted.until)
    assert tail is not None  # Typer wants one collection at least.
    return tail


def _last_rows(
    client: Client, collection: str, count: int, until: Until | Mapping[int, Until]
) -> From | Mapping[int, From]:
    """Where the last ``count`` rows begin. Of several shards the latest rows of all are found by
    their timestamps; rows before an end in the past are found by reading up to it."""
    to_now = isinstance(until, Until) and until.kind in (End.NOW, End.NEVER, End.FOLLOW_OFFSET)
    if count == 0 or (to_now and len(client.open(collection).vchannels) == 1):
        return from_last(count)
    if to_now:
        tail = Tail(client, collection, from_last(count), NOW)
    else:
        tail = Tail(client, collection, EARLIEST, until)
    pieces = sorted(_last_pieces(tail, count))
    starts = {one.shard: one.next_offset or 0 for one in tail.shards}
    while pieces and count:
        _, shard, end, rows = pieces.pop()
        taken = min(rows, count)
        starts[shard] = end - taken
        count -= taken
    return {shard: from_offset(offset) for shard, offset in starts.items()}


def _last_pieces(tail: Tail, count: int) -> Iterator[tuple[int, int, int, int]]:
    """(tso, shard, end, rows) of the last batches of each shard that hold ``count`` rows."""
    kept: dict[int, deque[tuple[int, int, int, int]]] = {}
    rows: dict[int, int] = {}
    for batch in tail:
        shard = kept.setdefault(batch.shard, deque())
        shard.append((batch.tso, batch.shard, batch.end, batch.count))
        rows[batch.shard] = rows.get(batch.shard, 0) + batch.count
        while rows[batch.shard] - shard[0][3] >= count:
            rows[batch.shard] -= shard.popleft()[3]
    return itertools.chain.from_iterable(kept.values())
