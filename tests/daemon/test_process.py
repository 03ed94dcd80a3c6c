"""A real daemon on a real socket: what it takes, what it refuses, and how it says so."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.daemon import Daemon
from wal_client.endpoint import connect_socket
from wal_client.ranges import FOLLOW, NOW, from_offset
from wal_client.sync import Client
from wal_core import frames
from wal_core.errors import (
    BadInputError,
    ExpectationFailedError,
    NotFoundError,
    ProtocolError,
    UsageError,
    WalError,
)
from wal_core.frames import Frame, Kind
from wal_core.message import Encoding, MessageType, message
from wal_core.names import vchannel_id


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    config = folder / "wal.toml"
    # A small buffer and small segments: readers move between buffer, files and segments.
    config.write_text("buffer_size = 65536\nsegment_size = 1048576\npchannels = 2\n")
    daemon = Daemon(folder / "wal", "--config", str(config))
    yield daemon
    daemon.stop()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


def _answer(sock: socket.socket, skip: int = 0) -> Frame:
    """The first frame that comes, after ``skip`` others."""
    data = b""
    at = 0
    while True:
        found = frames.split_frame(data, at)
        if found is not None:
            frame, at = found
            if skip == 0:
                return frame
            skip -= 1
            continue
        more = sock.recv(65536)
        assert more, "the daemon hung up without a word"
        data += more


def _raw(daemon: Daemon, *, hello: bool = True) -> socket.socket:
    sock = connect_socket(str(daemon.folder / "wald.sock"), 5.0)
    if hello:
        sock.sendall(frames.pack_hello())
        assert _answer(sock).kind == Kind.HELLO_OK
    return sock


def test_another_protocol_version_is_named(daemon: Daemon) -> None:
    with _raw(daemon, hello=False) as sock:
        sock.sendall(frames.pack_hello(version=9))
        error = frames.unpack_error(_answer(sock))
    assert isinstance(error, ProtocolError)
    assert error.exit_status == 76
    assert error.details["client"] == 9


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10,
        b"\0" * 4096,
        b"\xff" * 4096,
        frames.pack_frame(Kind.APPEND, 1, b"x" * 80, b"y"),
        frames.pack_hello() + b"\xff" * 64,
        frames.pack_hello() + frames.pack_frame(99, 1),
        frames.pack_hello() + frames.pack_frame(Kind.CALL, 1, body=b"\xc1"),
        frames.pack_hello() + frames.pack_frame(Kind.SUBSCRIBE, 1, b"short"),
        frames.pack_hello() + frames.pack_frame(Kind.OPEN, 1),
        frames.pack_hello() + frames.pack_frame(Kind.APPEND, 1, b"x" * 80, b"y"),
        struct.pack("<IBBHI", 1 << 20, 6, 0, 0, 1),
        frames.pack_hello() + struct.pack("<IBBHI", 0xFFFFFFF0, 6, 0, 0, 1),
    ],
)
def test_hostile_bytes_get_one_typed_error(daemon: Daemon, data: bytes) -> None:
    with _raw(daemon, hello=False) as sock:
        sock.sendall(data)
        greeted = data.startswith(frames.pack_hello())
        answer = _answer(sock, skip=1 if greeted else 0)
        assert frames.unpack_error(answer).code == "protocol"
    with daemon.client() as client:
        client.append("after-hostile", [b"still alive"])


def test_service_messages_are_not_for_clients(daemon: Daemon, client: Client) -> None:
    opened = client.open("service", create=True)
    sent = message(MessageType.MARK, vchannel_id(opened.id, 0), b"", rows=1)
    with _raw(daemon) as sock:
        sock.sendall(frames.pack_append(5, sent))
        answer = _answer(sock)
    assert answer.request_id == 5
    assert frames.unpack_error(answer).code == "protocol"


def test_a_batch_damaged_on_its_way_is_refused(daemon: Daemon, client: Client) -> None:
    opened = client.open("damaged", create=True)
    sent = message(
        MessageType.INSERT, vchannel_id(opened.id, 0), b"row\n", encoding=Encoding.LINES, rows=1
    )
    with _raw(daemon) as sock:
        sock.sendall(frames.pack_append(5, sent) + b"ROW\n")
        error = frames.unpack_error(_answer(sock))
    assert isinstance(error, BadInputError)
    assert client.call("describe", name="damaged")["rows"] == 0


def test_what_follows_a_refused_batch_is_refused_too(client: Client) -> None:
    producer = client.producer("holes")
    producer.lines(b"one\n", 1)
    producer.lines(b"two\n", 1, expect=77)
    producer.lines(b"three\n", 1)
    with pytest.raises(ExpectationFailedError) as caught:
        producer.flush()
    assert caught.value.details["next"] == 1
    assert producer.receipt.count == 1
    with client.producer("holes") as again:
        again.lines(b"four\n", 1)
    assert [batch.bodies() for batch in client.tail("holes")] == [[b"one"], [b"four"]]


def test_buffered_appends_say_so_and_arrive(client: Client) -> None:
    with client.producer("lazy", buffered=True) as producer:
        producer.append(b"row")
        assert producer.flush().durable is False
    client.append("lazy", [b"durable"])
    rows = [body for batch in client.tail("lazy") for body in batch.bodies()]
    assert rows == [b"row", b"durable"]


def test_create_describe_drop(client: Client) -> None:
    made = client.call("create", name="three", shards=3)
    assert [shard["vchannel"].split("_")[0] for shard in made["shards"]].count("p0") in (1, 2)
    with pytest.raises(WalError) as caught:
        client.call("create", name="three")
    assert caught.value.code == "already-exists"
    client.append("three", [b"row"], key=b"key")
    assert client.call("describe", name="three")["rows"] == 1
    client.call("drop", name="three")
    with pytest.raises(NotFoundError):
        client.open("three")
    with pytest.raises(UsageError):
        client.call("no-such-operation")


def test_a_tail_moves_between_log_and_buffer_without_gap_or_repeat(daemon: Daemon) -> None:
    """Writers run far ahead of a buffer of 64 KiB while readers follow from different places."""
    rows = 30_000
    with daemon.client() as client:
        client.open("moving", create=True)
    failures: list[str] = []

    def follow(start: int) -> None:
        due = start
        with daemon.client() as reader:
            for batch in reader.tail("moving", from_offset(start), FOLLOW):
                for offset, body in enumerate(batch.bodies(), batch.first):
                    if offset != due or int(body.split(b" ")[0]) != offset:
                        failures.append(f"{offset} {body[:10]!r} where {due} is due")
                        return
                    due += 1
                if due >= rows:
                    return

    readers = [threading.Thread(target=follow, args=(start,)) for start in (0, 0, 5_000, 29_999)]
    for reader in readers:
        reader.start()
    with daemon.client() as client, client.producer("moving") as producer:
        for first in range(0, rows, 50):
            lines = b"".join(b"%d %s\n" % (n, b"x" * (n % 90)) for n in range(first, first + 50))
            producer.lines(lines, 50)
            if first % 10_000 == 0:
                producer.flush()
                time.sleep(0.05)
    for reader in readers:
        reader.join(30)
        assert not reader.is_alive()
    assert not failures


def test_a_stalled_reader_stops_nobody(daemon: Daemon) -> None:
    with daemon.client() as client, client.producer("stalled") as producer:
        for _ in range(40):
            producer.lines(b"x" * 99_999 + b"\n", 1)
    with _raw(daemon) as stalled, daemon.client() as client:
        opened = client.open("stalled")
        meta = frames.SUBSCRIBE.pack(vchannel_id(opened.id, 0), 0, 0, 0, 0, 0)
        stalled.sendall(frames.pack_frame(Kind.SUBSCRIBE, 1, meta))  # And then it reads nothing.
        started = time.monotonic()
        with client.producer("stalled") as producer:
            for _ in range(200):
                producer.lines(b"y" * 99_999 + b"\n", 1)
        total = sum(batch.count for batch in client.tail("stalled", until=NOW))
        assert total == 240
        assert time.monotonic() - started < 10
        memory = daemon.resident_bytes()
    assert memory < 120e6


def test_the_log_grows_under_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60) / "wal"
    deep.parent.mkdir(parents=True)
    daemon = Daemon(deep)
    try:
        with daemon.client() as client:
            assert client.append("deep", [b"row"]).count == 1
    finally:
        daemon.stop()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.txt").write_text("do not touch")
    with pytest.raises(RuntimeError, match=r"holds other files and no log \[config\]"):
        Daemon(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_the_age_of_the_write_ahead_buffer_is_a_setting(tmp_path: Path) -> None:
    config = tmp_path / "wal.toml"
    config.write_text("buffer_seconds = 0.1\n")
    daemon = Daemon(tmp_path / "wal", "--config", str(config))
    try:
        with daemon.client() as client:
            client.append("aging", [b"row"])
            for _ in range(100):  # By default it would stay for 30 s.
                if 'wal_buffer_bytes{pchannel="0"} 0.0' in client.call("metrics"):
                    break
                time.sleep(0.1)
            else:
                raise AssertionError("the row is still in the buffer")
            assert [batch.count for batch in client.tail("aging", until=NOW)] == [1]
    finally:
        daemon.stop()
