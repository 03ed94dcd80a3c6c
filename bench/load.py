"""A load generator for appends: many connections, a few requests in flight on each.

The counterpart of ``redis-benchmark``: one process, epoll, frames made beforehand. Every answer is
checked: each offset comes once, and in the end they are dense.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence

from bench.results import Latencies, quantiles
from wal_client.endpoint import connect_socket
from wal_client.sync import connect
from wal_core import frames
from wal_core.clock import SystemClock
from wal_core.message import Encoding, MessageType, message
from wal_core.names import vchannel_id

_ANSWER_BYTES = frames.FRAME_SIZE_BYTES + frames.APPEND_OK.size
_FIRST_OFFSET = struct.Struct("<q")


class LoadResult:
    """Requests a second, latencies in seconds, and the offsets that came back."""

    def __init__(self, seconds: float, latencies: list[float], offsets: list[int]) -> None:
        self.rate = len(latencies) / seconds
        self.latencies: Latencies = quantiles(latencies)
        self.offsets = offsets

    def verify(self, first: int) -> None:
        """Every append got an offset of its own, without holes."""
        if sorted(self.offsets) != list(range(first, first + len(self.offsets))):
            raise AssertionError("offsets are not dense")


def run(
    directory: str,
    collection: str,
    *,
    connections: int,
    requests: int,
    size: int,
    pipeline: int = 1,
    collections: int = 1,
    producers: bool | None = None,
) -> LoadResult:
    """``requests`` appends of one record of ``size`` bytes, ``pipeline`` in flight on each of
    ``connections`` sockets; spread over so many collections, whose offsets are checked when there
    is one. ``producers``: each frame is one of its own, and with True each
    connection has a producer id and numbers its batches; None: the same frame again and again."""
    with connect(directory) as client:
        names = [
            collection if not number else f"{collection}-{number}" for number in range(collections)
        ]
        ids = [client.open(name, create=True).id for name in names]
        path = client.endpoint.socket
        first = client.call("describe", name=collection)["shards"][0]["next"]
    body = b"x" * size
    share = 3 * requests // connections + pipeline  # Some connections get ahead of others.
    made = [
        _frames(vchannel_id(ids[number % len(ids)], 0), body, share, producers)
        for number in range(connections)
    ]
    sockets = [_greeted(path) for _ in range(connections)]
    started = time.perf_counter()
    latencies, offsets = _drive(sockets, made, requests, pipeline)
    result = LoadResult(time.perf_counter() - started, latencies, offsets)
    for sock in sockets:
        sock.close()
    if collections == 1:
        result.verify(first)
    return result


def _frames(vchannel: int, body: bytes, count: int, producers: bool | None) -> Iterator[bytes]:
    """At least ``count`` frames for one connection, made beforehand."""

    def made(id: int, sequence: int) -> bytes:
        row = message(
            MessageType.INSERT,
            vchannel,
            body + b"\n",
            encoding=Encoding.LINES,
            rows=1,
            producer_id=id,
            producer_sequence=sequence,
        )
        return frames.pack_append(1, row) + bytes(row.body)

    if producers is None:
        return itertools.repeat(made(0, 0))
    id = SystemClock().token() if producers else 0
    return iter([made(id, sequence + 1) for sequence in range(count)])


def _greeted(path: str) -> socket.socket:
    sock = connect_socket(path, 10.0)
    sock.sendall(frames.pack_hello())
    sock.recv(4096)
    sock.setblocking(False)
    return sock


def _drive(
    sockets: Sequence[socket.socket], made: Sequence[Iterator[bytes]], requests: int, pipeline: int
) -> tuple[list[float], list[int]]:
    poller = select.epoll()
    by_fd = {}
    frames_of = {}
    for number, sock in enumerate(sockets):
        poller.register(sock.fileno(), select.EPOLLIN)
        by_fd[sock.fileno()] = sock
        frames_of[sock.fileno()] = made[number]
    clock = time.perf_counter
    sent_at: dict[int, list[float]] = {}
    partial: dict[int, bytes] = {}
    left = requests
    for fd, sock in by_fd.items():
        sent_at[fd] = []
        for _ in range(min(pipeline, left)):
            left -= 1
            sock.sendall(next(frames_of[fd]))
            sent_at[fd].append(clock())
    latencies: list[float] = []
    offsets: list[int] = []
    unpack = _FIRST_OFFSET.unpack_from
    while len(latencies) < requests:
        for fd, _ in poller.poll():
            sock = by_fd[fd]
            data = sock.recv(65536)
            if fd in partial:
                data = partial.pop(fd) + data
            now = clock()
            whole = len(data) // _ANSWER_BYTES
            waiting = sent_at[fd]
            for number in range(whole):
                at = number * _ANSWER_BYTES
                if data[at + 4] != frames.Kind.APPEND_OK:
                    raise AssertionError(f"refused: {data[at:]!r}")
                offsets.append(unpack(data, at + frames.FRAME_SIZE_BYTES)[0])
                latencies.append(now - waiting[number])
            del waiting[:whole]
            if len(data) % _ANSWER_BYTES:
                partial[fd] = data[whole * _ANSWER_BYTES :]
            again = min(whole, left)
            if again:
                left -= again
                sock.send(b"".join(itertools.islice(frames_of[fd], again)))
                waiting += [clock()] * again
    poller.close()
    return latencies, offsets
