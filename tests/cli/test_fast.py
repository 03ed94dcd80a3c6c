"""The short cut of `wal append`: it must do just what the long way does, and stay short."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.cli.conftest import Wal
from wal_cli import fast
from wal_client.endpoint import Endpoint
from wal_client.sync import Client
from wal_core import frames, limits, message
from wal_core.checksum import crc32c as reference
from wal_core.errors import NotFoundError

LONG_WAY = {"WAL_TIMEOUT": "30"}
"""A setting that the short cut leaves alone."""
ALLOWED = {"wal_cli", "wal_cli.fast", "_socket", "_struct", "select"}
PROBE = """
import json, os, sys
before = set(sys.modules)
sys.argv = ["wal", *sys.argv[1:]]
from wal_cli import fast
def leave(status):
    print(json.dumps([status, sorted(set(sys.modules) - before)]), file=sys.stderr)
    raise SystemExit(status)
fast._leave = leave
fast.entry()
"""

LINES: list[tuple[list[str | bytes], bytes | None]] = [
    (["NAME", "hello"], None),
    (["NAME", "one", "two", ""], None),
    (["-q", "NAME", "quiet"], None),
    (["NAME", "two\nlines", "x"], None),
    (["NAME", "--", "-f", "-"], None),
    (["NAME", b"\xff\xfe \xc3\xa9", "–"], None),
    (["NAME", "a", "-q", "b"], None),
    (["NAME", "-"], b"from\nstdin"),
    (["NAME"], b"\0\xff\n\n\nlast\n"),
    (["NAME"], b""),
    (["NAME", "x" * 20_000], None),
    (["NAME"], b"y" * 200_000 + b"\nz"),
    (["NAME", "a", "-"], None),
    (["NAME", "--no-such-flag"], None),
    (["Bad.NAME", "x"], None),
    ([], None),
]


def masked(text: bytes, name: str) -> bytes:
    return re.sub(rb"tso \d+", b"tso T", text).replace(name.encode(), b"NAME")


def test_both_ways_do_the_same(wal: Wal) -> None:
    wal.ok("up")
    for number, (words, data) in enumerate(LINES):
        results = []
        for kind, env in (("short", {}), ("long", LONG_WAY)):
            name = f"{kind}{number}"
            argv = [
                word.replace(b"NAME", name.encode())
                if isinstance(word, bytes)
                else word.replace("NAME", name)
                for word in words
            ]
            done = wal("append", *argv, input=data, env=env)
            results.append((done.status, masked(done.out, name), masked(done.err, name)))
        assert results[0] == results[1], words
        results = [stored(wal, f"{kind}{number}") for kind in ("short", "long")]
        assert results[0] == results[1], words


def stored(wal: Wal, name: str) -> list[bytes] | None:
    with Client(Endpoint(str(wal.dir / "wald.sock"))) as client:
        try:
            return [body for batch in client.tail(name) for body in batch.bodies()]
        except NotFoundError:
            return None


def probe(wal: Wal, *argv: str, data: bytes = b"") -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *argv],
        input=data,
        capture_output=True,
        env=wal.environment(),
        timeout=30,
        check=False,
    )
    status, modules = json.loads(done.stderr)
    return status, set(modules)


def test_the_short_cut_imports_next_to_nothing(wal: Wal) -> None:
    wal.ok("up")
    assert probe(wal, "append", "c", "hello") == (0, ALLOWED - {"select"})
    assert probe(wal, "append", "c", data=b"a\nb\n") == (0, ALLOWED)
    assert wal.ok("tail", "c", "-o", "raw").out == b"hello\na\nb\n"


def test_another_daemon_than_the_one_named_is_refused(wal: Wal) -> None:
    wal.ok("up")
    env = {"WAL_SOCKET": str(wal.dir / "wald.sock"), "WAL_DIR": str(wal.home / "elsewhere")}
    assert wal("append", "c", "x", env=env).status == 78
    assert wal("tail", "c").status == 66


def test_a_refusal_is_reported_by_the_long_way(wal: Wal) -> None:
    wal.ok("up")
    done = wal("append", "x" * 129, "y")
    assert done.status == 2
    assert done.err.startswith(b"wal append: ")


def test_no_daemon_and_a_full_stdout(wal: Wal) -> None:
    assert wal("append", "c", "x", env={"WAL_AUTOSTART": "0"}).status == 69
    wal.ok("up")
    with open("/dev/full", "wb") as full:
        process = wal.start("append", "c", "x", stdout=full)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 74
    assert err.startswith(b"wal append: ")
    reader, writer = os.pipe()
    os.close(reader)
    process = wal.start("append", "c", "x", stdout=writer)
    os.close(writer)
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["append", "c", "x"], ("c", ["x"], False)),
        (["append", "c"], ("c", None, False)),
        (["append", "-q", "c", "-"], ("c", None, True)),
        (["append", "c", "--", "-q"], ("c", ["-q"], False)),
        (["append", "c", "-k", "x"], None),
        (["append", "c", "-qx"], None),
        (["append"], None),
        (["append", "C", "x"], None),
        (["append", "", "x"], None),
        (["tail", "c"], None),
        (["--dir", "d", "append", "c", "x"], None),
    ],
)
def test_what_is_plain(argv: list[str], expected: object) -> None:
    assert fast.parse(argv) == expected


def test_what_is_written_twice_agrees() -> None:
    assert frames.FRAME.format == fast._FRAME
    assert message.CLIENT_HALF.format + frames.EXPECT.format[1:] == fast._APPEND
    assert frames.APPEND_OK.format == fast._APPEND_OK
    assert limits.SOCKET_PATH_MAX_BYTES == fast._SOCKET_PATH_MAX_BYTES
    assert tuple(range(1, 8)) == (
        fast._HELLO,
        fast._HELLO_OK,
        fast._ERROR,
        fast._OPEN,
        fast._OPEN_OK,
        fast._KIND_APPEND,
        fast._KIND_APPEND_OK,
    )
    assert frames.pack_hello() == fast._frame(fast._HELLO, 0, b"WALS\1\0")
    for data in (b"", b"123456789", bytes(range(256)) * 3):
        assert fast.crc32c(data) == reference(data)
