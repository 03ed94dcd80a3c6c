"""Row 7: take over between any two steps of the old owner."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

from tests.faults.checkers import check_append_inside_takeover, check_takeover
from tests.storage.disks import ProbeDisk
from tests.storage.writer import Writer
from wal_core.tso import tso_from_ms
from wal_storage.tso_mark import read_mark

TAKEOVERS = 300


def test_random_takeovers(tmp_path: Path) -> None:
    base = random.SystemRandom().randrange(1 << 32)
    print(f"seeds {base}..{base + TAKEOVERS - 1}")
    for seed in range(base, base + TAKEOVERS):
        folder = tmp_path / str(seed // 10)  # Ten takeovers of one and the same log.
        folder.mkdir(exist_ok=True)
        check_takeover(folder, seed)


@pytest.mark.parametrize("step", range(1, 25))
def test_every_step(tmp_path: Path, step: int) -> None:
    """Seeds are searched for, so that each number of calls before the takeover is met."""
    seed = next(seed for seed in range(10_000) if random.Random(seed).randint(1, 30) == step)
    check_takeover(tmp_path, seed)


def test_appends_at_every_step_of_the_taker(tmp_path: Path) -> None:
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        folder.mkdir()
        if not check_append_inside_takeover(folder, step):
            break
    assert step > 20


def test_a_fenced_owner_does_not_lower_the_timestamp_mark(tmp_path: Path) -> None:
    """It was stopped just before it writes its mark, and wakes up when the new owner's is higher.
    With one file for all terms the rename of the old owner put the lower mark in place."""
    old = Writer(ProbeDisk(os.fsencode(tmp_path)), node="old")
    old.create()
    new = Writer(ProbeDisk(os.fsencode(tmp_path)), node="new", takeover=True)
    high = old.tso.last + tso_from_ms(50_000)
    new.wal.cover(high)
    old.wal.cover(old.tso.last + tso_from_ms(11_000))
    assert read_mark(new.disk) >= high
    new.close(seal=False)
    old.close(seal=False)
    third = Writer(ProbeDisk(os.fsencode(tmp_path)))
    assert third.state.tso >= high
    third.wal.cover(third.state.tso + tso_from_ms(1))
    assert [name for name in third.disk.names() if name.startswith("tso.")] == ["tso.3"]
    third.close()


def test_a_folder_that_cannot_be_asked_acknowledges_nothing(tmp_path: Path) -> None:
    """`access` answers no to an I/O error as well as to a missing file: the check failed open."""
    disk = ProbeDisk(os.fsencode(tmp_path))
    writer = Writer(disk)
    writer.create()
    assert not disk.exists("term.9")
    os.symlink("nowhere", tmp_path / "dangling")
    assert disk.exists("dangling")
    with pytest.raises(OSError, match="too long"):
        disk.exists("x" * 300)
    writer.close()
