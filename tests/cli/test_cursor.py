"""Cursors through real processes: what is saved, when, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.cli.conftest import Wal, stop_process
from tests.cli.test_append import client, eventually
from tests.cli.test_tail import Lines, bodies
from wal_storage.catalog import cursors
from wal_storage.catalog.cursors import CursorRecord
from wal_storage.catalog.lmdb import LmdbCatalog


def numbers(first: int, end: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(first, end))


def offsets(wal: Wal, name: str, collection: str = "c") -> list[int]:
    found = wal.ok("cursor", "show", name, "-o", "json").json["collections"]
    entry = next(one for one in found if one["collection"] == collection)
    return [shard["offset"] for shard in entry["shards"]]


def tail(wal: Wal, *argv: str) -> bytes:
    return wal.ok("tail", "c", "-o", "raw", *argv).out


@pytest.fixture(params=["--cursor", "--cursor-file"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The flags of both ways to keep a position."""
    return [request.param, "me" if request.param == "--cursor" else str(tmp_path / "me.json")]


def position(wal: Wal, kept: list[str]) -> int:
    """Where the reader of the only shard stands."""
    if kept[0] == "--cursor":
        return offsets(wal, kept[1])[0]
    return int(json.loads(Path(kept[1]).read_bytes())["collections"]["c"]["next"]["0"])


def test_each_run_goes_on_where_the_last_one_ended(wal: Wal, kept: list[str]) -> None:
    wal.ok("append", "c", input=numbers(0, 5))
    assert tail(wal, *kept) == numbers(0, 5)
    assert tail(wal, *kept) == b""
    wal.ok("append", "c", input=numbers(5, 9))
    assert tail(wal, *kept, "--count", "1") == numbers(5, 6)
    assert tail(wal, *kept, "--count", "0") == b""
    assert tail(wal, *kept, "--until", "6") == numbers(6, 7)
    assert tail(wal, *kept, "--from", "earliest") == numbers(7, 9)
    assert tail(wal, *kept, "--until", "3") == b""
    assert position(wal, kept) == 9


def test_from_places_a_new_cursor(wal: Wal, kept: list[str]) -> None:
    wal.ok("append", "c", input=numbers(0, 5))
    assert tail(wal, *kept, "--from", "latest") == b""
    assert position(wal, kept) == 5
    wal.ok("append", "c", input=numbers(5, 7))
    assert tail(wal, *kept) == numbers(5, 7)


def test_a_cursor_survives_the_daemon(wal: Wal, kept: list[str]) -> None:
    wal.ok("append", "c", input=numbers(0, 3))
    tail(wal, *kept)
    with client(wal) as daemon:
        stop_process(daemon.hello.pid, signal.SIGKILL)
    wal.ok("append", "c", input=numbers(3, 5))
    assert tail(wal, *kept) == numbers(3, 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_was_printed(wal: Wal, kept: list[str], number: int) -> None:
    wal.ok("append", "c", input=numbers(0, 5))
    process = wal.start("tail", "c", "-f", "-o", "raw", *kept)
    output = Lines(process)
    output.until(b"4\n")
    wal.ok("append", "c", "5")  # Within the second after the first save.
    output.until(b"5\n")
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (128 + number, b"")
    assert output.data == numbers(0, 6)
    assert position(wal, kept) == 6
    assert tail(wal, *kept) == b""


def test_a_follower_saves_while_it_waits(wal: Wal, kept: list[str]) -> None:
    wal.ok("append", "c", "0")
    process = wal.start("tail", "c", "-f", "-o", "raw", *kept)
    output = Lines(process)
    output.until(b"0\n")
    wal.ok("append", "c", "1")
    output.until(b"1\n")
    eventually(lambda: position(wal, kept) == 2, 5)
    process.kill()
    process.wait()
    assert tail(wal, *kept) == b""


def test_a_killed_follower_skips_nothing(wal: Wal, kept: list[str]) -> None:
    printed = b""
    for first in range(0, 4000, 1000):
        process = wal.start("tail", "c", "-f", "-o", "raw", *kept) if first else None
        wal.ok("append", "c", input=numbers(first, first + 1000))
        if process is not None:
            output = Lines(process)
            output.until(b"%d\n" % (first + 999))
            process.kill()
            process.communicate()
            printed += output.data
            assert position(wal, kept) <= first + 1000
        else:
            printed += tail(wal, *kept, "--count", "500")
    printed += tail(wal, *kept)
    seen = [int(line) for line in printed.splitlines()]
    assert set(seen) == set(range(4000))
    for before, after in itertools.pairwise(seen):
        assert after <= before + 1, "a gap"


def test_a_broken_pipe_is_not_saved(wal: Wal, kept: list[str]) -> None:
    wal.ok("append", "c", input=b"".join(b"%099d\n" % number for number in range(100_000)))
    process = wal.start("tail", "c", "-o", "raw", *kept)
    assert process.stdout is not None
    read = os.read(process.stdout.fileno(), 100)
    process.stdout.close()
    assert (process.wait(10), len(read)) == (141, 100)
    saved = position(wal, kept)
    assert saved <= 2 * 1024 * 1024 // 100, "at most what the pipe held"
    assert tail(wal, *kept) == b"".join(b"%099d\n" % number for number in range(saved, 100_000))


def test_a_reader_that_is_gone_from_the_start(wal: Wal, kept: list[str]) -> None:
    wal.ok("append", "c", input=numbers(0, 3))
    reader, writer = os.pipe()
    os.close(reader)
    process = wal.start("tail", "c", "-o", "raw", *kept, stdout=writer)
    os.close(writer)
    assert process.wait(10) == 141
    assert position(wal, kept) == 0
    assert tail(wal, *kept) == numbers(0, 3)


def test_several_collections_and_shards(wal: Wal, kept: list[str]) -> None:
    wal.ok("collection", "create", "many", "--shards", "3")
    for number in range(9):
        wal.ok("append", "many", "-k", f"k{number}", f"m{number}")
    wal.ok("append", "c", input=numbers(0, 3))
    rows = bodies(wal.ok("tail", "many", "c", *kept).out)
    assert sorted(rows) == sorted([f"m{n}" for n in range(9)] + ["0", "1", "2"])
    wal.ok("append", "many", "-k", "k4", "m9")
    assert bodies(wal.ok("tail", "c", "many", *kept).out) == ["m9"]
    assert bodies(wal.ok("tail", "many", *kept).out) == []
    assert position(wal, kept) == 3


def test_a_collection_created_again_inherits_nothing(wal: Wal) -> None:
    wal.ok("append", "c", input=numbers(0, 5))
    tail(wal, "--cursor", "me")
    wal.ok("collection", "drop", "c", "--yes")
    assert wal("cursor", "show", "me").status == 66
    wal.ok("append", "c", input=numbers(0, 7))
    assert tail(wal, "--cursor", "me") == numbers(0, 7)


def test_what_a_cut_short_drop_left_is_inherited_by_nobody(wal: Wal) -> None:
    wal.ok("append", "c", input=numbers(0, 5))
    wal.ok("down")
    stale = CursorRecord("me", "c", 99, 0, [3])
    catalog = LmdbCatalog(os.fsencode(wal.dir / "catalog"))
    catalog.commit({cursors.key("me", "c"): cursors.encode(stale)})
    catalog.close()
    assert wal("cursor", "show", "me").status == 66
    assert tail(wal, "--cursor", "me", "--count", "1") == numbers(0, 1)
    wal.ok("cursor", "commit", "me", "c", "2")
    assert offsets(wal, "me") == [2]


def test_two_readers_under_one_name(wal: Wal) -> None:
    wal.ok("append", "c", "0")
    process = wal.start("tail", "c", "-f", "-o", "raw", "--cursor", "me")
    output = Lines(process)
    output.until(b"0\n")
    eventually(lambda: offsets(wal, "me") == [1])
    wal.ok("cursor", "seek", "me", "c", "--to", "earliest")
    wal.ok("append", "c", "1")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 3
    assert b"[cursor-moved]" in err
    assert offsets(wal, "me") == [0], "the seek stays"


def test_rm_ends_a_reader(wal: Wal) -> None:
    wal.ok("append", "c", "0")
    process = wal.start("tail", "c", "-f", "-o", "raw", "--cursor", "me")
    Lines(process).until(b"0\n")
    eventually(lambda: offsets(wal, "me") == [1])
    assert wal.ok("cursor", "rm", "me").text == "removed me  c 0:1\n"
    wal.ok("append", "c", "1")
    assert process.wait(10) == 3
    assert wal("cursor", "show", "me").status == 66


def test_the_commands(wal: Wal) -> None:
    wal.ok("append", "c", input=numbers(0, 10))
    wal.ok("collection", "create", "many", "--shards", "2")
    assert wal.ok("cursor", "ls", "-o", "json").json == []
    assert wal.ok("cursor", "commit", "me", "c", "4").text == "committed me  c 0:4  lag 6\n"
    assert wal.ok("cursor", "commit", "me", "many", "1:0", "-o", "json").json["lag"] == 0
    shown = wal.ok("cursor", "show", "me", "-o", "json").json
    assert (shown["cursor"], shown["lag"]) == ("me", 6)
    entry = shown["collections"][0]
    assert list(entry) == ["cursor", "collection", "id", "committed", "lag", "shards", "members"]
    assert entry["shards"] == [{"shard": 0, "offset": 4, "next": 10, "lag": 6}]
    lines = wal.ok("cursor", "ls", "-o", "ndjson").text.splitlines()
    assert [json.loads(line)["collection"] for line in lines] == ["c", "many"]
    table = [line.split() for line in wal.ok("cursor", "ls").text.splitlines()]
    assert [row[:5] for row in table] == [
        ["CURSOR", "COLLECTION", "OFFSETS", "LAG", "MEMBERS"],
        ["me", "c", "0:4", "6", "0"],
        ["me", "many", "0:0,1:0", "0", "0"],
    ]
    for to, at in {"latest": 10, "earliest": 0, "7": 7, "0:2": 2, "-1h": 0}.items():
        wal.ok("cursor", "seek", "me", "c", "--to", to)
        assert offsets(wal, "me") == [at]
    wal.ok("cursor", "rm", "me", "c")
    shown = wal.ok("cursor", "show", "me", "-o", "json").json
    assert [one["collection"] for one in shown["collections"]] == ["many"]
    wal.ok("cursor", "rm", "me")
    assert wal.ok("cursor", "ls").text.splitlines()[1:] == []


@pytest.mark.parametrize(
    ("argv", "status", "code"),
    [
        (["cursor", "show", "none"], 66, "not-found"),
        (["cursor", "rm", "none"], 66, "not-found"),
        (["cursor", "rm", "me", "many"], 66, "not-found"),
        (["cursor", "seek", "none", "c", "--to", "0"], 66, "not-found"),
        (["cursor", "seek", "me", "none", "--to", "0"], 66, "not-found"),
        (["cursor", "seek", "me", "c", "--to", "11"], 66, "out-of-range"),
        (["cursor", "seek", "me", "c", "--to", "soon"], 2, "usage"),
        (["cursor", "seek", "me", "c"], 2, "usage"),
        (["cursor", "commit", "me", "c", "11"], 66, "out-of-range"),
        (["cursor", "commit", "me", "c", "4"], 3, "cursor-moved"),
        (["cursor", "commit", "me", "c", "1:4"], 66, "not-found"),
        (["cursor", "commit", "me", "c", "latest"], 2, "usage"),
        (["cursor", "commit", "me", "many", "0"], 2, "usage"),
        (["cursor", "commit", "no/name", "c", "0"], 2, "bad-name"),
        (["cursor", "show", "Me"], 2, "bad-name"),
        (["tail", "c", "--cursor", "a/b"], 2, "bad-name"),
        (["tail", "none", "--cursor", "me"], 66, "not-found"),
        (["tail", "c", "--cursor", "new", "--from", "11"], 66, "out-of-range"),
        (["tail", "c", "--cursor", "me", "--cursor-file", "f"], 2, "usage"),
        (["tail", "c", "--cursor", "me", "--group", "g"], 2, "usage"),
        (["tail", "c", "--cursor-file", "/nowhere/f"], 74, "io-error"),
    ],
)
def test_refused(served: Wal, argv: list[str], status: int, code: str) -> None:
    if served("cursor", "show", "me").status == 66:
        served.ok("append", "c", input=numbers(0, 10))
        served.ok("collection", "create", "many", "--shards", "2")
        served.ok("cursor", "commit", "me", "c", "5")
    result = served(*argv, "-o", "json" if argv[0] == "cursor" else "ndjson")
    assert (result.status, result.out) == (status, b"")
    assert result.error_json["code"] == code
    assert offsets(served, "me") == [5]
    assert served("cursor", "show", "new").status == 66


DAMAGED: dict[str, Any] = {
    "cut off": '{"version":1,"colle',
    "not an object": "[]",
    "no numbers": '{"version":1,"collections":{"c":{"id":1,"created":"x","next":{"0":"5"}}}}',
    "a negative offset": '{"version":1,"collections":{"c":{"id":1,"created":"x","next":{"0":-5}}}}',
    "a later version": '{"version":2,"collections":{}}',
    "another collection": '{"version":1,"collections":{"c":{"id":9,"created":"x","next":{"0":0}}}}',
    "zeros": "\0" * 64,
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_refused_and_left_alone(served: Wal, what: str, tmp_path: Path) -> None:
    served.ok("append", "c", "0")
    file = tmp_path / "f"
    file.write_text(DAMAGED[what])
    result = served("tail", "c", "--cursor-file", str(file))
    assert (result.status, result.out) == (65, b"")
    assert result.errors.startswith("wal tail: ")
    assert "[bad-cursor-file]" in result.errors
    assert file.read_text() == DAMAGED[what]


def test_a_position_behind_the_end_is_refused(wal: Wal, tmp_path: Path) -> None:
    """The log was put back to an earlier state: to wait there would skip what comes."""
    wal.ok("append", "c", "0")
    file = tmp_path / "f"
    tail(wal, "--cursor-file", str(file))
    file.write_text(file.read_text().replace('{"0":1}', '{"0":7}'))
    result = wal("tail", "c", "-f", "--cursor-file", str(file))
    assert result.status == 66
    assert "behind the end" in result.errors


def test_the_file_is_replaced_whole(wal: Wal, tmp_path: Path) -> None:
    wal.ok("append", "c", "0")
    target = tmp_path / "elsewhere" / "f"
    target.parent.mkdir()
    link = tmp_path / "link"
    link.symlink_to(target)
    target.touch()  # An empty file is a new one.
    tail(wal, "--cursor-file", str(link))
    before = target.stat().st_ino
    wal.ok("append", "c", "1")
    held = target.open()  # Whoever has the old one open reads it to the end.
    tail(wal, "--cursor-file", str(link))
    assert link.is_symlink()
    assert target.stat().st_ino != before
    assert '{"0":1}' in held.read()
    held.close()
    assert '{"0":2}' in target.read_text()
    assert [one.name for one in target.parent.iterdir()] == ["f"]


def test_no_instant_without_a_whole_file(wal: Wal, tmp_path: Path) -> None:
    """Killed at any time, a tail leaves a file that can be read."""
    wal.ok("append", "c", input=numbers(0, 1000))
    file = tmp_path / "f"
    for delay in range(8):
        process = wal.start("tail", "c", "-o", "raw", "--cursor-file", str(file), "--count", "10")
        time.sleep(0.1 + delay / 50)
        process.kill()
        process.communicate()
        if file.exists():
            assert json.loads(file.read_bytes())["version"] == 1


def test_a_damaged_cursor_says_so_and_can_be_removed(wal: Wal) -> None:
    wal.ok("append", "c", input=numbers(0, 3))
    tail(wal, "--cursor", "damaged-one")
    wal.ok("down")
    with lmdb.open(str(wal.dir / "catalog")) as catalog, catalog.begin(write=True) as txn:
        key = b"cursor/damaged-one/c"
        value = bytearray(txn.get(key))
        value[-6] ^= 1  # The offset; its checksum comes last.
        txn.put(key, bytes(value))
    checked = wal("check", "-o", "json")
    assert (checked.status, [one["kind"] for one in checked.json["problems"]]) == (1, ["cursor"])
    result = wal("tail", "c", "--cursor", "damaged-one")
    assert (result.status, result.out) == (5, b"")
    assert "wal cursor rm damaged-one c" in result.errors
    wal.ok("cursor", "rm", "damaged-one", "c")
    assert tail(wal, "--cursor", "damaged-one") == numbers(0, 3)


def test_a_lost_catalog_repeats_and_never_skips(wal: Wal) -> None:
    wal.ok("append", "c", input=numbers(0, 3))
    tail(wal, "--cursor", "me")
    wal.ok("down")
    subprocess.run(["rm", "-r", wal.dir / "catalog"], check=True)
    wal.ok("append", "c", "3")
    assert tail(wal, "--cursor", "me") == numbers(0, 4)


def test_a_lost_catalog_gets_the_cursors_of_the_last_snapshot(wal: Wal) -> None:
    """One that was placed at the end would begin at the end again, and skip, without it."""
    wal.ok("append", "c", input=numbers(0, 3))
    tail(wal, "--cursor", "me", "--from", "latest")
    wal.ok("cursor", "commit", "gone", "c", "1")
    wal.ok("restart")
    wal.ok("cursor", "rm", "gone")
    wal.ok("append", "c", "3")
    wal.ok("restart")
    wal.ok("down")
    subprocess.run(["rm", "-r", wal.dir / "catalog"], check=True)
    wal.ok("append", "c", "4")
    assert tail(wal, "--cursor", "me", "--from", "latest") == numbers(3, 5)
    assert wal("cursor", "show", "gone").status == 66


def test_metrics(wal: Wal) -> None:
    wal.ok("append", "c", input=numbers(0, 3))
    wal.ok("cursor", "commit", "me", "c", "1")
    assert 'wal_cursor_lag_rows{collection="c",cursor="me"} 2.0' in wal.ok("metrics").text


def test_a_group_reads_several_collections(wal: Wal) -> None:
    wal.ok("collection", "create", "many", "--shards", "3")
    wal.ok("append", "c", input=numbers(0, 6))
    for number in range(9):
        wal.ok("append", "many", "-k", f"k{number}", f"m{number}")
    assert bodies(wal.ok("tail", "c", "--group", "g", "--count", "2").out) == ["0", "1"]
    assert bodies(wal.ok("tail", "c", "--group", "g", "--until", "3").out) == ["2", "3"]
    rest = bodies(wal.ok("tail", "many", "c", "--group", "g").out)
    assert sorted(rest) == sorted([f"m{n}" for n in range(9)] + ["4", "5"])
    assert wal.ok("tail", "many", "c", "--group", "g").out == b""
    wal.ok("append", "c", "6")
    assert tail(wal, "--group", "new", "--from", "5") == numbers(5, 7)
    text = wal.ok("tail", "many", "--group", "text", "-o", "text").text
    assert all(line.split("  ")[0][1] == ":" for line in text.splitlines()), (
        "the shard stands there"
    )


def test_a_group_keeps_strangers_out(wal: Wal) -> None:
    wal.ok("append", "c", "0")
    member = wal.start("tail", "c", "--group", "g", "-f", "-o", "raw")
    output = Lines(member)
    output.until(b"0\n")
    eventually(lambda: offsets(wal, "g") == [1])
    shown = wal.ok("cursor", "show", "g", "-o", "json").json["collections"][0]
    assert shown["members"] == [{"pid": member.pid, "shards": [0]}]
    assert str(member.pid) in wal.ok("cursor", "show", "g").text
    for argv in (["seek", "g", "c", "--to", "0"], ["commit", "g", "c", "1"], ["rm", "g"]):
        result = wal("cursor", *argv)
        assert (result.status, "[member-fenced]" in result.errors) == (3, True)
    assert 'wal_group_members{collection="c",group="g"} 1.0' in wal.ok("metrics").text
    with client(wal) as daemon:
        stop_process(daemon.hello.pid)
    wal.ok("append", "c", "1")
    output.until(b"1\n")
    member.send_signal(signal.SIGINT)
    assert (member.wait(10), member.communicate()[1]) == (130, b"")
    assert offsets(wal, "g") == [2]
    wal.ok("cursor", "seek", "g", "c", "--to", "0")
    log = (wal.dir / "wald.log").read_text()
    assert "Traceback" not in log
    assert "destroyed" not in log


def test_a_group_ends_at_a_broken_pipe(wal: Wal) -> None:
    wal.ok("append", "c", input=b"".join(b"%099d\n" % number for number in range(100_000)))
    process = wal.start("tail", "c", "--group", "g", "-o", "raw")
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 100)
    process.stdout.close()
    assert process.wait(10) == 141
    (saved,) = offsets(wal, "g")
    assert tail(wal, "--group", "g") == b"".join(b"%099d\n" % n for n in range(saved, 100_000))
