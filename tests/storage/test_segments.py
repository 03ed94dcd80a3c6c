"""A log over many segments: what was written is read, from everywhere."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.storage.disks import ProbeDisk
from tests.storage.writer import V1, V2, ManualClock, Writer, segment_names
from wal_core.errors import CorruptError
from wal_storage.disk import Disk
from wal_storage.log.chain import read_chain, read_footer
from wal_storage.log.format import SegmentId
from wal_storage.log.index import SparseIndex


def open_log(path: Path, **options: object) -> Writer:
    return Writer(ProbeDisk(os.fsencode(path)), **options)  # type: ignore[arg-type]


def fill(writer: Writer, count: int, seed: int = 1) -> dict[int, list[bytes]]:
    chance = random.Random(seed)
    rows: dict[int, list[bytes]] = {V1: [], V2: []}
    for _ in range(count):
        batches = []
        for _ in range(chance.randint(1, 3)):
            vchannel = chance.choice((V1, V2))
            bodies = [
                chance.randbytes(chance.randint(0, 3000)) for _ in range(chance.randint(1, 9))
            ]
            rows[vchannel] += bodies
            batches.append((vchannel, bodies))
        writer.group(batches)
        writer.clock.pass_ms(chance.randint(0, 3))
    return rows


def test_rotation_keeps_every_row(tmp_path: Path) -> None:
    writer = open_log(tmp_path)
    writer.create(V1, "a")
    writer.create(V2, "b")
    rows = fill(writer, 60)
    assert len(segment_names(writer.disk)) > 3
    for vchannel in (V1, V2):
        assert writer.rows(vchannel) == rows[vchannel]
    writer.close()
    again = open_log(tmp_path)
    for vchannel in (V1, V2):
        assert again.rows(vchannel) == rows[vchannel]
        assert again.state.vchannels[vchannel].next_offset == len(rows[vchannel])
    again.close()


def test_scanner_from_every_offset(tmp_path: Path) -> None:
    writer = open_log(tmp_path)
    writer.create(V1, "a")
    writer.create(V2, "b")
    rows = fill(writer, 40)
    for offset in range(len(rows[V1]) + 1):
        assert writer.rows(V1, offset) == rows[V1][offset:]
    writer.close()


def test_offset_at_finds_the_first_row_at_or_after_a_time(tmp_path: Path) -> None:
    writer = open_log(tmp_path)
    writer.create()
    written: list[tuple[int, int]] = []
    for number in range(120):
        writer.clock.pass_ms(1)
        offset = writer.append([b"%d" % number * 1900, b"x"])
        written.append((writer.tso.last, offset))
    assert len(segment_names(writer.disk)) > 1
    for tso, offset in written:
        assert writer.offset_at(tso) == offset
        assert writer.offset_at(tso - 1) == offset
    assert writer.offset_at(0) == 0
    assert writer.offset_at(written[-1][0] + 1) == -1
    writer.close()


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_lost_footer_is_rebuilt_from_the_data(tmp_path: Path, damage: str) -> None:
    writer = open_log(tmp_path)
    writer.create(V1, "a")
    writer.create(V2, "b")
    rows = fill(writer, 40)
    writer.close()
    disk = Disk(os.fsencode(tmp_path))
    for name in segment_names(disk):
        footer = read_footer(disk, name)
        assert footer is not None
        path = tmp_path / name
        if damage == "cut":
            os.truncate(path, footer.valid_length)
        else:
            data = path.read_bytes()
            path.write_bytes(data[: footer.valid_length] + b"\x5a" * 200)
        assert read_footer(disk, name) is None
    disk.close()
    again = open_log(tmp_path)
    for offset in range(0, len(rows[V1]), 7):
        assert again.rows(V1, offset) == rows[V1][offset:]
    again.close()


def test_an_index_that_lies_is_not_trusted(tmp_path: Path) -> None:
    """A wrong entry leads to an error or to the right rows, never to others."""
    writer = open_log(tmp_path)
    writer.create()
    for number in range(50):
        writer.append([b"%d" % number * 500])
    segment = writer.wal.segments[0]
    (entry,) = segment.index.entries()
    lie = entry._replace(position=entry.position + 100)
    segment.index = SparseIndex([lie])
    with pytest.raises(CorruptError) as caught:
        writer.rows()
    assert caught.value.details["file"] == segment.file_name
    writer.close()


def test_segments_of_a_fenced_owner_are_void(tmp_path: Path) -> None:
    old = open_log(tmp_path, segment_size=256 * 1024)
    old.create()
    old.append([b"kept"])
    new = open_log(tmp_path, takeover=True)
    new.append([b"new"])
    # The old owner wakes up and rotates; its new segment has the old term and is whole.
    with pytest.raises(Exception, match="taken over"):
        old.wal.make_room(0, old.state)
    void = SegmentId(old.wal.term, old.state.next_sequence)
    assert void.file_name in segment_names(new.disk)
    new.append([b"newer"])
    new.close()
    again = open_log(tmp_path)
    assert again.rows() == [b"kept", b"new", b"newer"]
    assert again.wal.void == [void]
    again.close()
    old.close(seal=False)


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    writer = open_log(tmp_path)
    writer.create()
    for _ in range(10):
        writer.append([b"x" * 100_000])
    writer.close()
    names = segment_names(writer.disk)
    os.unlink(tmp_path / names[1])
    with pytest.raises(CorruptError) as caught:
        open_log(tmp_path)
    assert caught.value.details["file"] == names[1]


def test_a_segment_cut_short_below_its_valid_length_is_reported(tmp_path: Path) -> None:
    """At every length: rows before the cut, then the error; never an endless loop."""
    writer = open_log(tmp_path, segment_size=256 * 1024)
    writer.create()
    bodies = [b"%03d" % number * 200 for number in range(8)]
    for body in bodies:
        writer.append([body])
    writer.close()
    name = segment_names(writer.disk)[0]
    whole = (tmp_path / name).read_bytes()
    again = open_log(tmp_path)
    valid = again.wal.segments[0].valid_length
    assert valid is not None
    for length in range(300, valid, 61):
        os.truncate(tmp_path / name, length)
        seen: list[bytes] = []
        with pytest.raises(CorruptError) as caught:
            again.rows(found=seen)
        assert caught.value.details["file"] == name
        assert seen == bodies[: len(seen)]
        (tmp_path / name).write_bytes(whole)
    again.close(seal=False)


def test_a_clean_stop_seals_and_changes_nothing_at_the_next_start(tmp_path: Path) -> None:
    writer = open_log(tmp_path)
    writer.create()
    writer.append([b"a", b"b"])
    writer.close()
    writer.close()  # A second close does nothing.
    footer = read_footer(writer.disk, segment_names(writer.disk)[-1])
    assert footer is not None
    chain = read_chain(writer.disk)
    assert footer.valid_length < (tmp_path / chain.segments[-1].file_name).stat().st_size
    again = open_log(tmp_path, clock=ManualClock())
    assert again.cuts == []
    assert again.state.snapshot()
    again.close()


def test_close_after_close_does_not_touch_a_reused_descriptor(tmp_path: Path) -> None:
    writer = open_log(tmp_path)
    writer.create()
    writer.close(seal=False)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    try:
        writer.close(seal=True)
        assert os.fstat(other).st_size == 0
    finally:
        os.close(other)
