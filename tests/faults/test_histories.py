"""Row 11, in one process: clients that append, run transactions and read at once, a daemon that is
killed in between, and the checker. Row 16: the same while somebody sets the wall clock."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.clients import Plan, run_history

SEEDS = 15
LONG = Plan(writers=5, transactors=5, lives=6, steps=20)


def _run(folder: Path, base: int, count: int, plan: Plan) -> None:
    print(f"seeds {base}..{base + count - 1}")
    rows = 0
    for seed in range(base, base + count):
        one = folder / str(seed)
        one.mkdir()
        try:
            rows += run_history(one, seed, plan)
        except BaseException:
            print(f"seed {seed}")
            raise
    assert rows > 20 * count, "hardly anything was written"


def test_histories(tmp_path: Path) -> None:
    _run(tmp_path, random.SystemRandom().randrange(1 << 32), SEEDS, Plan())


def test_histories_while_the_clock_is_set(tmp_path: Path) -> None:
    _run(tmp_path, random.SystemRandom().randrange(1 << 32), SEEDS, Plan(jumps=True))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_known_histories(tmp_path: Path, seed: int) -> None:
    """The same seed, the same history: these never change by themselves."""
    counts = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        counts.append(run_history(tmp_path / folder, seed))
    assert counts[0] == counts[1]


@pytest.mark.torture
@pytest.mark.timeout(0)
@pytest.mark.parametrize("base", range(10_000, 30_000, 500))
def test_histories_for_long(tmp_path: Path, base: int) -> None:
    """20,000 seeds."""
    _run(tmp_path, base, 250, Plan())
    _run(tmp_path, base + 250, 250, Plan(jumps=True))


@pytest.mark.torture
@pytest.mark.timeout(0)
@pytest.mark.parametrize("base", range(100, 200, 10))
def test_long_histories(tmp_path: Path, base: int) -> None:
    """100 histories of about a thousand operations."""
    _run(tmp_path, base, 10, LONG)
