"""`wal append` through real processes and pipes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Wal
from wal_client.endpoint import Endpoint
from wal_client.sync import Client

LIMIT = 16 * 1024 * 1024


def raw(wal: Wal, name: str, framing: str = "line") -> bytes:
    return wal.ok("tail", name, "-o", "raw", "--framing", framing).out


def client(wal: Wal) -> Client:
    return Client(Endpoint(str(wal.dir / "wald.sock")), timeout=10)


def eventually(check: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not check():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines_of(count: int) -> bytes:
    """Lines of 100 bytes, all different."""
    return b"".join(b"%099d\n" % number for number in range(count))


@pytest.mark.parametrize("framing", ["line", "nul", "len32", "whole"])
def test_bytes_in_are_bytes_out(wal: Wal, framing: str) -> None:
    bodies = [b"plain", b"", b"\xff\xfe\x80", b"\xc3\xa9", b"", b"tab\there \r"]
    data = {
        "line": b"".join(body + b"\n" for body in [*bodies, b"\0nul\0"]),
        "nul": b"".join(body + b"\0" for body in [*bodies, b"two\nlines\n"]),
        "len32": b"".join(struct.pack("<I", len(body)) + body for body in [*bodies, b"\0\n"]),
        "whole": b"\n\0\xff no newline at the end",
    }[framing]
    wal.ok("append", "c", "--framing", framing, input=data)
    assert raw(wal, "c", framing) == data
    assert raw(wal, "c", "len32") == wal.ok("tail", "c", "-o", "len32").out


def test_a_last_line_without_newline_is_a_record(wal: Wal) -> None:
    result = wal.ok("append", "c", "-k", "k", input=b"one\ntwo")
    assert re.fullmatch(r"appended 2 to c  offsets 0\.\.1  tso \d+\n", result.text)
    assert raw(wal, "c") == b"one\ntwo\n"
    assert wal.ok("append", "c", "-o", "json", input=b"").json["count"] == 0
    assert wal.ok("append", "c", input=b"").text == "appended 0 to c\n"


def test_arguments_whatever_the_locale(wal: Wal) -> None:
    words = [b"\xff\x80", "é".encode(), b"", b"a\nb", b"-x"]
    for locale in ("C", "POSIX", "C.UTF-8"):
        wal.ok("append", "c", "-k", b"\xfe", "--", *words, env={"LC_ALL": locale})
    stored = b"".join(struct.pack("<I", len(body)) + body for body in words)
    assert raw(wal, "c", "len32") == stored * 3
    assert b'"key_b64":"/g=="' in wal.ok("tail", "c", "--count", "1").out


def test_a_record_of_just_the_limit_and_one_above(wal: Wal) -> None:
    most = b"x" * LIMIT
    data = b"first\n" + most + b"\nlast"
    wal.ok("append", "c", input=data)
    assert raw(wal, "c") == data + b"\n"
    result = wal("append", "d", input=b"first\nsecond\n" + most + b"y\nlast\n")
    assert result.status == 65
    assert "line 3" in result.errors
    assert "2 records are durable" in result.errors
    assert "--resume-at 13" in result.errors
    assert raw(wal, "d") == b"first\nsecond\n"


def test_json_errors_carry_the_position(wal: Wal) -> None:
    data = b'{"body":"a"}\nnonsense\n'
    result = wal("append", "c", "--framing", "ndjson", "-o", "json", input=data)
    error = result.error_json
    assert (result.status, error["code"], error["exit"]) == (65, "bad-input", 65)
    assert error["details"] == {"line": 2, "durable_records": 0, "resume_at": 0}


def test_json_receipt(wal: Wal) -> None:
    receipt = wal.ok("append", "c", "-o", "json", "-f", "-", input=b"a\nb\nc\n").json
    part = receipt["parts"][0]
    assert receipt["collection"] == "c"
    assert receipt["durable"] is True
    assert (part["first"], part["last"], part["count"]) == (0, 2, 3)
    assert part["vchannel"] == receipt["vchannel"] == "p0_1v0"
    assert isinstance(receipt["tso"], str)
    assert wal.ok("append", "c", "-o", "json", "--ack", "buffered", "x").json["durable"] is False


def test_keys_headers_and_ndjson_round_trip_over_shards(wal: Wal) -> None:
    wal.ok("collection", "create", "many", "--shards", "3")
    rows = [
        {"body": "é", "key": f"k{n}", "headers": {"a": ["1", "2"], "b": {"b64": "/w=="}}}
        for n in range(20)
    ] + [{"body_b64": "/w==", "key_b64": "/w=="}, {"body": "", "key": ""}]
    data = "\n".join(map(json.dumps, rows)).encode()
    result = wal.ok("append", "many", "--framing", "ndjson", input=data)
    assert re.match(r"appended 22 to many  offsets (\d:0\.\.\d+,?){3}  tso", result.text)
    printed = [json.loads(line) for line in wal.ok("tail", "many").text.splitlines()]
    keep = ("body", "body_b64", "key", "key_b64", "headers")
    stripped = [{name: row[name] for name in keep if name in row} for row in printed]
    assert sorted(map(json.dumps, stripped)) == sorted(
        json.dumps({name: row[name] for name in keep if name in row}) for row in rows
    )
    again = wal.ok("tail", "many").out
    wal.ok("append", "copy", "--framing", "ndjson", input=again)
    assert wal.ok("tail", "copy", "-n", "22").out.count(b"\n") == 22
    wal.ok("append", "h", "-k", "k", "-H", "n=a=b", "-H", "n=c", "body")
    row = wal.ok("tail", "h").json
    assert (row["key"], row["headers"]) == ("k", {"n": ["a=b", "c"]})


@pytest.mark.parametrize(
    "flags",
    [
        ["--txn", "1", "--atomic"],
        ["--producer", "p"],
        ["--dedup", ""],
        ["--follow", "-f", "/dev/null"],
        ["--ack", "maybe"],
        ["--framing", "csv"],
        ["-H", "novalue"],
        ["-f", "/dev/null"],
        ["--resume-at", "1"],
        ["--framing", "len32"],
    ],
)
def test_refused_before_anything_is_sent(wal: Wal, flags: list[str]) -> None:
    result = wal("append", "c", "body", *flags)
    assert result.status == 2, result
    assert result.errors.startswith("wal append: ")
    assert not wal.dir.exists()


def test_a_transaction_in_the_environment_is_not_ignored(wal: Wal) -> None:
    assert wal("append", "c", "body", env={"WAL_TXN": "7"}).status == 66


def test_expect_and_no_create(wal: Wal) -> None:
    assert wal("append", "c", "x", "--no-create").status == 66
    wal.ok("append", "c", "--expect", "0", "a", "b")
    result = wal("append", "c", "--expect", "1", "-o", "json", "x")
    assert (result.status, result.error_json["details"]) == (3, {"expected": 1, "next": 2})
    wal.ok("append", "c", "--expect", "2", input=lines_of(30_000))
    assert wal("append", "c", "--expect", "2", input=lines_of(30_000)).status == 3
    assert wal.ok("tail", "c", "-n", "1").json["offset"] == 30_001
    wal.ok("collection", "create", "two", "--shards", "2")
    assert wal("append", "two", "--expect", "0", "x").status == 2
    wal.ok("append", "two", "--expect", "0", "-k", "k", "x")


def test_resume_at_from_a_file_and_from_a_pipe(wal: Wal, tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_bytes(lines_of(100))
    wal.ok("append", "c", "-f", file, "--resume-at", "9800")
    wal.ok("append", "c", "--resume-at", "9900", input=file.read_bytes())
    with file.open("rb") as stdin:
        stdin.seek(100)
        process = wal.start("append", "c", "--resume-at", "9800", stdin=stdin)
        process.communicate(timeout=20)
    assert raw(wal, "c") == lines_of(100)[9800:] + lines_of(100)[9900:] * 2
    assert wal("append", "c", "-f", file, "--resume-at", "10001").status == 65


def test_a_slow_pipe_is_shipped_when_it_pauses(wal: Wal) -> None:
    wal.ok("up")
    process = wal.start("append", "c")
    assert process.stdin is not None
    with client(wal) as daemon:
        for number in range(1, 4):
            process.stdin.write(b"line %d\nhalf" % number)
            process.stdin.flush()
            eventually(lambda n=number: rows(daemon) == n)
    out, _ = process.communicate(timeout=10)
    assert out.startswith(b"appended 4 to c  offsets 0..3")
    assert raw(wal, "c") == b"line 1\nhalfline 2\nhalfline 3\nhalf\n"


def rows(daemon: Client) -> int:
    return sum(one["rows"] for one in daemon.call("list"))


def test_ctrl_c_waits_for_acknowledgements(wal: Wal) -> None:
    wal.ok("up")
    process = wal.start("append", "c", "-")
    assert process.stdin is not None
    process.stdin.write(b"one\ntwo\nunfinished")
    process.stdin.flush()
    with client(wal) as daemon:
        eventually(lambda: rows(daemon) == 2)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130  # Before its input ends.
    out, errors = process.communicate(timeout=5)
    assert out.startswith(b"appended 2 to c  offsets 0..1")
    assert b"last at offset 1" in errors
    assert b"--resume-at 8" in errors


def test_a_second_ctrl_c_quits_at_once(wal: Wal) -> None:
    wal.ok("up")
    process = wal.start("append", "c", "-")
    assert process.stdin is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    with client(wal) as daemon:
        eventually(lambda: rows(daemon) == 1)
        pid = daemon.hello.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        process.stdin.write(b"two\n")
        process.stdin.flush()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
    finally:
        os.kill(pid, signal.SIGCONT)
        process.kill()
        process.communicate()


def test_killed_daemon_then_resume_gives_the_same_bytes(wal: Wal, tmp_path: Path) -> None:
    data = lines_of(60_000)
    file = tmp_path / "in"
    file.write_bytes(data)
    wal.ok("up")
    # It waits for the daemon to come back as long as its timeout.
    process = wal.start("append", "c", "-o", "json", "--timeout", "1")
    assert process.stdin is not None
    process.stdin.write(data[:5_000_000])
    process.stdin.flush()
    with client(wal) as daemon:
        pid = daemon.hello.pid
        eventually(lambda: rows(daemon) == 50_000)
    os.kill(pid, signal.SIGSTOP)  # What comes now is sent and not answered.
    process.stdin.write(data[5_000_000:5_500_000])
    process.stdin.flush()
    eventually(lambda: unread(process.stdin.fileno()) == 0)
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 4, err
    error = json.loads(err)["error"]
    assert error["details"]["durable_records"] == 50_000
    assert error["details"]["resume_at"] == 5_000_000
    assert "--resume-at 5000000 --expect 50000" in error["hint"]
    resume = error["hint"].split()[-4:]
    wal.ok("append", "c", "-f", file, *resume)
    assert raw(wal, "c") == data
    assert wal("append", "c", "-f", file, *resume).status == 3  # It is there: not written twice.


def test_killed_and_restarted_daemon_gets_every_line_once(wal: Wal) -> None:
    data = lines_of(80_000)
    wal.ok("up")
    process = wal.start("append", "c", "-o", "json")
    assert process.stdin is not None
    process.stdin.write(data[:2_000_000])
    process.stdin.flush()
    with client(wal) as daemon:
        pid = daemon.hello.pid
        eventually(lambda: rows(daemon) == 20_000)
    os.kill(pid, signal.SIGSTOP)  # What comes now is sent, not answered, and sent again.
    for start in (2_000_000, 2_300_000):
        process.stdin.write(data[start : start + 300_000])
        process.stdin.flush()
        eventually(lambda: unread(process.stdin.fileno()) == 0)
    os.kill(pid, signal.SIGKILL)
    wal.ok("up")
    out, err = process.communicate(data[2_600_000:], timeout=20)
    assert process.returncode == 0, err
    assert json.loads(out)["count"] == 80_000
    assert raw(wal, "c") == data


def unread(pipe: int) -> int:
    """Bytes in a pipe."""
    (size,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return int(size)


def test_descriptors_of_a_started_daemon_do_not_hold_a_substitution(wal: Wal) -> None:
    done = subprocess.run(
        ["sh", "-c", "x=$(echo hi | wal append c -q); echo done $x"],
        env=wal.environment(),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"done\n"), done
