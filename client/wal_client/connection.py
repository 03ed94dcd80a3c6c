"""One greeted socket: buffers out, frames in."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Sequence

from wal_client.endpoint import Endpoint, connect_socket
from wal_core import frames
from wal_core.errors import (
    TimedOutError,
    UnreachableError,
)
from wal_core.frame_reader import FrameReader
from wal_core.frames import Frame, Hello
from wal_core.limits import BATCH_TARGET_BYTES

_POLL_SECONDS = 0.02
_RECEIVE_BYTES = 256 * 1024
_Buffer = bytes | bytearray | memoryview


class Connection:
    """A greeted socket. Sends buffers, receives frames; not for several threads."""

    def __init__(self, endpoint: Endpoint, timeout: float | None) -> None:
        self._socket = connect_socket(endpoint.socket, timeout)
        # A batch in one call: with the kernel's 208 KiB a large one is sent in five pieces.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BATCH_TARGET_BYTES)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._frames: deque[Frame] = deque()
        self._reader = FrameReader(memoryview(bytearray(_RECEIVE_BYTES)), self._keep)
        try:
            self.send([frames.pack_hello()])
            self.hello: Hello = frames.unpack_hello_ok(self.receive())
            endpoint.check(self.hello)
        except TimeoutError:
            self.close()
            raise TimedOutError(f"{endpoint.socket}: no answer to the hello in time") from None
        except OSError as error:  # It stops just now.
            self.close()
            raise UnreachableError(f"{endpoint.socket}: the daemon hung up ({error})") from None
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def set_timeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def send(self, buffers: Sequence[_Buffer]) -> None:
        """All bytes, or an OSError."""
        sent = self._socket.sendmsg(buffers)
        for buffer in buffers:
            size = len(buffer)
            if sent < size:
                self._socket.sendall(memoryview(buffer)[sent:])
            sent = max(sent - size, 0)

    def receive(self) -> Frame:
        """The next frame. Raises OSError where the connection is lost or the time is over."""
        while not self._frames:
            size = self._socket.recv_into(self._reader.buffer())
            if size == 0:
                raise ConnectionResetError("the daemon closed the connection")
            self._reader.received(size)
        return self._frames.popleft()

    def has_frame(self, seconds: float = 0) -> bool:
        """Whether ``receive`` would return at once, now or within some seconds."""
        return bool(self._frames or self._poll.poll(seconds * 1000))

    def close(self) -> None:
        self._socket.close()

    def _keep(
        self,
        kind: int,
        flags: int,
        request_id: int,
        meta: memoryview | bytes,
        body: memoryview | bytes,
    ) -> None:
        self._frames.append(Frame(kind, flags, request_id, meta, body))
