"""The only place that reads the time or makes randomness. Handed in wherever either is needed."""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    """What the rest of the code may know of time and chance."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970, as the operator set the clock. May jump."""

    def elapsed_ms(self) -> int:
        """Milliseconds on a clock that never jumps and counts while the machine sleeps."""

    def monotonic(self) -> float:
        """Seconds, for deadlines and measurements."""

    def token(self) -> int:
        """63 random bits, for ids that nobody else makes."""


class SystemClock:
    """The machine's own clocks and randomness."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def elapsed_ms(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def token(self) -> int:
        return int.from_bytes(os.urandom(8), "little") >> 1


def sleep(seconds: float) -> None:
    """Block this thread. Only for command-line waits, never in the daemon."""
    time.sleep(seconds)
