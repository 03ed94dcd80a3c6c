"""Row 8: one owner at a time; numbers of terms are never used twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage.disks import ProbeDisk
from tests.storage.writer import ManualClock, Writer
from wal_core.errors import BugError, FencedError, NodeHeldError
from wal_storage import fence
from wal_storage.disk import Disk
from wal_storage.fence import acquire, held, highest_term, holder


def test_a_second_owner_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    writer = Writer(ProbeDisk(os.fsencode(tmp_path)), node="first")
    with pytest.raises(NodeHeldError) as caught:
        Writer(ProbeDisk(os.fsencode(tmp_path)), node="second")
    assert f"pid {os.getpid()}" in caught.value.message
    assert "first" in caught.value.message
    assert caught.value.details["pid"] == os.getpid()
    assert highest_term(writer.disk.names()) == 1
    assert not [name for name in writer.disk.names() if name.endswith(".tmp")]
    writer.create()
    writer.append([b"goes on"])
    writer.close()


def test_takeover_goes_on_and_fences(tmp_path: Path) -> None:
    old = Writer(ProbeDisk(os.fsencode(tmp_path)), node="first")
    old.create()
    new = Writer(ProbeDisk(os.fsencode(tmp_path)), node="second", takeover=True)
    assert (old.wal.term, new.wal.term) == (1, 2)
    assert not old.wal.is_current()
    with pytest.raises(FencedError, match="node second") as caught:
        old.append([b"lost"])
    assert caught.value.details["pid"] == os.getpid()
    new.close()
    old.close()


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    disk = Disk(os.fsencode(tmp_path))
    clock = ManualClock()
    for number in range(1, 6):
        term = acquire(disk, clock, "n", "it")
        assert term.number == number
        term.release()
    # A lost term file does not bring a number back that a segment carries.
    os.unlink(tmp_path / "term.5")
    term = acquire(disk, clock, "n", "it", seen=5)
    assert term.number == 6
    term.release()
    assert sorted(disk.names()) == ["term.1", "term.2", "term.3", "term.4", "term.6"]
    disk.close()


def test_two_takers_at_once(tmp_path: Path) -> None:
    """The other one links first: both get a term, never the same."""
    clock = ManualClock()
    others = []

    class Slow(Disk):
        def link(self, existing: str, new: str) -> None:
            if not others:
                held_by = os.path.join(os.fsdecode(self.path), existing)
                os.rename(held_by, held_by + ".mine")  # As another process has another name.
                second = Disk(self.path)
                others.append(acquire(second, clock, "b", "it", takeover=True))
                os.rename(held_by + ".mine", held_by)
                second.close()
            super().link(existing, new)

    disk = Slow(os.fsencode(tmp_path))
    term = acquire(disk, clock, "a", "it", takeover=True)
    assert (others[0].number, term.number) == (1, 2)
    assert not [name for name in disk.names() if name.startswith(".")]
    term.release()
    others[0].release()
    disk.close()


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from wal_storage.disk import Disk\n"
        "from wal_storage.fence import acquire\n"
        "from wal_core.clock import SystemClock\n"
        "term = acquire(Disk(os.fsencode(sys.argv[1])), SystemClock(), 'n', 'it')\n"
        "print(term.number, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "1\n"
        disk = Disk(os.fsencode(tmp_path))
        owner.send_signal(signal.SIGSTOP)
        assert held(disk, 1)
        with pytest.raises(NodeHeldError, match=f"pid {owner.pid}"):
            acquire(disk, ManualClock(), "n", "it")
        owner.kill()
    assert not held(disk, 1)
    term = acquire(disk, ManualClock(), "n", "it")
    assert term.number == 2
    term.release()
    disk.close()


def test_a_program_that_was_started_does_not_inherit_the_lock(tmp_path: Path) -> None:
    disk = Disk(os.fsencode(tmp_path))
    term = acquire(disk, ManualClock(), "n", "it")
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        term.release()
        assert not held(disk, 1)
        child.kill()
    disk.close()


def test_a_forked_child_owns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process id is another one. (Not really forked here: a test run has threads.)"""
    writer = Writer(ProbeDisk(os.fsencode(tmp_path)))
    writer.create()
    size = writer.wal.tip.position
    parent = os.getpid()
    monkeypatch.setattr(fence.os, "getpid", lambda: parent + 1)
    assert not writer.wal.is_current()
    with pytest.raises(BugError, match="forked"):
        writer.append([b"x"])
    monkeypatch.undo()
    assert writer.wal.tip.position == size
    writer.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"3",
        b"[" * 100_000,
        json.dumps({"message": 1, "hint": 2, "self": 3, "node": "x"}).encode(),
    ],
)
def test_the_content_of_a_term_file_is_information_only(tmp_path: Path, content: bytes) -> None:
    disk = ProbeDisk(os.fsencode(tmp_path))
    writer = Writer(disk)
    (tmp_path / "term.1").write_bytes(content)
    assert set(holder(disk, 1)) <= {"node", "pid", "since"}
    with pytest.raises(NodeHeldError):
        Writer(ProbeDisk(os.fsencode(tmp_path)))
    writer.close()


def test_names_that_are_no_terms() -> None:
    assert (
        highest_term(["term.3", "term.x", "term.", "term.4.tmp", ".term.9.1.tmp", "term.-7"]) == 3
    )
