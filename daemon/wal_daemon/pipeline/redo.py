"""Redo: appends that met a locked VChannel wait here, and go through the pipeline again later."""

from __future__ import annotations

from wal_daemon.wal.requests import AppendRequest


class Redo:
    """Parked appends in the order of their arrival."""

    def __init__(self) -> None:
        self._parked: list[AppendRequest] = []

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, request: AppendRequest) -> None:
        self._parked.append(request)

    def take(self) -> list[AppendRequest]:
        """All that is parked, to be submitted again: what is still locked comes back."""
        parked, self._parked = self._parked, []
        return parked
