"""One PChannel: gives order, commits in groups, tells those who wait.

Group commit has no timer. While one write + fdatasync runs, requests gather; when it ends, all
that gathered go in the next one. A small group is committed on the event loop itself, a large one
in the PChannel's own thread, so that the loop receives the next while the disk works.

Nothing outside this module and the WAL storage sees a message before it is confirmed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import NamedTuple

from wal_core.clock import Clock
from wal_core.errors import FencedError, IoFailureError, NotReadyError, WalError
from wal_core.failpoints import failpoint
from wal_core.limits import (
    GROUP_INLINE_MAX_BYTES,
    GROUP_MAX_BATCHES,
    GROUP_MAX_BYTES,
    MARK_DELAY_SECONDS,
)
from wal_core.message import Message, MessageType, message
from wal_core.tso import TsoSource
from wal_daemon.pipeline.lock import EXCLUSIVE, Locks
from wal_daemon.pipeline.redo import Redo
from wal_daemon.pipeline.sequencer import Sequenced, Sequencer
from wal_daemon.pipeline.timetick import TimeTick
from wal_daemon.pipeline.txn import Leases
from wal_daemon.wal.buffer import Rows, WriteAheadBuffer
from wal_daemon.wal.gather import Gathering
from wal_daemon.wal.requests import (
    ANY_OFFSET,
    NOBODY,
    AppendRequest,
    FutureReplies,
    Replies,
    own_request,
)
from wal_daemon.wal.staged import Staged
from wal_daemon.wal.ticks import Ticks
from wal_storage.log.format import SegmentId
from wal_storage.state import VChannelState
from wal_storage.walstore.base import Recovered, WalStorage

_INSERT = int(MessageType.INSERT)
_TIME_TICK = int(MessageType.TIME_TICK)
log = logging.getLogger("wald.pchannel")


class Outcome(NamedTuple):
    """What became of a group."""

    sequenced: Sequenced
    failure: WalError | None = None
    """Set: the outcome of what was written is unknown, and the WAL storage must be opened anew."""


class PChannel:
    """Owns the state of one log. All methods are called on the event loop."""

    def __init__(
        self,
        number: int,
        wal: WalStorage,
        recovered: Recovered,
        clock: Clock,
        committer: Executor,
        buffer: WriteAheadBuffer,
        leases: Leases,
        on_failure: Callable[[PChannel, WalError], None],
    ) -> None:
        self.number = number
        self.buffer = buffer
        self._clock = clock
        self._committer = committer
        self._leases = leases
        self._staged = Staged()
        self._locks = Locks()
        self._redo = Redo()
        self._draining = False
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._queue: deque[AppendRequest] = deque()
        self._queued_bytes = 0
        self._gathering = Gathering()
        self._busy = False
        self._idle_since = 0.0
        self._mark_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._unproven = False
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self.listeners: dict[int, set[Callable[[], None]]] = {}
        """VChannel → whom to call when rows of it were confirmed."""
        self.commits = 0
        self.commit_seconds = 0.0
        self.batches = 0
        self.rows = 0
        self.bytes = 0
        self.reorder_violations = 0
        """How often the WAL storage landed a message behind a tick that had excluded it."""
        self.cursors = recovered.state.cursors
        """See ``ChannelState``; kept up to date by ``Cursors``."""
        self.attach(wal, recovered)

    def attach(self, wal: WalStorage, recovered: Recovered) -> None:
        """Begin, or begin again after a failure, on a WAL storage that has recovered."""
        self.wal = wal
        self.closed: WalError | None = None
        self._state = recovered.state
        self._state.cursors = self.cursors
        self._timetick = TimeTick(TsoSource(self._clock, recovered.state.tso))
        self._ticks = None if wal.ordered else Ticks(self._timetick, self._clock.monotonic)
        self._sequencer = Sequencer(recovered.state, self._timetick, self._leases)
        self.cuts = recovered.cuts
        self.buffer.clear()
        self._staged.clear()
        self.next_offsets = {
            vchannel.id: vchannel.next_offset for vchannel in self._state.vchannels.values()
        }
        """VChannel → offset behind its last confirmed row: the only end that readers know."""
        if self._ticks is not None:
            self._unproven = self._timetick.is_due
            self._rest()

    @property
    def vchannels(self) -> dict[int, VChannelState]:
        """Shards as the sequencer knows them. Their offsets may be ahead of what is confirmed."""
        return self._state.vchannels

    @property
    def last_tso(self) -> int:
        return self._timetick.last

    @property
    def clock_jumped(self) -> bool:
        return self._timetick.jumped

    @property
    def told(self) -> int:
        """The last time tick in the log of an unordered WAL storage. Its readers get no further,
        and each new one wakes them."""
        return self._timetick.told

    @property
    def owes_tick(self) -> bool:
        """Whether one more is to come by itself."""
        return self._ticks is not None and self._timetick.is_due

    @property
    def staged_bytes(self) -> int:
        """Rows of open transactions in memory."""
        return self._staged.size

    @property
    def next_sequence(self) -> int:
        return self._state.next_sequence

    # -- requests ----------------------------------------------------------------------------------

    def submit(self, request: AppendRequest) -> None:
        """Queue an append. Its answer goes to ``request.replies``, in the order of submission."""
        if self.closed is not None:
            request.replies.refuse(request, self.closed, False)
            return
        if self._locks.held and self._locks.stops(request):
            self._redo.park(request)
            return
        if self._draining and not request.txn_id and request.type == _INSERT:
            request.replies.refuse(request, NotReadyError("the daemon is stopping"), False)
            return
        self._queue.append(request)
        self._queued_bytes += request.size
        if not self._busy:
            self._busy = True
            self._idle.clear()
            self._loop.call_soon(self._commit)

    async def append(self, message: Message, expect: int = ANY_OFFSET) -> Message:
        """Append a message of the daemon itself and wait until it is confirmed."""
        replies = FutureReplies(self._loop)
        self.submit(own_request(message, replies, expect))
        return await replies.future

    def lock(self, vchannels: Iterable[int]) -> None:
        """Let everything but DDL wait that is submitted to these VChannels from now on."""
        self._locks.take(vchannels)

    def unlock(self, vchannels: Iterable[int]) -> None:
        self._locks.release(vchannels)
        for request in self._redo.take():
            self.submit(request)

    def count_violation(self) -> None:
        self.reorder_violations += 1

    def refuse_parked(self, vchannels: Iterable[int], error: WalError) -> None:
        """Answer those who wait for locked VChannels; whoever comes from now on waits again."""
        for request in self._redo.take_of(frozenset(vchannels)):
            request.replies.refuse(request, error, False)

    def stop_beginning(self) -> None:
        """The daemon is about to stop: only open transactions go on."""
        self._draining = True

    async def drain(self) -> None:
        """Refuse what comes from now on and wait for what is under way. The proof of the end is the
        footer that closing writes."""
        self._refuse_all(NotReadyError("the daemon is stopping"), parked_only=True)
        await self._idle.wait()
        for timer in (self._mark_timer, self._expiry_timer):
            if timer is not None:
                timer.cancel()

    def close(self, error: WalError) -> None:
        """Refuse everything from now on with ``error``."""
        self._refuse_all(error, parked_only=False)

    def _refuse_all(self, error: WalError, *, parked_only: bool) -> None:
        self.closed = error
        waiting = self._redo.take()
        if not parked_only:
            waiting = [*self._queue, *waiting]
            self._queue.clear()
            self._queued_bytes = 0
        for request in waiting:
            request.replies.refuse(request, error, False)

    # -- group commit ------------------------------------------------------------------------------

    def _commit(self) -> None:
        if not self._gathering.is_complete(len(self._queue), self._clock.monotonic()):
            self._loop.call_soon(self._commit)  # The loop looks at the sockets in between.
            return
        group, size = self._take_group()
        if not group:
            self._rest()
            return
        if self._ticks is not None and self._ticks.are_due and group[0].type != _TIME_TICK:
            tick = _own(MessageType.TIME_TICK)
            group.insert(0, tick)
            size += tick.size
        inline = size <= GROUP_INLINE_MAX_BYTES and self.wal.has_room(size)
        if inline and not any(request.buffered for request in group):
            self._finish(self._write(group, size))
        else:
            future = self._loop.run_in_executor(self._committer, self._write, group, size)
            future.add_done_callback(lambda done: self._finish(done.result()))

    def _take_group(self) -> tuple[list[AppendRequest], int]:
        queue = self._queue
        size = self._queued_bytes
        if size <= GROUP_MAX_BYTES and len(queue) <= GROUP_MAX_BATCHES:
            group = list(queue)
            queue.clear()
            self._queued_bytes = 0
            return group, size
        group = []
        size = 0
        while queue and len(group) < GROUP_MAX_BATCHES:
            if group and size + queue[0].size > GROUP_MAX_BYTES:
                break
            request = queue.popleft()
            size += request.size
            group.append(request)
        self._queued_bytes -= size
        return group, size

    def _write(self, group: list[AppendRequest], size: int) -> Outcome:
        """Order a group and make it durable. Runs on the loop or in the committer's thread, one at
        a time; nobody else touches the state meanwhile."""
        started = self._clock.monotonic()
        sequenced = Sequenced([], [], [])
        first_tso = 0
        try:
            if not self.wal.has_room(size):
                self.wal.make_room(size, self._state)
            first_tso = self._timetick.begin(len(group))
            sequenced = self._sequencer.assign(group, first_tso, self.wal.position)
            written = sequenced.written
            if written:
                self.wal.cover(self._timetick.last)
                early = [request for request in written if request.buffered]
                if early:  # Only asked for with `--ack buffered`, and only in the thread.
                    self._loop.call_soon_threadsafe(self._acknowledge, early)
                self.wal.append(written, self._state.confirmed_below)
            elif not self.wal.is_current():
                # A refusal tells the state of the log, so it must still be ours.
                raise FencedError(f"PChannel {self.number} was taken over")
        except WalError as error:
            return _failed(group, sequenced, error)
        except OSError as error:
            failure = IoFailureError(f"the log cannot be written: {error.strerror}")
            return _failed(group, sequenced, failure)
        finally:
            if first_tso:
                self._timetick.done(first_tso)
        seconds = self._clock.monotonic() - started
        self.commits += 1
        self.commit_seconds += seconds
        self._gathering.committed([request.replies for request in group], seconds)
        return Outcome(sequenced)

    def _finish(self, outcome: Outcome) -> None:
        written, repeated, refused = outcome.sequenced
        for request, error in refused:
            request.replies.refuse(request, error, False)
        if outcome.failure is not None:
            self._fail(outcome)
            return
        if written:
            self._confirm(written)
        if repeated:
            self._acknowledge(repeated)
        if self._queue:
            self._loop.call_soon(self._commit)
        else:
            self._rest()

    def _confirm(self, requests: list[AppendRequest]) -> None:
        """Tell who waits, first of all; then let readers see the group."""
        self._acknowledge([request for request in requests if not request.buffered])
        segment = self.wal.tip_id
        plain: dict[int, list[Message]] = {}
        rows: list[tuple[int, Rows]] = []
        size = kept = 0
        for request in requests:
            size += request.size
            if request.type == _INSERT and not request.txn_id:
                kept += request.size
                batches = plain.get(request.vchannel)
                if batches is None:
                    plain[request.vchannel] = [request]
                else:
                    batches.append(request)
            elif request.vchannel:
                kept += self._confirm_special(request, segment, plain, rows)
        for vchannel, batches in plain.items():
            rows.append((vchannel, _plain_rows(segment, batches)))
        for vchannel, some in rows:
            self.rows += some.end_offset - some.first_offset
            self.next_offsets[vchannel] = some.end_offset
        self.batches += len(requests)
        self.bytes += size
        told = False
        if self._ticks is None:
            self._unproven = requests[-1].type != MessageType.MARK
        else:
            told = self._ticks.confirmed(requests)
            self._unproven = self._timetick.is_due
        if rows:
            self.buffer.add(rows, kept)
            if self._expiry_timer is None:
                self._expire()
        for vchannel in tuple(self.listeners) if told else dict(rows):
            for wake in tuple(self.listeners.get(vchannel, ())):
                wake()

    def _confirm_special(
        self,
        request: AppendRequest,
        segment: SegmentId,
        plain: dict[int, list[Message]],
        rows: list[tuple[int, Rows]],
    ) -> int:
        """What is no plain row. Returns bytes that were kept aside and are in the buffer now."""
        vchannel = request.vchannel
        key = (vchannel, request.txn_id)
        kind = request.type
        if kind == MessageType.INSERT:
            self._staged.add(key, segment, request)
        elif kind == MessageType.BEGIN_TXN:
            self._staged.begin(key)
        elif kind == MessageType.ROLLBACK_TXN:
            self._staged.forget(key)
        elif kind in EXCLUSIVE:
            self._staged.forget_all(vchannel)  # The change broke its transactions.
            self.next_offsets.setdefault(vchannel, 0)
        elif kind == MessageType.COMMIT_TXN and request.rows:
            before = plain.pop(vchannel, None)
            if before is not None:
                rows.append((vchannel, _plain_rows(segment, before)))
            first, tso = request.first_offset, request.tso
            staged, size = self._staged.commit(key, segment, first, request.rows, tso)
            rows.extend((vchannel, some) for some in staged)
            return size
        return 0

    def _acknowledge(self, requests: list[AppendRequest]) -> None:
        last: Replies = NOBODY
        for request in requests:
            replies = request.replies
            if replies is not last:
                last.flush()
                last = replies
            replies.acknowledge(request)
            request.replies = NOBODY
        last.flush()

    def _fail(self, outcome: Outcome) -> None:
        failure = outcome.failure
        assert failure is not None
        log.error("commit failed", extra={"pchannel": self.number, "error": failure.message})
        for request in (*outcome.sequenced.written, *outcome.sequenced.repeated):
            if not request.buffered:
                request.replies.refuse(request, failure, True)
        self._busy = False
        self.close(
            failure
            if isinstance(failure, FencedError)
            else NotReadyError(f"the log is read back from the disk after: {failure.message}")
        )
        self._idle.set()
        self._on_failure(self, failure)

    # -- rest --------------------------------------------------------------------------------------

    def _rest(self) -> None:
        self._busy = False
        self._idle.set()
        if self._unproven and self.closed is None:
            self._idle_since = self._clock.monotonic()
            if self._mark_timer is None:
                self._mark_timer = self._loop.call_later(MARK_DELAY_SECONDS, self._mark)

    def _expire(self) -> None:
        """Let go of what is too old to be tailed; no timer runs while the buffer is empty."""
        delay = self.buffer.expire()
        self._expiry_timer = None
        if delay is not None:
            self._expiry_timer = self._loop.call_later(max(delay, 1.0), self._expire)

    def _mark(self) -> None:
        """Prove the last group durable, once nobody has appended for a while; or tell the readers
        of an unordered log that nothing older will come."""
        self._mark_timer = None
        if self._busy or not self._unproven or self.closed is not None:
            return
        left = self._idle_since + MARK_DELAY_SECONDS - self._clock.monotonic()
        if left > 0.001:
            self._mark_timer = self._loop.call_later(left, self._mark)
            return
        failpoint("mark-before-write")
        self.submit(_own(MessageType.MARK if self._ticks is None else MessageType.TIME_TICK))


def _own(type: MessageType) -> AppendRequest:
    """A message of the PChannel itself."""
    return own_request(message(type, 0), NOBODY)


def _plain_rows(segment: SegmentId, batches: list[Message]) -> Rows:
    last = batches[-1]
    return Rows(segment, batches, batches[0].first_offset, last.first_offset + last.rows)


def _failed(group: list[AppendRequest], sequenced: Sequenced, error: WalError) -> Outcome:
    """A full disk is met before anything was changed, and the next group may find room again.
    After everything else the log must be opened anew."""
    if not sequenced.written:
        sequenced = Sequenced([], [], [(request, error) for request in group])
        return Outcome(sequenced, None if error.retryable else error)
    return Outcome(sequenced, error)
