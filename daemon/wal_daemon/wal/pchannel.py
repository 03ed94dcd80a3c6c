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
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple

from wal_core.checksum import crc32c
from wal_core.clock import Clock
from wal_core.errors import (
    BadInputError,
    ExpectationFailedError,
    IoFailureError,
    NotFoundError,
    NotReadyError,
    WalError,
)
from wal_core.failpoints import failpoint
from wal_core.limits import (
    BATCH_RECORDS_MAX,
    GROUP_INLINE_MAX_BYTES,
    GROUP_MAX_BATCHES,
    GROUP_MAX_BYTES,
    MARK_DELAY_SECONDS,
)
from wal_core.message import NO_OFFSET, Message, MessageType, message
from wal_core.tso import TsoSource
from wal_daemon.wal.buffer import WriteAheadBuffer
from wal_daemon.wal.gather import Gathering
from wal_daemon.wal.requests import (
    ANY_OFFSET,
    NOBODY,
    AppendRequest,
    FutureReplies,
    Replies,
    own_request,
)
from wal_storage.state import VChannelState, decode_create
from wal_storage.walstore.base import Recovered, WalStorage

_INSERT = int(MessageType.INSERT)
log = logging.getLogger("wald.pchannel")


class Outcome(NamedTuple):
    """What became of a group."""

    written: list[AppendRequest]
    refused: list[tuple[AppendRequest, WalError]]
    failure: WalError | None
    """Set: the outcome of ``written`` is unknown, and the WAL storage must be opened anew."""


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
        on_failure: Callable[[PChannel, WalError], None],
    ) -> None:
        self.number = number
        self.buffer = buffer
        self._clock = clock
        self._committer = committer
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
        self.attach(wal, recovered)

    def attach(self, wal: WalStorage, recovered: Recovered) -> None:
        """Begin, or begin again after a failure, on a WAL storage that has recovered."""
        self.wal = wal
        self.closed: WalError | None = None
        self._state = recovered.state
        self._tso = TsoSource(self._clock, recovered.state.tso)
        self.cuts = recovered.cuts
        self.buffer.clear()
        self.next_offsets = {
            vchannel.id: vchannel.next_offset for vchannel in self._state.vchannels.values()
        }
        """VChannel → offset behind its last confirmed row: the only end that readers know."""

    @property
    def vchannels(self) -> dict[int, VChannelState]:
        """Shards as the sequencer knows them. Their offsets may be ahead of what is confirmed."""
        return self._state.vchannels

    @property
    def last_tso(self) -> int:
        return self._tso.last

    @property
    def clock_jumped(self) -> bool:
        return self._tso.jumped

    @property
    def next_sequence(self) -> int:
        return self._state.next_sequence

    # -- requests ----------------------------------------------------------------------------------

    def submit(self, request: AppendRequest) -> None:
        """Queue an append. Its answer goes to ``request.replies``, in the order of submission."""
        if self.closed is not None:
            request.replies.refuse(request, self.closed, False)
            return
        self._queue.append(request)
        self._queued_bytes += request.size
        if not self._busy:
            self._busy = True
            self._idle.clear()
            self._loop.call_soon(self._commit)

    async def append(self, message: Message) -> Message:
        """Append a message of the daemon itself and wait until it is confirmed."""
        replies = FutureReplies(self._loop)
        self.submit(own_request(message, replies))
        return await replies.future

    async def drain(self) -> None:
        """Refuse what comes from now on and wait for what is under way. The proof of the end is the
        footer that closing writes."""
        self.closed = NotReadyError("the daemon is stopping")
        await self._idle.wait()
        for timer in (self._mark_timer, self._expiry_timer):
            if timer is not None:
                timer.cancel()

    def close(self, error: WalError) -> None:
        """Refuse everything from now on with ``error``."""
        self.closed = error
        while self._queue:
            request = self._queue.popleft()
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
        written: list[AppendRequest] = []
        refused: list[tuple[AppendRequest, WalError]] = []
        try:
            if not self.wal.has_room(size):
                self.wal.make_room(size, self._state)
            self._assign(group, written, refused)
            if written:
                self.wal.cover(self._tso.last)
                early = [request for request in written if request.buffered]
                if early:  # Only asked for with `--ack buffered`, and only in the thread.
                    self._loop.call_soon_threadsafe(self._acknowledge, early)
                self.wal.append(written)
        except WalError as error:
            return _failed(group, written, refused, error)
        except OSError as error:
            failure = IoFailureError(f"the log cannot be written: {error.strerror}")
            return _failed(group, written, refused, failure)
        seconds = self._clock.monotonic() - started
        self.commits += 1
        self.commit_seconds += seconds
        self._gathering.committed([request.replies for request in group], seconds)
        return Outcome(written, refused, None)

    def _assign(
        self,
        group: list[AppendRequest],
        written: list[AppendRequest],
        refused: list[tuple[AppendRequest, WalError]],
    ) -> None:
        """Give sequence, timestamp and offsets, in the order of arrival."""
        state = self._state
        vchannels = state.vchannels
        sequence = state.next_sequence
        tso = self._tso.take(len(group))
        for request in group:
            vchannel = vchannels.get(request.vchannel)
            if request.type == _INSERT:
                if (
                    vchannel is None
                    or vchannel.dropped_tso
                    or request.expect != ANY_OFFSET
                    or request.replies.failed_producers
                    or not 0 < request.rows <= BATCH_RECORDS_MAX
                    or crc32c(request.body) != request.body_checksum
                ):
                    error = _problem(request, vchannel)
                    if error is not None:
                        if request.producer_id:
                            failed = request.replies.failed_producers
                            failed.setdefault(request.producer_id, error)
                        refused.append((request, error))
                        continue
                    assert vchannel is not None
                request.first_offset = offset = vchannel.next_offset
                vchannel.next_offset = offset + request.rows
                vchannel.last_tso = tso
            else:
                request.first_offset = NO_OFFSET
                if request.type == MessageType.CREATE_COLLECTION:
                    state.create(request.vchannel, decode_create(bytes(request.body)), tso)
                elif request.type == MessageType.DROP_COLLECTION:
                    state.drop(request.vchannel, tso)
            request.sequence = sequence
            request.tso = tso
            sequence += 1
            tso += 1
            written.append(request)
        state.next_sequence = sequence
        state.tso = self._tso.last

    def _finish(self, outcome: Outcome) -> None:
        for request, error in outcome.refused:
            request.replies.refuse(request, error, False)
        if outcome.failure is not None:
            self._fail(outcome)
            return
        if outcome.written:
            self._confirm(outcome.written)
        if self._queue:
            self._loop.call_soon(self._commit)
        else:
            self._rest()

    def _confirm(self, requests: list[AppendRequest]) -> None:
        """Tell who waits, first of all; then let readers see the group."""
        self._acknowledge([request for request in requests if not request.buffered])
        rows: dict[int, list[Message]] = {}
        size = 0
        for request in requests:
            size += request.size
            if request.type == _INSERT:
                batches = rows.get(request.vchannel)
                if batches is None:
                    rows[request.vchannel] = [request]
                else:
                    batches.append(request)
            elif request.type == MessageType.CREATE_COLLECTION:
                self.next_offsets[request.vchannel] = 0
        for vchannel, batches in rows.items():
            end = batches[-1].first_offset + batches[-1].rows
            self.rows += end - batches[0].first_offset
            self.next_offsets[vchannel] = end
        self.batches += len(requests)
        self.bytes += size
        self._unproven = requests[-1].type != MessageType.MARK
        if rows:
            self.buffer.add(rows, self.wal.tip_id, size)
            if self._expiry_timer is None:
                self._expire()
        for vchannel in rows:
            for wake in tuple(self.listeners.get(vchannel, ())):
                wake()

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
        for request in outcome.written:
            if not request.buffered:
                request.replies.refuse(request, failure, True)
        self._busy = False
        self.close(failure)
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
        """Prove the last group durable, once nobody has appended for a while."""
        self._mark_timer = None
        if self._busy or not self._unproven or self.closed is not None:
            return
        left = self._idle_since + MARK_DELAY_SECONDS - self._clock.monotonic()
        if left > 0.001:
            self._mark_timer = self._loop.call_later(left, self._mark)
            return
        failpoint("mark-before-write")
        self.submit(own_request(message(MessageType.MARK, 0), NOBODY))


def _failed(
    group: list[AppendRequest],
    written: list[AppendRequest],
    refused: list[tuple[AppendRequest, WalError]],
    error: WalError,
) -> Outcome:
    """A full disk is met before anything was changed, and the next group may find room again.
    After everything else the log must be opened anew."""
    if not written:
        refused = [(request, error) for request in group]
    return Outcome(written, refused, None if error.retryable and not written else error)


def _no_collection(vchannel: VChannelState | None) -> WalError:
    what = "it was dropped" if vchannel is not None else "it was never created"
    return NotFoundError(f"no such collection: {what}")


def _problem(request: AppendRequest, vchannel: VChannelState | None) -> WalError | None:
    """Why an append of rows is refused, if it is."""
    if vchannel is None or vchannel.dropped_tso:
        return _no_collection(vchannel)
    failed = request.replies.failed_producers
    if failed and request.producer_id in failed and request.producer_id:
        return failed[request.producer_id]
    if request.expect not in (ANY_OFFSET, vchannel.next_offset):
        return ExpectationFailedError(
            f"offset {request.expect} was expected, the next one is {vchannel.next_offset}",
            expected=request.expect,
            next=vchannel.next_offset,
        )
    if crc32c(request.body) != request.body_checksum:
        return BadInputError("the checksum of the batch does not hold: damaged on its way")
    if not 0 < request.rows <= BATCH_RECORDS_MAX:
        return BadInputError(f"a batch of {request.rows} rows")
    return None
