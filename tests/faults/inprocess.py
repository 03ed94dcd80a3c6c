"""A PChannel with its transactions in one process, on a clock that jumps over all waiting: the
daemon without its sockets. What happens follows from a seed alone, so it can be played again.

``World.live`` is one life of the daemon. It ends as told, or with ``Killed``, in the middle of a
call to the disk; the next life opens what that one left.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import selectors
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tests.faults.history import Key, Seen
from tests.storage.disks import ProbeDisk
from tests.storage.writer import SMALL_SEGMENT, V1, V2, Inline
from wal_client.ranges import NOW, From, ShardReader, Until, from_offset
from wal_core import frames
from wal_core.batch import encode_bodies
from wal_core.errors import WalError
from wal_core.frames import Frame, Kind
from wal_core.message import Message, MessageType, message
from wal_daemon import ranges
from wal_daemon.pipeline.txn import Leases
from wal_daemon.transactions import Transactions
from wal_daemon.wal.buffer import WriteAheadBuffer
from wal_daemon.wal.gather import Gathering
from wal_daemon.wal.pchannel import PChannel
from wal_daemon.wal.staged import Staged
from wal_daemon.wal.subscription import Subscription
from wal_storage.disk import Buffer
from wal_storage.state import CreateCollection, encode_create
from wal_storage.walstore.file import FileWal

SHARDS = (V1, V2)
TURN_SECONDS = 1e-6
"""What one turn of the event loop takes."""
TURNS_MAX = 20_000
"""In one life; the longest ones take a tenth of it."""


class Killed(SystemExit):
    """The process ends here. A SystemExit, for the event loop lets nothing else through."""


class VirtualClock:
    """Steady time moves when all wait. ``skew_ms`` is what the operator did to the wall clock."""

    def __init__(self, chance: random.Random) -> None:
        self.seconds = 1000.0
        self.skew_ms = 0
        self._chance = chance

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.elapsed_ms() + self.skew_ms

    def elapsed_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds

    def token(self) -> int:
        return self._chance.getrandbits(63)


class _Selector(selectors.SelectSelector):
    """Waits by moving the clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._clock.seconds += TURN_SECONDS
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise AssertionError("it goes on for ever")
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("all wait, and nothing will ever happen")
        if not events and timeout:
            self._clock.seconds += timeout
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        self._virtual = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._virtual.seconds


class _Gathering(Gathering):
    """Tells writers apart by ``id``: none may get that of one who is gone, or chance comes in."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[object] = []

    def committed(self, writers: Sequence[object], seconds: float) -> None:
        self._kept.append(writers)
        super().committed(writers, seconds)


class World:
    """A data directory, and whoever serves it at the moment."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.clock = VirtualClock(random.Random(chance.getrandbits(64)))
        self.staged_bytes = 16 << 20
        self.buffer_bytes = 64 << 20
        self.kill_at = 0
        """So many calls to the disk from now; 0: never."""
        self.calls = 0
        self.failure: WalError | None = None
        """Why the log takes nothing any more."""
        self.misread: WalError | None = None
        """What a reader got instead of rows."""
        self.pchannel: PChannel
        self.transactions: Transactions
        self._dead = False
        self._wal: FileWal | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    def live(self, story: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Open, run a story, and end without a seal. Returns whether it was killed."""
        loop = _Loop(self.clock)
        disk = ProbeDisk(os.fsencode(self.folder), self._probe)
        killed = False
        try:
            try:
                loop.run_until_complete(self._life(disk, story))
            except (Killed, OSError):
                if not self._dead:
                    raise
                killed = True
            self._dead = True
            loop.run_until_complete(asyncio.sleep(0.001))  # Answers that had left arrive.
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(_settle())
        finally:
            self._dead = True
            if self._wal is not None:
                self._wal.close(seal=False)
                self._wal = None
            loop.close()
            disk.close()
        if self.misread is not None:
            raise self.misread
        return killed

    async def _life(self, disk: ProbeDisk, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._dead = False
        self.failure = None
        inline = Inline()
        self._wal = FileWal(disk, self.clock, inline, 0, "main", segment_size=SMALL_SEGMENT)
        recovered = self._wal.recover()
        leases = Leases(self.clock.monotonic)
        self.pchannel = PChannel(
            0,
            self._wal,
            recovered,
            self.clock,
            inline,
            WriteAheadBuffer(self.clock.monotonic, self.buffer_bytes),
            leases,
            self._failed,
        )
        self.pchannel._staged = Staged(self.staged_bytes)
        self.pchannel._gathering = _Gathering()
        self.transactions = Transactions(self.clock, leases, self.spawn)
        for vchannel in SHARDS:
            if vchannel not in self.pchannel.vchannels:
                body = encode_create(CreateCollection(f"c{vchannel >> 16}", 1))
                await self.pchannel.append(message(MessageType.CREATE_COLLECTION, vchannel, body))
        self.transactions.revive(self.pchannel)
        await story()
        self.transactions.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside the rest, until the life ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    def _failed(self, pchannel: PChannel, error: WalError) -> None:
        self.failure = error

    def _probe(self, operation: str, moment: str, fd: int) -> None:
        if self._dead:
            raise OSError(errno.EIO, "the process is dead")
        self.calls += 1
        if self.calls == self.kill_at:
            self._dead = True
            raise Killed

    # -- what a client does ------------------------------------------------------------------------

    async def append(
        self, shard: int, rows: Sequence[bytes], key: Key | None = None, txn: int = 0
    ) -> Message:
        """Rows of one batch, durable on return."""
        encoding, body = encode_bodies(list(rows))
        batch = message(
            MessageType.INSERT,
            SHARDS[shard],
            body,
            encoding=encoding,
            rows=len(rows),
            producer_id=key.producer if key else 0,
            producer_epoch=key.epoch if key else 0,
            producer_sequence=key.sequence if key else 0,
            txn_id=txn,
        )
        return await self.pchannel.append(batch)

    async def begin(self, keepalive: float, shards: Sequence[int] = (0, 1)) -> int:
        scope = [(self.pchannel, SHARDS[shard]) for shard in shards]
        return await self.transactions.begin(scope, keepalive)

    def reader(
        self, shard: int, found: list[Seen], until: Until = NOW, chance: random.Random | None = None
    ) -> Reader:
        """Goes on behind what was found before."""
        return Reader(self, shard, found, until, chance)


class Reader:
    """A subscription, and the client's half of it. ``chance``: stall now and then."""

    def __init__(
        self,
        world: World,
        shard: int,
        found: list[Seen],
        until: Until,
        chance: random.Random | None,
    ) -> None:
        self.found = found
        self.stamps: list[tuple[int, int]] = []
        """First offset and timestamp of each batch."""
        self.done: asyncio.Event = asyncio.Event()
        self.paused = False
        self._world = world
        self._chance = chance
        start: From = from_offset(found[-1].offset + 1 if found else 0)
        wanted = ranges.Wanted(SHARDS[shard], start.kind, until.kind, 0, start.value, until.value)
        span = ranges.resolve(world.pchannel, wanted)
        self._shard = ShardReader(SHARDS[shard], start, until, "demo")
        self._shard.subscribed(
            Frame(Kind.SUBSCRIBED, 0, 1, frames.SUBSCRIBED.pack(span.first, span.next), b"")
        )
        self.subscription = Subscription(
            world.pchannel, SHARDS[shard], span.first, span.end, self, 1, Inline()
        )
        self.subscription.wake()

    def send(self, buffers: Sequence[Buffer]) -> None:
        """As the daemon hands a frame to the socket."""
        data = b"".join(buffers)
        whole = frames.split_frame(data)
        assert whole is not None
        assert whole[1] == len(data)
        frame = whole[0]
        if frame.kind == Kind.END:
            return
        if frame.kind == Kind.ERROR:
            self._give_up(frames.unpack_error(frame))
            return
        try:
            for batch in self._shard.batches(frame):
                self.stamps.append((batch.first, batch.tso))
                for offset, row in enumerate(batch.bodies(), batch.first):
                    self.found.append(Seen(offset, row, self._world.clock.seconds))
        except WalError as error:
            self._give_up(error)
        if self._chance is not None and self._chance.random() < 0.2:
            self.paused = True
            asyncio.get_running_loop().call_later(self._chance.uniform(0, 2), self._go_on)

    def finished(self, request_id: int) -> None:
        self.done.set()

    def _give_up(self, error: WalError) -> None:
        self._world.misread = self._world.misread or error
        self.subscription.close()
        self.done.set()

    def _go_on(self) -> None:
        self.paused = False
        self.subscription.wake()


async def _settle() -> None:
    """Let what was cancelled come to its end."""
    me = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not me]
    await asyncio.gather(*others, return_exceptions=True)
