"""Named places at which a test can kill, stop or delay the process.

Armed by ``wald --failpoint NAME=ACTION[:NTH]`` alone. Unarmed, a failpoint is one dictionary
look-up on an empty dictionary.
"""

from __future__ import annotations

import os
import signal

from wal_core.errors import UsageError

NAMES = (
    "term-created",
    "segment-written",
    "segment-linked",
    "rotate-before-link",
    "append-before-write",
    "append-after-write",
    "append-after-sync",
    "append-after-check",
    "seal-before-footer",
    "seal-after-footer",
    "catalog-before-commit",
    "mark-before-write",
    "tso-before-rename",
    "recovery-before-cut",
    "recovery-after-cut",
)
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_armed: dict[str, tuple[int, int]] = {}


def arm(setting: str) -> None:
    """``NAME=kill|stop[:NTH]``: at the NTH time (default 1) the process signals itself."""
    name, _, action = setting.partition("=")
    verb, _, nth = action.partition(":")
    if name not in NAMES or verb not in _SIGNALS or not (nth or "1").isdecimal():
        raise UsageError(f"no failpoint {setting!r}", hint="names: " + " ".join(NAMES))
    _armed[name] = (_SIGNALS[verb], int(nth or 1))


def failpoint(name: str) -> None:
    """Mark a place. Does nothing unless a test armed it."""
    if not _armed or name not in _armed:
        return
    number, left = _armed[name]
    _armed[name] = (number, left - 1)
    if left == 1:
        os.kill(os.getpid(), number)
