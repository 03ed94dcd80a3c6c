"""`wal tail`: what it prints, where it starts, where it ends, and what it survives."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import time
from typing import Any

import pytest

from tests.cli.conftest import Result, Wal
from wal_client.endpoint import Endpoint
from wal_client.sync import Client

BODIES = [b"plain", b"", b"\xff\xfe", b"\0nul\0", "é".encode(), b"two\nlines", b""]


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.text.splitlines()]


def offsets(result: Result) -> list[int]:
    return [row["offset"] for row in rows(result)]


def fill(wal: Wal, name: str, count: int) -> None:
    """``count`` rows whose bodies are their offsets."""
    wal.ok("append", name, "-q", input="".join(f"{number}\n" for number in range(count)))


def read_rows(process: subprocess.Popen[bytes], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def append_ten(wal: Wal) -> Wal:
    """Rows 0..9 of collection ``c``, in two batches: 0..4 and 5..9."""
    wal.ok("append", "c", *map(str, range(5)))
    wal.ok("append", "c", *map(str, range(5, 10)))
    return wal


@pytest.fixture
def ten(wal: Wal) -> Wal:
    return append_ten(wal)


@pytest.fixture(scope="module")
def shared_ten(served: Wal) -> Wal:
    """For tests that only read."""
    return append_ten(served)


@pytest.fixture
def sharded(wal: Wal) -> Wal:
    """Collection ``s`` with four rows in each of two shards, written by turns."""
    wal.ok("collection", "create", "s", "--shards", "2")
    with Client(Endpoint(str(wal.dir / "wald.sock"))) as client:
        with client.producer("s") as producer:
            keys = {producer.shard_of(key): key for key in (b"a", b"b", b"c", b"d", b"e")}
        for number in range(4):
            for shard in (0, 1):
                client.append("s", [b"%d:%d" % (shard, number)], key=keys[shard])
    return wal


# -- what is printed -------------------------------------------------------------------------------


def test_ndjson_is_the_default_in_a_pipe(wal: Wal) -> None:
    wal.ok("append", "c", "-k", "key", "-H", "a=1", "é")
    wal.ok("append", "c", "-k", b"\xff", b"\xfe")
    wal.ok("append", "c", "bare")
    first, second, third = rows(wal.ok("tail", "c"))
    assert list(first) == [
        *("collection", "shard", "offset", "tso", "time", "key", "headers", "body"),
    ]
    assert (first["collection"], first["shard"], first["offset"]) == ("c", 0, 0)
    assert (first["key"], first["headers"], first["body"]) == ("key", {"a": "1"}, "é")
    assert int(first["tso"]) > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert base64.b64decode(second["body_b64"]) == b"\xfe"
    assert base64.b64decode(second["key_b64"]) == b"\xff"
    assert set(third) == {"collection", "shard", "offset", "tso", "time", "body"}
    assert wal.ok("tail", "c", "-o", "ndjson").out == wal.ok("tail", "c", "-o", "json").out


def test_raw_is_byte_for_byte(wal: Wal) -> None:
    wal.ok("append", "c", "--framing", "len32", input=b"".join(map(framed, BODIES)))
    wal.ok("append", "c", "-k", "k", b"keyed \xff")
    bodies = [*BODIES, b"keyed \xff"]
    for framing, expected in {
        "line": b"".join(body + b"\n" for body in bodies),
        "nul": b"".join(body + b"\0" for body in bodies),
        "len32": b"".join(map(framed, bodies)),
        "whole": b"".join(bodies),
    }.items():
        assert wal.ok("tail", "c", "-o", "raw", "--framing", framing).out == expected
        assert wal.ok("tail", "c", "--framing", framing).out == expected
    assert wal.ok("tail", "c", "-o", "raw").out == b"".join(body + b"\n" for body in bodies)
    assert wal.ok("tail", "c", "-o", "len32").out == b"".join(map(framed, bodies))


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def test_lines_are_cut_like_any_other_rows(ten: Wal) -> None:
    assert ten.ok("tail", "c", "-o", "raw", "--from", "3", "--until", "6").out == b"3\n4\n5\n6\n"


def test_text_for_a_person(wal: Wal) -> None:
    wal.ok("append", "c", "-k", "a\tkey", "\x1b[31mred\r\n", "\u202eright")
    text = wal.ok("tail", "c", "-o", "text").text.splitlines()
    assert re.fullmatch(r"0  20\S+Z  a\\tkey  \\x1b\[31mred\\r\\n", text[0])
    assert text[1].endswith("\\u202eright")


def test_a_terminal_gets_text_without_control_characters(wal: Wal) -> None:
    wal.ok("append", "c", b"\x1b[2Jbell\x07\x9b \xff")
    main, side = pty.openpty()
    process = wal.start("tail", "c", stdin=side, stdout=side, stderr=side)
    os.close(side)
    screen = b""
    while select.select([main], [], [], 20)[0]:
        try:
            screen += os.read(main, 65536)
        except OSError:  # EIO: the other end is closed.
            break
    os.close(main)
    assert process.wait(10) == 0
    assert screen.endswith(b"-  \\x1b[2Jbell\\x07\\x9b \\xff\r\n")
    assert b"\x1b" not in screen


# -- where it starts and ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], range(10)),
        (["--from", "earliest", "--until", "end"], range(10)),
        (["--from", "latest"], []),
        (["--from", "7"], range(7, 10)),
        (["--from", "10"], []),
        (["--from", "3", "--until", "6"], range(3, 7)),
        (["--from", "4", "--until", "4"], [4]),
        (["--from", "4", "--until", "3"], []),
        (["--until", "2"], range(3)),
        (["--until", "99"], range(10)),
        (["--from", "0:8"], [8, 9]),
        (["--from", "0:8", "--until", "0:8"], [8]),
        (["-n", "3"], [7, 8, 9]),
        (["-n", "0"], []),
        (["-n", "99"], range(10)),
        (["-n", "3", "--until", "6"], [4, 5, 6]),
        (["-n", "3", "--count", "1"], [7]),
        (["--count", "3"], [0, 1, 2]),
        (["--count", "0"], []),
        (["--count", "2", "--from", "4"], [4, 5]),
        (["-f", "--count", "2"], [0, 1]),
        (["-f", "--from", "4", "--until", "6"], [4, 5, 6]),
        (["-f", "-n", "2", "--until", "end"], [8, 9]),
        (["--from", "-1h"], range(10)),
        (["--from", "-1h30m", "--until", "-1h"], []),
        (["--from", "2020-01-01"], range(10)),
        (["--from", "2999-01-01T00:00:00Z"], []),
        (["--until", "2020-01-01T12:00+02:00"], []),
        (["--from", "tso:0"], range(10)),
        (["--until", "tso:1"], []),
    ],
)
def test_ranges(shared_ten: Wal, flags: list[str], expected: list[int]) -> None:
    assert offsets(shared_ten.ok("tail", "c", *flags)) == list(expected)


def test_timestamps_and_times_include_their_rows(ten: Wal) -> None:
    found = rows(ten.ok("tail", "c"))
    first, second = found[0], found[5]
    assert offsets(ten.ok("tail", "c", "--from", f"tso:{second['tso']}")) == [5, 6, 7, 8, 9]
    assert offsets(ten.ok("tail", "c", "--until", f"tso:{first['tso']}")) == [0, 1, 2, 3, 4]
    assert offsets(ten.ok("tail", "c", "--from", second["time"])) == [5, 6, 7, 8, 9]
    assert offsets(ten.ok("tail", "c", "--until", first["time"])) == [0, 1, 2, 3, 4]
    until = ["--until", f"tso:{first['tso']}"]
    assert offsets(ten.ok("tail", "c", "-n", "2", *until)) == [3, 4]


@pytest.mark.parametrize(
    ("flags", "status", "code"),
    [
        (["c", "--from", "11"], 66, "out-of-range"),
        (["c", "--from", "0:1,7:1"], 66, "not-found"),
        (["nosuch"], 66, "not-found"),
        (["Bad!"], 2, "bad-name"),
        (["c", "--from", "yesterday-ish"], 2, "usage"),
        (["c", "--until", "tso:x"], 2, "usage"),
        (["c", "--from", "0:1,0:2"], 2, "usage"),
        (["c", "-n", "1", "--from", "0"], 2, "usage"),
        (["c", "-n", "-1"], 2, "usage"),
        (["c", "--framing", "csv"], 2, "usage"),
        (["c", "-o", "text", "--framing", "nul"], 2, "usage"),
        (["c", "--cursor", "me", "-n", "1"], 2, "usage"),
        (["c", "--cursor-file", "me", "-n", "1"], 2, "usage"),
        (["c", "--group", "us", "-n", "1"], 2, "usage"),
        (["c", "--group", "us", "--cursor", "me"], 2, "usage"),
        ([], 2, "usage"),
    ],
)
def test_refusals(shared_ten: Wal, flags: list[str], status: int, code: str) -> None:
    result = shared_ten("tail", *flags)
    assert (result.status, result.out) == (status, b"")
    assert result.errors.startswith("wal tail: ")
    assert f"[{code}]" in result.errors


def test_several_shards(sharded: Wal) -> None:
    found = rows(sharded.ok("tail", "s"))
    for shard in (0, 1):
        mine = [row for row in found if row["shard"] == shard]
        assert [row["offset"] for row in mine] == [0, 1, 2, 3]
        assert [row["body"] for row in mine] == [f"{shard}:{number}" for number in range(4)]
    bodies = {row["body"] for row in rows(sharded.ok("tail", "s", "--from", "0:2,1:3"))}
    assert bodies == {"0:2", "0:3", "1:3"}
    assert {row["body"] for row in rows(sharded.ok("tail", "s", "--from", "1:2"))} == {"1:2", "1:3"}
    both = sharded.ok("tail", "s", "--from", "0:1,1:0", "--until", "0:1,1:1")
    assert {row["body"] for row in rows(both)} == {"0:1", "1:0", "1:1"}
    last = {row["body"] for row in rows(sharded.ok("tail", "s", "-n", "3"))}
    assert last == {"1:2", "0:3", "1:3"}
    before = {row["body"] for row in rows(sharded.ok("tail", "s", "-n", "3", "--until", "2"))}
    assert before == {"1:1", "0:2", "1:2"}
    text = sharded.ok("tail", "s", "-o", "text", "--from", "1:3").text
    assert re.fullmatch(r"3  \S+  \S  1:3\n", text)
    assert re.search(r"^1:3  \S+  \S  1:3$", sharded.ok("tail", "s", "-o", "text").text, re.M)


def test_several_collections(ten: Wal) -> None:
    ten.ok("append", "d", "x", "y")
    found = rows(ten.ok("tail", "c", "d", "c", "--from", "1"))
    assert [row["offset"] for row in found if row["collection"] == "c"] == list(range(1, 10))
    assert [row["body"] for row in found if row["collection"] == "d"] == ["y"]
    text = ten.ok("tail", "c", "d", "-n", "1", "-o", "text").text.splitlines()
    assert sorted(line.split()[:2] for line in text) == [["c", "9"], ["d", "1"]]


# -- following -------------------------------------------------------------------------------------


def test_follow_begins_with_the_last_ten(wal: Wal) -> None:
    fill(wal, "c", 15)
    process = wal.start("tail", "-f", "c")
    assert [row["offset"] for row in read_rows(process, 10)] == list(range(5, 15))
    for number in range(15, 18):
        wal.ok("append", "c", str(number))
        assert [row["offset"] for row in read_rows(process, 1)] == [number]
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_follow_waits_for_an_end_that_is_not_there_yet(ten: Wal) -> None:
    process = ten.start("tail", "-f", "c", "--from", "8", "--until", "11")
    assert [row["offset"] for row in read_rows(process, 2)] == [8, 9]
    ten.ok("append", "c", "10", "11", "12")
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert [json.loads(line)["offset"] for line in out.splitlines()] == [10, 11]


def test_the_end_is_fixed_at_the_start(wal: Wal) -> None:
    fill(wal, "c", 300_000)
    process = wal.start("tail", "c", "-o", "raw")
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"  # Now it waits for room in the pipe.
    wal.ok("append", "c", "later")
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out.endswith(b"299999\n")


def test_follow_survives_a_restart_of_the_daemon(wal: Wal) -> None:
    fill(wal, "c", 3)
    process = wal.start("tail", "-f", "c")
    read_rows(process, 3)
    for number in range(3, 9, 3):
        wal.ok("down")
        wal.ok("up")
        wal.ok("append", "c", *(str(one) for one in range(number, number + 3)))
        assert [row["offset"] for row in read_rows(process, 3)] == [
            *range(number, number + 3),
        ]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143


def test_following_rows_while_they_are_written(wal: Wal) -> None:
    """No gap and no repeat, over a restart in the middle."""
    wal.ok("append", "c", "0")
    process = wal.start("tail", "-f", "c", "--from", "0", "--count", "20001", "-o", "raw")
    data = b"".join(b"%d\n" % number for number in range(1, 20_001))
    half = data.index(b"\n10000\n") + 1
    wal.ok("append", "c", input=data[:half])
    wal.ok("restart")
    wal.ok("append", "c", input=data[half:])
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == b"0\n" + data


def test_follow_ends_when_no_daemon_comes_back(wal: Wal) -> None:
    fill(wal, "c", 1)
    process = wal.start("tail", "-f", "c", "--timeout", "0.5")
    read_rows(process, 1)
    wal.ok("down")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 69
    assert b"[unreachable]" in err


# -- what ends it from outside ---------------------------------------------------------------------


def test_a_reader_that_had_enough(wal: Wal) -> None:
    fill(wal, "c", 300_000)
    script = "wal tail c -o raw | head -n 1; echo ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=wal.environment(),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"0\n141\n", b"")


def test_a_full_disk_behind_stdout(ten: Wal) -> None:
    with open("/dev/full", "wb") as full:
        process = ten.start("tail", "c", stdout=full)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 74
    assert b"[io-error]" in err


def test_ctrl_c_while_the_pipe_is_full(wal: Wal) -> None:
    fill(wal, "c", 300_000)
    process = wal.start("tail", "c", "-o", "raw")
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
