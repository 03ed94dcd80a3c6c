"""Row 5: every call that touches the disk fails once; nothing is acknowledged after it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.faults.checkers import check_failing_call
from tests.storage.disks import ProbeDisk
from tests.storage.writer import Writer
from wal_core.errors import BugError

OPERATIONS = ["write", "sync", "sync_data", "sync_folder", "link", "create", "rename", "truncate"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_eio_at_the_nth_call(tmp_path: Path, operation: str) -> None:
    for nth in itertools.count(1):
        if not check_failing_call(tmp_path, operation, nth):
            break
    assert nth > 1, f"{operation} was never called"


def test_a_failed_segment_takes_no_more(tmp_path: Path) -> None:
    disk = ProbeDisk(os.fsencode(tmp_path))
    writer = Writer(disk)
    writer.create()

    def probe(operation: str, moment: str, fd: int) -> None:
        if operation == "sync_data":
            raise OSError(5, "EIO")

    disk.probe = probe
    with pytest.raises(OSError, match="EIO"):
        writer.append([b"a"])
    disk.probe = lambda operation, moment, fd: None
    with pytest.raises(BugError):
        writer.append([b"b"])
    assert writer.rows() == []
    writer.close()
