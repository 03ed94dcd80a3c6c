"""Readers of a WAL storage that lands messages out of order get them in TSO order again.

A message waits until a time tick says that nothing older will come. Transactions are put together
on the way: their rows wait for the commit, and those of one that ends otherwise are forgotten. A
transaction that is too large to wait in memory is read once more when its commit is known.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

from wal_core.errors import CorruptError
from wal_core.limits import REORDER_MAX_BYTES, SCAN_CHUNK_BYTES, TXN_MEMORY_BYTES
from wal_core.message import Header, MessageType, unpack_header
from wal_storage.state import CHANGES
from wal_storage.walstore.base import Committed, LogScanner, Run, WalStorage

_INSERT = int(MessageType.INSERT)
_BREAK_TRANSACTIONS = frozenset((MessageType.DROP_COLLECTION, *CHANGES))
Item = TypeVar("Item")


def scanner_of(
    wal: WalStorage, vchannel: int, offset: int, on_violation: Callable[[], None]
) -> LogScanner:
    """A reader of rows in the order of their offsets, whatever the storage does.

    ``on_violation``: called where the storage broke its promise; the reader then raises
    CorruptError. Called in the thread that reads."""
    if wal.ordered:
        return wal.scanner(vchannel, offset)
    return OrderedScanner(wal, vchannel, offset, on_violation)


class ReorderBuffer(Generic[Item]):
    """Items by timestamp, until a tick says that they are complete. ``limit``: bytes."""

    def __init__(self, limit: int = REORDER_MAX_BYTES) -> None:
        self._limit = limit
        self._heap: list[tuple[int, int, int, Item]] = []
        self._pushed = 0
        self.size = 0
        self.last_tick = 0
        self.violations = 0

    def push(self, tso: int, item: Item, size: int = 0) -> None:
        """Raises CorruptError for what a tick has said would not come any more, and where too much
        comes without a tick."""
        if tso <= self.last_tick:
            self.violations += 1
            raise CorruptError(
                f"a message of timestamp {tso} landed behind the time tick {self.last_tick}",
                tso=tso,
                tick=self.last_tick,
            )
        if self._heap and self.size + size > self._limit:
            raise CorruptError(f"more than {self._limit} bytes of log without a time tick")
        self._pushed += 1
        heapq.heappush(self._heap, (tso, self._pushed, size, item))
        self.size += size

    def tick(self, tso: int) -> list[Item]:
        """All items up to ``tso``, in the order of their timestamps."""
        found: list[Item] = []
        while self._heap and self._heap[0][0] <= tso:
            _, _, size, item = heapq.heappop(self._heap)
            self.size -= size
            found.append(item)
        self.last_tick = max(self.last_tick, tso)
        return found


class InOrder:
    """The messages of an unordered storage's scanner, in the order of their timestamps."""

    def __init__(self, scanner: LogScanner, on_violation: Callable[[], None]) -> None:
        self._scanner = scanner
        self._on_violation = on_violation
        self._waiting: ReorderBuffer[tuple[Header, Run]] = ReorderBuffer()
        self._ready: deque[tuple[Header, Run]] = deque()
        self._damage: CorruptError | None = None

    def next(self) -> tuple[Header, Run] | None:
        """None: what is confirmed up to now ends here, or the next tick is still to come."""
        while not self._ready:
            if self._damage is not None:
                raise self._damage
            landed = self._scanner.read()
            if not landed:
                return None
            try:
                self._order(landed)
            except CorruptError as error:
                self._damage = error  # Known once everything before it was returned.
        return self._ready.popleft()

    def close(self) -> None:
        self._scanner.close()

    def _order(self, landed: list[Run]) -> None:
        waiting = self._waiting
        for run in landed:
            header = unpack_header(run.data)
            if header.type == MessageType.TIME_TICK:
                self._ready.extend(waiting.tick(header.tso))
                continue
            try:
                waiting.push(header.tso, (header, run), header.size)
            except CorruptError:
                if waiting.violations:
                    self._on_violation()
                raise


class _Held:
    """Rows of an open transaction."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, Run]] | None = []
        """(rows, their run); None: too large to be held."""
        self.rows = 0
        self.size = 0


class OrderedScanner:
    """See ``LogScanner``: that of an ordered storage, made from one of an unordered storage.

    ``memory``: bytes that rows of open transactions may take."""

    def __init__(
        self,
        wal: WalStorage,
        vchannel: int,
        offset: int,
        on_violation: Callable[[], None],
        memory: int = TXN_MEMORY_BYTES,
    ) -> None:
        self._wal = wal
        self._vchannel = vchannel
        self._due = offset
        """The offset of the row that must come next."""
        self._on_violation = on_violation
        self._memory = memory
        self._messages = InOrder(wal.scanner(vchannel, offset), on_violation)
        self._open: dict[int, _Held] = {}
        self._size = 0
        self._runs = self._assemble()
        self._damage: CorruptError | None = None

    def read(self) -> list[Run]:
        if self._damage is not None:
            raise self._damage
        runs: list[Run] = []
        size = 0
        try:
            for run in self._runs:
                if run is None:
                    break
                runs.append(run)
                size += len(run.data)
                if size >= SCAN_CHUNK_BYTES:
                    break
        except CorruptError as error:
            self._damage = error
            if not runs:
                raise
        return runs

    def close(self) -> None:
        self._runs.close()
        self._messages.close()

    def _assemble(self) -> Generator[Run | None, None, None]:
        """Runs of rows that are due; None where there is nothing more at the moment."""
        while True:
            found = self._messages.next()
            if found is None:
                yield None
                continue
            header, run = found
            if header.type == _INSERT and not header.txn_id:
                yield from self._deliver(run, header.first_offset, header.rows)
            elif header.type == _INSERT:
                self._hold(header, run)
            elif header.type == MessageType.BEGIN_TXN:
                self._open[header.txn_id] = _Held()
            elif header.type == MessageType.COMMIT_TXN:
                yield from self._commit(header)
            elif header.type == MessageType.ROLLBACK_TXN:
                self._forget(header.txn_id)
            elif header.type in _BREAK_TRANSACTIONS:
                for txn_id in list(self._open):
                    self._forget(txn_id)

    def _deliver(self, run: Run, first: int, rows: int, tso: int = 0) -> Iterator[Run]:
        """A run of ``rows`` rows, unless it lies before what is due. ``tso``: of their commit."""
        end = first + rows
        if end <= self._due:
            return
        if first > self._due:
            raise CorruptError(f"rows from {first} on are in the log where {self._due} is due")
        self._due = end
        yield run._replace(end_offset=end, committed=Committed(first, tso) if tso else None)

    # -- transactions ------------------------------------------------------------------------------

    def _hold(self, header: Header, run: Run) -> None:
        held = self._open.get(header.txn_id)
        if held is None:
            return  # It began before this reader did: none of its rows is due.
        held.rows += header.rows
        if held.runs is None:
            return
        if self._size + header.size > self._memory:
            self._size -= held.size
            held.runs, held.size = None, 0
            return
        held.runs.append((header.rows, run))
        held.size += header.size
        self._size += header.size

    def _forget(self, txn_id: int) -> _Held | None:
        held = self._open.pop(txn_id, None)
        if held is not None:
            self._size -= held.size
        return held

    def _commit(self, commit: Header) -> Iterator[Run]:
        held = self._forget(commit.txn_id)
        end = commit.first_offset + commit.rows
        if not commit.rows or end <= self._due:
            return
        found = 0 if held is None else held.rows
        if held is None or found != commit.rows:
            raise CorruptError(
                f"transaction {commit.txn_id:016x}: {found} of {commit.rows} rows are in the log"
            )
        offset = commit.first_offset
        for rows, run in self._fetch(commit) if held.runs is None else held.runs:
            yield from self._deliver(run, offset, rows, commit.tso)
            offset += rows

    def _fetch(self, commit: Header) -> Iterator[tuple[int, Run]]:
        """The rows of a transaction that was too large to be held, from the log once more."""
        scanner = self._wal.scanner(self._vchannel, commit.first_offset)
        with contextlib.closing(InOrder(scanner, self._on_violation)) as messages:
            while (found := messages.next()) is not None:
                header, run = found
                if header.txn_id != commit.txn_id:
                    continue
                if header.type == _INSERT:
                    yield header.rows, run
                elif header.type == MessageType.COMMIT_TXN:
                    return
