"""`--producer/--seq`, `--dedup`, `--expect`: an input is written once however often tried."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Wal


def _raw(wal: Wal, collection: str) -> bytes:
    return wal.ok("tail", collection, "-o", "raw").out


def _kill(wal: Wal) -> None:
    pid = wal.ok("status", "-o", "json").json["pid"]
    os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)


@pytest.mark.parametrize("flags", [("--producer", "p", "--seq", "1"), ("--dedup", "job/7 ä")])
def test_repeating_a_command_gives_the_first_answer(wal: Wal, flags: tuple[str, ...]) -> None:
    first = wal.ok("append", "demo", "a", "b", *flags).text
    wal.ok("append", "demo", "between")
    assert wal.ok("append", "demo", "a", "b", *flags).text == first
    _kill(wal)
    wal.ok("up")
    assert wal.ok("append", "demo", "a", "b", *flags).text == first
    wal.ok("restart")
    assert wal.ok("append", "demo", "a", "b", *flags).text == first
    assert _raw(wal, "demo") == b"a\nb\nbetween\n"


def test_an_input_that_became_a_transaction(wal: Wal, tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % number for number in range(400_000))
    file = tmp_path / "input"
    file.write_bytes(data)
    flags = ("-f", str(file), "--producer", "p", "--seq", "9")
    first = wal.ok("append", "demo", *flags).text
    assert first.startswith("appended 400000 to demo  offsets 0..399999")
    _kill(wal)
    wal.ok("up")
    assert wal.ok("append", "demo", *flags).text == first
    assert wal.ok("txn", "ls", "-o", "json").json == []
    assert wal.ok("append", "demo", "small", "--producer", "p", "--seq", "10").text.startswith(
        "appended 1 to demo  offsets 400000..400000"
    )
    assert _raw(wal, "demo") == data + b"small\n"


def test_gaps_and_forgotten_results(wal: Wal) -> None:
    wal.ok("append", "demo", "x", "--producer", "p", "--seq", "5")
    gap = wal("append", "demo", "x", "--producer", "p", "--seq", "7", "-o", "json")
    assert gap.status == 3
    assert gap.error_json["code"] == "out-of-sequence"
    assert gap.error_json["details"] == {"sequence": 7, "last": 5}
    assert gap.error_json["hint"] == "send sequence 6 first"
    old = wal("append", "demo", "x", "--producer", "p", "--seq", "4", "-o", "json")
    assert (old.status, old.error_json["details"]["last"]) == (3, 5)
    assert _raw(wal, "demo") == b"x\n"


def test_sequences_only_go_up_where_there_are_several_shards(wal: Wal) -> None:
    wal.ok("collection", "create", "demo", "--shards", "3")
    answers = [
        wal.ok("append", "demo", "x", "-k", key, "--producer", "p", "--seq", str(number)).text
        for number, key in enumerate("abcdefgh", 1)
    ]
    again = [
        wal.ok("append", "demo", "x", "-k", key, "--producer", "p", "--seq", str(number)).text
        for number, key in enumerate("abcdefgh", 1)
    ]
    assert answers == again
    for number in (9, 10):
        flags = ("--producer", "p", "--seq", str(number))
        assert (
            wal.ok("append", "demo", "y", *flags).text == wal.ok("append", "demo", "y", *flags).text
        )
    assert len(_raw(wal, "demo").splitlines()) == 10


def test_a_conditional_append_that_is_repeated_did_get_its_offset(wal: Wal) -> None:
    wal.ok("append", "demo", "zero")
    flags = ("--expect", "1", "--dedup", "d")
    first = wal.ok("append", "demo", "one", *flags).text
    wal.ok("append", "demo", "two")
    assert wal.ok("append", "demo", "one", *flags).text == first
    late = wal("append", "demo", "one", "--expect", "1", "-o", "json")
    assert late.status == 3
    assert late.error_json["code"] == "expectation-failed"
    assert late.error_json["details"] == {"expected": 1, "next": 3}


def test_expectations_of_large_inputs_are_judged_at_the_commit(wal: Wal, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"row\n" * 600_000)
    wal.ok("append", "demo", "zero")
    late = wal("append", "demo", "-f", str(file), "--atomic", "--expect", "0")
    assert (late.status, "the next one is 1" in late.errors) == (3, True)
    done = wal.ok("append", "demo", "-f", str(file), "--atomic", "--expect", "1").text
    assert "offsets 1..600000" in done


def test_a_long_lived_append_goes_on_over_a_restart_of_its_daemon(wal: Wal) -> None:
    """Lines before, during and after: each is there once."""
    wal.ok("collection", "create", "demo")
    with wal.start("append", "demo", "-") as process:
        assert process.stdin is not None
        expected = b""
        for number in range(40):
            line = b"%d\n" % number
            process.stdin.write(line)
            process.stdin.flush()
            expected += line
            if number in (10, 25):
                _kill(wal)
                wal.ok("up")
            time.sleep(0.01)
        process.stdin.close()
        assert process.wait(20) == 0
    assert _raw(wal, "demo") == expected
