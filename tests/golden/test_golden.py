"""Row 18: logs of every released format are read for ever; unknown versions are left untouched."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.golden import independent_reader
from tests.golden.make_golden import Golden
from tests.storage.disks import ProbeDisk
from tests.storage.writer import V1, V2, Writer, segment_names
from wal_cli.offline import checking
from wal_core.batch import Record, decode_records, decompress
from wal_core.checksum import crc32c
from wal_core.errors import FormatError
from wal_core.message import MessageType, unpack_header
from wal_storage.directory import DataDirectory, read_version
from wal_storage.disk import Disk
from wal_storage.transactions import End

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.glob("v[0-9]*"))


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a golden log: opening one changes it."""
    shutil.copytree(HERE / request.param, tmp_path / "golden")
    return tmp_path / "golden"


Plain = tuple[bytes | None, list[tuple[bytes, bytes]], bytes]


def scanned(writer: Writer, vchannel: int) -> list[Plain]:
    """(key, headers, body) of all rows that the project's own scanner finds."""
    found: list[Plain] = []
    with contextlib.closing(writer.wal.scanner(vchannel, 0)) as scanner:
        while runs := scanner.read():
            for run in runs:
                assert run.committed is None or run.committed.first_offset == len(found)
                at = 0
                while at < len(run.data):
                    header = unpack_header(run.data, at)
                    body_at = at + header.size - header.body_length
                    body = decompress(header.compression, run.data[body_at : at + header.size])
                    properties = bytes(run.data[at + 128 : body_at])
                    for one in decode_records(header.encoding, body, header.rows, properties):
                        found.append((one.key, list(one.headers), one.body))
                    at += header.size
    return found


def expected(golden: Path) -> dict[int, list[Plain]]:
    def plain(text: str) -> bytes:
        return base64.b64decode(text)

    found = json.loads((golden / "rows.json").read_text())
    return {
        int(vchannel): [
            (
                None if row["key"] is None else plain(row["key"]),
                [(plain(name), plain(value)) for name, value in row["headers"]],
                plain(row["body"]),
            )
            for row in rows
        ]
        for vchannel, rows in found.items()
    }


def test_there_are_golden_logs() -> None:
    assert VERSIONS == ["v1", "v2"]


def test_read_and_written_on(golden: Path) -> None:
    DataDirectory(os.fsencode(golden / "dir")).open()
    disk = ProbeDisk(os.fsencode(golden / "dir" / "pchannels" / "0"))
    writer = Writer(disk)
    assert len(writer.wal.segments) > 5
    assert len(writer.wal.void) == 1
    for vchannel, rows in expected(golden).items():
        assert scanned(writer, vchannel) == rows
        assert writer.state.vchannels[vchannel].next_offset == len(rows)
    writer.append([b"goes on"], next(iter(expected(golden))))
    writer.close()
    disk.close()


def test_a_reader_made_from_the_documentation_reads_the_same(golden: Path) -> None:
    shards = independent_reader.read_log(golden / "dir" / "pchannels" / "0")
    assert {"first", "second"} <= {shard.collection for shard in shards.values()}
    found = {
        vchannel: [(row.key, row.headers, row.body) for row in shard.rows]
        for vchannel, shard in shards.items()
    }
    assert found == expected(golden)
    assert crc32c(b"123456789") == independent_reader.crc32c(b"123456789") == 0xE3069283


def expected_shards(golden: Path) -> dict[int, dict[str, Any]]:
    """What is left of each VChannel, beside its rows."""
    shards: dict[str, dict[str, Any]] = json.loads((golden / "shards.json").read_text())
    return {
        int(vchannel): shard
        | {"partitions": {int(id): name for id, name in shard["partitions"].items()}}
        | {"ended": {int(id): end for id, end in shard["ended"].items()}}
        for vchannel, shard in shards.items()
    }


@pytest.mark.parametrize("golden", ["v2"], indirect=True)
def test_changes_and_transactions_are_found(golden: Path) -> None:
    """By the project, before and after its own snapshot, and by the independent reader."""
    log = golden / "dir" / "pchannels" / "0"
    read = {
        vchannel: {
            "collection": shard.collection,
            "first": shard.first,
            "dropped": shard.dropped,
            "partitions": shard.partitions,
            "settings": shard.settings,
            "changes": shard.changes,
            "open": list(shard.open),
            "ended": shard.ended,
        }
        for vchannel, shard in independent_reader.read_log(log).items()
    }
    assert read == expected_shards(golden)
    disk = ProbeDisk(os.fsencode(log))
    for _ in range(2):
        writer = Writer(disk)
        found = {
            one.id: {
                "collection": one.collection,
                "first": one.first_offset,
                "dropped": one.dropped_tso > 0,
                "partitions": one.partitions,
                "settings": one.settings,
                "changes": one.ddl,
                "open": list(one.txns),
                "ended": {id: how.end for id, how in one.finished.items()},
            }
            for one in writer.state.vchannels.values()
        }
        assert found == expected_shards(golden)
        (named,) = [one for one in writer.state.producers[V1].by_id.values() if one.epoch]
        assert (named.epoch, named.sequence) == (3, 2)
        assert writer.state.confirmed_below < writer.state.next_sequence
        writer.close()
    disk.close()


def test_a_check_of_a_golden_log_finds_its_cuts_only(golden: Path) -> None:
    directory = checking.open_directory(str(golden / "dir"))
    report = checking.check_logs(directory, deep=True, bounds=None, advance=lambda size: None)
    assert {problem.kind for problem in report.problems} == {"cut"}
    assert list(report.states) == [0]


def test_that_reader_reads_what_is_written_today(tmp_path: Path) -> None:
    disk = ProbeDisk(os.fsencode(tmp_path))
    writer = Writer(disk, segment_size=2048)
    writer.create()
    bodies = [b"%d" % number * (number % 90) for number in range(60)]
    for body in bodies:
        writer.append([body, b"\n"])
    writer.close()
    (shard,) = independent_reader.read_log(tmp_path).values()
    assert [row.body for row in shard.rows] == [one for body in bodies for one in (body, b"\n")]
    disk.close()


@pytest.mark.parametrize("seed", range(10))
def test_that_reader_reads_random_histories(tmp_path: Path, seed: int) -> None:
    """Transactions, changes, crashes and rotations in any order: it finds the rows that were
    committed, and so does the project's own scanner."""
    chance = random.Random(seed)
    golden = Golden(tmp_path)
    golden.create(V1, "first")
    golden.create(V2, "second")
    opened: list[tuple[int, int]] = []
    for number in range(120):
        vchannel = chance.choice((V1, V2))
        rows = [Record(b"%d " % number * chance.randint(0, 60))] * chance.randint(1, 3)
        action = chance.choice(("insert", "begin", "stage", "stage", "end", "change", "crash"))
        if action == "insert":
            golden.insert((vchannel, rows, {"packed": chance.random() < 0.5}))
        elif action == "begin":
            opened.append((number + 1, vchannel))
            golden.begin(*opened[-1])
        elif action == "stage" and opened:
            txn_id, vchannel = chance.choice(opened)
            other = V1 + V2 - vchannel
            golden.insert((vchannel, rows, {"txn_id": txn_id}), (other, rows, {}))
        elif action == "end" and opened:
            txn = opened.pop(chance.randrange(len(opened)))
            if chance.random() < 0.7:
                golden.commit(*txn)
            else:
                golden.roll_back(*txn, chance.choice((End.ROLLED_BACK, End.EXPIRED)))
        elif action == "change" and chance.random() < 0.3:
            golden.change(MessageType.TRUNCATE_COLLECTION, vchannel)
            opened = [one for one in opened if one[1] != vchannel]
        elif action == "crash" and chance.random() < 0.3:
            golden.crash()
    shards = independent_reader.read_log(tmp_path)
    for vchannel, rows in golden.rows.items():
        bodies = [row.body for row in rows]
        assert [row.body for row in shards[vchannel].rows] == bodies
        assert [body for _, _, body in scanned(golden.writer, vchannel)] == bodies
        assert golden.writer.state.vchannels[vchannel].first_offset == shards[vchannel].first
        assert len(bodies) == golden.writer.state.vchannels[vchannel].next_offset
    assert {(id, one) for one, shard in shards.items() for id in shard.open} == set(opened)
    golden.writer.close()
    golden.disk.close()


def test_that_reader_is_no_friend_of_the_project() -> None:
    source = Path(independent_reader.__file__).read_text()
    assert "wal_" not in source
    assert "tests" not in source


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


@pytest.mark.parametrize("which", [0, -1])
def test_a_segment_of_a_newer_version_is_refused_and_untouched(golden: Path, which: int) -> None:
    log = golden / "dir" / "pchannels" / "0"
    disk = Disk(os.fsencode(log))
    name = segment_names(disk)[which]
    data = bytearray((log / name).read_bytes())
    data[8:12] = (2).to_bytes(4, "little")
    data[252:256] = crc32c(data[:252]).to_bytes(4, "little")
    (log / name).write_bytes(data)
    before = contents(log)
    with pytest.raises(FormatError, match=name):
        Writer(disk)
    after = contents(log)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("term.") for name in set(after) - set(before))
    disk.close()


@pytest.mark.parametrize(
    "text", ["walstream 2\n", "walstream 10\n", "walstream x\n", "other 1\n", ""]
)
def test_a_directory_of_a_newer_version_is_refused_and_untouched(golden: Path, text: str) -> None:
    folder = golden / "dir"
    (folder / "format").write_text(text)
    before = sorted(os.walk(folder))
    with pytest.raises(FormatError, match="untouched"):
        DataDirectory(os.fsencode(folder)).open()
    with pytest.raises(FormatError):
        read_version(os.fsencode(folder))
    assert sorted(os.walk(folder)) == before
    assert (folder / "format").read_text() == text


def test_a_new_directory_gets_this_version(tmp_path: Path) -> None:
    directory = DataDirectory(os.fsencode(tmp_path / "new"))
    directory.open()
    directory.open()
    assert (tmp_path / "new" / "format").read_bytes() == b"walstream 1\n"
    assert directory.pchannels() == []
