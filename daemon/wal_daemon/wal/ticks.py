"""When a time tick goes into a log whose WAL storage lands messages out of order. No I/O.

Readers of such a log can go on only as far as the last tick. Ticks follow load: one with the next
group where the last one is too long ago or too far away, one when the writers rest, and none when
there is nothing new to tell. An idle log gets no ticks, and no timer runs for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wal_core.limits import MARK_DELAY_SECONDS, TICK_INTERVAL_BYTES
from wal_core.message import Message, MessageType
from wal_daemon.pipeline.timetick import TimeTick

_TIME_TICK = int(MessageType.TIME_TICK)


class Ticks:
    """The ticks of one PChannel. Begins as if none had ever been told: the last ones of a former
    owner may be missing."""

    def __init__(self, timetick: TimeTick, monotonic: Callable[[], float]) -> None:
        self._timetick = timetick
        self._monotonic = monotonic
        self._told_at = monotonic()
        self._untold_bytes = 0
        timetick.told = 0

    @property
    def are_due(self) -> bool:
        """Whether the group that goes now has to bring one."""
        return self._timetick.is_due and (
            self._untold_bytes >= TICK_INTERVAL_BYTES
            or self._monotonic() - self._told_at >= MARK_DELAY_SECONDS
        )

    def confirmed(self, group: Sequence[Message]) -> bool:
        """A group was written. Whether there was a tick in it."""
        timetick = self._timetick
        ticks = [one for one in group if one.type == _TIME_TICK]
        if ticks:
            timetick.told = ticks[-1].tso
            self._told_at = self._monotonic()
            self._untold_bytes = 0
        others = [one for one in group if one.type != _TIME_TICK]
        if others:
            timetick.written = others[-1].tso
            self._untold_bytes += sum(one.size for one in others)
        return bool(ticks)
