"""`wal txn`, `wal append --txn|--atomic` and WAL_TXN."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from tests.cli.conftest import Wal


def _raw(wal: Wal, collection: str) -> bytes:
    return wal.ok("tail", collection, "-o", "raw").out


def test_rows_become_visible_at_the_commit_in_one_range(wal: Wal) -> None:
    wal.ok("append", "demo", "before")
    id = wal.ok("txn", "begin", "demo").text.strip()
    assert wal.ok("append", "--txn", id, "demo", "a", "b").text == f"staged 2 in {id}\n"
    wal.ok("append", "demo", "between")
    assert (
        wal.ok("append", "demo", input=b"c\nd", env={"WAL_TXN": id}).text == f"staged 2 in {id}\n"
    )
    assert _raw(wal, "demo") == b"before\nbetween\n"
    committed = wal.ok("txn", "commit", id).text
    assert committed.startswith("committed 4 to demo  offsets 2..5  tso ")
    assert _raw(wal, "demo") == b"before\nbetween\na\nb\nc\nd\n"
    rows = wal.ok("tail", "demo", "-o", "ndjson").out.splitlines()
    assert len({row.split(b'"tso":')[1].split(b",")[0] for row in rows[2:]}) == 1


def test_staged_rows_in_json(wal: Wal) -> None:
    begun = wal.ok("txn", "begin", "demo", "--keepalive", "2m", "-o", "json").json
    assert begun == {"id": begun["id"], "collections": ["demo"], "keepalive_seconds": 120.0}
    staged = wal.ok("append", "--txn", begun["id"], "demo", "a", "-o", "json").json
    assert staged["txn"] == begun["id"]
    assert (staged["first"], staged["tso"], staged["parts"]) == (None, None, [])
    assert staged["count"] == 1
    (listed,) = wal.ok("txn", "ls", "-o", "json").json
    assert (listed["id"], listed["rows"], listed["collections"]) == (begun["id"], 1, ["demo"])
    assert 0 < listed["expires_in_seconds"] <= 120
    committed = wal.ok("txn", "commit", begun["id"], "-o", "json").json
    assert committed["count"] == 1
    assert [part["collection"] for part in committed["parts"]] == ["demo"]


def test_a_repeated_commit_gives_the_first_answer_also_after_a_crash(wal: Wal) -> None:
    id = wal.ok("txn", "begin", "demo").text.strip()
    wal.ok("append", "--txn", id, "demo", "a")
    first = wal.ok("txn", "commit", id).text
    wal.ok("append", "demo", "later")
    assert wal.ok("txn", "commit", id).text == first
    _kill(wal)
    wal.ok("up")
    assert wal.ok("txn", "commit", id).text == first
    assert _raw(wal, "demo") == b"a\nlater\n"


def test_an_open_transaction_goes_on_after_a_crash(wal: Wal) -> None:
    id = wal.ok("txn", "begin", "demo").text.strip()
    wal.ok("append", "--txn", id, "demo", "a")
    _kill(wal)
    wal.ok("up")
    wal.ok("append", "--txn", id, "demo", "b")
    assert _raw(wal, "demo") == b""
    wal.ok("txn", "commit", id)
    assert _raw(wal, "demo") == b"a\nb\n"


def test_a_stop_leaves_an_open_transaction_to_the_next_daemon(wal: Wal) -> None:
    id = wal.ok("txn", "begin", "demo", "--keepalive", "60s").text.strip()
    wal.ok("append", "--txn", id, "demo", "a")
    started = time.monotonic()
    wal.ok("down")
    assert 2.5 < time.monotonic() - started < 9, "a graceful stop waits up to 3 s"
    wal.ok("up")
    wal.ok("txn", "commit", id)
    assert _raw(wal, "demo") == b"a\n"


def test_a_rollback_and_what_comes_after_it(wal: Wal) -> None:
    id = wal.ok("txn", "begin", "demo").text.strip()
    wal.ok("append", "--txn", id, "demo", "never")
    assert wal.ok("txn", "rollback", id).text == f"rolled back {id}\n"
    assert wal.ok("txn", "rollback", id).text == f"rolled back {id}\n"
    for args in (("txn", "commit", id), ("append", "--txn", id, "demo", "x")):
        result = wal(*args)
        assert (result.status, "[txn-invalid-state]" in result.errors) == (3, True)
    assert _raw(wal, "demo") == b""


def test_an_expired_transaction_says_so(wal: Wal) -> None:
    id = wal.ok("txn", "begin", "demo", "--keepalive", "100ms").text.strip()
    wal("append", "--txn", id, "demo", "never")
    time.sleep(0.4)
    for args in (("txn", "commit", id), ("append", "--txn", id, "demo", "x")):
        result = wal(*args)
        assert (result.status, "[txn-expired]" in result.errors) == (3, True)
    assert wal.ok("txn", "ls", "-o", "json").json == []
    assert _raw(wal, "demo") == b""


def test_unknown_ids(wal: Wal) -> None:
    wal.ok("append", "demo", "x")
    for id in ("0123456789abcdef", "nonsense"):
        for args in (
            ("txn", "commit", id),
            ("txn", "rollback", id),
            ("append", "--txn", id, "demo", "x"),
        ):
            result = wal(*args)
            assert (result.status, "[unknown-txn]" in result.errors) == (66, True)


def test_a_collection_outside_of_the_scope(wal: Wal) -> None:
    id = wal.ok("txn", "begin", "demo").text.strip()
    wal.ok("append", "other", "x")
    for collection in ("other", "missing"):
        result = wal("append", collection, "y", env={"WAL_TXN": id})
        assert (result.status, "[txn-invalid-state]" in result.errors) == (3, True)
    assert "missing" not in wal.ok("collection", "ls").text


def test_a_drop_ends_the_transactions_in_its_scope(wal: Wal) -> None:
    id = wal.ok("txn", "begin", "demo", "other").text.strip()
    wal.ok("append", "--txn", id, "demo", "a")
    wal.ok("append", "--txn", id, "other", "b")
    wal.ok("collection", "drop", "demo", "--yes")
    result = wal("txn", "commit", id)
    assert (result.status, "[txn-invalid-state]" in result.errors) == (3, True)
    assert _raw(wal, "other") == b""
    assert wal.ok("txn", "ls", "-o", "json").json == []


def test_run_commits_on_success_and_rolls_back_otherwise(wal: Wal) -> None:
    good = wal.ok("txn", "run", "a", "b", "--", "sh", "-c", "wal append a 1; wal append b 2")
    assert "committed 1 to a" in good.text
    assert "committed 1 to b" in good.text
    assert wal("txn", "run", "a", "--", "sh", "-c", "wal append a never; exit 7").status == 7
    assert wal("txn", "run", "a", "--", "no-such-command").status == 127
    assert wal("txn", "run", "a").status == 2
    assert (_raw(wal, "a"), _raw(wal, "b")) == (b"1\n", b"2\n")
    assert wal.ok("txn", "ls", "-o", "json").json == []


def test_run_keeps_its_transaction_alive(wal: Wal) -> None:
    script = "wal append a 1; sleep 1; wal append a 2"
    wal.ok("txn", "run", "a", "--keepalive", "300ms", "--", "sh", "-c", script)
    assert _raw(wal, "a") == b"1\n2\n"


def test_run_survives_a_daemon_that_is_killed(wal: Wal) -> None:
    wal.ok("up")
    script = f"wal append a 1; kill -9 {wal.ok('status', '-o', 'json').json['pid']}; sleep 0.2; "
    script += "wal up >/dev/null; wal append a 2"
    wal.ok("txn", "run", "a", "--", "sh", "-c", script)
    assert _raw(wal, "a") == b"1\n2\n"


def test_atomic_input_of_any_size_is_one_range(wal: Wal, tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % number for number in range(700_000))
    file = tmp_path / "input"
    file.write_bytes(data)
    for expected in ("0..699999", "700000..1399999"):
        text = wal.ok("append", "demo", "-f", str(file), "--atomic").text
        assert text.startswith(f"appended 700000 to demo  offsets {expected}  tso ")
    seen = hashlib.sha256(_raw(wal, "demo")).digest()
    assert seen == hashlib.sha256(data + data).digest()
    assert wal.ok("append", "demo", "--atomic", input=b"small").text.startswith(
        "appended 1 to demo"
    )
    assert wal.ok("append", "demo", "--atomic", input=b"").text == "appended 0 to demo\n"


def test_a_bad_record_at_the_end_of_an_atomic_input_leaves_nothing(
    wal: Wal, tmp_path: Path
) -> None:
    file = tmp_path / "input"
    with file.open("wb") as out:
        for number in range(300_000):
            out.write(b'{"body":"%d"}\n' % number)
        out.write(b"{broken\n")
    result = wal("append", "demo", "-f", str(file), "--framing", "ndjson", "--atomic")
    assert result.status == 65
    assert "300001" in result.errors
    assert "nothing was written" in result.errors
    assert _raw(wal, "demo") == b""
    assert wal.ok("txn", "ls", "-o", "json").json == []


def test_atomic_over_several_shards_keeps_rows_without_a_key_together(wal: Wal) -> None:
    wal.ok("collection", "create", "demo", "--shards", "4")
    data = b"".join(b"%d\n" % number for number in range(400_000))
    written = wal.ok("append", "demo", "--atomic", "-o", "json", input=data).json
    assert written["count"] == 400_000
    assert len(written["parts"]) == 1


def test_flags_that_contradict_each_other(wal: Wal) -> None:
    for args in (
        ("--txn", "1", "--atomic"),
        ("--txn", "1", "--expect", "0"),
        ("--txn", "1", "--dedup", "d"),
        ("--producer", "p"),
        ("--seq", "1"),
        ("--producer", "p", "--seq", "1", "--dedup", "d"),
        ("--producer", "p", "--seq", "0"),
        ("--producer", "UPPER", "--seq", "1"),
        ("--atomic", "--ack", "buffered"),
        ("--dedup", ""),
    ):
        result = wal("append", "demo", "x", *args)
        assert result.status == 2, args
    assert wal("txn", "begin", "demo", "--keepalive", "soon").status == 2
    assert wal("txn", "begin", "demo", "--keepalive", "0s").status == 2
    assert wal("txn", "begin").status == 2


def test_interrupted_atomic_input_leaves_nothing(wal: Wal) -> None:
    wal.ok("collection", "create", "demo")
    with wal.start("append", "demo", "--atomic") as process:
        assert process.stdin is not None
        process.stdin.write(b"row\n" * 600_000)
        process.stdin.flush()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert _raw(wal, "demo") == b""


def _kill(wal: Wal) -> None:
    pid = wal.ok("status", "-o", "json").json["pid"]
    os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)
