"""``wal append``: records from arguments, a file or stdin into a collection.

``--expect`` is judged for the first batch; where the input needs several, the later ones follow it
without a condition. With several shards it needs ``-k``, which chooses one.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import typer

from wal_cli import fast
from wal_cli.context import Context
from wal_cli.framing import Batch, Keyed, cut, framing, pack
from wal_cli.options import with_context
from wal_cli.pump import Acknowledged, Interrupt, Pump, Sender
from wal_cli.render import Progress, print_json
from wal_client.producer import Producer
from wal_client.receipts import Receipt
from wal_client.sync import Client
from wal_core.batch import Record, check_record_size, type_headers
from wal_core.clock import SystemClock
from wal_core.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    BadInputError,
    UnsupportedError,
    UsageError,
    WalError,
)

_DISCARD_BYTES = 1 << 20


class _Request(NamedTuple):
    """What the flags say, checked."""

    collection: str
    framing: str
    key: bytes | None
    headers: type_headers
    expect: int
    buffered: bool
    create: bool


@with_context()
def append(
    context: Context,
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", show_default=False)],
    bodies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BODY…|-]", help="Records; none or `-`: stdin.", show_default=False
        ),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="Read records from a file.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as the file grows.")] = False,
    resume_at: Annotated[
        int, typer.Option("--resume-at", metavar="BYTE", min=0, help="Skip so much of the input.")
    ] = 0,
    framing_name: Annotated[
        str,
        typer.Option("--framing", metavar="HOW", help="line, nul, len32, whole or ndjson."),
    ] = "line",
    key: Annotated[
        str | None, typer.Option("--key", "-k", metavar="KEY", help="Key of every record.")
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="K=V", help="Header of every record; repeatable."),
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="P", hidden=True)] = None,
    txn: Annotated[str | None, typer.Option("--txn", metavar="ID", hidden=True)] = None,
    atomic: Annotated[bool, typer.Option("--atomic", hidden=True)] = False,
    producer: Annotated[str | None, typer.Option("--producer", hidden=True)] = None,
    seq: Annotated[int | None, typer.Option("--seq", hidden=True)] = None,
    dedup: Annotated[str | None, typer.Option("--dedup", metavar="ID", hidden=True)] = None,
    expect: Annotated[
        int | None,
        typer.Option("--expect", metavar="OFFSET", min=0, help="Offset the first one must get."),
    ] = None,
    ack: Annotated[
        str, typer.Option("--ack", metavar="WHEN", help="durable, or buffered (may be lost).")
    ] = "durable",
    no_create: Annotated[
        bool, typer.Option("--no-create", help="Fail where the collection does not exist.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing on success.")] = False,
) -> int:
    """Append records and wait until they are on stable storage."""
    reserved = {
        "--follow": follow,
        "--partition": partition is not None,
        "--txn": txn is not None,
        "--atomic": atomic,
        "--producer": producer is not None,
        "--seq": seq is not None,
        "--dedup": dedup is not None,
        "WAL_TXN": context.settings["txn"] is not None,
    }
    for name, given in reserved.items():
        if given:
            raise UnsupportedError(f"{name} is not in this version yet")
    if ack not in ("durable", "buffered"):
        raise UsageError(f"--ack {ack!r} is neither durable nor buffered")
    framing(framing_name)
    if bodies == ["-"] and file is None:
        bodies = None
    if bodies and (file is not None or resume_at):
        raise UsageError("records come from arguments or from a file, not from both")
    request = _Request(
        collection,
        framing_name,
        None if key is None else os.fsencode(key),
        tuple(map(_header, header or ())),
        -1 if expect is None else expect,
        ack == "buffered",
        not no_create,
    )
    if bodies:
        batches = _argument_batches(framing_name, [os.fsencode(body) for body in bodies])
        with context.client() as client:
            receipt = _append_arguments(client, request, batches)
        _print(context, receipt, quiet)
        return EXIT_OK
    return _append_stream(context, request, file, resume_at, quiet)


def summary(receipt: Receipt) -> str:
    """``appended 3 to orders  offsets 812..814  tso 451…``; of several ranges each with its
    shard: ``0:812..813,1:90..90``."""
    done = f"appended {receipt.count} to {receipt.collection}"
    if not receipt.parts:
        return done
    ranges = [f"{part.first}..{part.last}" for part in receipt.parts]
    if len(ranges) > 1:
        shards = [part.vchannel.rpartition("v")[2] for part in receipt.parts]
        ranges = [f"{shard}:{range}" for shard, range in zip(shards, ranges, strict=True)]
    return f"{done}  offsets {','.join(ranges)}  tso {receipt.tso}"


def _print(context: Context, receipt: Receipt, quiet: bool) -> None:
    if quiet:
        return
    if context.json:
        print_json(receipt.as_dict())
    else:
        print(summary(receipt))


def _header(text: str) -> tuple[bytes, bytes]:
    name, equals, value = os.fsencode(text).partition(b"=")
    try:
        name.decode()
    except UnicodeDecodeError:
        raise UsageError("-H: the name of a header must be UTF-8") from None
    if not equals or not name:
        raise UsageError(f"-H {text!r} is not NAME=VALUE")
    return name, value


def _argument_batches(framing_name: str, bodies: list[bytes]) -> list[Batch | Keyed]:
    """Each argument is a record, whatever it contains; with ``ndjson`` each is a JSON row."""
    if framing_name == "len32":
        raise UsageError("--framing len32 is for files and stdin")
    if framing_name == "ndjson":
        data = b"".join(body + b"\n" for body in bodies)
        return list(framing(framing_name).batches(data, len(data)))
    for body in bodies:
        check_record_size(len(body))
    runs = cut(list(map(Record, bodies)))
    return [batch for run in runs for batch in pack([record.body for record in run])]


def _producer(client: Client, request: _Request, acknowledged: Acknowledged) -> Producer:
    producer = client.producer(
        request.collection,
        create=request.create,
        key=request.key,
        headers=request.headers,
        buffered=request.buffered,
        on_ack=acknowledged,
    )
    if request.expect >= 0 and request.key is None and len(producer.opened.vchannels) > 1:
        raise UsageError(f"{request.collection!r} has several shards: --expect needs -k")
    return producer


def _append_arguments(client: Client, request: _Request, batches: list[Batch | Keyed]) -> Receipt:
    producer = _producer(client, request, Acknowledged(0))
    Sender(producer, request.expect).send(batches)
    return producer.flush()


def _append_stream(
    context: Context, request: _Request, file: str | None, resume_at: int, quiet: bool
) -> int:
    with _opened(file) as fd, context.client() as client:
        first = fast.take_stdin() if fd == 0 else b""
        if resume_at:
            _skip(fd, resume_at)
        size = os.fstat(fd).st_size if file is not None else 0
        progress = Progress(SystemClock(), f"append {file}", size - resume_at)
        acknowledged = Acknowledged(resume_at, progress.advance if file is not None else None)
        producer = _producer(client, request, acknowledged)
        interrupt = Interrupt()
        sender = Sender(producer, request.expect)
        try:
            Pump(fd, framing(request.framing), sender, first=first, position=resume_at).run(
                interrupt
            )
        except WalError as error:
            one_shard = request.key is not None or len(producer.opened.vchannels) == 1
            acknowledged.explain(error, durable=not request.buffered, one_shard=one_shard)
            raise
        finally:
            interrupt.close()
            progress.close()
    _print(context, producer.receipt, quiet)
    if interrupt.noticed:
        print(_interrupted(producer.receipt, acknowledged), file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _interrupted(receipt: Receipt, acknowledged: Acknowledged) -> str:
    last = f", the last at offset {receipt.parts[-1].last}" if receipt.parts else ""
    word = "durable" if receipt.durable else "acknowledged"
    return (
        f"wal append: interrupted; {receipt.count} records are {word}{last}\n"
        f"  try: go on with --resume-at {acknowledged.position}"
    )


@contextmanager
def _opened(file: str | None) -> Iterator[int]:
    """The descriptor to read from: a file's, or stdin's (also for ``-f -``)."""
    if file is None or file == "-":
        yield 0
        return
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _skip(fd: int, size: int) -> None:
    """Go past the first ``size`` bytes. Raises BadInputError where the input is shorter."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        here = os.lseek(fd, 0, os.SEEK_CUR)
        left = here + size - os.fstat(fd).st_size
        os.lseek(fd, size, os.SEEK_CUR)
    else:
        left = size
        while left > 0 and (got := os.read(fd, min(left, _DISCARD_BYTES))):
            left -= len(got)
    if left > 0:
        raise BadInputError(f"--resume-at {size}: the input has only {size - left} bytes")
