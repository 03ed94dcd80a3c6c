"""Row 3: torn writes at every byte of the last batch and of its header."""

from __future__ import annotations

from pathlib import Path

import tests.faults.checkers as checkers


def test_every_byte_of_the_last_batch(tmp_path: Path) -> None:
    checkers.check_torn(tmp_path)


def test_every_byte_below_a_later_proof(tmp_path: Path) -> None:
    checkers.check_corrupt(tmp_path)
