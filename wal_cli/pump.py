"""From a descriptor into a producer: the stream half of ``wal append``.

Reads into one buffer and sends from it. A batch goes out when the buffer is full, or as soon as
nothing is under way: so a slow pipe is shipped line by line, and a fast one a megabyte at a time,
without any timer. While a batch is under way, input and acknowledgements are waited for together.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Protocol

from wal_cli.framing import Batch, Framing, Keyed, cut
from wal_client.producer import Producer
from wal_client.receipts import Ack, Receipt
from wal_core.batch import Record
from wal_core.errors import EXIT_BAD_INPUT, EXIT_OUTCOME_UNKNOWN, WalError
from wal_core.limits import BATCH_TARGET_BYTES, KIB, MIB

BLOCK_BYTES = BATCH_TARGET_BYTES
"""Read at most, before something is sent; a record that is larger gets a larger buffer."""
_PIPE_BYTES = 1 * MIB
_COPIED_BYTES = 64 * KIB
"""Less is copied out of the buffer; for more a new buffer costs less."""


class Interrupt:
    """Ctrl-C, as something to wait for. The first one is noticed, the second one is raised."""

    def __init__(self) -> None:
        self.noticed = False
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = signal.signal(signal.SIGINT, self._on_signal)

    def fileno(self) -> int:
        return self._read

    def close(self) -> None:
        signal.signal(signal.SIGINT, self._before)
        os.close(self._read)
        os.close(self._write)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.noticed:
            raise KeyboardInterrupt
        self.noticed = True
        os.write(self._write, b"!")


class Acknowledged:
    """How far the input is in the log. A producer's ``on_ack``."""

    def __init__(self, position: int, advance: Callable[[int], None] | None = None) -> None:
        """``position``: byte of the input at which reading begins. ``advance`` is told how many
        bytes more are acknowledged."""
        self.position = position
        self.records = 0
        self.next_offset = -1
        """Behind the last acknowledged row, in the shard of that row."""
        self._advance = advance

    def __call__(self, ack: Ack) -> None:
        self.records += ack.rows
        self.next_offset = ack.last + 1
        if ack.tag is not None:
            if self._advance is not None:
                self._advance(ack.tag - self.position)
            self.position = ack.tag

    def explain(self, error: WalError, *, durable: bool, one_shard: bool) -> None:
        """Say in an error what is in the log, and from where to go on. After an unknown outcome
        the offset goes along, so that nothing can be written twice."""
        if not self.records and error.exit_status not in (EXIT_BAD_INPUT, EXIT_OUTCOME_UNKNOWN):
            return
        word = "durable" if durable else "acknowledged"
        go_on = f"go on with --resume-at {self.position}"
        if error.exit_status == EXIT_OUTCOME_UNKNOWN and one_shard and self.records:
            go_on += f" --expect {self.next_offset}"
        error.message += f"; {self.records} records are {word}"
        error.hint = f"{error.hint}; {go_on}" if error.hint else go_on
        error.details |= {"durable_records": self.records, "resume_at": self.position}


class Sends(Protocol):
    """What a pump sends to."""

    @property
    def producer(self) -> Producer:
        """The one whose batches are under way; it may change."""

    @property
    def gathers(self) -> bool:
        """Whether small pieces are better kept together."""

    def send(self, batches: Sequence[Batch | Keyed], end: int | None = None) -> None: ...


class Sender:
    """Batches to a producer; the condition goes with the first one."""

    gathers = False

    def __init__(self, producer: Producer, expect: int) -> None:
        """``expect``: the offset that the first row must get (-1: any)."""
        self.producer = producer
        self._expect = expect

    def send(self, batches: Sequence[Batch | Keyed], end: int | None = None) -> None:
        """``end``: the byte of the input behind the last of these batches."""
        for number, batch in enumerate(batches, 1):
            tag = end if number == len(batches) else None
            if isinstance(batch, Keyed):
                self._send_keyed(batch.records, tag)
            else:
                expect, self._expect = self._expect, -1
                # A copy: the batch may have to go out again when the buffer holds other rows.
                body = bytes(batch.body)
                self.producer.encoded(batch.encoding, body, batch.rows, tag, expect)

    def finish(self) -> Receipt:
        """Wait for all answers."""
        return self.producer.flush()

    def _send_keyed(self, records: list[Record], tag: int | None) -> None:
        runs = runs_of(self.producer, records)
        for number, (shard, run) in enumerate(runs, 1):
            expect, self._expect = self._expect, -1
            last = number == len(runs)
            self.producer.records(run, tag if last else None, shard, expect)


def runs_of(producer: Producer, records: list[Record]) -> list[tuple[int | None, list[Record]]]:
    """Records as batches of (shard, rows): rows with a key go to its shard."""
    shards: dict[int | None, list[Record]] = {}
    for record in records:
        shard = None if record.key is None else producer.shard_of(record.key)
        shards.setdefault(shard, []).append(record)
    return [(shard, run) for shard, rows in shards.items() for run in cut(rows)]


class Pump:
    """One input into one producer. Positions count bytes from the input's beginning."""

    def __init__(
        self,
        fd: int,
        framing: Framing,
        sender: Sends,
        *,
        first: bytes = b"",
        position: int = 0,
    ) -> None:
        """``first``: bytes of the input, at ``position``, that were read already."""
        self._fd = fd
        self._framing = framing
        self._sender = sender
        self._position = position
        self._buffer = bytearray(first) + bytearray(BLOCK_BYTES)
        self._size = len(first)
        self._whole = framing.whole(self._buffer, 0, 0, self._size)
        self._at_rest = select.poll()
        self._at_rest.register(fd, select.POLLIN)
        self._under_way = select.poll()
        self._under_way.register(fd, select.POLLIN)
        self._watched = -1
        with contextlib.suppress(OSError):  # Not a pipe, or over what the user may have.
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def run(self, interrupt: Interrupt) -> None:
        """Send all of the input; after a Ctrl-C only the whole records that were read already.

        All that was sent is acknowledged when it returns. Raises BadInputError and
        RecordTooLargeError of the framing, once all before it is acknowledged, and what the
        producer raises."""
        self._at_rest.register(interrupt, select.POLLIN)
        self._under_way.register(interrupt, select.POLLIN)
        ended = False
        while not ended and not interrupt.noticed:
            at_rest = not (self._producer.waiting or self._sender.gathers)
            if self._whole and (self._size >= BLOCK_BYTES or at_rest):
                self._send_whole()
            elif self._input_is_ready():
                ended = not self._read()
        self._send_whole()
        if ended and self._size:
            with self._settled():
                batches = self._framing.last(bytes(self._buffer[: self._size]))
            self._sender.send(batches, self._position + self._size)
        self._producer.flush()

    @property
    def _producer(self) -> Producer:
        return self._sender.producer

    def _input_is_ready(self) -> bool:
        """Wait for input, acknowledgements or Ctrl-C, and take the acknowledgements."""
        if not self._producer.waiting:
            return any(fd == self._fd for fd, _ in self._at_rest.poll())
        if self._producer.fileno() != self._watched:  # It has connected again.
            if self._watched >= 0:
                self._under_way.unregister(self._watched)
            self._watched = self._producer.fileno()
            self._under_way.register(self._watched, select.POLLIN)
        ready = [fd for fd, _ in self._under_way.poll()]
        if self._producer.fileno() in ready:
            self._producer.poll()
        return self._fd in ready

    def _read(self) -> bool:
        """Whether there was anything to read."""
        seen = self._size
        if seen == len(self._buffer):
            self._grow()
        # Never much more than a block: it bounds the records of a batch, too.
        room = memoryview(self._buffer)[seen : seen + BLOCK_BYTES]
        got = os.readv(self._fd, [room])
        self._size += got
        with self._settled():
            self._whole = self._framing.whole(self._buffer, self._whole, seen, self._size)
        return got > 0

    def _grow(self) -> None:
        """The buffer is full with one unfinished record."""
        most = self._framing.max_bytes
        if self._size >= most:
            with self._settled():
                raise self._framing.too_large()
        larger = bytearray(min(4 * self._size, most))
        larger[: self._size] = self._buffer
        self._buffer = larger

    def _send_whole(self) -> None:
        """Send the whole records in the buffer and move what is left to its front."""
        whole, size = self._whole, self._size
        if not whole:
            return
        # What is sent stays as it is until it is answered, for it may have to be sent again.
        data: bytes | bytearray = self._buffer
        if whole < _COPIED_BYTES:
            data = bytes(memoryview(data)[:whole])
            self._buffer[: size - whole] = self._buffer[whole:size]
        else:
            self._buffer = bytearray(max(BLOCK_BYTES, 2 * (size - whole)))
            self._buffer[: size - whole] = memoryview(data)[whole:size]
        with self._settled():
            batches = self._framing.batches(data, whole)
        self._sender.send(batches, self._position + whole)
        self._position += whole
        self._size = size - whole
        self._whole = 0

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        """An error of the input is raised once all before it is acknowledged."""
        try:
            yield
        except WalError:
            self._producer.flush()
            raise
