"""The blocking producer: batches rows, keeps a window of them under way, gives a receipt.

A lost connection or answer is no error while the client's timeout lasts: the batches under way are
sent again, and the daemon answers those that it has written with what they got (``batcher``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from wal_client.batcher import Batcher, Opened
from wal_client.receipts import Ack, Receipt
from wal_core import frames
from wal_core.batch import Record, type_headers
from wal_core.clock import sleep
from wal_core.errors import (
    NotFoundError,
    NotReadyError,
    TimedOutError,
    UnreachableError,
    WalError,
)
from wal_core.frames import Frame, Kind
from wal_core.limits import (
    ANONYMOUS_PRODUCER_SECONDS,
    BATCH_TARGET_BYTES,
    CLIENT_WINDOW_BYTES,
    PRODUCER_RESULTS_MAX,
)

_POLL_SECONDS = 0.02
_Buffer = bytes | bytearray | memoryview

if TYPE_CHECKING:
    from wal_client.sync import Client


class Producer:
    """Batches rows, keeps a window of batches under way, gives a receipt at the end.

    After an error the producer is at its end: ``receipt`` says what is durable."""

    def __init__(
        self,
        client: Client,
        batcher: Batcher,
        on_ack: Callable[[Ack], None] | None,
        new_id: Callable[[], int] | None = None,
        *,
        resend: bool = True,
    ) -> None:
        """``new_id``: gives random ids, for a producer that has no name. ``resend``: whether to
        send again what was not answered; without, a lost connection is an error at once."""
        self.receipt = Receipt(batcher.opened.name)
        self._new_id = new_id
        self._resend = resend
        self._client = client
        self._batcher = batcher
        self._on_ack = on_ack
        self._bodies: list[bytes] = []
        self._size = 0
        self._keyed: dict[int, list[Record]] = {}
        self._connection = client.connection
        self._last_progress = client.now()
        """When an answer came last, or a batch went out while none was under way."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.flush()

    def append(self, body: bytes, key: bytes | None = None, headers: type_headers = ()) -> None:
        """Queue one row. It is durable when ``flush`` has returned."""
        if key is not None or headers:
            self._append_record(Record(body, key, headers))
            return
        self._bodies.append(body)
        self._size += len(body)
        if self._size >= BATCH_TARGET_BYTES or len(self._bodies) >= 65536:
            self._cut()

    def lines(self, body: _Buffer, count: int, tag: Any = None, expect: int = -1) -> None:
        """Send ``count`` lines, each ended by a newline, as one batch: bytes as they come."""
        next_id = self._client.next_id()
        self._send(lambda: self._batcher.lines(next_id, body, count, tag, expect))

    def records(
        self,
        records: Sequence[Record],
        tag: Any = None,
        shard: int | None = None,
        expect: int = -1,
    ) -> None:
        """Send rows as one batch; with keys of their own they must share ``shard``."""
        next_id = self._client.next_id()
        self._send(lambda: self._batcher.records(next_id, records, tag, shard, expect))

    def encoded(
        self, encoding: int, body: _Buffer, count: int, tag: Any = None, expect: int = -1
    ) -> None:
        """Send rows that are encoded already as one batch (``wal_core.batch``)."""
        next_id = self._client.next_id()
        self._send(
            lambda: self._batcher.encoded(next_id, encoding, body, count, tag=tag, expect=expect)
        )

    def shard_of(self, key: bytes) -> int:
        """Where rows of a key go."""
        return self._batcher.shard_of(key)

    @property
    def opened(self) -> Opened:
        """The collection."""
        return self._batcher.opened

    @property
    def waiting(self) -> int:
        """Batches sent and not answered."""
        return self._batcher.waiting

    def fileno(self) -> int:
        """The socket's descriptor: readable when answers came."""
        return self._connection.fileno()

    def flush(self) -> Receipt:
        """Send what is queued and wait for all answers. Raises OutcomeUnknownError where the
        connection broke with batches under way, or the daemon's error."""
        self._cut()
        while self._batcher.waiting:
            self._receive()
        return self.receipt

    def poll(self) -> None:
        """Take the answers that are there already."""
        while self._batcher.waiting and self._connection.has_frame():
            self._receive()

    def _append_record(self, record: Record) -> None:
        shard = (
            self._batcher.next_shard() if record.key is None else self._batcher.shard_of(record.key)
        )
        self._keyed.setdefault(shard, []).append(record)
        self._size += len(record.body)
        if self._size >= BATCH_TARGET_BYTES:
            self._cut()

    def _cut(self) -> None:
        self._size = 0
        if self._bodies:
            bodies, self._bodies = self._bodies, []
            next_id = self._client.next_id()
            self._send(lambda: self._batcher.bodies(next_id, bodies))
        keyed, self._keyed = self._keyed, {}
        for shard, records in keyed.items():
            self.records(records, shard=shard)

    def _send(self, make: Callable[[], list[_Buffer]]) -> None:
        if not self._batcher.waiting:
            now = self._client.now()
            idle = now - self._last_progress
            if self._new_id is not None and idle > ANONYMOUS_PRODUCER_SECONDS / 2:
                self._batcher.become(self._new_id())
            self._last_progress = now
        buffers = make()
        try:
            self._connection.send(buffers)
        except OSError as error:
            self._recover(error)
        while (
            self._batcher.in_flight > CLIENT_WINDOW_BYTES
            or self._batcher.waiting >= PRODUCER_RESULTS_MAX
        ):
            self._receive()

    def _receive(self) -> None:
        try:
            frame = self._connection.receive()
        except OSError as error:
            self._recover(error)
            return
        if self._resend and self._batcher.wants_resend(frame):
            self._recover(frames.unpack_error(frame))
            return
        self._answered(frame)

    def _answered(self, frame: Frame) -> None:
        if frame.kind == Kind.ERROR and frame.request_id == 0:
            raise frames.unpack_error(frame)
        for ack in self._batcher.answered(frame):
            self._last_progress = self._client.now()
            self.receipt.add(ack)
            if self._on_ack is not None:
                self._on_ack(ack)
        refusal = self._batcher.refused()
        if refusal is not None:
            raise refusal

    def _recover(self, error: Exception) -> None:
        """Connect again and send again what is under way, until the client's timeout is over.

        Raises OutcomeUnknownError then, and NotFoundError where the collection is gone."""
        if not self._resend:
            self._take_what_came()
        deadline = self._client.deadline(self._last_progress)
        pause = 0.0
        while True:
            self._client.close()
            if not self._resend or self._client.is_over(deadline):
                raise self._lost(error)
            sleep(pause)
            pause = _POLL_SECONDS
            try:
                again = self._client.open(self.opened.name)
                if again.id != self.opened.id:
                    raise NotFoundError(f"collection {self.opened.name!r} was dropped meanwhile")
                self._connection = self._client.connection
                for _, buffers in self._batcher.unanswered():
                    self._connection.send(buffers)
                return
            except (OSError, UnreachableError, TimedOutError, NotReadyError) as failure:
                error = failure

    def _take_what_came(self) -> None:
        """Answers may lie in the socket of a daemon that is gone."""
        with contextlib.suppress(OSError):
            while self._batcher.waiting:
                self._answered(self._connection.receive())

    def _lost(self, error: Exception) -> WalError:
        if isinstance(error, WalError):
            why = f"{error.message} [{error.code}]"
        elif isinstance(error, TimeoutError):
            why = "no answer in time"
        else:
            why = "the daemon hung up"
        return self._batcher.lost(why)
