"""The Unix socket: accept, say hello, cut the stream into frames, push back when it is too much.

All connections read into one shared buffer: a read is parsed before the next one starts, so an
idle connection holds no buffer. A large frame is received straight into memory of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from wal_core import frames
from wal_core.errors import ProtocolError, SlowSubscriberError, ThrottledError, WalError
from wal_core.frame_reader import FrameReader
from wal_core.frames import Frame, Kind
from wal_core.limits import (
    CONNECTION_UNACKNOWLEDGED_MAX_BYTES,
    CONNECTIONS_MAX,
    FRAME_DEADLINE_SECONDS,
    FRAME_META_MAX_BYTES,
    FRAME_PAYLOAD_MAX_BYTES,
    HELLO_DEADLINE_SECONDS,
    RECEIVE_BUFFER_BYTES,
    SEND_BUFFER_HIGH_BYTES,
    SUBSCRIBER_SOCKET_BUFFER_BYTES,
    SUBSCRIBER_STALL_SECONDS,
    UNACKNOWLEDGED_MAX_BYTES,
)
from wal_daemon.deadlines import Deadlines
from wal_daemon.wal.requests import ROW_KINDS, AppendRequest
from wal_daemon.wal.subscription import Subscription
from wal_storage.disk import Buffer

if TYPE_CHECKING:
    from wal_daemon.wal.pchannel import PChannel

log = logging.getLogger("wald.server")
_APPEND_OK = int(Kind.APPEND_OK)
_APPEND_OK_SIZE_BYTES = frames.APPEND_OK.size
_pack_append_ok = frames.APPEND_OK_FRAME.pack
_CREDENTIALS = struct.Struct("3i")


class Service(Protocol):
    """What the node does for a connection."""

    def hello(self) -> bytes:
        """The HELLO_OK frame."""

    def pchannel_for_append(self, vchannel: int) -> PChannel:
        """Raises NotReadyError, NotFoundError."""

    def handle(self, connection: Connection, frame: Frame) -> None:
        """Any frame but an append. ``frame.body`` is valid during the call only."""


class Server:
    """All connections of a node, and what they may hold together."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.connections: set[Connection] = set()
        self.owners: dict[int, PChannel] = {}
        """VChannel → the PChannel that takes its appends; filled as they are asked for."""
        self.unacknowledged = 0
        self.accepted = 0
        self.refused = 0
        self._view = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self.deadlines = Deadlines(asyncio.get_running_loop())

    @property
    def receive_view(self) -> memoryview:
        return self._view

    def close(self) -> None:
        for connection in tuple(self.connections):
            connection.close()
        self.deadlines.close()


class Connection(asyncio.BufferedProtocol):
    """One client. Turns bytes into frames and answers into bytes."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(server.receive_view, self._dispatch)
        self._reader.payload_max = FRAME_META_MAX_BYTES  # Nothing larger before the hello.
        self._greeted = False
        self._unacknowledged = 0
        self._reading_paused = False
        self._owes = False
        self._answers = b""
        self._fd = -1
        self._subscriptions: dict[int, Subscription] = {}
        self.paused = False
        self.on_lost: dict[str, Callable[[], None]] = {}
        """What else ends with the connection: memberships in groups, by member."""
        self.peer_pid, self.peer_uid = 0, -1

    # -- asyncio -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass.
        self._transport = transport
        transport.set_write_buffer_limits(high=SEND_BUFFER_HIGH_BYTES)
        server = self._server
        server.accepted += 1
        if len(server.connections) >= CONNECTIONS_MAX:
            server.refused += 1
            self.fail(ThrottledError(f"{CONNECTIONS_MAX} connections are open"))
            return
        peer = transport.get_extra_info("socket")
        self._fd = peer.fileno()
        packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.peer_pid, self.peer_uid, _ = _CREDENTIALS.unpack(packed)
        server.connections.add(self)
        server.deadlines.set((self, "frame"), HELLO_DEADLINE_SECONDS, self._frame_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.deadlines.clear((self, "frame"))
        self._server.deadlines.clear((self, "stall"))
        self._transport = None
        for subscription in tuple(self._subscriptions.values()):
            subscription.close()
        self._subscriptions.clear()
        for lost in tuple(self.on_lost.values()):
            lost()
        self._reader.forget()

    def pause_writing(self) -> None:
        self.paused = True
        self._server.deadlines.set((self, "stall"), SUBSCRIBER_STALL_SECONDS, self._stalled)

    def resume_writing(self) -> None:
        self.paused = False
        self._server.deadlines.clear((self, "stall"))
        for subscription in tuple(self._subscriptions.values()):
            subscription.wake()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        reader = self._reader
        try:
            reader.received(nbytes)
            if reader.waiting is not self._owes:
                self._note_debt(reader.waiting)
        except WalError as error:
            self.fail(error)
        except Exception:
            log.exception("a frame could not be handled")
            self.fail(ProtocolError("the frame could not be handled"))

    # -- frames in ---------------------------------------------------------------------------------

    def _note_debt(self, owes: bool) -> None:
        """A frame that has begun must be complete in time, or the connection is cut."""
        self._owes = owes
        if owes:
            self._server.deadlines.set((self, "frame"), FRAME_DEADLINE_SECONDS, self._frame_late)
        else:
            self._server.deadlines.clear((self, "frame"))

    def _dispatch(
        self,
        kind: int,
        flags: int,
        request_id: int,
        meta: memoryview | bytes,
        body: memoryview | bytes,
    ) -> None:
        if kind == Kind.APPEND and self._greeted:
            self._append(flags, request_id, meta, body)
            return
        if self._transport is None:
            return
        frame = Frame(kind, flags, request_id, meta, body)
        if not self._greeted:
            frames.check_hello(frame)
            self._greeted = True
            self._reader.payload_max = FRAME_PAYLOAD_MAX_BYTES
            self._server.deadlines.clear((self, "frame"))
            self.send([self._server.service.hello()])
            return
        try:
            self._server.service.handle(self, frame)
        except WalError as error:
            self.send([frames.pack_error(request_id, error)])

    def _append(
        self, flags: int, request_id: int, meta: memoryview | bytes, body: memoryview | bytes
    ) -> None:
        request = AppendRequest(self, request_id, flags & frames.FLAG_BUFFERED != 0, meta, body)
        server = self._server
        self._unacknowledged += request.size
        server.unacknowledged += request.size
        if (
            self._unacknowledged > CONNECTION_UNACKNOWLEDGED_MAX_BYTES
            or server.unacknowledged > UNACKNOWLEDGED_MAX_BYTES
        ):
            self._pause_reading()
        if bytes(meta[5:8]) not in ROW_KINDS:
            kind, encoding, compression = meta[5:8]
            error = ProtocolError(
                f"a client may not append messages of type {kind} ({encoding}, {compression})"
            )
            self.refuse(request, error, False)
            return
        pchannel = server.owners.get(request.vchannel)
        if pchannel is None:
            try:
                pchannel = server.service.pchannel_for_append(request.vchannel)
            except WalError as error:
                self.refuse(request, error, False)
                return
        pchannel.submit(request)

    # -- answers out -------------------------------------------------------------------------------

    def acknowledge(self, request: AppendRequest) -> None:
        self._release(request.size)
        self._answers += _pack_append_ok(
            _APPEND_OK_SIZE_BYTES,
            _APPEND_OK,
            0 if request.buffered else frames.FLAG_DURABLE,
            _APPEND_OK_SIZE_BYTES,
            request.request_id,
            request.first_offset,
            request.tso,
            request.rows,
        )

    def flush(self) -> None:
        """Send the answers that have gathered: past the event loop where its queue is empty, so
        that the client is at work again while the daemon keeps its books."""
        answers, self._answers = self._answers, b""
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size() == 0:
            try:
                answers = answers[os.write(self._fd, answers) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # The loop will tell that the connection is lost.
            if not answers:
                return
        transport.write(answers)

    def refuse(self, request: AppendRequest, error: WalError, outcome_unknown: bool) -> None:
        self._release(request.size)
        self.send([frames.pack_error(request.request_id, error, outcome_unknown=outcome_unknown)])

    def send(self, buffers: Sequence[Buffer]) -> None:
        if self._transport is not None:
            self._transport.writelines(buffers)

    def fail(self, error: WalError) -> None:
        """Say why, and hang up."""
        self.send([frames.pack_error(0, error)])
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def abort(self) -> None:
        """Hang up without sending what is queued: the other side may not read at all."""
        if self._transport is not None:
            self._transport.abort()

    def _release(self, size: int) -> None:
        """Bytes of an append that is answered are held no more."""
        self._unacknowledged -= size
        self._server.unacknowledged -= size
        if self._reading_paused and (
            self._unacknowledged * 2 < CONNECTION_UNACKNOWLEDGED_MAX_BYTES
        ):
            self._reading_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _frame_late(self) -> None:
        self.fail(ProtocolError("a frame was not complete in time"))

    def _stalled(self) -> None:
        """It takes nothing, not even the reason: its socket is full. It resumes at its own next
        offset when it connects again."""
        log.warning(
            "a stalled client is cut",
            extra={"pid": self.peer_pid, "code": SlowSubscriberError.code},
        )
        self.abort()

    # -- subscriptions -----------------------------------------------------------------------------

    @property
    def subscriptions(self) -> Collection[Subscription]:
        """Those that run."""
        return self._subscriptions.values()

    def subscribe(self, request_id: int, make: Callable[[], Subscription]) -> None:
        """Start a subscription under a request id that is not in use."""
        if request_id in self._subscriptions:
            raise ProtocolError(f"request {request_id} is a running subscription")
        if not self._subscriptions and self._transport is not None:
            # A chunk in one write: with the kernel's 208 KiB a tail waits five times a MiB.
            peer = self._transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SUBSCRIBER_SOCKET_BUFFER_BYTES)
        subscription = self._subscriptions[request_id] = make()
        subscription.wake()

    def cancel(self, request_id: int) -> None:
        subscription = self._subscriptions.pop(request_id, None)
        if subscription is not None:
            subscription.close()

    def finished(self, request_id: int) -> None:
        self._subscriptions.pop(request_id, None)
