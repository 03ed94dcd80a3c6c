"""What a VChannel remembers of its producers, so that no batch is ever written twice.

A producer is known by a 64-bit id. Named ones (and dedup ids) have the top bit set and are kept for
a day after their last batch; the random ids of clients without a name for ten minutes. Ages are
differences of timestamps, never of the wall clock, so replay judges as the daemon did.
"""

from __future__ import annotations

import msgspec

from wal_core.errors import OutOfSequenceError, ProducerFencedError, ThrottledError
from wal_core.limits import (
    ANONYMOUS_PRODUCER_SECONDS,
    NAMED_PRODUCER_SECONDS,
    PRODUCER_RESULTS_MAX,
    PRODUCERS_LOOK_AT,
    PRODUCERS_MAX,
)
from wal_core.names import is_named_producer
from wal_core.tso import LOGICAL_BITS

Result = tuple[int, int, int, int]
"""sequence, first offset (-1: staged in a transaction), rows, tso of a batch that was written."""


class Producer(msgspec.Struct, array_like=True, gc=False):
    """One producer in one VChannel."""

    epoch: int
    sequence: int
    """Of its last batch."""
    tso: int
    results: list[Result]
    """Of its last batches, oldest first."""

    def note(self, result: Result) -> None:
        """A batch was written."""
        self.sequence = result[0]
        self.tso = result[3]
        results = self.results
        results.append(result)
        if len(results) > PRODUCER_RESULTS_MAX:
            del results[0]

    def result_of(self, sequence: int) -> Result:
        """What a batch got that was written before. Raises OutOfSequenceError where that is
        forgotten."""
        for result in reversed(self.results):
            if result[0] == sequence:
                return result
        raise OutOfSequenceError(
            f"sequence {sequence} is not newer than the last one, {self.sequence}, "
            "and its result is no longer remembered",
            hint=f"the next sequence is {self.sequence + 1}",
            sequence=sequence,
            last=self.sequence,
        )


class Producers:
    """The producers of one VChannel."""

    __slots__ = ("_look_at", "by_id")

    def __init__(self, by_id: dict[int, Producer]) -> None:
        self.by_id = by_id
        self._look_at = PRODUCERS_LOOK_AT

    def judge(self, id: int, epoch: int, sequence: int, *, dense: bool) -> Result | None:
        """Whether a batch is the next one of its producer (None), or one that was written before
        (its result). ``dense``: a named producer's sequences go up by one here.

        Raises OutOfSequenceError, ProducerFencedError."""
        known = self.by_id.get(id)
        named = is_named_producer(id)
        if known is None or epoch > known.epoch:
            # A name may begin anywhere: its owner numbers its batches over months.
            if sequence == 1 or named:
                return None
            last = 0
        elif epoch < known.epoch:
            raise ProducerFencedError(
                f"epoch {known.epoch} of this producer has written; this is epoch {epoch}",
                hint="stop this process, or open the producer again to take its name back",
                epoch=known.epoch,
            )
        elif sequence <= known.sequence:
            return known.result_of(sequence)
        elif sequence == known.sequence + 1 or (named and not dense):
            return None
        else:
            last = known.sequence
        raise OutOfSequenceError(
            f"sequence {sequence} came where {last + 1} is due",
            hint=f"send sequence {last + 1} first",
            sequence=sequence,
            last=last,
        )

    def note(self, id: int, epoch: int, result: Result) -> None:
        """A batch was written that ``judge`` let pass."""
        known = self.by_id.get(id)
        if known is None or known.epoch != epoch:
            if len(self.by_id) >= self._look_at:
                self.forget_expired(result[3])
                self._look_at = max(PRODUCERS_LOOK_AT, 2 * len(self.by_id))
            known = self.by_id[id] = Producer(epoch, 0, 0, [])
        known.note(result)

    def check_room(self, id: int, tso: int) -> None:
        """Raises ThrottledError where one producer more is too many."""
        if len(self.by_id) < PRODUCERS_MAX or id in self.by_id:
            return
        self.forget_expired(tso)
        if len(self.by_id) >= PRODUCERS_MAX:
            raise ThrottledError(
                f"{PRODUCERS_MAX} producers are remembered in this shard; use fewer ids"
            )

    def forget_expired(self, now: int) -> None:
        """Let go of those whose last batch is too old at the timestamp ``now``."""
        anonymous = now - (ANONYMOUS_PRODUCER_SECONDS * 1000 << LOGICAL_BITS)
        named = now - (NAMED_PRODUCER_SECONDS * 1000 << LOGICAL_BITS)
        for id, producer in list(self.by_id.items()):
            if producer.tso < (named if is_named_producer(id) else anonymous):
                del self.by_id[id]
