"""What clients owe the daemon, and until when. One timer for all; none while nobody owes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable


class Deadlines:
    """Each key has a deadline and what to do when it passes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, key: Hashable, seconds: float, late: Callable[[], None]) -> None:
        """Call ``late`` unless ``clear`` comes within ``seconds``. A running one is left alone."""
        if key in self._due:
            return
        when = self._loop.time() + seconds
        self._due[key] = (when, late)
        if self._timer is None or when < self._timer.when():
            self._arm(when)

    def clear(self, key: Hashable) -> None:
        self._due.pop(key, None)
        if not self._due:
            self.close()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, when: float) -> None:
        self.close()
        self._timer = self._loop.call_at(when, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        for key, (when, late) in tuple(self._due.items()):
            if when <= now:
                del self._due[key]
                late()
        if self._due and self._timer is None:
            self._arm(min(when for when, _ in self._due.values()))
