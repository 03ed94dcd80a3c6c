"""A checker of histories, without I/O: what clients asked for and were told, against what readers
saw. Source of the rules: faults.md, rows 9, 10 and 11.

The log of a shard is one order of rows. Every reader sees a part of that order without holes. What
has its place in it is a *unit*: one batch of a producer, or all rows of a transaction in the shard.

Each rule that can be broken has a name; ``Broken.rule`` says which one was.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

NEVER = float("inf")


class Outcome(enum.Enum):
    """What the client was told."""

    OK = "ok"
    FAILED = "failed"
    """A refusal: it did not happen."""
    UNKNOWN = "unknown"
    """No answer, or one that says so: it happened or not."""


class Kind(enum.Enum):
    APPEND = "append"
    BEGIN = "begin"
    STAGE = "stage"
    """Rows appended inside a transaction."""
    COMMIT = "commit"
    ROLLBACK = "rollback"


class Key(NamedTuple):
    """What makes a batch one and the same, however often it is sent."""

    producer: int
    epoch: int
    sequence: int


class Operation(NamedTuple):
    """One call of a client. Times are of any one clock that never goes back."""

    kind: Kind
    invoked: float
    completed: float
    outcome: Outcome
    rows: tuple[bytes, ...] = ()
    """No two rows of a history are equal, but those of one batch that is sent again."""
    shard: int = 0
    key: Key | None = None
    txn: int = 0
    first: int | None = None
    """The offset that the answer gave to the first row."""


class Seen(NamedTuple):
    """One row that a reader got."""

    offset: int
    row: bytes
    at: float


class Read(NamedTuple):
    """All that one reader saw of a shard, in the order in which it came."""

    name: str
    rows: Sequence[Seen]
    shard: int = 0
    since: float | None = None
    """Set for a reader that began at the earliest row at this time, and read all there was."""


class Broken(AssertionError):
    """The history is not one of a linearizable log that writes everything once."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


class _Unit:
    """What stands in the log whole, or not at all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._parts: dict[object, tuple[tuple[bytes, ...], Outcome]] = {}
        self.outcome = Outcome.FAILED
        self.invoked = NEVER
        self.completed = NEVER
        self.first: int | None = None
        self.key: Key | None = None

    @property
    def parts(self) -> Iterable[tuple[tuple[bytes, ...], Outcome]]:
        """Rows, and whether it is known that they belong to it."""
        return self._parts.values()

    def add(self, rows: tuple[bytes, ...], outcome: Outcome, key: Key | None = None) -> None:
        """Rows of it; those of a key that is known already are the same ones."""
        name = key or len(self._parts)
        _, before = self._parts.get(name, (rows, outcome))
        self._parts[name] = (rows, max(before, outcome, key=_RANK.__getitem__))

    def attempt(self, operation: Operation) -> None:
        """An append, or a commit. May be one of several of the same."""
        self.invoked = min(self.invoked, operation.invoked)
        if operation.outcome is Outcome.OK:
            self._answered(operation.first)
            self.completed = min(self.completed, operation.completed)
        if _RANK[operation.outcome] > _RANK[self.outcome]:
            self.outcome = operation.outcome

    def _answered(self, first: int | None) -> None:
        if self.outcome is Outcome.OK and first != self.first:
            raise Broken("one answer", f"{self.name} got offset {self.first}, and then {first}")
        self.first = first


_RANK = {Outcome.FAILED: 0, Outcome.UNKNOWN: 1, Outcome.OK: 2}


def check(operations: Iterable[Operation], reads: Sequence[Read]) -> int:
    """Raises Broken. One of the reads of each shard must have been made after all operations.
    Returns how many rows stand in all shards together."""
    by_shard: dict[int, list[Operation]] = {read.shard: [] for read in reads}
    for operation in operations:
        if operation.kind in (Kind.APPEND, Kind.STAGE, Kind.COMMIT, Kind.ROLLBACK):
            by_shard.setdefault(operation.shard, []).append(operation)
    rows = 0
    for shard, some in by_shard.items():
        of_shard = [read for read in reads if read.shard == shard]
        order = _one_order(of_shard)
        units = list(_units(some))
        spans = _check_places(units, order)
        _check_order(list(spans))
        _check_seen(units, of_shard)
        _check_ends(spans, of_shard)
        rows += len(order)
    return rows


def running_hash(rows: Iterable[bytes]) -> list[bytes]:
    """A digest for each prefix, the empty one first: equal digests, equal prefixes."""
    digest = b""
    found = [digest]
    for row in rows:
        digest = hashlib.blake2b(digest + len(row).to_bytes(8, "little") + row).digest()[:16]
        found.append(digest)
    return found


# -- readers ---------------------------------------------------------------------------------------


def _one_order(reads: Sequence[Read]) -> list[bytes]:
    """The rows of a shard. Offsets are dense, and all readers agree."""
    for read in reads:
        for before, after in zip(read.rows, read.rows[1:], strict=False):
            if after.offset != before.offset + 1:
                what = f"{read.name} saw {after.offset} behind {before.offset}"
                raise Broken("dense offsets", what)
    whole = [read for read in reads if read.rows and read.rows[0].offset == 0]
    longest = max(whole, key=lambda read: len(read.rows), default=None)
    order = [seen.row for seen in longest.rows] if longest is not None else []
    hashes = running_hash(order)
    for read in reads:
        if not read.rows:
            continue
        first = read.rows[0].offset
        seen = [one.row for one in read.rows]
        if first == 0:
            agrees = running_hash(seen)[-1] == hashes[len(seen)]
        else:
            agrees = order[first : first + len(seen)] == seen
        if not agrees:
            at = next(
                (at for at, row in enumerate(seen, first) if order[at : at + 1] != [row]), first
            )
            raise Broken("one order", f"{read.name} saw another row than others at offset {at}")
    return order


# -- units -----------------------------------------------------------------------------------------


def _units(operations: Iterable[Operation]) -> Iterator[_Unit]:
    batches: dict[object, _Unit] = {}
    transactions: dict[int, _Unit] = {}
    rolled_back: set[int] = set()
    for number, operation in enumerate(operations):
        if operation.kind is Kind.APPEND:
            identity = operation.key or number
            unit = batches.get(identity)
            if unit is None:
                unit = batches[identity] = _Unit(f"the batch of {operation.rows[0][:40]!r}")
                unit.add(operation.rows, Outcome.OK)
                unit.key = operation.key
            unit.attempt(operation)
            continue
        unit = transactions.setdefault(operation.txn, _Unit(f"transaction {operation.txn:x}"))
        if operation.kind is Kind.STAGE:
            unit.add(operation.rows, operation.outcome, operation.key)
        elif operation.kind is Kind.COMMIT:
            unit.attempt(operation)
        elif operation.outcome is Outcome.OK:
            rolled_back.add(operation.txn)
    for txn in rolled_back:
        unit = transactions[txn]
        if unit.outcome is Outcome.OK:
            raise Broken("one end", f"{unit.name} was committed and rolled back")
        unit.outcome = Outcome.FAILED
    yield from batches.values()
    yield from transactions.values()


def _check_places(units: list[_Unit], order: list[bytes]) -> dict[_Unit, range]:
    """Each unit stands where it was acknowledged, whole, once; and nothing else stands there.
    Returns the offsets of those that are there, in their order."""
    owner: dict[bytes, _Unit] = {}
    for unit in units:
        for rows, _ in unit.parts:
            for row in rows:
                if row in owner:
                    raise ValueError(f"the row {row[:40]!r} was sent twice")
                owner[row] = unit
    placed: dict[_Unit, range] = {}
    at = 0
    while at < len(order):
        unit_here = owner.get(order[at])
        if unit_here is None:
            raise Broken("nothing else", f"nobody sent the row at offset {at}: {order[at][:40]!r}")
        if unit_here in placed:
            what = f"{unit_here.name} stands at {placed[unit_here].start} and at {at}"
            raise Broken("written once", what)
        placed[unit_here] = range(at, at + _length_at(unit_here, order, at))
        at = placed[unit_here].stop
    for unit in units:
        _check_fate(unit, placed[unit].start if unit in placed else None)
    return placed


def _length_at(unit: _Unit, order: list[bytes], at: int) -> int:
    """How many rows of a unit stand at an offset, where it begins."""
    end = at
    for rows, outcome in unit.parts:
        there = tuple(order[end : end + len(rows)])
        if there == rows and outcome is not Outcome.FAILED:
            end += len(rows)
        elif outcome is Outcome.OK or set(there) & set(rows):
            raise Broken("whole and together", f"{unit.name} is not whole at offset {at}")
    if end == at:
        raise Broken("whole and together", f"{unit.name} does not begin at offset {at}")
    return end - at


def _check_fate(unit: _Unit, place: int | None) -> None:
    if unit.outcome is Outcome.FAILED and place is not None:
        what = f"{unit.name} was refused, rolled back or never committed, and stands at {place}"
        raise Broken("nothing that failed", what)
    if unit.outcome is Outcome.OK:
        has_rows = any(rows for rows, outcome in unit.parts if outcome is Outcome.OK)
        if place is None and has_rows:
            raise Broken("nothing lost", f"{unit.name} was acknowledged and is not there")
        if place is not None and unit.first is not None and unit.first != place:
            what = f"{unit.name} was acknowledged at {unit.first} and stands at {place}"
            raise Broken("where it was acknowledged", what)


def _check_order(units: list[_Unit]) -> None:
    """What ended before another began stands before it; a producer's batches follow one another."""
    latest: _Unit | None = None
    sequences: dict[tuple[int, int], int] = {}
    for unit in units:
        if latest is not None and unit.completed < latest.invoked:
            what = f"{latest.name} began after the end of {unit.name}, and stands before it"
            raise Broken("real time", what)
        if latest is None or unit.invoked > latest.invoked:
            latest = unit
        if unit.key is not None:
            producer = unit.key[:2]
            if unit.key.sequence <= sequences.get(producer, 0):
                raise Broken("a producer's order", f"{unit.name} stands behind a later batch")
            sequences[producer] = unit.key.sequence


def _check_seen(units: list[_Unit], reads: Sequence[Read]) -> None:
    """Nothing is seen before it was sent, or before its commit was."""
    owner = {row: unit for unit in units for rows, _ in unit.parts for row in rows}
    for read in reads:
        for seen in read.rows:
            unit = owner[seen.row]
            if seen.at < unit.invoked:
                what = f"{read.name} saw {unit.name} before it was sent or committed"
                raise Broken("not too early", what)


def _check_ends(spans: dict[_Unit, range], reads: Sequence[Read]) -> None:
    """What was acknowledged, or seen by anybody, is seen from then on; always whole."""
    bounds = {0, *(span.stop for span in spans.values())}
    for read in reads:
        if read.since is None:
            continue
        end = len(read.rows)
        if read.rows and read.rows[0].offset != 0:
            raise Broken("dense offsets", f"{read.name} does not begin at the earliest row")
        if end not in bounds:
            raise Broken("whole and together", f"{read.name} ends inside a unit, at {end}")
        for unit, span in spans.items():
            if unit.completed < read.since and span.stop > end:
                what = f"{read.name} began after {unit.name} was acknowledged, and missed it"
                raise Broken("not too late", what)
        for other in reads:
            if any(seen.at < read.since and seen.offset >= end for seen in other.rows):
                what = f"{read.name} ends at {end}; {other.name} had seen more before"
                raise Broken("nothing goes away", what)
