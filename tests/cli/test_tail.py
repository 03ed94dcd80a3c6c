"""`wal tail` through real processes, pipes and a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Wal, stop_process
from tests.cli.test_append import client, lines_of, raw


def bodies(data: bytes) -> list[str]:
    return [json.loads(line)["body"] for line in data.splitlines()]


class Lines:
    """Reads a pipe as it fills."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._fd = process.stdout.fileno()
        self.data = b""

    def until(self, end: bytes, seconds: float = 15) -> bytes:
        deadline = time.monotonic() + seconds
        while not self.data.endswith(end):
            left = deadline - time.monotonic()
            assert left > 0, self.data
            if select.select([self._fd], [], [], left)[0]:
                some = os.read(self._fd, 1 << 20)
                assert some, self.data
                self.data += some
        return self.data


def test_defaults_and_ends(wal: Wal) -> None:
    wal.ok("append", "c", input="".join(f"{n}\n" for n in range(15)))
    wal.ok("append", "c", "15")
    every = [str(n) for n in range(16)]

    def tail(*argv: str) -> list[str]:
        return bodies(wal.ok("tail", "c", *argv).out)

    assert tail() == every
    assert tail("-n", "3") == every[-3:]
    assert tail("-n", "0") == []
    assert tail("--count", "2") == every[:2]
    assert tail("--from", "3", "--until", "5") == every[3:6]
    assert tail("--from", "0:14") == every[14:]
    assert tail("--until", "0:1", "--count", "9") == every[:2]
    assert tail("--until", "99", "--from", "15") == every[15:]
    assert tail("--from", "latest") == []
    assert tail("--from", "-1h") == every
    assert tail("--until", "-1h") == []
    assert tail("-f", "--from", "14", "--until", "15") == every[14:]
    last = wal.ok("tail", "c", "-n", "1").json
    assert tail("--from", f"tso:{last['tso']}") == ["15"]
    assert tail("--until", last["time"]) == every
    assert tail("-f", "--from", "earliest", "--until", "end") == every
    assert wal("tail", "c", "--from", "17").status == 66
    assert wal("tail", "none").status == 66
    assert wal("tail", "c", "--from", "4:0").status == 66


@pytest.mark.parametrize(
    "flags",
    [
        ["-n", "1", "--from", "2"],
        ["--from", "soon"],
        ["--until", "tso:x"],
        ["--from", "0:1,0:2"],
        ["--cursor", "x", "-n", "1"],
        ["--group", "g", "-n", "1"],
        ["--cursor-file", "f", "-n", "1"],
        ["-o", "text", "--framing", "nul"],
        ["-o", "raw", "--framing", "ndjson"],
        ["-o", "table"],
    ],
)
def test_refused(wal: Wal, flags: list[str]) -> None:
    assert wal("tail", "c", *flags).status == 2
    assert not wal.dir.exists()


def test_fields(wal: Wal) -> None:
    wal.ok("append", "c", "-k", b"\xff", "-H", "n=v", "-H", b"b=\xff", b"\xc3\xa9", b"\xff")
    first, second = map(json.loads, wal.ok("tail", "c", "-o", "json").text.splitlines())
    assert list(first) == [
        *("collection", "shard", "offset", "tso", "time", "key_b64", "headers", "body")
    ]
    assert (first["collection"], first["shard"], first["offset"]) == ("c", 0, 0)
    assert first["headers"] == {"n": "v", "b": {"b64": "/w=="}}
    assert isinstance(first["tso"], str)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert (second["offset"], second["body_b64"]) == (1, "/w==")
    assert "body" not in second


def test_raw_framings(wal: Wal) -> None:
    wal.ok("append", "c", "--framing", "whole", input=b"a\nb")
    wal.ok("append", "c", input=b"x\ny\n")
    assert raw(wal, "c") == b"a\nb\nx\ny\n"
    assert wal.ok("tail", "c", "--framing", "nul").out == b"a\nb\0x\0y\0"
    assert raw(wal, "c", "whole") == b"a\nbxy"
    assert wal.ok("tail", "c", "-o", "raw", "--from", "2").out == b"y\n"


def test_several_collections_and_shards(wal: Wal) -> None:
    wal.ok("collection", "create", "many", "--shards", "2")
    keys = [str(n % 7) for n in range(30)]
    rows = "".join(json.dumps({"key": key, "body": str(n)}) + "\n" for n, key in enumerate(keys))
    wal.ok("append", "many", "--framing", "ndjson", input=rows)
    for number in range(30, 34):
        wal.ok("append", "many", "-k", keys[number % 7], str(number))
    wal.ok("append", "one", "only")
    out = wal.ok("tail", "many", "one").out
    assert sorted(bodies(out)) == sorted([*map(str, range(34)), "only"])
    shards: dict[tuple[str, int], list[int]] = {}
    for row in map(json.loads, out.splitlines()):
        shards.setdefault((row["collection"], row["shard"]), []).append(row["offset"])
    assert all(offsets == list(range(len(offsets))) for offsets in shards.values())
    assert len(shards) == 3
    assert sorted(bodies(wal.ok("tail", "many", "-n", "4").out)) == ["30", "31", "32", "33"]
    assert bodies(wal.ok("tail", "many", "one", "--from", "0:0", "--count", "1").out)
    text = wal.ok("tail", "many", "one", "-o", "text").text
    assert re.search(r"^many  1:0  \S+Z  \d  \d+$", text, re.MULTILINE)
    assert re.search(r"^one  0:0  \S+Z  -  only$", text, re.MULTILINE)


def test_following_starts_with_ten_rows_and_ctrl_c_is_quiet(wal: Wal) -> None:
    wal.ok("append", "c", input="".join(f"{n}\n" for n in range(20)))
    process = wal.start("tail", "-f", "c", "-o", "raw")
    output = Lines(process)
    assert output.until(b"19\n").startswith(b"10\n")
    for number in range(20, 25):
        wal.ok("append", "c", str(number))
        output.until(b"%d\n" % number)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, b"")
    assert output.data == b"".join(b"%d\n" % number for number in range(10, 25))


def test_a_restarted_daemon_leaves_no_gap_and_no_repeat(wal: Wal) -> None:
    wal.ok("append", "c", "0")
    process = wal.start("tail", "-f", "c", "-o", "raw", "--from", "earliest", "--until", "5")
    output = Lines(process)
    output.until(b"0\n")
    for number in range(1, 6):
        with client(wal) as daemon:
            stop_process(daemon.hello.pid, signal.SIGKILL if number % 2 else signal.SIGTERM)
        time.sleep(0.2)
        wal.ok("append", "c", "-k", "k", str(number))
        output.until(b"%d\n" % number)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert output.data == b"0\n1\n2\n3\n4\n5\n"


def test_a_daemon_that_stays_away_ends_a_tail(wal: Wal) -> None:
    wal.ok("append", "c", "0")
    process = wal.start("tail", "-f", "c", "-o", "raw", "--timeout", "0.5")
    Lines(process).until(b"0\n")
    wal.ok("down")
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err.startswith(b"wal tail: ")) == (69, True)


def test_a_stopped_daemon_times_a_tail_out(wal: Wal) -> None:
    wal.ok("append", "c", "0")
    with client(wal) as daemon:
        pid = daemon.hello.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert wal("tail", "c", "--timeout", "0.5").status == 124
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_broken_pipe_is_quiet(wal: Wal, tmp_path: Path) -> None:
    wal.ok("append", "c", input=lines_of(100_000))
    for form in ("raw", "ndjson", "text"):
        process = wal.start("tail", "c", "-o", form)
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.communicate()


def test_text_on_a_terminal(wal: Wal) -> None:
    wal.ok("append", "c", "-k", "key", b"tab\there\x1b[31m", b"new\nline", b"\xff\xc2\x9b")
    reader, writer = pty.openpty()
    process = wal.start("tail", "c", stdout=writer, env={"TERM": "xterm"})
    os.close(writer)
    shown = b""
    try:
        while some := os.read(reader, 4096):
            shown += some
    except OSError:  # What a terminal says at its end.
        pass
    os.close(reader)
    process.communicate(timeout=10)
    assert process.returncode == 0
    columns = [line.split("  ") for line in shown.decode().replace("\r\n", "\n").splitlines()]
    assert [(row[0], *row[2:]) for row in columns] == [
        ("0", "key", r"tab\there\x1b[31m"),
        ("1", "key", r"new\nline"),
        ("2", "key", r"\xff\x9b"),
    ]


def test_large_batches_come_whole(wal: Wal) -> None:
    data = lines_of(200_000)
    wal.ok("append", "c", input=data)
    assert raw(wal, "c") == data
    assert wal.ok("tail", "c", "-o", "raw", "-n", "150000").out == data[-15_000_000:]
    assert wal.ok("tail", "c", "-o", "raw", "--count", "123456").out == data[:12_345_600]
