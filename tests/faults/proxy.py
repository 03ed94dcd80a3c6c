"""A Unix-socket proxy that loses, repeats, delays and reorders whole frames, and cuts connections.

It stands between a client and a daemon, parses both directions into frames, and asks a plan what to
do with each. The hello passes untouched.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from pathlib import Path

from wal_core.frames import FRAME, FRAME_SIZE_BYTES, Kind

_HANDSHAKE = frozenset((Kind.HELLO, Kind.HELLO_OK, Kind.OPEN, Kind.OPEN_OK))


class Plan:
    """What happens to frames, by chance. ``rate``: how often something does."""

    def __init__(self, seed: int, rate: float) -> None:
        self._chance = random.Random(seed)
        self._rate = rate
        self._lock = threading.Lock()
        self.done: dict[str, int] = {}

    def of(self, kind: int, *, to_client: bool) -> str:
        """pass, drop, twice, hold (until the next frame has passed) or cut."""
        with self._lock:
            if kind in _HANDSHAKE or self._chance.random() > self._rate:
                return "pass"
            # A dropped answer costs the client a timeout, so these are rarer.
            weights = (1, 4, 4, 3) if to_client else (1, 4, 4, 2)
            (what,) = self._chance.choices(("drop", "twice", "hold", "cut"), weights)
            self.done[what] = self.done.get(what, 0) + 1
            return what


class Proxy:
    """Listens on ``path``; every connection is one to the daemon's socket ``target``."""

    def __init__(self, path: Path, target: Path, plan: Plan) -> None:
        self._target = target
        self._plan = plan
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            _end(sock)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._open += [client, daemon]
            try:
                daemon.connect(str(self._target))
            except OSError:  # Killed just now: the client meets a closed connection.
                _end(client)
                continue
            for source, sink, to_client in ((client, daemon, False), (daemon, client, True)):
                threading.Thread(
                    target=self._carry, args=(source, sink, to_client), daemon=True
                ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, to_client: bool) -> None:
        held: list[bytes] = []
        with contextlib.suppress(OSError):
            while (frame := _frame(source)) is not None:
                what = self._plan.of(frame[4], to_client=to_client)
                if what == "cut":
                    break
                if what == "hold":
                    held.append(frame)
                    continue
                if what != "drop":
                    sink.sendall(frame * (2 if what == "twice" else 1))
                for late in held:
                    sink.sendall(late)
                held.clear()
        _end(source)
        _end(sink)


def _frame(source: socket.socket) -> bytes | None:
    head = _exactly(source, FRAME_SIZE_BYTES)
    if head is None:
        return None
    body = _exactly(source, FRAME.unpack(head)[0])
    return None if body is None else head + body


def _exactly(source: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        some = source.recv(size - len(data))
        if not some:
            return None
        data += some
    return data


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
