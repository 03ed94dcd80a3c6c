"""Fencing by two walls: epochs that only grow, and a lock on one's own epoch.

A term is a file ``term.<n>`` in the folder of what it guards. It is made under a temporary name,
locked, fsynced and then linked, so it appears whole, already locked, and for one taker only. The
owner of term n is fenced from the moment ``term.<n+1>`` exists; no number is skipped and no file
is ever deleted, so an owner that slept for a year still finds its successor's. Source of the
protocol and the proof: docs/decisions/0003-fencing.md.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import IO, Any

import portalocker

from wal_core.clock import Clock
from wal_core.errors import NodeHeldError
from wal_core.failpoints import failpoint
from wal_core.tso import rfc3339
from wal_storage.disk import Disk

_PREFIX = "term."


def term_name(term: int) -> str:
    return f"{_PREFIX}{term}"


def highest_term(names: list[str]) -> int:
    """The highest term among the names of a folder; 0 where there is none."""
    terms = [name[len(_PREFIX) :] for name in names if name.startswith(_PREFIX)]
    return max((int(term) for term in terms if term.isdecimal()), default=0)


class Term:
    """An ownership that this process took. Ends when the process does, or by ``release``."""

    def __init__(self, disk: Disk, number: int, file: IO[bytes]) -> None:
        self._disk = disk
        self._file = file
        self.number = number
        self._successor = term_name(number + 1)
        self._pid = os.getpid()

    @property
    def is_mine(self) -> bool:
        """Whether this process took the term. A forked child shares its lock and descriptors, and
        its writes would land in the segment of the parent."""
        return os.getpid() == self._pid

    def is_current(self) -> bool:
        """Whether nobody took over. The one check that stands between fdatasync and every
        acknowledgement; 2 us. Raises OSError where the folder cannot be asked."""
        return self.is_mine and not self._disk.exists(self._successor)

    def release(self) -> None:
        """Give the lock up; the number stays used."""
        self._file.close()


def acquire(
    disk: Disk, clock: Clock, node: str, what: str, *, takeover: bool = False, seen: int = 0
) -> Term:
    """Take the next term of a folder.

    ``seen`` is a term known from elsewhere (a header, the catalog) that the new one must exceed.
    Raises NodeHeldError where a living process holds the highest term and ``takeover`` is not set.
    """
    while True:
        highest = highest_term(disk.names())
        if highest and not takeover:
            _require_free(disk, highest, what)
        number = max(highest, seen) + 1
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(_create(disk, number))
            undo.callback(_remove, disk, _temporary(number))
            _fill(disk, file, node, clock)
            try:
                disk.link(_temporary(number), term_name(number))
            except FileExistsError:
                continue  # Another taker was faster; look again at who holds what now.
            _remove(disk, _temporary(number))
            disk.sync_folder()
            undo.pop_all()
        failpoint("term-created")
        return Term(disk, number, file)


def holder(disk: Disk, term: int) -> dict[str, Any]:
    """Who took a term: node, pid, since. Empty where the file cannot be read: it is information,
    nothing rests on it."""
    try:
        value = json.loads(disk.read_all(term_name(term)))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {key: value[key] for key in ("node", "pid", "since") if key in value}


def held(disk: Disk, term: int) -> bool:
    """Whether a living process holds the lock of a term."""
    file = os.fdopen(disk.open_read(term_name(term)), "rb")
    with file:
        try:
            portalocker.lock(
                file, portalocker.LockFlags.SHARED | portalocker.LockFlags.NON_BLOCKING
            )
        except portalocker.LockException:
            return True
    return False


def _temporary(number: int) -> str:
    return f".{_PREFIX}{number}.{os.getpid()}.tmp"


def _require_free(disk: Disk, term: int, what: str) -> None:
    if not held(disk, term):
        return
    who = holder(disk, term)
    raise NodeHeldError(
        f"{what} is held by node {who.get('node', '?')}, pid {who.get('pid', '?')}, "
        f"since {who.get('since', '?')}",
        **who,
    )


def _create(disk: Disk, number: int) -> IO[bytes]:
    return os.fdopen(disk.create(_temporary(number)), "r+b")


def _fill(disk: Disk, file: IO[bytes], node: str, clock: Clock) -> None:
    """Lock a term's file before it has its name, and say in it who took it."""
    portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
    who = {"node": node, "pid": os.getpid(), "since": rfc3339(clock.wall_ms())}
    disk.write(file.fileno(), [json.dumps(who).encode() + b"\n"], 0)
    disk.sync(file.fileno())


def _remove(disk: Disk, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(name)
