"""Row 4: every flipped bit is refused, reported as a cut, or listed here as harmless.

Expected outcome of a flip, by place (docs/fault-model.md has the same list):

=====================  ===========================================================================
segment header         refused: its checksum covers all 256 bytes
opening snapshot       refused: it was durable before the segment had its name
batch below a proof    refused, with file and offset
last group, no proof   cut, saved aside and reported as possibly acknowledged
space behind the end   cut and reported (it cannot be told from a torn write)
footer                 of the tip: rebuilt, or cut and reported; of another segment: rebuilt
timestamp mark         refused
term file              harmless: its name and its lock count, its content is information
catalog value          refused
=====================  ===========================================================================
"""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import pytest

from tests.faults.checkers import batches_in, check_flips_on_disk, restore
from tests.storage.disks import ProbeDisk
from tests.storage.writer import SMALL_SEGMENT, V1, Writer, segment_names
from wal_core.errors import CorruptError, FormatError
from wal_core.message import Header, MessageType
from wal_storage.catalog.lmdb import LmdbCatalog
from wal_storage.disk import Disk
from wal_storage.log.chain import read_segment_header
from wal_storage.log.format import HEADER_SIZE_BYTES, unpack_footer, unpack_segment_header
from wal_storage.log.repair import judge_tail
from wal_storage.log.scan import ScanEnd, scan

SEGMENT_BYTES = 64 * 1024


def written(folder: Path, *, rows: int, size: int, mark: bool, seal: bool, room: int = 0) -> str:
    """A log of one segment; its file."""
    disk = ProbeDisk(os.fsencode(folder))
    writer = Writer(disk, segment_size=room or SMALL_SEGMENT)
    writer.create()
    for number in range(rows):
        writer.append([b"%04d" % number + bytes(range(256)) * (size // 256)])
    if mark:
        writer.mark()
    (name,) = segment_names(disk)
    writer.close(seal=seal)
    disk.close()
    return name


def test_every_bit_of_a_64_kib_segment(tmp_path: Path) -> None:
    """In memory: half a million flips. Each is damage, found just at its own batch."""
    name = written(tmp_path, rows=60, size=1024, mark=True, seal=False)
    data = bytearray((tmp_path / name).read_bytes())
    disk = Disk(os.fsencode(tmp_path))
    header = read_segment_header(disk, name)
    disk.close()
    view = memoryview(data)
    none = lambda header, batch: None  # noqa: E731 (a visitor that sees nothing)
    whole = scan(view, HEADER_SIZE_BYTES, header.id, 1, 0, none)
    end = whole.valid_length
    assert SEGMENT_BYTES < end < len(data)
    batches = batches_in(bytes(data), end)
    assert batches[-1][2] == MessageType.MARK
    for byte in range(HEADER_SIZE_BYTES):
        for bit in range(8):
            data[byte] ^= 1 << bit
            with pytest.raises((CorruptError, FormatError)):
                unpack_segment_header(view, name)
            data[byte] ^= 1 << bit
    # A flip is judged from its own batch on: what lies before it is the same as ever.
    for sequence, (start, stop, _) in enumerate(batches, 1):
        for byte in range(start, min(stop, SEGMENT_BYTES)):
            for bit in range(8):
                data[byte] ^= 1 << bit
                found = scan(view[:stop], start, header.id, sequence, 0, none)
                data[byte] ^= 1 << bit
                assert found.problem, f"byte {byte} bit {bit}: silent"
                assert found.valid_length == start
    # And every batch below the mark's proof is called damage, not a torn write.
    for sequence, (start, _, _) in enumerate(batches[:-1], 1):
        data[start + 100] ^= 1
        bad = scan(view[:end], start, header.id, sequence, 0, none)
        with pytest.raises(CorruptError) as caught:
            judge_tail(view, header.id, bad)
        data[start + 100] ^= 1
        assert caught.value.details == {"file": name, "offset": start, "sequence": sequence}
    assert scan(view, HEADER_SIZE_BYTES, header.id, 1, 0, none) == whole
    assert isinstance(whole, ScanEnd)


def test_no_field_of_a_batch_header_is_outside_the_checksum() -> None:
    assert Header._fields[-1] == "header_checksum"


@pytest.mark.parametrize("mark", [False, True])
def test_opened_with_every_bit_of_header_and_snapshot_flipped(tmp_path: Path, mark: bool) -> None:
    """Also where nothing was ever written behind the snapshot, so that no proof follows it."""
    disk = ProbeDisk(os.fsencode(tmp_path))
    Writer(disk).close(seal=False)
    writer = Writer(disk)
    if mark:
        writer.create()
        writer.mark()
    name = writer.wal.tip_id.file_name
    writer.close(seal=False)
    disk.close()
    if not mark:
        _, stop, _ = batches_in((tmp_path / name).read_bytes(), HEADER_SIZE_BYTES + 1)[0]
        places = [(name, bit) for bit in range(0, stop * 8, 3)]
        assert _fates_without_rows(tmp_path, places) == {"refused": len(places)}
        return
    (first, *_) = batches_in((tmp_path / name).read_bytes(), HEADER_SIZE_BYTES + 1)
    places = [(name, bit) for bit in range(0, first[1] * 8, 7)]
    assert check_flips_on_disk(tmp_path, places)["refused"] == len(places)


def _fates_without_rows(folder: Path, places: list[tuple[str, int]]) -> dict[str, int]:
    files = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    refused = 0
    for name, bit in places:
        restore(folder, files)
        data = bytearray(files[name])
        data[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(data)
        disk = ProbeDisk(os.fsencode(folder))
        with pytest.raises((CorruptError, FormatError)):
            Writer(disk)
        disk.close()
        refused += 1
    return {"refused": refused}


def test_the_footer_of_the_tip(tmp_path: Path) -> None:
    name = written(tmp_path, rows=3, size=0, mark=True, seal=True)
    size = (tmp_path / name).stat().st_size
    footer = unpack_footer(memoryview((tmp_path / name).read_bytes()))
    assert footer is not None
    places = [(name, bit) for bit in range(footer.valid_length * 8, size * 8)]
    seen = check_flips_on_disk(tmp_path, places)
    assert seen["refused"] == 0
    assert seen["harmless"] + seen["cut"] == len(places)
    data = bytearray((tmp_path / name).read_bytes())
    for _, bit in places:
        data[bit // 8] ^= 1 << bit % 8
        assert unpack_footer(memoryview(data)) is None
        data[bit // 8] ^= 1 << bit % 8


def test_the_last_group_without_a_proof_and_the_space_behind_it(tmp_path: Path) -> None:
    name = written(tmp_path, rows=3, size=0, mark=False, seal=False, room=8192)
    data = (tmp_path / name).read_bytes()
    end = len(data.rstrip(b"\0"))
    starts = [start for start, _, _ in batches_in(data, end)]
    last = check_flips_on_disk(tmp_path, [(name, bit) for bit in range(starts[-1] * 8, end * 8)])
    assert last == {"refused": 0, "cut": (end - starts[-1]) * 8, "harmless": 0}
    behind = check_flips_on_disk(
        tmp_path, [(name, bit) for bit in range(end * 8, len(data) * 8, 101)]
    )
    assert behind["cut"] > 100
    assert behind["refused"] == behind["harmless"] == 0


def test_timestamp_mark_and_term_file(tmp_path: Path) -> None:
    written(tmp_path, rows=2, size=0, mark=True, seal=True)
    size = (tmp_path / "tso.1").stat().st_size
    seen = check_flips_on_disk(tmp_path, [("tso.1", bit) for bit in range(size * 8)])
    assert seen == {"refused": size * 8, "cut": 0, "harmless": 0}
    size = (tmp_path / "term.1").stat().st_size
    seen = check_flips_on_disk(tmp_path, [("term.1", bit) for bit in range(size * 8)])
    assert seen == {"refused": 0, "cut": 0, "harmless": size * 8}


def test_catalog_values(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "catalog")
    catalog = LmdbCatalog(path, map_size=1 << 20)
    catalog.commit({b"collection/a": b"some value", b"collection/b": b"other", b"x": b""})
    catalog.close()
    for key in (b"collection/a", b"x"):
        with lmdb.open(os.fsdecode(path)) as env, env.begin() as txn:
            stored = bytes(txn.get(key))
        for bit in range(len(stored) * 8):
            changed = bytearray(stored)
            changed[bit // 8] ^= 1 << bit % 8
            _put(path, key, bytes(changed))
            catalog = LmdbCatalog(path)
            with pytest.raises(CorruptError):
                catalog.get(key)
            with pytest.raises(CorruptError):
                list(catalog.range(key[:1]))
            assert catalog.get(b"collection/b") == b"other"
            catalog.close()
        for length in range(len(stored)):
            _put(path, key, stored[:length])
            catalog = LmdbCatalog(path)
            with pytest.raises(CorruptError):
                catalog.get(key)
            catalog.close()
        _put(path, key, stored)


def test_a_catalog_value_under_another_key(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "catalog")
    catalog = LmdbCatalog(path)
    catalog.commit({b"a": b"value"})
    catalog.close()
    with lmdb.open(os.fsdecode(path)) as env, env.begin(write=True) as txn:
        txn.put(b"b", txn.get(b"a"))
    catalog = LmdbCatalog(path)
    with pytest.raises(CorruptError):
        catalog.get(b"b")
    catalog.close()


def _put(path: bytes, key: bytes, stored: bytes) -> None:
    with lmdb.open(os.fsdecode(path)) as env, env.begin(write=True) as txn:
        txn.put(key, stored)


def test_rows_of_another_vchannel_do_not_hide_damage(tmp_path: Path) -> None:
    """In a sealed segment below the tip: the rows before the damage, then the error."""
    disk = ProbeDisk(os.fsencode(tmp_path))
    writer = Writer(disk)
    writer.create()
    bodies = [b"%d" % number * 50_000 for number in range(8)]
    for body in bodies:
        writer.append([body])
    names = segment_names(disk)
    assert len(names) > 1
    writer.close()
    path = tmp_path / names[0]
    data = bytearray(path.read_bytes())
    starts = [start for start, _, kind in batches_in(data, 120_000) if kind == MessageType.INSERT]
    data[starts[1] + 200] ^= 4
    path.write_bytes(data)
    again = Writer(disk)
    found: list[bytes] = []
    with pytest.raises(CorruptError) as caught:
        again.rows(V1, found=found)
    assert found == bodies[:1]
    assert caught.value.details == {"file": names[0], "offset": starts[1]}
    assert again.rows(V1, 6) == bodies[6:]
    again.close()
    disk.close()
