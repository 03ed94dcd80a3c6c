"""Clients with a mind of their own, in one process (``inprocess``): they append, run transactions,
lose answers, try again, and write down what they did for ``history.check``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.history import NEVER, Key, Kind, Operation, Outcome, Read, Seen, check
from tests.faults.inprocess import SHARDS, World
from wal_client.ranges import FOLLOW
from wal_core.errors import TxnExpiredError, WalError
from wal_core.message import Message
from wal_daemon.transactions import ProducerOf

NAMED = 1 << 63
HOUR_MS = 3_600_000


class Book:
    """All operations of a history, and rows that nobody sent before."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.operations: list[Operation] = []
        self._now = now
        self._rows = 0

    def rows(self, chance: random.Random) -> tuple[bytes, ...]:
        """One batch; now and then a large one, so that segments are rotated."""
        padding = b"." * chance.choice((0, 0, 0, 10, 3000, 60_000))
        self._rows += 1
        count = chance.randint(1, 3)
        return tuple(b"%d.%d%s" % (self._rows, row, padding) for row in range(count))

    async def note(
        self,
        kind: Kind,
        call: Callable[[], Awaitable[Any]],
        shards: Iterable[int],
        firsts: Callable[[Any], dict[int, int]] = lambda answer: {},
        **what: Any,
    ) -> Any:
        """Wait for a call and write down how it ended, in each shard that it concerns. Returns its
        answer, or its error; what is cancelled stays without an answer."""
        began = self._now()
        outcome, ended, answer = Outcome.UNKNOWN, NEVER, None
        try:
            answer = await call()
            outcome, ended = Outcome.OK, self._now()
        except WalError as error:
            answer = error
            if "outcome_unknown" not in error.details:
                outcome, ended = Outcome.FAILED, self._now()
        finally:
            found = firsts(answer) if outcome is Outcome.OK else {}
            self.operations += [
                Operation(kind, began, ended, outcome, shard=one, first=found.get(one), **what)
                for one in shards
            ]
        return answer


class Batch(NamedTuple):
    key: Key
    rows: tuple[bytes, ...]


class Writer:
    """A producer in one shard. Keeps what was not answered, and sends it again in its next life."""

    def __init__(self, number: int, chance: random.Random, world: World, book: Book) -> None:
        self._chance = chance
        self._world = world
        self._book = book
        self._shard = number % len(SHARDS)
        self._id = NAMED | number + 1
        self._epoch = 0
        self._sequence = 0
        self._unanswered: list[Batch] = []
        self._done: list[Batch] = []

    async def run(self, steps: int) -> None:
        chance = self._chance
        if self._unanswered and chance.random() < 0.2:
            # Gives up, and comes back as its own successor.
            self._unanswered.clear()
            self._epoch += 1
            self._sequence = 0
        for _ in range(steps):
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.3)))
            again = list(self._unanswered)
            if not again:
                for _ in range(chance.choice((1, 1, 2, 5))):
                    self._sequence += 1
                    key = Key(self._id, self._epoch, self._sequence)
                    again.append(Batch(key, self._book.rows(chance)))
                self._unanswered = list(again)
                if self._done and chance.random() < 0.2:
                    again.insert(chance.randint(0, len(again)), chance.choice(self._done[-20:]))
            answers = await asyncio.gather(*map(self._send, again))
            for batch, answer in zip(again, answers, strict=True):
                if isinstance(answer, Message) and batch in self._unanswered:
                    self._unanswered.remove(batch)
                    self._done.append(batch)
            if self._world.failure is not None:
                return

    def _send(self, batch: Batch) -> Awaitable[Any]:
        return self._book.note(
            Kind.APPEND,
            lambda: self._world.append(self._shard, batch.rows, batch.key),
            [self._shard],
            lambda answer: {self._shard: answer.first_offset},
            rows=batch.rows,
            key=batch.key,
        )


class Transactor:
    """Runs one transaction after the other, and goes on with an open one in its next life."""

    def __init__(self, number: int, chance: random.Random, world: World, book: Book) -> None:
        self._chance = chance
        self._world = world
        self._book = book
        self._producer = NAMED | 1000 + number
        self._sequence = 0
        self._txn = 0
        self._shards: list[int] = []
        self._unanswered: Batch | None = None
        self._unanswered_shard = 0
        self._last_commit: tuple[int, list[int]] | None = None

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(self._chance.choice((0, 0.001, 0.3, 1.0)))
            await self._step()
            if self._world.failure is not None:
                return

    async def _step(self) -> None:
        chance = self._chance
        what = chance.random()
        if self._last_commit is not None and what < 0.1:
            await self._commit(*self._last_commit)
        elif not self._txn:
            self._shards = chance.choice(([0], [1], [0, 1]))
            self._unanswered = None
            begun = await self._book.note(
                Kind.BEGIN,
                lambda: self._world.begin(chance.choice((0.5, 2.0, 10.0)), self._shards),
                self._shards,
            )
            if isinstance(begun, int):
                self._txn = begun
        elif what < 0.7:
            await self._stage()
        elif what < 0.9:
            if self._unanswered is None or chance.random() < 0.5:
                await self._commit(self._txn, self._shards)
        elif what < 0.95:
            await self._roll_back()
        else:
            await asyncio.sleep(chance.choice((0.4, 3.0)))  # It may expire.

    async def _stage(self) -> None:
        """Rows in one of the shards; those that have no answer yet first."""
        if self._unanswered is None:
            self._sequence += 1
            key = Key(self._producer, 0, self._sequence)
            self._unanswered = Batch(key, self._book.rows(self._chance))
            self._unanswered_shard = self._chance.choice(self._shards)
        batch, shard = self._unanswered, self._unanswered_shard
        answer = await self._book.note(
            Kind.STAGE,
            lambda: self._world.append(shard, batch.rows, batch.key, self._txn),
            [shard],
            rows=batch.rows,
            key=batch.key,
            txn=self._txn,
        )
        if isinstance(answer, Message):
            self._unanswered = None
        elif isinstance(answer, WalError) and "outcome_unknown" not in answer.details:
            self._txn = 0

    async def _commit(self, txn: int, shards: list[int]) -> None:
        self._last_commit = (txn, shards)
        transactions = self._world.transactions
        answer = await self._book.note(
            Kind.COMMIT,
            lambda: transactions.commit(txn, ProducerOf()),
            shards,
            firsts_of_commit,
            txn=txn,
        )
        if isinstance(answer, TxnExpiredError) and len(shards) == 1:
            # A commit of which it is known that it did not happen, whatever came before.
            now = self._world.clock.seconds
            self._book.operations.append(
                Operation(Kind.ROLLBACK, now, now, Outcome.OK, shard=shards[0], txn=txn)
            )
        if txn == self._txn and not _is_unknown(answer):
            self._txn = 0

    async def _roll_back(self) -> None:
        roll_back = self._world.transactions.roll_back
        answer = await self._book.note(
            Kind.ROLLBACK, lambda: roll_back(self._txn), self._shards, txn=self._txn
        )
        if not _is_unknown(answer):
            self._txn = 0


def firsts_of_commit(answer: list[tuple[Any, Message]]) -> dict[int, int]:
    """Shard → offset of the first row, where there are rows."""
    return {SHARDS.index(one.vchannel): one.first_offset for _, one in answer if one.rows}


def _is_unknown(answer: Any) -> bool:
    return isinstance(answer, WalError) and "outcome_unknown" in answer.details


class Plan(NamedTuple):
    """What a history is made of."""

    writers: int = 3
    transactors: int = 3
    lives: int = 3
    steps: int = 12
    """Of each client in each life."""
    jumps: bool = False
    """Whether the wall clock is set forth and back meanwhile."""


def run_history(folder: Path, seed: int, plan: Plan = Plan()) -> int:  # noqa: B008 - Immutable.
    """Run and check one. Returns the number of rows. Raises Broken, or whatever breaks."""
    chance = random.Random(seed)
    world = World(folder, chance)
    world.buffer_bytes = chance.choice((20_000, 64 << 20))
    world.staged_bytes = chance.choice((5_000, 16 << 20))
    history = _History(world, chance, plan)
    for life in range(plan.lives):
        world.calls = 0
        world.kill_at = chance.randint(1, 150) if life < plan.lives - 1 else 0
        if plan.jumps:
            world.clock.skew_ms = chance.choice((0, -HOUR_MS, HOUR_MS, 100))
        world.live(history.life)
    world.kill_at = 0
    assert not world.live(history.end)
    return check(history.book.operations, history.reads)


def _own(chance: random.Random) -> random.Random:
    """One for each, so that the order in which they are asked does not matter."""
    return random.Random(chance.getrandbits(64))


class _History:
    def __init__(self, world: World, chance: random.Random, plan: Plan) -> None:
        self.reads: list[Read] = []
        self.book = Book(world.clock.monotonic)
        self._world = world
        self._chance = chance
        self._plan = plan
        self._clients: list[Writer | Transactor] = [
            Writer(number, _own(chance), world, self.book) for number in range(plan.writers)
        ]
        self._clients += [
            Transactor(number, _own(chance), world, self.book) for number in range(plan.transactors)
        ]
        self._followers: dict[tuple[int, int], list[Seen]] = {
            (shard, number): [] for shard in range(len(SHARDS)) for number in range(2)
        }
        self._highest_tso = 0
        for (shard, number), seen in self._followers.items():
            self.reads.append(Read(f"follower {number}", seen, shard))

    async def life(self) -> None:
        """All clients, the followers, and readers that come and go."""
        world = self._world
        assert world.pchannel.last_tso >= self._highest_tso, "a timestamp went back"
        for (shard, _), seen in self._followers.items():
            world.reader(shard, seen, FOLLOW, _own(self._chance))
        world.spawn(self._come_and_go(_own(self._chance)))
        if self._plan.jumps:
            world.spawn(self._jump(_own(self._chance)))
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(client.run(self._plan.steps))
        self._highest_tso = world.pchannel.last_tso

    async def end(self) -> None:
        """Read it all once more, when nobody writes."""
        assert self._world.pchannel.last_tso >= self._highest_tso, "a timestamp went back"
        for shard in range(len(SHARDS)):
            await self._read(shard, "at the end")

    async def _come_and_go(self, chance: random.Random) -> None:
        for number in range(100):
            await asyncio.sleep(chance.uniform(0, 1))
            await self._read(number % len(SHARDS), f"reader {number}")

    async def _read(self, shard: int, name: str) -> None:
        seen: list[Seen] = []
        since = self._world.clock.seconds
        reader = self._world.reader(shard, seen)
        await reader.done.wait()
        self.reads.append(Read(name, seen, shard, since))
        stamps = [tso for _, tso in reader.stamps]
        assert stamps == sorted(stamps), f"{name}: timestamps do not follow the order"

    async def _jump(self, chance: random.Random) -> None:
        """The operator sets the clock."""
        while True:
            await asyncio.sleep(chance.uniform(0, 0.5))
            self._world.clock.skew_ms += chance.choice((-HOUR_MS, HOUR_MS, -5, 5, 59_000))
