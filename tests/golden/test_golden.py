"""Row 18: logs of every released format are read for ever; unknown versions are left untouched."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.golden import independent_reader
from tests.storage.disks import ProbeDisk
from tests.storage.writer import Writer, segment_names
from wal_core.batch import decode_records, decompress
from wal_core.checksum import crc32c
from wal_core.errors import FormatError
from wal_core.message import unpack_header
from wal_storage.directory import DataDirectory, read_version
from wal_storage.disk import Disk

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.glob("v[0-9]*"))


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a golden log: opening one changes it."""
    shutil.copytree(HERE / request.param, tmp_path / "golden")
    return tmp_path / "golden"


def expected(
    golden: Path,
) -> dict[int, list[tuple[bytes | None, list[tuple[bytes, bytes]], bytes]]]:
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


def test_there_is_a_golden_log_of_this_version() -> None:
    assert "v1" in VERSIONS


def test_read_and_written_on(golden: Path) -> None:
    DataDirectory(os.fsencode(golden / "dir")).open()
    disk = ProbeDisk(os.fsencode(golden / "dir" / "pchannels" / "0"))
    writer = Writer(disk)
    assert len(writer.wal.segments) > 5
    assert len(writer.wal.void) == 1
    for vchannel, rows in expected(golden).items():
        found = []
        scanner = writer.wal.scanner(vchannel, 0)
        while runs := scanner.read():
            for run in runs:
                at = 0
                while at < len(run.data):
                    header = unpack_header(run.data, at)
                    body_at = at + header.size - header.body_length
                    body = decompress(header.compression, run.data[body_at : at + header.size])
                    properties = bytes(run.data[at + 128 : body_at])
                    for one in decode_records(header.encoding, body, header.rows, properties):
                        found.append((one.key, list(one.headers), one.body))
                    at += header.size
        scanner.close()
        assert found == rows
        assert writer.state.vchannels[vchannel].next_offset == len(rows)
    writer.append([b"goes on"], next(iter(expected(golden))))
    writer.close()
    disk.close()


def test_a_reader_made_from_the_documentation_reads_the_same(golden: Path) -> None:
    names, rows = independent_reader.read_log(golden / "dir" / "pchannels" / "0")
    assert set(names.values()) == {"first", "second"}
    found = {
        vchannel: [(row.key, row.headers, row.body) for row in some]
        for vchannel, some in rows.items()
    }
    assert found == expected(golden)
    assert crc32c(b"123456789") == independent_reader.crc32c(b"123456789") == 0xE3069283


def test_that_reader_reads_what_is_written_today(tmp_path: Path) -> None:
    disk = ProbeDisk(os.fsencode(tmp_path))
    writer = Writer(disk, segment_size=2048)
    writer.create()
    bodies = [b"%d" % number * (number % 90) for number in range(60)]
    for body in bodies:
        writer.append([body, b"\n"])
    writer.close()
    _, rows = independent_reader.read_log(tmp_path)
    (found,) = rows.values()
    assert [row.body for row in found] == [one for body in bodies for one in (body, b"\n")]
    disk.close()


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
