"""What is remembered of producers, and for how long."""

from __future__ import annotations

import random

import pytest

from wal_core.errors import OutOfSequenceError, ProducerFencedError, ThrottledError, WalError
from wal_core.limits import (
    ANONYMOUS_PRODUCER_SECONDS,
    NAMED_PRODUCER_SECONDS,
    PRODUCER_RESULTS_MAX,
)
from wal_core.tso import tso_from_ms
from wal_storage import producers as module
from wal_storage.producers import Producer, Producers, Result

NAMED = 1 << 63
DAY = tso_from_ms(NAMED_PRODUCER_SECONDS * 1000)
TEN_MINUTES = tso_from_ms(ANONYMOUS_PRODUCER_SECONDS * 1000)


def _producers() -> Producers:
    return Producers({})


def _write(producers: Producers, id: int, epoch: int, sequence: int, tso: int = 1) -> Result:
    """Judge and note a batch, as its sequencer does. Its first offset is 10 times its sequence."""
    known = producers.judge(id, epoch, sequence, dense=True)
    if known is not None:
        return known
    result = (sequence, sequence * 10, 1, tso)
    producers.note(id, epoch, result)
    return result


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("base", [0, NAMED], ids=["anonymous", "named"])
@pytest.mark.parametrize("dense", [True, False])
def test_judgements_against_a_plain_model(base: int, dense: bool, seed: int) -> None:
    """The model keeps everything for ever."""
    chance = random.Random(seed)
    producers = _producers()
    written: dict[int, tuple[int, list[Result]]] = {}
    for step in range(600):
        id = base + chance.randint(1, 3)
        epoch, results = written.get(id, (0, []))
        last = results[-1][0] if results else 0
        sequence = max(1, last + chance.choice((1, 1, 1, 1, 2, 0, -1, -5, -70)))
        said = epoch + chance.choice((0,) * 30 + (1, -1))
        begins = id not in written or said > epoch
        try:
            found: Result | type[WalError] | None = producers.judge(id, said, sequence, dense=dense)
        except WalError as error:
            found = type(error)
        if begins:
            expected: object = None if sequence == 1 or base else OutOfSequenceError
        elif said < epoch:
            expected = ProducerFencedError
        elif sequence <= last:
            kept = [one for one in results[-PRODUCER_RESULTS_MAX:] if one[0] == sequence]
            expected = kept[0] if kept else OutOfSequenceError
        else:
            free = bool(base) and not dense
            expected = None if sequence == last + 1 or free else OutOfSequenceError
        assert found == expected, (step, id, said, sequence, epoch, last)
        if found is None:
            result = (sequence, step, 1, step)
            producers.note(id, said, result)
            written[id] = (said, [result] if begins else [*results, result])


def test_errors_name_the_last_sequence() -> None:
    producers = _producers()
    _write(producers, 1, 0, 1)
    with pytest.raises(OutOfSequenceError) as caught:
        _write(producers, 1, 0, 3)
    assert caught.value.details == {"sequence": 3, "last": 1}
    with pytest.raises(OutOfSequenceError) as caught:
        _write(producers, 2, 0, 2)
    assert caught.value.details == {"sequence": 2, "last": 0}


def test_to_judge_changes_nothing() -> None:
    producers = _producers()
    _write(producers, 1, 0, 1)
    for epoch, sequence in ((0, 1), (0, 2), (1, 1)):
        producers.judge(1, epoch, sequence, dense=True)
    assert producers.by_id == {1: Producer(0, 1, 1, [(1, 10, 1, 1)])}


def test_a_newer_epoch_forgets_the_results_of_the_older_one() -> None:
    producers = _producers()
    for sequence in (1, 2, 3):
        _write(producers, 1, 0, sequence)
    _write(producers, 1, 1, 1, tso=9)
    assert producers.by_id == {1: Producer(1, 1, 9, [(1, 10, 1, 9)])}


def test_ages_are_those_of_the_last_batch() -> None:
    producers = _producers()
    start = tso_from_ms(1_700_000_000_000)
    for id in (1, NAMED + 1):
        _write(producers, id, 0, 1, start)
        _write(producers, id, 0, 2, start + 1000)
    last = start + 1000
    producers.forget_expired(last + TEN_MINUTES)
    assert set(producers.by_id) == {1, NAMED + 1}
    producers.forget_expired(last + TEN_MINUTES + 1)
    assert set(producers.by_id) == {NAMED + 1}
    producers.forget_expired(last + DAY)
    assert set(producers.by_id) == {NAMED + 1}
    producers.forget_expired(last + DAY + 1)
    assert producers.by_id == {}


def test_many_short_lived_ones_are_forgotten_on_the_way() -> None:
    producers = _producers()
    step = TEN_MINUTES // 100  # 100 of them are young enough at any time.
    most = 0
    for id in range(1, 20_000):
        _write(producers, id, 0, 1, id * step)
        most = max(most, len(producers.by_id))
    assert most <= module.PRODUCERS_LOOK_AT
    assert 19_999 in producers.by_id


def test_room_is_made_of_expired_ones_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRODUCERS_MAX", 3)
    producers = _producers()
    start = TEN_MINUTES
    for id, tso in ((1, start), (2, start + 5), (3, start + 5)):
        producers.check_room(id, tso)
        _write(producers, id, 0, 1, tso)
    now = start + TEN_MINUTES
    for known in (1, 2, 3):
        producers.check_room(known, now)
    with pytest.raises(ThrottledError):
        producers.check_room(4, now)
    producers.check_room(4, now + 1)
    assert set(producers.by_id) == {2, 3}
