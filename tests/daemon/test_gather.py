"""When a group is complete."""

from __future__ import annotations

from wal_daemon.wal.gather import PARTY_MAX, QUIET_MAX_SECONDS, Gathering

WRITERS = [object() for _ in range(200)]


def test_a_single_writer_is_never_waited_for() -> None:
    gathering = Gathering()
    for turn in range(3):
        assert gathering.is_complete(1, float(turn))
        gathering.committed(WRITERS[7:8], 0.001)


def test_it_waits_for_those_of_the_last_two_groups_while_they_come() -> None:
    gathering = Gathering()
    gathering.committed(WRITERS[1:3], 0.0004)
    gathering.committed(WRITERS[3:5], 0.0004)
    assert not gathering.is_complete(1, 10.0)
    assert not gathering.is_complete(2, 10.00005)
    assert not gathering.is_complete(3, 10.00010)
    assert gathering.is_complete(4, 10.00015)


def test_a_pause_ends_the_wait() -> None:
    gathering = Gathering()
    gathering.committed(WRITERS[:50], 0.0004)
    assert not gathering.is_complete(3, 10.0)
    assert not gathering.is_complete(3, 10.00009)
    assert gathering.is_complete(3, 10.00011)


def test_the_pause_is_bounded_however_slow_the_disk() -> None:
    gathering = Gathering()
    gathering.committed(WRITERS[:50], 5.0)
    assert not gathering.is_complete(3, 10.0)
    assert gathering.is_complete(3, 10.0 + 2 * QUIET_MAX_SECONDS)


def test_who_left_is_forgotten_after_two_groups() -> None:
    gathering = Gathering()
    gathering.committed(WRITERS[:50], 0.001)
    gathering.committed(WRITERS[:1], 0.001)
    gathering.committed(WRITERS[:1], 0.001)
    assert gathering.is_complete(1, 10.0)


def test_a_large_group_waits_for_nobody() -> None:
    gathering = Gathering()
    gathering.committed(WRITERS[: PARTY_MAX + 1], 0.001)
    assert gathering.is_complete(1, 10.0)
