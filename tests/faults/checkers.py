"""Checkers: each runs a history with faults and raises AssertionError where a promise is broken.

They are functions so that the tests of the suite itself can plant a bug and see them fail."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.storage.disks import ForgetfulDisk, ProbeDisk
from tests.storage.writer import V1, ManualClock, Writer, segment_names
from wal_core.errors import CorruptError, FencedError, WalError
from wal_core.message import MessageType, unpack_header
from wal_storage.disk import Disk
from wal_storage.log.format import HEADER_SIZE_BYTES
from wal_storage.log.repair import BROKEN_SUFFIX


class PowerCut(BaseException):
    """The machine stops here. No handler of the code under test may catch it."""


# -- power cuts ------------------------------------------------------------------------------------


def check_power_cuts(folder: Path, seed: int, rounds: int = 6) -> None:
    """Append, stop at a random call, keep what was synced and a part of the rest, start again."""
    chance = random.Random(seed)
    path = folder / "0"
    path.mkdir(parents=True)
    acknowledged: list[bytes] = []
    in_flight: list[list[bytes]] = []
    marks = [0]
    clock = ManualClock()
    for number in range(rounds):
        left = [chance.randint(5, 60)]
        disk = ForgetfulDisk(os.fsencode(path))

        def probe(operation: str, moment: str, fd: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise PowerCut

        disk.probe = probe
        writer = None
        try:
            writer = Writer(disk, clock=clock)
            seen = writer.rows() if writer.state.vchannels else []
            acknowledged = _agreed(seed, acknowledged, in_flight, seen)
            in_flight = []
            assert writer.state.tso >= max(marks), f"seed {seed}: a timestamp went back"
            if not writer.state.vchannels:
                writer.create()
            while True:
                in_flight = [_bodies(chance) for _ in range(chance.randint(1, 3))]
                writer.group([(V1, bodies) for bodies in in_flight])
                acknowledged += [body for bodies in in_flight for body in bodies]
                in_flight = []
                marks.append(writer.tso.last)
                if chance.random() < 0.2:
                    writer.mark()
                if chance.random() < 0.1:
                    writer.close()
                    writer = Writer(disk, clock=clock)
                clock.pass_ms(chance.choice((0, 1, 20_000)))
        except PowerCut:
            pass
        disk.probe = lambda operation, moment, fd: None
        path = folder / str(number + 1)
        disk.cut_power(os.fsencode(path), chance)
        if writer is not None:
            writer.close(seal=False)
        disk.close()
        shutil.rmtree(folder / str(number))
    final = Writer(ProbeDisk(os.fsencode(path)), clock=clock)
    seen = final.rows() if final.state.vchannels else []
    _agreed(seed, acknowledged, in_flight, seen)
    assert final.state.tso >= max(marks), f"seed {seed}: a timestamp went back"
    final.close()


def _bodies(chance: random.Random) -> list[bytes]:
    return [chance.randbytes(chance.randint(0, 700)) for _ in range(chance.randint(1, 4))]


def _agreed(
    seed: int, acknowledged: list[bytes], in_flight: list[list[bytes]], seen: list[bytes]
) -> list[bytes]:
    """The log holds what was acknowledged, and perhaps whole batches of the group under way."""
    allowed = [acknowledged + [body for one in in_flight[:n] for body in one] for n in range(4)]
    assert seen in allowed, f"seed {seed}: {len(acknowledged)} rows acknowledged, {len(seen)} found"
    return seen


# -- torn writes -----------------------------------------------------------------------------------


class Torn:
    """A log whose last batch can be spoilt again and again."""

    def __init__(self, folder: Path, *, proof: bool) -> None:
        disk = ProbeDisk(os.fsencode(folder))
        writer = Writer(disk)
        writer.create()
        self.kept = [b"one", b"two" * 20]
        for body in self.kept:
            writer.append([body])
        tip = writer.wal.tip
        self.start = tip.position
        self.last = [b"last", b"of all"]
        writer.append(self.last)
        self.end = tip.position
        if proof:
            writer.mark()
        self.proof_end = tip.position
        self.name = tip.id.file_name
        writer.close(seal=False)
        disk.close()
        self.folder = folder
        self.files = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def spoilt(self, data: bytes) -> None:
        """The folder as it was, with these bytes in the tip."""
        restore(self.folder, self.files | {self.name: data})


def spoilings(whole: bytes, at: int, end: int) -> list[tuple[str, bytes]]:
    """What a torn write may leave of a batch that ends at ``end``, from byte ``at`` on."""
    chance = random.Random(at)
    garbage = chance.randbytes(end - at)
    if garbage[:1] == whole[at : at + 1]:
        garbage = bytes([garbage[0] ^ 0xFF]) + garbage[1:]
    return [
        ("cut", whole[:at]),
        ("zeros", whole[:at] + bytes(end - at) + whole[end:]),
        ("garbage", whole[:at] + garbage + whole[end:]),
        ("one byte", whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :]),
    ]


def check_torn(folder: Path, step: int = 1) -> None:
    """Without a later proof: exactly the valid prefix, and the rest saved beside it."""
    torn = Torn(folder, proof=False)
    whole = torn.files[torn.name]
    for at in range(torn.start, torn.end, step):
        for how, data in spoilings(whole, at, torn.end):
            torn.spoilt(data)
            disk = ProbeDisk(os.fsencode(folder))
            writer = Writer(disk)
            # Zeros in place of bytes that were zero anyway leave the batch whole.
            same = data[: torn.end] == whole[: torn.end]
            expected = torn.kept + (torn.last if same else [])
            assert writer.rows() == expected, f"{how} at {at}"
            left = data[torn.start :].rstrip(b"\0")
            saved = [name for name in disk.names() if name.endswith(BROKEN_SUFFIX)]
            if same or not left:
                assert not saved, f"{how} at {at}: nothing was torn"
            else:
                assert len(saved) == 1, f"{how} at {at}: the torn tail was not saved"
                assert (folder / saved[0]).read_bytes() == left
                assert [cut.offset for cut in writer.cuts] == [torn.start]
            writer.append([b"goes on"])
            writer.close()
            again = Writer(disk)
            assert again.rows() == [*expected, b"goes on"], f"{how} at {at}"
            again.close(seal=False)
            disk.close()


def check_corrupt(folder: Path, step: int = 1) -> None:
    """With a later proof: refused, with file and offset; and the file stays as it is."""
    torn = Torn(folder, proof=True)
    whole = torn.files[torn.name]
    for at in range(torn.start, torn.end, step):
        for how, data in spoilings(whole, at, torn.end)[1:]:
            if data == whole:
                continue
            torn.spoilt(data)
            disk = ProbeDisk(os.fsencode(folder))
            caught = None
            try:
                Writer(disk).close(seal=False)
            except CorruptError as error:
                caught = error
            assert caught is not None, f"{how} at {at}: damage below a proof was taken for torn"
            assert caught.details["file"] == torn.name
            assert caught.details["offset"] == torn.start
            assert torn.name in caught.message
            assert (folder / torn.name).read_bytes() == data
            disk.close()


# -- takeovers -------------------------------------------------------------------------------------


def check_takeover(folder: Path, seed: int) -> None:
    """Take over between two random calls of the old owner's append; nothing acknowledged is lost,
    and the old owner gives up."""
    chance = random.Random(seed)
    disk = ProbeDisk(os.fsencode(folder))
    clock = ManualClock()
    old = Writer(disk, clock=clock, node="old", segment_size=256 * 1024)
    if not old.state.vchannels:
        old.create()
    before = old.rows()
    acknowledged: list[bytes] = []
    left = [chance.randint(1, 30)]
    new: list[Writer] = []
    taken = Disk(os.fsencode(folder))

    def probe(operation: str, moment: str, fd: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            second = ProbeDisk(os.fsencode(folder))
            new.append(Writer(second, clock=clock, node="new", takeover=True))
            new[0].append([b"of the new owner"])

    disk.probe = probe
    fenced = False
    try:
        for number in itertools.count():
            body = b"%d.%d" % (seed, number) + b"x" * chance.choice((0, 0, 90_000))
            old.append([body])
            acknowledged.append(body)
            if new and number > 200:
                break
    except FencedError:
        fenced = True
    assert fenced, f"seed {seed}: the old owner goes on"
    owner = new[0]
    owner.append([b"again"])
    rows = owner.rows()
    at = rows.index(b"of the new owner", len(before))
    inherited = rows[len(before) : at]
    assert rows[: len(before)] == before, f"seed {seed}"
    assert inherited[: len(acknowledged)] == acknowledged, f"seed {seed}: acknowledged and lost"
    assert len(inherited) <= len(acknowledged) + 1, f"seed {seed}"
    assert rows[at:] == [b"of the new owner", b"again"]
    old.close(seal=True)  # A fenced owner seals nothing.
    owner.close()
    check = Writer(taken, clock=clock)
    assert check.rows() == rows, f"seed {seed}: the old owner changed the log"
    assert check.state.tso >= owner.tso.last, f"seed {seed}: a timestamp went back"
    check.close()
    owner.disk.close()
    disk.close()
    taken.close()


def check_append_inside_takeover(folder: Path, step: int) -> bool:
    """The old owner appends at every call of the taker from the given one on. Returns whether the
    takeover was long enough to meet that call."""
    clock = ManualClock()
    old = Writer(ProbeDisk(os.fsencode(folder)), clock=clock, node="old")
    old.create()
    old.append([b"first"])
    acknowledged = [b"first"]
    left = [step]
    second = ProbeDisk(os.fsencode(folder))

    def probe(operation: str, moment: str, fd: int) -> None:
        left[0] -= 1
        if left[0] <= 0 and old.wal.is_current():
            body = b"%s %s %d" % (operation.encode(), moment.encode(), left[0])
            try:
                old.append([body])
            except FencedError:
                return
            acknowledged.append(body)

    second.probe = probe
    new = Writer(second, clock=clock, node="new", takeover=True)
    second.probe = lambda operation, moment, fd: None
    rows = new.rows()
    assert rows[: len(acknowledged)] == acknowledged, f"step {step}: acknowledged and lost"
    assert len(rows) <= len(acknowledged) + 1
    new.append([b"goes on"])
    assert new.rows() == [*rows, b"goes on"]
    new.close()
    old.close()
    second.close()
    return left[0] <= 0


# -- failing calls ---------------------------------------------------------------------------------


def check_failing_call(folder: Path, operation: str, nth: int) -> bool:
    """The nth call of an operation fails with EIO, and what it should have made durable is gone.
    Returns whether the run was long enough to meet it."""
    path = folder / f"{operation}-{nth}"
    path.mkdir()
    disk = ForgetfulDisk(os.fsencode(path))
    calls = [0]
    failed: list[int] = []
    # A descriptor's number is soon another file's; the disk knows which file it is.
    synced_again: list[int] = []

    def probe(name: str, moment: str, fd: int) -> None:
        if moment != "before":
            return
        file = disk.file_of(fd) if fd >= 0 else -1
        if failed and name in ("sync", "sync_data", "write") and file == failed[0]:
            synced_again.append(file)
        if name == operation and not failed:
            calls[0] += 1
            if calls[0] == nth:
                failed.append(file)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.probe = probe
    acknowledged: list[bytes] = []
    writer = None
    try:
        writer = Writer(disk)
        writer.create()
        for number in range(8):
            body = b"%d" % number + b"x" * 80_000
            writer.append([body])
            # The footer of an older segment may fail: nothing rests on it.
            assert not failed or writer.housekeeper.failures, "acknowledged after EIO"
            acknowledged.append(body)
        writer.mark()
        writer.close()
    except OSError:
        assert failed
        if writer is not None:
            writer.close(seal=True)  # Must do nothing to a file that has failed.
    assert not synced_again, f"{operation} {nth}: the file was written or synced again"
    disk.probe = lambda name, moment, fd: None
    after = folder / f"{operation}-{nth}-after"
    disk.cut_power(os.fsencode(after), random.Random(nth))
    disk.close()
    again = Writer(ProbeDisk(os.fsencode(after)))
    rows = again.rows() if again.state.vchannels else []
    assert rows[: len(acknowledged)] == acknowledged, f"{operation} {nth}: acknowledged and lost"
    assert len(rows) <= len(acknowledged) + 1
    again.close()
    again.disk.close()
    return bool(failed)


# -- flipped bits ----------------------------------------------------------------------------------


def check_flips_on_disk(folder: Path, places: list[tuple[str, int]]) -> dict[str, int]:
    """Flip one bit of one file at a time and open the log. Each flip is refused, reported as a cut
    or harmless; rows that come out are the right ones, always. Returns how often which was seen."""
    files = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    disk = ProbeDisk(os.fsencode(folder))
    writer = Writer(disk)
    expected = writer.rows()
    writer.close(seal=False)
    seen = {"refused": 0, "cut": 0, "harmless": 0}
    for name, bit in places:
        restore(folder, files)
        data = bytearray(files[name])
        data[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(data)
        seen[_fate(disk, expected, f"{name} bit {bit}")] += 1
    restore(folder, files)
    disk.close()
    return seen


def _fate(disk: Disk, expected: list[bytes], where: str) -> str:
    writer = None
    found: list[bytes] = []
    try:
        writer = Writer(disk)
        writer.rows(found=found)
    except WalError:
        assert found == expected[: len(found)], where
        return "refused"
    finally:
        if writer is not None:
            writer.close(seal=False)
    if writer.cuts:
        assert found == expected[: len(found)], where
        return "cut"
    assert found == expected, f"{where}: silently other rows"
    return "harmless"


# -- helpers ---------------------------------------------------------------------------------------


def expect_failure(check: Callable[[], object]) -> None:
    """The checker must find the planted bug: by its own assertion or by an error of the log."""
    with pytest.raises((AssertionError, WalError, ValueError, OSError, pytest.fail.Exception)):
        check()


def restore(folder: Path, files: dict[str, bytes]) -> None:
    """Make a folder hold just these files."""
    for present in os.listdir(folder):
        if present not in files:
            os.unlink(folder / present)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def batches_in(data: bytes, end: int) -> list[tuple[int, int, MessageType]]:
    """(start, end, type) of the batches of a segment."""
    found = []
    at = HEADER_SIZE_BYTES
    while at < end:
        header = unpack_header(data, at)
        found.append((at, at + header.size, MessageType(header.type)))
        at += header.size
    return found


def only_segment(disk: Disk) -> str:
    names = segment_names(disk)
    assert len(names) == 1
    return names[0]
