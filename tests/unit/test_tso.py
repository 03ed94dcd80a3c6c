"""Timestamps never go back, whatever the clock does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.storage.writer import ManualClock
from wal_core.limits import CLOCK_JUMP_MAX_MS
from wal_core.tso import LOGICAL_BITS, TsoSource, ms_of, rfc3339, tso_from_ms

NOW = 1_700_000_000_000
steps = st.lists(
    st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 10**6), st.integers(1, 4)), max_size=30
)


@given(st.integers(0, 2**63), steps)
def test_strictly_increasing_under_any_clock(floor: int, moves: list[tuple[int, int, int]]) -> None:
    clock = ManualClock(NOW)
    source = TsoSource(clock, floor)
    last = floor
    for wall, steady, takes in moves:
        clock.ms += wall
        clock.steady += steady
        for _ in range(takes):
            tso = source.next()
            assert tso > last
            assert source.last == tso
            last = tso


@given(st.integers(CLOCK_JUMP_MAX_MS + 1, 10**12))
def test_a_jump_ahead_is_not_followed(jump: int) -> None:
    clock = ManualClock(NOW)
    source = TsoSource(clock, 0)
    clock.pass_ms(1000)
    clock.ms += jump
    assert ms_of(source.next()) == NOW + 1000
    assert source.jumped
    clock.pass_ms(500)
    assert ms_of(source.next()) == NOW + 1500


@given(st.lists(st.integers(1, CLOCK_JUMP_MAX_MS), min_size=1, max_size=9))
def test_many_small_jumps_do_not_add_up_to_a_large_one(jumps: list[int]) -> None:
    clock = ManualClock(NOW)
    source = TsoSource(clock, 0)
    for jump in jumps:
        clock.ms += jump
        assert ms_of(source.next()) <= NOW + CLOCK_JUMP_MAX_MS


def test_a_small_step_is_followed_and_a_step_back_is_waited_out() -> None:
    clock = ManualClock(NOW)
    source = TsoSource(clock, 0)
    clock.ms += CLOCK_JUMP_MAX_MS
    first = source.next()
    assert ms_of(first) == NOW + CLOCK_JUMP_MAX_MS
    assert not source.jumped
    clock.ms -= 3_600_000
    assert source.next() == first + 1


def test_the_logical_part_runs_over_into_the_next_millisecond() -> None:
    clock = ManualClock(NOW)
    source = TsoSource(clock, tso_from_ms(NOW + 1) - 1)
    assert source.next() == tso_from_ms(NOW + 1)
    assert ms_of(tso_from_ms(5) + (1 << LOGICAL_BITS) - 1) == 5


def test_rfc3339() -> None:
    assert rfc3339(1_769_860_800_123) == "2026-01-31T12:00:00.123Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
