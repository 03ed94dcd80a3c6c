"""Redo: appends that met a locked VChannel wait here, and go through the pipeline again later."""

from __future__ import annotations

from collections.abc import Container

from wal_daemon.wal.requests import AppendRequest


class Redo:
    """Parked appends in the order of their arrival."""

    def __init__(self) -> None:
        self._parked: list[AppendRequest] = []

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, request: AppendRequest) -> None:
        self._parked.append(request)

    def take_of(self, vchannels: Container[int]) -> list[AppendRequest]:
        """What is parked for some VChannels, to be answered."""
        taken = [request for request in self._parked if request.vchannel in vchannels]
        self._parked = [request for request in self._parked if request.vchannel not in vchannels]
        return taken

    def take(self) -> list[AppendRequest]:
        """All that is parked, to be submitted again: what is still locked comes back."""
        parked, self._parked = self._parked, []
        return parked
