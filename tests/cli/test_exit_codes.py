"""Exit statuses of errors, as scripts meet them."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Wal, stop_process

COMMANDS = (["append", "c", "x"], ["append", "c", "-k", "k", "x"], ["tail", "c"], ["status"])


@pytest.mark.parametrize("command", COMMANDS)
def test_69_without_a_daemon(wal: Wal, command: list[str]) -> None:
    result = wal(*command, "--no-autostart")
    assert result.status == 69
    assert "[unreachable]\n  try: wal up\n" in result.errors
    assert not wal.dir.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_69_after_a_daemon_was_killed(wal: Wal, command: list[str]) -> None:
    stop_process(wal.ok("up", "-o", "json").json["pid"], signal.SIGKILL)
    assert wal(*command, env={"WAL_AUTOSTART": "0"}).status == 69


def test_2_for_a_bad_name(wal: Wal) -> None:
    for command in (["append", "Bad!", "x"], ["tail", "Bad!"], ["collection", "create", "Bad!"]):
        result = wal(*command)
        assert result.status == 2, result
        assert "[bad-name]" in result.errors


def test_65_for_bad_input(wal: Wal) -> None:
    for framing, data, place in (
        ("len32", struct.pack("<I", 5) + b"abc", "record 1"),
        ("len32", b"ab", "record 1"),
        ("len32", struct.pack("<I", 17 * 1024 * 1024), "record 1"),
        ("ndjson", b'{"body":"a"}\n{"key":"no body"}\n', "line 2"),
        ("ndjson", b'{"body_b64":"!"}\n', "line 1"),
        ("nul", b"x" * (16 * 1024 * 1024 + 1), "record 1"),
        ("whole", b"x" * (16 * 1024 * 1024 + 1), "record 1"),
    ):
        result = wal("append", "c", "--framing", framing, input=data)
        assert result.status == 65, (framing, result)
        assert place in result.errors
    assert wal.ok("tail", "c").out == b""


def test_78_for_a_newer_format_while_nobody_serves(wal: Wal) -> None:
    wal.dir.mkdir()
    (wal.dir / "format").write_text("walstream 999\n")
    assert wal("tail", "c").status == 78


def test_5_for_a_damaged_segment(wal: Wal) -> None:
    wal.ok("append", "c", "body-one")
    wal.ok("append", "c", "body-two")
    wal.ok("down")
    (segment,) = (wal.dir / "pchannels" / "0").glob("*.seg")
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b"body-one", b"body-0ne"))
    result = wal("tail", "c", "-o", "raw")
    assert result.status == 5, result
    assert segment.name in result.errors
    assert wal("check", "--deep").status == 5


# -- a daemon that is no good one ------------------------------------------------------------------


class Impostor:
    """A listener on the daemon's socket that sends ``answer`` to whoever connects."""

    def __init__(self, path: Path, answer: bytes) -> None:
        path.parent.mkdir()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(os.fspath(path))
        self._socket.listen()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        kept = []
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                break
            kept.append(connection)
            connection.recv(4096)
            if self._answer:
                connection.sendall(self._answer)
        for connection in kept:
            connection.close()


def test_76_for_another_protocol_version(wal: Wal) -> None:
    body = b"9.9.9\nmain\n" + os.fsencode(wal.dir)
    meta = struct.pack("<HI", 999, 1) + b"\0" * 16
    frame = struct.pack("<IBBHI", len(meta) + len(body), 2, 0, len(meta), 0) + meta + body
    impostor = Impostor(wal.dir / "wald.sock", frame)
    try:
        for command in COMMANDS:
            result = wal(*command)
            assert result.status == 76, (command, result)
            assert "[protocol]" in result.errors
    finally:
        impostor.close()


def test_124_where_nobody_answers(wal: Wal) -> None:
    impostor = Impostor(wal.dir / "wald.sock", b"")
    try:
        for command in COMMANDS:
            result = wal(*command, "--timeout", "0.2")
            assert result.status == 124, (command, result)
            assert "[timeout]" in result.errors
    finally:
        impostor.close()


def test_4_where_the_append_is_not_answered(wal: Wal) -> None:
    pid = wal.ok("up", "-o", "json").json["pid"]
    process = wal.start("append", "c", "--timeout", "1")
    assert process.stdin is not None
    wal.ok("append", "c", "first")
    process.stdin.write(b"one\n")
    process.stdin.flush()
    deadline = 100
    while wal.ok("tail", "c").out.count(b"\n") < 2 and deadline:
        deadline -= 1
    os.kill(pid, signal.SIGSTOP)
    try:
        process.stdin.write(b"two\n")
        process.stdin.flush()
        _, err = process.communicate(timeout=10)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert process.returncode == 4, err
    assert b"1 records are durable" in err
    assert b"--resume-at 4" in err
