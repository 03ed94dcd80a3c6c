"""The lease of a group's member, renewed by a thread: also while its owner waits for a slow reader
of its output. A process that is stopped, or a machine that sleeps, lets it run out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wal_core.clock import Clock
from wal_core.errors import MemberFencedError, WalError

if TYPE_CHECKING:
    from wal_client.sync import Client

_RENEWALS = 3
"""In the time of one lease."""
_STOP_SECONDS = 1.0


class Lease:
    """Renews memberships over a connection of its own. ``start`` and ``stop`` from one thread."""

    def __init__(self, client: Client, clock: Clock, seconds: float) -> None:
        self.seconds = seconds
        self._client = client
        self._clock = clock
        self._until = 0.0
        self._members: Sequence[str] = ()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_over(self) -> bool:
        """Whether the daemon may have given the shards to others by now."""
        return self._clock.monotonic() >= self._until

    def start(self, members: Sequence[str]) -> None:
        """Renew these memberships, which were made just now, and no others any more."""
        self._until = self._clock.monotonic() + self.seconds
        self._members = members
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Renew no more."""
        self._until = 0.0
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)  # It may be waiting for a daemon that is stopped.

    def _run(self) -> None:
        while not self._stopped.wait(self.seconds / _RENEWALS):
            members = self._members
            until = self._clock.monotonic() + self.seconds
            try:
                for member in members:
                    self._client.call("group_renew", member=member)
            except MemberFencedError:
                until = 0.0
            except WalError:
                continue  # The daemon is away; so long the lease lasts, and no longer.
            if members is self._members:
                self._until = until
        self._client.close()
