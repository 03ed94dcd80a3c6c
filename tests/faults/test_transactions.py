"""Row 9, in one process: kill at every call to the disk of begin, append, commit, rollback and
expiry. What was not answered is done again after the restart, and all goes on."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clients import NAMED, Book, firsts_of_commit
from tests.faults.history import Key, Kind, Operation, Outcome, Read, Seen, check
from tests.faults.inprocess import World
from wal_core.errors import TxnExpiredError, TxnInvalidStateError, WalError
from wal_daemon.transactions import ProducerOf

_EXPECTED = (TxnExpiredError, TxnInvalidStateError)


class NoAnswer(Exception):
    """The daemon died with a step under way."""


class Script:
    """One client that does step after step, each until it has an answer, through all lives."""

    def __init__(self, world: World) -> None:
        self.book = Book(world.clock.monotonic)
        self.done = False
        self._world = world
        self._answers: list[Any] = []
        self._at = 0

    async def run(self) -> None:
        """A life: what was answered in an earlier one is passed over."""
        self._at = 0
        try:
            await self._story()
            self.done = True
        except NoAnswer:
            pass

    async def _story(self) -> None:
        kept = await self._begin()
        await self._rows(0, kept)
        await self._rows(0)
        await self._rows(1, kept)
        await self._rows(0, kept)
        first = await self._commit(kept)
        assert places(await self._commit(kept)) == places(first), "another answer"

        dropped = await self._begin()
        await self._rows(0, dropped)
        await self._rows(1)
        await self._roll_back(dropped)
        await self._roll_back(dropped)

        late = await self._begin(keepalive=1.5)
        await self._rows(1, late)
        await self._once(lambda: asyncio.sleep(4))
        assert isinstance(await self._commit(late), TxnExpiredError)
        self._never_committed(late)

        left_open = await self._begin()
        await self._rows(0, left_open)

        large = await self._begin()
        for _ in range(6):  # Through several segments.
            await self._rows(0, large, b"x" * 70_000)
        await self._rows(0)
        await self._commit(large)
        await self._rows(0)

        renewed = await self._begin(keepalive=1.5)
        for _ in range(2):
            await self._rows(1, renewed)
            await self._once(lambda: asyncio.sleep(1))
        await self._commit(renewed)

        assert places(await self._commit(kept)) == places(first), "another answer"
        assert isinstance(await self._commit(dropped), TxnInvalidStateError)
        assert isinstance(await self._commit(late), TxnExpiredError)

    async def _once(self, call: Callable[[], Awaitable[Any]]) -> Any:
        at = self._at
        self._at += 1
        if at < len(self._answers):
            return self._answers[at]
        answer = await call()
        if isinstance(answer, WalError) and not isinstance(answer, _EXPECTED):
            assert self._world.failure is not None, f"step {at}: {answer.message}"
            raise NoAnswer
        self._answers.append(answer)
        return answer

    async def _begin(self, keepalive: float = 10.0) -> int:
        world = self._world
        call = self.book.note
        begun = await self._once(lambda: call(Kind.BEGIN, lambda: world.begin(keepalive), (0, 1)))
        return int(begun)

    async def _rows(self, shard: int, txn: int = 0, padding: bytes = b"") -> None:
        key = Key(NAMED | self._at + 1, 0, 1)
        rows = (b"%d.0%s" % (self._at, padding), b"%d.1" % self._at)
        answer = await self._once(
            lambda: self.book.note(
                Kind.STAGE if txn else Kind.APPEND,
                lambda: self._world.append(shard, rows, key, txn),
                [shard],
                lambda answer: {} if txn else {shard: answer.first_offset},
                rows=rows,
                key=key,
                txn=txn,
            )
        )
        assert not isinstance(answer, WalError), "it expired, though its keepalive was not over"

    async def _commit(self, txn: int) -> Any:
        commit = self._world.transactions.commit
        return await self._once(
            lambda: self.book.note(
                Kind.COMMIT, lambda: commit(txn, ProducerOf()), (0, 1), firsts_of_commit, txn=txn
            )
        )

    async def _roll_back(self, txn: int) -> None:
        roll_back = self._world.transactions.roll_back
        await self._once(
            lambda: self.book.note(Kind.ROLLBACK, lambda: roll_back(txn), (0, 1), txn=txn)
        )

    def _never_committed(self, txn: int) -> None:
        now = self._world.clock.seconds
        self.book.operations += [
            Operation(Kind.ROLLBACK, now, now, Outcome.OK, shard=shard, txn=txn) for shard in (0, 1)
        ]


def places(committed: Any) -> Any:
    """What an answer to a commit says of each shard."""
    return [(one.vchannel, one.first_offset, one.rows, one.tso) for _, one in committed]


def check_killed_at(folder: Path, call: int, again: int = 0) -> bool:
    """Kill at a call to the disk, and in the next life at another one. Returns whether the script
    was long enough to meet the first."""
    world = World(folder, random.Random(call))
    script = Script(world)
    world.kill_at = call
    met = world.live(script.run)
    for kill_at in (again, 0):
        world.calls, world.kill_at = 0, kill_at
        world.live(script.run)
    assert script.done
    reads: list[Read] = []

    async def read() -> None:
        for shard in (0, 1):
            seen: list[Seen] = []
            since = world.clock.seconds
            await world.reader(shard, seen).done.wait()
            reads.append(Read("reader", seen, shard, since))

    world.live(read)
    rows = check(script.book.operations, reads)
    assert rows == 30, "not all that was committed"
    return met


def test_kill_at_every_call_to_the_disk(tmp_path: Path) -> None:
    for call in itertools.count(1):
        folder = tmp_path / str(call)
        folder.mkdir()
        if not check_killed_at(folder, call):
            break
    assert call > 100


@pytest.mark.parametrize("seed", range(20))
def test_kill_twice(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    check_killed_at(tmp_path, chance.randint(20, 150), chance.randint(1, 150))
