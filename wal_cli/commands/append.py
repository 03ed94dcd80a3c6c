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
from wal_cli.atomic import AtomicSender
from wal_cli.context import Context
from wal_cli.framing import Batch, Keyed, cut, framing, pack
from wal_cli.options import with_context
from wal_cli.pump import Acknowledged, Interrupt, Pump, Sender
from wal_cli.render import Progress, print_json
from wal_client.batcher import Identity
from wal_client.producer import Producer
from wal_client.receipts import Receipt
from wal_client.sync import Client
from wal_client.txn import Transaction
from wal_core.batch import Record, check_record_size, type_headers
from wal_core.clock import SystemClock
from wal_core.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    BadInputError,
    UnsupportedError,
    UsageError,
    WalError,
)
from wal_core.names import check_name, producer_id

_DISCARD_BYTES = 1 << 20


class _Unit(NamedTuple):
    """What the input is a part of, or is by itself."""

    txn: str | None
    """The transaction that it joins."""
    atomic: bool
    """Whether it is all or nothing."""
    identity: Identity | None
    """Whose batch it is, where it is written once however often it is tried."""


class _Request(NamedTuple):
    """What the flags say, checked."""

    collection: str
    framing: str
    key: bytes | None
    headers: type_headers
    expect: int
    buffered: bool
    create: bool
    partition: str | None
    unit: _Unit


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
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="P", help="Partition of every record.")
    ] = None,
    txn: Annotated[
        str | None,
        typer.Option("--txn", metavar="ID", help="Join a transaction (WAL_TXN)."),
    ] = None,
    atomic: Annotated[
        bool, typer.Option("--atomic", help="All of the input or nothing, however large it is.")
    ] = False,
    producer: Annotated[
        str | None,
        typer.Option("--producer", metavar="NAME", help="With --seq: whose input it is."),
    ] = None,
    seq: Annotated[
        int | None,
        typer.Option(
            "--seq", metavar="N", min=1, help="Number of this input: written once, one up each."
        ),
    ] = None,
    dedup: Annotated[
        str | None,
        typer.Option("--dedup", metavar="ID", help="Write this input once, however often tried."),
    ] = None,
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
    if follow:
        raise UnsupportedError("--follow is not in this version yet")
    if ack not in ("durable", "buffered"):
        raise UsageError(f"--ack {ack!r} is neither durable nor buffered")
    framing(framing_name)
    if bodies == ["-"] and file is None:
        bodies = None
    if bodies and (file is not None or resume_at):
        raise UsageError("records come from arguments or from a file, not from both")
    unit = _unit(txn or context.settings["txn"], atomic, producer, seq, dedup)
    _check_unit(unit, expect, resume_at, ack)
    request = _Request(
        collection,
        framing_name,
        None if key is None else os.fsencode(key),
        tuple(map(_header, header or ())),
        -1 if expect is None else expect,
        ack == "buffered",
        not no_create,
        partition,
        unit,
    )
    if bodies:
        batches = _argument_batches(framing_name, [os.fsencode(body) for body in bodies])
        with context.client() as client:
            receipt = _append_arguments(context, client, request, batches)
        _print(context, receipt, unit, quiet)
        return EXIT_OK
    return _append_stream(context, request, file, resume_at, quiet)


def _unit(
    txn: str | None, atomic: bool, producer: str | None, seq: int | None, dedup: str | None
) -> _Unit:
    if (producer is None) != (seq is None):
        raise UsageError("--producer and --seq go together")
    if dedup is not None and producer is not None:
        raise UsageError("--dedup and --producer both say what is written once; give one")
    identity = None
    if producer is not None and seq is not None:
        identity = Identity(producer_id("producer", check_name(producer, "producer")), 0, seq)
    elif dedup is not None:
        if not dedup:
            raise UsageError("--dedup takes an id")
        identity = Identity(producer_id("dedup", dedup))
    return _Unit(txn, atomic or identity is not None, identity)


def _check_unit(unit: _Unit, expect: int | None, resume_at: int, ack: str) -> None:
    """Raises UsageError for flags that do not go together."""
    if unit.txn is not None and (unit.atomic or expect is not None):
        raise UsageError(
            "inside a transaction (--txn or WAL_TXN) there is no --atomic, --producer, --dedup or "
            "--expect: all of it is the commit's"
        )
    if unit.txn is None and not unit.atomic:
        return
    if ack == "buffered":
        raise UsageError("--ack buffered promises nothing; it goes with plain appends only")
    if resume_at and unit.atomic:
        raise UsageError("--resume-at: what is written as a whole begins at its beginning")


def summary(receipt: Receipt, verb: str = "appended") -> str:
    """``appended 3 to orders  offsets 812..814  tso 451…``; of several ranges each with its
    shard: ``0:812..813,1:90..90``."""
    done = f"{verb} {receipt.count} to {receipt.collection}"
    if not receipt.parts:
        return done
    ranges = [f"{part.first}..{part.last}" for part in receipt.parts]
    if len(ranges) > 1:
        shards = [part.vchannel.rpartition("v")[2] for part in receipt.parts]
        ranges = [f"{shard}:{range}" for shard, range in zip(shards, ranges, strict=True)]
    return f"{done}  offsets {','.join(ranges)}  tso {receipt.tso}"


def _print(context: Context, receipt: Receipt, unit: _Unit, quiet: bool) -> None:
    if quiet:
        return
    if context.json:
        staged = {} if unit.txn is None else {"txn": unit.txn}
        print_json(receipt.as_dict() | staged)
    elif unit.txn is not None:
        print(f"staged {receipt.count} in {unit.txn}")
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


def _producer(
    client: Client,
    request: _Request,
    acknowledged: Acknowledged,
    transaction: Transaction | None = None,
    identity: Identity | None = None,
    shard: int | None = None,
) -> Producer:
    producer = client.producer(
        request.collection,
        create=request.create,
        key=request.key,
        headers=request.headers,
        buffered=request.buffered,
        partition=request.partition,
        shard=shard,
        txn=transaction,
        identity=identity,
        on_ack=acknowledged,
    )
    if request.expect >= 0 and request.key is None and len(producer.opened.vchannels) > 1:
        raise UsageError(f"{request.collection!r} has several shards: --expect needs -k")
    return producer


def _sender(
    context: Context, client: Client, request: _Request, acknowledged: Acknowledged
) -> Sender | AtomicSender:
    unit = request.unit
    if not unit.atomic:
        joined = None if unit.txn is None else Transaction(client, unit.txn)
        return Sender(_producer(client, request, acknowledged, joined), request.expect)
    # Rows without a key all go to one shard, so that they are one unit; to the same one when the
    # command is repeated.
    shard = SystemClock().token() if unit.identity is None else unit.identity.id

    def make(transaction: Transaction | None, identity: Identity | None) -> Producer:
        return _producer(client, request, acknowledged, transaction, identity, shard)

    return AtomicSender(client, make, unit.identity, request.expect, context.settings["timeout"])


def _append_arguments(
    context: Context, client: Client, request: _Request, batches: list[Batch | Keyed]
) -> Receipt:
    sender = _sender(context, client, request, Acknowledged(0))
    with _whole_or_not(sender):
        sender.send(batches)
        return sender.finish()


@contextmanager
def _whole_or_not(sender: Sender | AtomicSender) -> Iterator[None]:
    """An atomic input of which something failed is not written at all."""
    try:
        yield
    except BaseException as error:
        if isinstance(sender, AtomicSender):
            sender.abort()
            if isinstance(error, WalError) and error.exit_status == EXIT_BAD_INPUT:
                error.message += "; nothing was written"
        raise


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
        sender = _sender(context, client, request, acknowledged)
        interrupt = Interrupt()
        pump = Pump(fd, framing(request.framing), sender, first=first, position=resume_at)
        try:
            with _whole_or_not(sender):
                pump.run(interrupt)
                if interrupt.noticed and isinstance(sender, AtomicSender):
                    print("wal append: interrupted; nothing was written", file=sys.stderr)
                    raise KeyboardInterrupt
                receipt = sender.finish()
        except WalError as error:
            if not request.unit.atomic:
                one_shard = request.key is not None or len(sender.producer.opened.vchannels) == 1
                acknowledged.explain(error, durable=not request.buffered, one_shard=one_shard)
            raise
        finally:
            interrupt.close()
            progress.close()
    _print(context, receipt, request.unit, quiet)
    if interrupt.noticed:
        print(_interrupted(receipt, acknowledged), file=sys.stderr)
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
