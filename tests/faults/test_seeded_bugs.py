"""Row 22: bugs that are planted on purpose. Each must be caught by a checker of this suite.

A test here fails where a checker does *not* see its bug."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import checkers
from tests.faults.checkers import expect_failure
from tests.storage.disks import ForgetfulDisk, ProbeDisk
from tests.storage.test_segments import test_an_index_that_lies_is_not_trusted as check_index
from wal_storage import fence
from wal_storage.log import chain, repair, scan, writer
from wal_storage.log.format import SegmentHeader
from wal_storage.state import ChannelState
from wal_storage.tso_mark import TsoMark
from wal_storage.walstore import file, file_scanner

# Processes die here in the middle of everything, and leave their files to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect them before another module's tests meet the warning."""
    yield
    gc.collect()


Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[Path], object]


def power_cuts(folder: Path) -> None:
    for seed in range(40):
        checkers.check_power_cuts(folder / str(seed), seed)


def takeovers(folder: Path) -> None:
    for seed in range(80):
        one = folder / str(seed)
        one.mkdir()
        checkers.check_takeover(one, seed)


def appends_inside_takeovers(folder: Path) -> None:
    for step in range(1, 40):
        one = folder / str(step)
        one.mkdir()
        checkers.check_append_inside_takeover(one, step)


def failing_syncs(folder: Path) -> None:
    for nth in range(1, 12):
        checkers.check_failing_call(folder, "sync_data", nth)


def torn(folder: Path) -> None:
    checkers.check_torn(folder, step=9)


def corrupt(folder: Path) -> None:
    checkers.check_corrupt(folder, step=9)


def flips(folder: Path) -> None:
    one = checkers.Torn(folder, proof=False)
    seen = checkers.check_flips_on_disk(
        folder, [(one.name, bit) for bit in range(one.start * 8, one.end * 8, 3)]
    )
    assert seen["harmless"] == 0


def snapshot_flips(folder: Path) -> None:
    checkers.Torn(folder, proof=False)
    disk = ProbeDisk(os.fsencode(folder))
    checkers.Writer(disk).close(seal=False)
    second = checkers.segment_names(disk)[-1]
    data = (folder / second).read_bytes()
    (start, end, _) = checkers.batches_in(data, checkers.HEADER_SIZE_BYTES + 1)[0]
    places = [(second, bit) for bit in range((start + 128) * 8, end * 8)]
    seen = checkers.check_flips_on_disk(folder, places)
    assert seen["refused"] == len(places)


# -- the bugs --------------------------------------------------------------------------------------


def acknowledged_before_fsync(patch: pytest.MonkeyPatch) -> None:
    def append(self: writer.SegmentWriter, messages: Any, confirmed_below: int) -> None:
        start = self.position
        buffers = self._pack(messages, self.durable_sequence, confirmed_below)
        self._disk.write(self._fd, buffers, start)

    patch.setattr(writer.SegmentWriter, "append", append)


def segment_named_before_fsync(patch: pytest.MonkeyPatch) -> None:
    plain = ForgetfulDisk.sync

    def sync(self: ForgetfulDisk, fd: int) -> None:
        if not any(name.startswith(".segment") for name in self.names()):
            plain(self, fd)

    patch.setattr(ForgetfulDisk, "sync", sync)


def folder_never_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ForgetfulDisk, "sync_folder", lambda self: None)


def fsync_tried_again(patch: pytest.MonkeyPatch) -> None:
    plain = writer.SegmentWriter.append

    def append(self: writer.SegmentWriter, messages: Any, confirmed_below: int) -> None:
        try:
            plain(self, messages, confirmed_below)
        except OSError:
            self.failed = False
            self._disk.sync_data(self._fd)

    patch.setattr(writer.SegmentWriter, "append", append)


def failed_segment_is_sealed(patch: pytest.MonkeyPatch) -> None:
    plain = writer.SegmentWriter.seal

    def seal(self: writer.SegmentWriter) -> None:
        self.failed = False
        plain(self)

    patch.setattr(writer.SegmentWriter, "seal", seal)


def epoch_checked_before_the_write_only(patch: pytest.MonkeyPatch) -> None:
    def append(self: file.FileWal, messages: Any, confirmed_below: int) -> None:
        if not self._term.is_current():
            raise self._fenced()
        self.tip.append(messages, confirmed_below)
        self.confirmed = (len(self.segments) - 1, self.tip.position)

    patch.setattr(file.FileWal, "append", append)


def epoch_never_checked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fence.Term, "is_current", lambda self: True)


def log_read_before_the_term_is_taken(patch: pytest.MonkeyPatch) -> None:
    """The taker looks at the log first, and creates its term when it has seen all."""
    plain = fence.acquire

    def acquire(disk: Any, *args: Any, **options: Any) -> fence.Term:
        read_all = disk.read_all
        seen = {name: read_all(name) for name in disk.names() if name.endswith(".seg")}
        patch.setattr(disk, "read_all", lambda name: seen.get(name) or read_all(name))
        return plain(disk, *args, **options)

    patch.setattr(fence, "acquire", acquire)


def torn_tail_left_in_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(file, "repair_tail", lambda *args: [])


def torn_tail_not_saved(patch: pytest.MonkeyPatch) -> None:
    plain = repair._cut

    def cut(disk: Any, *args: Any) -> Any:
        done = plain(disk, *args)
        disk.unlink(done.saved)
        return done

    patch.setattr(repair, "_cut", cut)


def damage_taken_for_a_torn_tail(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(repair, "later_proof", lambda *args: None)


def body_checksum_skipped(patch: pytest.MonkeyPatch) -> None:
    def problem(data: Any, at: int, header: Any, seed: int, sequence: int) -> str:
        if not scan.header_is_valid(data, at, header, seed) or at + header.size > len(data):
            return "bad"
        return ""

    patch.setattr(scan, "batch_problem", problem)
    patch.setattr(file_scanner, "crc32c", lambda data: _Anything())


def header_checksum_skipped(patch: pytest.MonkeyPatch) -> None:
    def valid(data: Any, at: int, header: Any, seed: int) -> bool:
        return bool(header.magic == b"WALB")

    patch.setattr(scan, "header_is_valid", valid)
    patch.setattr(file_scanner, "header_is_valid", valid)


class _Anything:
    """Equal to all, so that a comparison finds nothing."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def snapshot_checksum_skipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chain, "crc32c", lambda data: _Anything())


def index_trusted_over_data(patch: pytest.MonkeyPatch) -> None:
    def split(self: Any, data: memoryview, start: int, limit: int) -> Any:
        self._position = start + len(data)
        return [], 0

    patch.setattr(file_scanner.FileScanner, "_split", split)


def sequences_not_restored(patch: pytest.MonkeyPatch) -> None:
    plain = ChannelState.apply

    def apply(self: ChannelState, header: Any, body: Any) -> None:
        plain(self, header, body)
        self.next_sequence -= 1

    patch.setattr(ChannelState, "apply", apply)


def offsets_not_restored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChannelState, "_apply_insert", lambda self, vchannel, header: None)


def timestamps_not_kept_ahead(patch: pytest.MonkeyPatch) -> None:
    """The mark is written and never read, and replay forgets the log's own timestamps."""
    plain = ChannelState.apply

    def apply(self: ChannelState, header: Any, body: Any) -> None:
        tso = self.tso
        plain(self, header, body)
        self.tso = tso

    patch.setattr(ChannelState, "apply", apply)
    patch.setattr(TsoMark, "cover", lambda self, tso: None)


def predecessor_without_a_length(patch: pytest.MonkeyPatch) -> None:
    """Whatever a fenced owner adds later belongs to the log then."""
    plain = file.SegmentHeader

    def header(pchannel: int, id: Any, before: Any, *rest: Any) -> SegmentHeader:
        return plain(pchannel, id, before._replace(valid_length=1 << 40), *rest)

    patch.setattr(file, "SegmentHeader", header)


BUGS: list[tuple[Plant, Check]] = [
    (acknowledged_before_fsync, power_cuts),
    (segment_named_before_fsync, power_cuts),
    (folder_never_synced, power_cuts),
    (fsync_tried_again, failing_syncs),
    (failed_segment_is_sealed, failing_syncs),
    (epoch_checked_before_the_write_only, takeovers),
    (epoch_never_checked, takeovers),
    (log_read_before_the_term_is_taken, appends_inside_takeovers),
    (torn_tail_left_in_place, torn),
    (torn_tail_not_saved, torn),
    (damage_taken_for_a_torn_tail, corrupt),
    (body_checksum_skipped, flips),
    (header_checksum_skipped, flips),
    (snapshot_checksum_skipped, snapshot_flips),
    (index_trusted_over_data, check_index),
    (sequences_not_restored, power_cuts),
    (offsets_not_restored, power_cuts),
    (timestamps_not_kept_ahead, power_cuts),
    (predecessor_without_a_length, takeovers),
]


@pytest.mark.parametrize(("plant", "check"), BUGS, ids=lambda one: one.__name__)
def test_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant, check: Check
) -> None:
    plant(monkeypatch)
    expect_failure(lambda: check(tmp_path))


@pytest.mark.parametrize(
    "check",
    [
        power_cuts,
        takeovers,
        appends_inside_takeovers,
        failing_syncs,
        torn,
        corrupt,
        flips,
        snapshot_flips,
    ],
)
def test_no_false_alarm(tmp_path: Path, check: Check) -> None:
    """The same checkers find nothing where nothing was planted."""
    check(tmp_path)
