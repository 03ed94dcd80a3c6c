"""Readers restore TSO order from a WAL storage that shuffles and delays on purpose."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.daemon.rig import Reader, Rig
from tests.daemon.shuffled_wal import ShuffledScanner, ShuffledWal
from wal_core.errors import CorruptError, IoFailureError, TxnExpiredError, TxnInvalidStateError
from wal_core.message import (
    NO_OFFSET,
    Message,
    MessageType,
    message,
    unpack_header,
)
from wal_daemon.wal import pchannel as pchannel_module
from wal_daemon.wal import reorder, ticks
from wal_daemon.wal.reorder import OrderedScanner, ReorderBuffer, scanner_of
from wal_storage.walstore.base import Committed, LogScanner

V1 = 1 << 16
V2 = 2 << 16
DELAY = 0.003


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pchannel_module, "MARK_DELAY_SECONDS", DELAY)
    monkeypatch.setattr(ticks, "MARK_DELAY_SECONDS", DELAY)


# -- the buffer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_tick_releases_what_is_complete_in_order(seed: int) -> None:
    chance = random.Random(seed)
    buffer: ReorderBuffer[int] = ReorderBuffer()
    to_come = chance.sample(range(1, 1000), 200)
    pushed: list[int] = []
    released: list[int] = []
    while to_come:
        for _ in range(chance.randint(1, 40)):
            if to_come:
                pushed.append(to_come.pop())
                buffer.push(pushed[-1], pushed[-1], size=10)
        tick = min(to_come, default=1000) - 1  # As far as nothing is under way any more.
        found = buffer.tick(tick)
        released += found
        assert released == sorted(tso for tso in pushed if tso <= tick)
        assert buffer.size == 10 * (len(pushed) - len(released))
    assert len(released) == 200


def test_what_is_above_the_tick_waits() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer()
    buffer.push(7, "late", 10)
    buffer.push(3, "early", 5)
    assert buffer.tick(6) == ["early"]
    assert buffer.size == 10
    assert buffer.tick(7) == ["late"]


@pytest.mark.parametrize("tso", [1, 5])
def test_at_or_below_the_last_tick_is_a_violation(tso: int) -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer()
    buffer.tick(5)
    buffer.tick(2)  # An older tick takes nothing back.
    with pytest.raises(CorruptError, match="behind the time tick 5"):
        buffer.push(tso, "too late")
    assert buffer.violations == 1
    buffer.push(6, "in time")
    assert buffer.violations == 1


def test_it_is_bounded() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(limit=100)
    buffer.push(1, "one", 60)
    with pytest.raises(CorruptError, match="without a time tick"):
        buffer.push(2, "two", 60)
    assert buffer.violations == 0
    buffer.tick(1)
    buffer.push(2, "larger than the limit, and alone", 600)


# -- the whole, with a PChannel --------------------------------------------------------------------


async def _write_rows(rig: Rig, vchannel: int, chance: random.Random, name: str) -> None:
    for number in range(12):
        batch = [f"{name}-{number}-{row}".encode() for row in range(chance.randint(1, 3))]
        await rig.append(vchannel, batch)
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.005)


async def _write_transactions(rig: Rig, vchannel: int, chance: random.Random, name: str) -> None:
    for number in range(5):
        batches = [
            [f"{name}-{number}-{batch}-{row}".encode() * 10 for row in range(2)]
            for batch in range(chance.randint(0, 5))
        ]
        end = chance.choice(("commit", "commit", "commit", "rollback", "expiry"))
        keepalive = 0.05 if end == "expiry" else 60
        try:
            txn = await rig.transaction(vchannel, batches, keepalive=keepalive)
        except (TxnExpiredError, TxnInvalidStateError):
            assert end == "expiry"
            continue
        await asyncio.sleep(chance.random() * 0.005)
        if end == "commit":
            await rig.commit(vchannel, txn, batches)
        elif end == "rollback":
            await rig.transactions.roll_back(txn)


async def _start_readers(rig: Rig, chance: random.Random, readers: list[Reader]) -> None:
    for _ in range(5):
        await asyncio.sleep(chance.random() * 0.008)
        vchannel = chance.choice((V1, V2))
        end = rig.pchannel.next_offsets[vchannel]
        readers.append(Reader(rig, vchannel, chance.randint(0, end)))


async def _scenario(rig: Rig, chance: random.Random) -> list[Reader]:
    """Writers and readers at once. Returns the readers when all writers are done."""
    readers = [Reader(rig, V1, 0)]
    chances = [random.Random(chance.random()) for _ in range(6)]
    await asyncio.gather(
        _write_rows(rig, V1, chances[0], "a"),
        _write_rows(rig, V1, chances[1], "b"),
        _write_rows(rig, V2, chances[2], "c"),
        _write_transactions(rig, V1, chances[3], "d"),
        _write_transactions(rig, V2, chances[4], "e"),
        _start_readers(rig, chances[5], readers),
    )
    readers += [Reader(rig, V1, 0), Reader(rig, V2, 0)]
    return readers


def _is_shuffled(wal: ShuffledWal) -> bool:
    tsos = [unpack_header(data).tso for data in wal.landed]
    return tsos != sorted(tsos)


@pytest.mark.parametrize("memory", [16 << 20, 250], ids=["memory", "read-again"])
@pytest.mark.parametrize("seed", range(25))
def test_every_reader_gets_every_row_once_in_order(
    seed: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = OrderedScanner.__init__

    def with_memory(self: OrderedScanner, *arguments: Any) -> None:
        plain(self, *arguments, memory=memory)

    monkeypatch.setattr(OrderedScanner, "__init__", with_memory)

    async def run() -> None:
        chance = random.Random(seed)
        wal = ShuffledWal(seed)
        rig = Rig(wal, buffer_size=chance.choice((0, 600, 3000)))
        await rig.create(V1, V2)
        readers = await _scenario(rig, chance)
        await rig.check(readers)
        assert _is_shuffled(wal)
        assert rig.pchannel.buffer.misses > 0
        assert rig.pchannel.reorder_violations == 0
        await rig.close()

    asyncio.run(run())


def test_without_the_reorder_stage_the_order_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shuffling is real: what passes above fails here."""

    class Bypass(ReorderBuffer[Any]):
        def push(self, tso: int, item: Any, size: int = 0) -> None:
            self._heap.append((0, 0, size, item))

        def tick(self, tso: int) -> list[Any]:
            found = [item for _, _, _, item in self._heap]
            self._heap.clear()
            return found

    monkeypatch.setattr(reorder, "ReorderBuffer", Bypass)

    async def run(seed: int) -> None:
        rig = Rig(ShuffledWal(seed), buffer_size=0)
        await rig.create(V1, V2)
        await asyncio.gather(*(rig.append(V1, [b"%d" % one]) for one in range(40)))
        try:
            await rig.check([Reader(rig, V1, 0)])
        finally:
            await rig.close()

    for seed in range(10):
        with pytest.raises(CorruptError, match="is due"):
            asyncio.run(run(seed))


@pytest.mark.parametrize("seed", range(10))
def test_a_log_that_is_opened_again_gets_the_tick_that_its_former_owner_owed(seed: int) -> None:
    async def write(wal: ShuffledWal) -> tuple[dict[int, Any], int, list[list[bytes]]]:
        rig = Rig(wal)
        await rig.create(V1)
        for one in range(5):
            await rig.append(V1, [b"%d" % one])
        batches = [[b"open", b"still"], [b"and", b"on"]]
        txn = await rig.transaction(V1, batches)
        await rig.close()
        return rig.ledger, txn, batches

    async def read(wal: ShuffledWal, ledger: dict[int, Any], txn: int, batches: Any) -> None:
        rig = Rig(wal)
        rig.ledger = ledger
        reader = Reader(rig, V1, 0)
        await reader.wait_for(5)
        await rig.commit(V1, txn, batches)
        await rig.check([reader, Reader(rig, V1, 0)])
        await rig.close()

    first = ShuffledWal(seed)
    asyncio.run(read(ShuffledWal(seed + 1000, first), *asyncio.run(write(first))))


@pytest.mark.parametrize("seed", range(10))
def test_readers_go_on_after_the_storage_was_opened_anew(seed: int) -> None:
    class FailingWal(ShuffledWal):
        fails = False

        def append(self, messages: Sequence[Message], confirmed_below: int) -> None:
            if self.fails:
                raise OSError(errno.EIO, "it broke")
            super().append(messages, confirmed_below)

    async def run() -> None:
        chance = random.Random(seed)
        wal = FailingWal(seed)
        rig = Rig(wal, buffer_size=chance.choice((0, 1 << 20)))
        await rig.create(V1)
        readers = [Reader(rig, V1, 0), Reader(rig, V1, 0)]
        readers[1].pause()
        for number in range(10):
            await rig.append(V1, [b"before %d" % number])
        await asyncio.sleep(chance.random() * 2 * DELAY)
        wal.fails = True
        with pytest.raises(IoFailureError):
            await rig.append(V1, [b"never"])
        assert len(rig.failures) == 1
        if chance.random() < 0.5:
            readers[1].resume()
            await asyncio.sleep(0)
        again = ShuffledWal(seed + 1000, wal)
        rig.pchannel.attach(again, again.recover())
        await asyncio.gather(*(rig.append(V1, [b"after %d" % number]) for number in range(10)))
        assert len(rig.rows(V1)) == 20
        await rig.check(readers)
        await rig.close()

    asyncio.run(run())


def test_an_idle_pchannel_gets_no_ticks_and_no_timers() -> None:
    async def run() -> None:
        wal = ShuffledWal(1)
        rig = Rig(wal, buffer_size=0)
        await asyncio.sleep(DELAY * 3)
        assert wal.written == [], "a tick in an empty log"
        await rig.create(V1)
        await rig.append(V1, [b"row"])
        await rig.until_told()
        kinds = [unpack_header(data).type for data in wal.written]
        assert kinds[-1] == MessageType.TIME_TICK
        assert MessageType.MARK not in kinds
        # Only this very sleep is on the loop's schedule.
        timers = _timers()
        assert timers == [], timers
        await asyncio.sleep(DELAY * 20)
        assert len(wal.written) == len(kinds), "an idle log grew"
        await rig.close()

    asyncio.run(run())


def _timers() -> list[Any]:
    loop: Any = asyncio.get_running_loop()
    return [timer for timer in loop._scheduled if not timer.cancelled()]


def test_ticks_come_under_steady_load_too_but_not_with_each_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (pchannel_module, ticks):
        monkeypatch.setattr(module, "MARK_DELAY_SECONDS", 1000.0)
    monkeypatch.setattr(ticks, "TICK_INTERVAL_BYTES", 1000)

    async def run() -> None:
        wal = ShuffledWal(2)
        rig = Rig(wal, buffer_size=0)
        await rig.create(V1)
        for _ in range(100):
            await rig.append(V1, [b"r" * 100])
        await Reader(rig, V1, 0).wait_for(90)  # Nobody rested yet.
        kinds = [unpack_header(data).type for data in wal.written]
        # Five batches of 229 bytes are more than the interval.
        assert kinds.count(MessageType.TIME_TICK) == 100 // 5
        assert kinds[-1] == MessageType.INSERT
        await rig.close()

    asyncio.run(run())


def test_a_message_behind_its_tick_ends_the_reader_and_is_counted() -> None:
    async def run() -> None:
        wal = ShuffledWal(3)
        rig = Rig(wal, buffer_size=0)
        await rig.create(V1)
        await rig.append(V1, [b"one"])
        reader = Reader(rig, V1, 0)
        await reader.wait_for(1)
        late = next(data for data in wal.landed if unpack_header(data).type == MessageType.INSERT)
        wal.landed.append(late)
        await rig.append(V1, [b"two"])
        with pytest.raises(CorruptError, match="behind the time tick"):
            await reader.wait_for(2)
        await asyncio.sleep(0)
        assert rig.pchannel.reorder_violations == 1
        await rig.close()

    asyncio.run(run())


def test_a_row_that_is_not_in_the_log_is_said_to_be_missing() -> None:
    async def run() -> None:
        wal = ShuffledWal(4)
        rig = Rig(wal, buffer_size=0)
        await rig.create(V1)
        await rig.append(V1, [b"one"])
        await rig.until_told()
        wal.landed[:] = [
            data for data in wal.landed if unpack_header(data).type != MessageType.INSERT
        ]
        with pytest.raises(CorruptError, match="offset 0 is missing"):
            await Reader(rig, V1, 0).wait_for(1)
        await rig.close()

    asyncio.run(run())


# -- the scanner -----------------------------------------------------------------------------------


def _log(made: list[Message]) -> ShuffledWal:
    """A log of these messages and a tick behind them; timestamps from 1 on."""
    wal = ShuffledWal(5)
    for tso, one in enumerate(made, 1):
        one.sequence = one.tso = tso
    wal.append(made, confirmed_below=1)
    tick = message(MessageType.TIME_TICK, 0)
    tick.sequence, tick.tso = len(made) + 1, len(made)
    wal.append([tick], confirmed_below=1)
    return wal


def _insert(body: bytes, offset: int = NO_OFFSET, txn: int = 0) -> Message:
    made = message(MessageType.INSERT, V1, body, rows=1, txn_id=txn)
    made.first_offset = offset
    return made


def _commit(txn: int, offset: int, rows: int) -> Message:
    made = message(MessageType.COMMIT_TXN, V1, rows=rows, txn_id=txn)
    made.first_offset = offset
    return made


def _read(scanner: LogScanner) -> list[tuple[bytes, int, Committed | None]]:
    found = []
    while runs := scanner.read():
        found += [(bytes(run.data[-1:]), run.end_offset, run.committed) for run in runs]
    scanner.close()
    return found


def test_a_change_of_the_collection_breaks_its_transactions_for_readers_too() -> None:
    wal = _log(
        [
            message(MessageType.BEGIN_TXN, V1, txn_id=7),
            _insert(b"x", txn=7),
            message(MessageType.TRUNCATE_COLLECTION, V1),
            _insert(b"y", offset=0),
        ]
    )
    scanner = scanner_of(wal, V1, 0, lambda: None)
    assert isinstance(scanner, OrderedScanner)
    assert _read(scanner) == [(b"y", 1, None)]
    assert scanner._open == {}
    assert scanner._size == 0


@pytest.mark.parametrize("memory", [10_000, 150, 0])
def test_a_transaction_that_is_too_large_for_the_memory_is_read_again(memory: int) -> None:
    wal = _log(
        [
            message(MessageType.BEGIN_TXN, V1, txn_id=7),
            _insert(b"a", txn=7),
            _insert(b"b", offset=0),
            message(MessageType.BEGIN_TXN, V1, txn_id=8),
            _insert(b"no", txn=8),
            _insert(b"c", txn=7),
            _commit(7, 1, 2),
            _insert(b"d", offset=3),
        ]
    )
    for start in range(4):
        scanner = OrderedScanner(wal, V1, start, lambda: None, memory)
        whole = [
            (b"b", 1, None),
            (b"a", 2, Committed(1, 7)),
            (b"c", 3, Committed(2, 7)),
            (b"d", 4, None),
        ]
        assert _read(scanner) == whole[start:]


def test_a_transaction_that_lost_rows_is_damage_and_comes_after_what_lies_before_it() -> None:
    wal = _log(
        [
            _insert(b"b", offset=0),
            message(MessageType.BEGIN_TXN, V1, txn_id=7),
            _insert(b"a", txn=7),
            _commit(7, 1, 2),
        ]
    )
    scanner = OrderedScanner(wal, V1, 0, lambda: None)
    assert [run.end_offset for run in scanner.read()] == [1]
    for _ in range(2):
        with pytest.raises(CorruptError, match="1 of 2 rows"):
            scanner.read()
    scanner.close()


def test_a_commit_without_a_beginning_is_damage() -> None:
    scanner = OrderedScanner(_log([_commit(7, 0, 2)]), V1, 0, lambda: None)
    with pytest.raises(CorruptError, match="0 of 2 rows"):
        scanner.read()
    scanner.close()


def test_an_ordered_storage_is_read_as_it_is() -> None:
    wal = ShuffledWal(6)
    wal.ordered = True
    assert isinstance(scanner_of(wal, V1, 0, lambda: None), ShuffledScanner)
