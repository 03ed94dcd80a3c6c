"""`wal dump` of changes of collections and of transactions."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Wal, stop_process
from wal_client.endpoint import Endpoint
from wal_client.sync import Client
from wal_core.settings import default_socket


def _fill(wal: Wal) -> dict[str, str]:
    """A log with a bit of everything; ids of its transactions."""
    wal.ok("collection", "create", "orders")
    with Client(Endpoint(default_socket(str(wal.dir), "main"))) as client:
        whole = client.begin("orders")
        whole.append("orders", [b"a", b"b"])
        client.append("orders", [b"in between"])
        whole.append("orders", [b"c"])
        whole.commit()
        empty = client.begin("orders")
        empty.commit()
        back = client.begin("orders", keepalive=1.5)
        back.rollback()
        wal.ok(
            *("collection", "alter", "orders", "--add-partition", "eu"),
            *("--set", "a=1", "--set", "b=2"),
        )
        wal.ok("collection", "alter", "orders", "--unset", "a", "--drop-partition", "eu")
        wal.ok("collection", "alter", "orders", "--add-partition", "us")
        producer = client.producer("orders", partition="us")
        producer.append(b"x")
        producer.flush()
        client.call("truncate", name="orders")
        left = client.begin("orders", keepalive=600)
        left.append("orders", [b"open"])
    return {"whole": whole.id, "empty": empty.id, "back": back.id, "left": left.id}


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wal, Path, dict[str, str]]]:
    """The only segment of a daemon that was killed."""
    wal = Wal(tmp_path_factory.mktemp("dump"))
    ids = _fill(wal)
    stop_process(wal.ok("status", "-o", "json").json["pid"], signal.SIGKILL)
    (segment,) = (wal.dir / "pchannels" / "0").glob("*.seg")
    yield wal, segment, ids
    wal.close()


def test_details_of_messages(dumped: tuple[Wal, Path, dict[str, str]]) -> None:
    wal, segment, ids = dumped
    batches = wal.ok("dump", segment, "-o", "json").json["batches"]
    of_type: dict[str, list[dict[str, Any]]] = {}
    for batch in batches:
        of_type.setdefault(batch["type"], []).append(batch)

    def details(kind: str) -> list[dict[str, Any]]:
        return [one["details"] for one in of_type[kind]]

    assert details("create_collection") == [{"collection": "orders", "shards": 1}]
    assert details("create_partition") == [
        {"change": 1, "partition": 1, "name": "eu"},
        {"change": 5, "partition": 2, "name": "us"},
    ]
    assert details("drop_partition") == [{"change": 3, "partition": 1}]
    assert details("alter_collection") == [
        {"change": 2, "settings": {"a": "1", "b": "2"}},
        {"change": 4, "settings": {"a": None}},
    ]
    assert details("truncate_collection") == [{"change": 6}]
    assert [one["txn"] for one in of_type["begin_txn"]] == list(ids.values())
    assert [one["keepalive_seconds"] for one in details("begin_txn")] == [10, 10, 1.5, 600]
    assert [one["txn"] for one in of_type["rollback_txn"]] == [ids["back"]]
    assert details("rollback_txn") == [{"end": "rolled_back"}]
    commit, empty = of_type["commit_txn"]
    assert (commit["txn"], commit["first"], commit["last"]) == (ids["whole"], 1, 3)
    assert commit["encoding"] == "msgpack"
    staged = [one for one in of_type["insert"] if one["txn"] == ids["whole"]]
    assert [(one["first"], one["rows"]) for one in staged] == [(None, 2), (None, 1)]
    extents = commit["details"]["extents"]
    assert [one["start"] for one in extents] == [one["position"] for one in staged]
    assert {one["segment"] for one in extents} == {segment.name}
    assert (empty["txn"], empty["first"], empty["last"]) == (ids["empty"], None, None)
    assert empty["details"] == {"extents": []}
    assert [one["partition"] for one in of_type["insert"]][-2:] == [2, 0]
    assert all(one["details"] == {} for one in of_type["insert"])
    assert {(one["collection"], one["shard"]) for one in batches if one["vchannel"] != "0"} == {
        ("orders", 0)
    }


def test_lines_for_a_person(dumped: tuple[Wal, Path, dict[str, str]]) -> None:
    wal, segment, ids = dumped
    text = wal.ok("dump", segment).text
    for kind, *words in (
        ("create_collection", "collection orders", "shards 1"),
        ("begin_txn", "orders shard 0", f"txn {ids['back']}", "keepalive 1.5 s"),
        ("commit_txn", f"txn {ids['whole']}", "offsets 1..3", "rows 3", f"in {segment.name} "),
        ("rollback_txn", f"txn {ids['back']}", "rolled back"),
        ("create_partition", "change 1", "partition 1", "name eu"),
        ("drop_partition", "change 3", "partition 1"),
        ("alter_collection", "change 4", "settings -a"),
        ("truncate_collection", "change 6"),
        ("insert", "partition 2", "producer ", "epoch 0 batch 1"),
        ("insert", f"txn {ids['left']}", "rows 1"),
    ):
        lines = [line for line in text.splitlines() if f"  {kind}  " in line]
        assert any(all(word in line for word in words) for line in lines), (kind, words, lines)


def test_the_opening_of_the_next_segment(dumped: tuple[Wal, Path, dict[str, str]]) -> None:
    wal, _, ids = dumped
    wal.ok("up")
    segment = max((wal.dir / "pchannels" / "0").glob("*.seg"))
    (line,) = [one for one in wal.ok("dump", segment).text.splitlines() if "vchannel" in one]
    for words in ("orders shard 0 of 1", "partitions us", "settings b=2", "first 5  next 5"):
        assert words in line
    assert f"open transactions {ids['left']}" in line
    pieces = [json.loads(one) for one in wal.ok("dump", segment, "-o", "ndjson").text.splitlines()]
    (vchannel,) = next(one for one in pieces if one["kind"] == "snapshot")["vchannels"]
    assert vchannel["settings"] == {"b": "2"}
    assert vchannel["partitions"] == ["us"]
    assert vchannel["changes"] == 6
    wal.ok("append", "orders", "named by the snapshot")
    assert "  insert  " in wal.ok("dump", segment).text
    batches = wal.ok("dump", segment, "-o", "json").json["batches"]
    assert [one["collection"] for one in batches if one["type"] == "insert"] == ["orders"]
    wal.ok("collection", "drop", "orders", "--yes")  # A stop would wait for the transaction.


def test_an_expired_and_a_broken_transaction(wal: Wal) -> None:
    wal.ok("append", "orders", "row")
    with Client(Endpoint(default_socket(str(wal.dir), "main"))) as client:
        expiring = client.begin("orders", keepalive=0.05)
        deadline = time.monotonic() + 5
        while client.call("txn_list") and time.monotonic() < deadline:
            time.sleep(0.02)
        client.begin("orders")
        client.call("drop", name="orders")
    (segment,) = (wal.dir / "pchannels" / "0").glob("*.seg")
    batches = wal.ok("dump", segment, "-o", "json").json["batches"]
    ends = [(one["txn"], one["details"]) for one in batches if one["type"] == "rollback_txn"]
    assert ends == [(expiring.id, {"end": "expired"})]
    types = [one["type"] for one in batches if one["type"] != "mark"]
    assert types[-1] == "drop_collection"  # Which ends what was open.
    assert wal.ok("check", "--deep").status == 0
