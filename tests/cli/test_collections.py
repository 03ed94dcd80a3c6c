"""`wal collection truncate|alter|describe`, and `wal tail` of what was truncated."""

from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest

from tests.cli.conftest import PROGRAM, Wal


def bodies(wal: Wal, *args: str) -> list[str]:
    return [json.loads(line)["body"] for line in wal.ok("tail", *args).text.splitlines()]


def test_truncate(wal: Wal) -> None:
    wal.ok("append", "demo", input="a\nb\nc\n")
    refused = wal("collection", "truncate", "demo", input="y\n")
    assert refused.status == 2
    assert "wal collection truncate demo --yes" in refused.errors
    assert bodies(wal, "demo") == ["a", "b", "c"]
    assert wal.ok("collection", "truncate", "demo", "--yes").text == "truncated demo  rows 3\n"
    assert bodies(wal, "demo") == []
    assert wal.ok("collection", "truncate", "demo", "--yes").text == "truncated demo  rows 0\n"
    assert wal.ok("append", "demo", input="d\ne\n").text.startswith("appended 2 to demo  offsets 3")
    truncated = wal.ok("collection", "truncate", "demo", "--yes", "-o", "json").json
    assert truncated["truncated_rows"] == 2
    assert truncated["rows"] == 0
    assert truncated["shards"][0]["first"] == truncated["shards"][0]["next"] == 5
    missing = wal("collection", "truncate", "nope", "--yes")
    assert missing.status == 66
    assert missing.errors.startswith("wal collection truncate: collection 'nope' does not exist")


def test_truncate_asks_on_a_terminal(wal: Wal) -> None:
    wal.ok("append", "demo", "one")
    for answer, status in ((b"n\n", 2), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        process = wal.start_program(
            PROGRAM, "collection", "truncate", "demo", stdin=theirs, stdout=subprocess.PIPE
        )
        os.close(theirs)
        os.write(ours, answer)
        _, errors = process.communicate(timeout=20)
        os.close(ours)
        assert process.returncode == status
        assert b"truncate demo with 1 rows? [y/N]" in errors
    assert bodies(wal, "demo") == []


def test_a_tail_begins_behind_the_truncation(wal: Wal) -> None:
    wal.ok("append", "demo", input="a\nb\nc\n")
    wal.ok("collection", "truncate", "demo", "--yes")
    at_the_end = wal.ok("tail", "demo", "--from", "3")
    assert at_the_end.out == b""
    wal.ok("append", "demo", input="d\ne\n")
    lines = [json.loads(line) for line in wal.ok("tail", "demo").text.splitlines()]
    assert [(one["offset"], one["body"]) for one in lines] == [(3, "d"), (4, "e")]
    assert bodies(wal, "demo", "-n", "1") == ["e"]
    assert bodies(wal, "demo", "-n", "10") == ["d", "e"]
    assert bodies(wal, "demo", "--from", "4") == ["e"]
    assert bodies(wal, "demo", "--from", "3", "--until", "3") == ["d"]
    assert bodies(wal, "demo", "--from", "-1h") == ["d", "e"]
    assert bodies(wal, "demo", "--from", "tso:1") == ["d", "e"]
    assert bodies(wal, "demo", "-f", "--count", "2") == ["d", "e"]
    for args in (["--from", "2"], ["--from", "0", "-f"]):
        below = wal("tail", "demo", *args, "-o", "ndjson")
        assert below.status == 66
        assert below.error_json["code"] == "out-of-range"
        assert below.error_json["details"]["earliest"] == 3
        assert "the earliest is 3" in below.error_json["message"]


def test_a_tail_that_follows_goes_on_over_a_truncation(wal: Wal) -> None:
    wal.ok("append", "demo", "before")
    follower = wal.start("tail", "demo", "-f", "--count", "2", "-o", "raw", stdin=None)
    assert follower.stdout is not None
    assert follower.stdout.readline() == b"before\n"
    wal.ok("collection", "truncate", "demo", "--yes")
    wal.ok("append", "demo", "after")
    assert follower.communicate(timeout=20)[0] == b"after\n"


def test_shards_are_truncated_each_at_its_own_end(wal: Wal) -> None:
    wal.ok("collection", "create", "wide", "--shards", "8")
    for key in "abcdefgh":
        wal.ok("append", "wide", "-k", key, f"old {key}")
    ends = [
        one["next"] for one in wal.ok("collection", "describe", "wide", "-o", "json").json["shards"]
    ]
    assert sum(ends) == 8
    assert wal.ok("collection", "truncate", "wide", "--yes").text == "truncated wide  rows 8\n"
    shards = wal.ok("collection", "describe", "wide", "-o", "json").json["shards"]
    assert [(one["first"], one["next"]) for one in shards] == [(end, end) for end in ends]
    wal.ok("append", "wide", "-k", "a", "new a")
    assert bodies(wal, "wide") == ["new a"]


def test_alter(wal: Wal) -> None:
    wal.ok("collection", "create", "demo", "--shards", "3")
    altered = wal.ok(
        *("collection", "alter", "demo", "--add-partition", "eu", "--add-partition", "us"),
        *("--set", "retention=7d", "--set", "note=a=b c"),
    )
    assert altered.text == "altered demo  partitions eu us  settings note=a=b c retention=7d\n"
    described = wal.ok("collection", "describe", "demo", "-o", "json").json
    assert described["partitions"] == ["eu", "us"]
    assert described["settings"] == {"retention": "7d", "note": "a=b c"}
    text = wal.ok("collection", "describe", "demo").text
    assert "partitions  eu us\n" in text
    assert "settings    note=a=b c retention=7d\n" in text
    changed = wal.ok(
        *("collection", "alter", "demo", "--drop-partition", "us", "--unset", "note"),
        *("--set", "retention=1d", "-o", "json"),
    ).json
    assert changed["partitions"] == ["eu"]
    assert changed["settings"] == {"retention": "1d"}
    (listed,) = wal.ok("collection", "ls", "-o", "json").json
    assert listed == changed
    last = wal.ok("collection", "alter", "demo", "--drop-partition", "eu", "--unset", "retention")
    assert last.text == "altered demo  partitions -  settings -\n"


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        ([], 2, "nothing to change"),
        (["--add-partition", "Bad!"], 2, "partition name 'Bad!'"),
        (["--add-partition", "eu"], 3, "has a partition 'eu'"),
        (["--drop-partition", "nope"], 66, "no partition 'nope'"),
        (["--add-partition", "x", "--add-partition", "x"], 2, "named twice"),
        (["--add-partition", "x", "--drop-partition", "x"], 2, "named twice"),
        (["--set", "novalue"], 2, "KEY=VALUE"),
        (["--set", "empty="], 2, "no value"),
        (["--set", "Key=1"], 2, "setting name 'Key'"),
        (["--set", "a=1", "--unset", "a"], 2, "same setting 'a'"),
        (["--set", b"a=\xff"], 2, "not plain text"),
        (["--set", "a=" + "x" * 4097], 2, "larger than 4096 bytes"),
        # All is judged first: the good part of these is not done.
        (["--add-partition", "x", "--drop-partition", "nope"], 66, "no partition 'nope'"),
        (["--set", "a=1", "--add-partition", "eu"], 3, "has a partition 'eu'"),
    ],
)
def test_an_alteration_that_is_refused_changes_nothing(
    served: Wal, args: list[str | bytes], status: int, text: str
) -> None:
    served("collection", "create", "fixed")
    served("collection", "alter", "fixed", "--add-partition", "eu")
    refused = served("collection", "alter", "fixed", *args)
    assert refused.status == status, refused
    assert text in refused.errors
    described = served.ok("collection", "describe", "fixed", "-o", "json").json
    assert (described["partitions"], described["settings"]) == (["eu"], {})


def test_a_collection_has_so_many_partitions_and_settings_at_most(served: Wal) -> None:
    served.ok("collection", "create", "full")
    many = [word for number in range(64) for word in ("--set", f"s{number}=1")]
    served.ok("collection", "alter", "full", *many)
    assert "at most 64 settings" in served("collection", "alter", "full", "--set", "x=1").errors
    served.ok("collection", "alter", "full", "--set", "s1=2", "--unset", "s2")
    many = [word for number in range(1024) for word in ("--add-partition", f"p{number}")]
    served.ok("collection", "alter", "full", *many)
    refused = served("collection", "alter", "full", "--add-partition", "x")
    assert "at most 1024 partitions" in refused.errors


def test_alter_of_what_does_not_exist(served: Wal) -> None:
    missing = served("collection", "alter", "nope", "--set", "a=1", "-o", "json")
    assert missing.status == 66
    assert missing.error_json["code"] == "not-found"
