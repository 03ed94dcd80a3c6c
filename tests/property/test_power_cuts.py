"""Any history of appends, clean restarts and power cuts leaves what was acknowledged."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.checkers import check_power_cuts
from tests.storage.disks import ProbeDisk
from tests.storage.writer import V1, V2, ManualClock, Writer

# Processes die here in the middle of everything, and leave their files to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect them before another module's tests meet the warning."""
    yield
    gc.collect()


SEEDS = int(os.environ.get("WALSTREAM_TEST_SEEDS", "120"))
KNOWN: list[int] = [1, 2, 3]
"""Seeds that once failed, and a few that never did."""


def test_random_power_cuts(tmp_path: Path) -> None:
    base = random.SystemRandom().randrange(1 << 32)
    print(f"seeds {base}..{base + SEEDS - 1}")
    for seed in range(base, base + SEEDS):
        check_power_cuts(tmp_path / str(seed), seed)


@pytest.mark.parametrize("seed", KNOWN)
def test_known_power_cuts(tmp_path: Path, seed: int) -> None:
    check_power_cuts(tmp_path, seed)


steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "stop", "crash", "tear", "read", "mark"]),
        st.integers(1, 6),
        st.sampled_from([0, 3, 500, 40_000]),
    ),
    max_size=25,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_any_history_equals_the_model(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    disk = ProbeDisk(os.fsencode(folder))
    clock = ManualClock()
    model: dict[int, list[bytes]] = {V1: [], V2: []}
    writer = Writer(disk, clock=clock)
    writer.create(V1, "a")
    writer.create(V2, "b")
    tso = writer.tso.last
    for number, (what, count, size) in enumerate(history):
        clock.pass_ms(size)
        if what == "append":
            batches = [
                ((V1, V2)[at % 2], [b"%d.%d" % (number, at) + b"\n" * (at % 2) + b"x" * size])
                for at in range(count)
            ]
            writer.group(batches)
            for vchannel, bodies in batches:
                model[vchannel] += bodies
        elif what == "mark":
            writer.mark()
        elif what == "read":
            for vchannel, rows in model.items():
                offset = min(count * 3, len(rows))
                assert writer.rows(vchannel, offset) == rows[offset:]
        else:
            position, name = writer.wal.tip.position, writer.wal.tip_id.file_name
            writer.close(seal=what == "stop")
            if what == "tear":
                with open(folder / name, "r+b") as file:
                    file.seek(position)
                    file.write(bytes(range(1, count * 40)))
            writer = Writer(disk, clock=clock)
            assert len(writer.cuts) == (what == "tear")
        assert writer.tso.last >= tso
        tso = writer.tso.last
    for vchannel, rows in model.items():
        assert writer.rows(vchannel) == rows
        assert writer.state.vchannels[vchannel].next_offset == len(rows)
    live = writer.state.snapshot()
    writer.close(seal=False)
    again = Writer(disk, clock=clock)
    for one in (live, again.state.snapshot()):
        assert one
    assert again.state.vchannels == writer.state.vchannels
    again.close()
    disk.close()
