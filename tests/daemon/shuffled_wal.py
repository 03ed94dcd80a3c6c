"""A WAL storage in memory that lands messages out of order and late, on purpose."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from wal_core.message import (
    HEADER_SIZE_BYTES,
    Header,
    Message,
    MessageType,
    identity_seed,
    pack_header,
    unpack_header,
)
from wal_storage.log.format import SegmentId
from wal_storage.state import ChannelState
from wal_storage.walstore.base import Recovered, Run

_ID = SegmentId(1, 1)
_SEED = identity_seed(*_ID)


class ShuffledWal:
    """See ``WalStorage``. A confirmed message lands at some time after, before or behind others of
    its group and of later groups; a TIME_TICK lands behind all that was confirmed before it."""

    ordered = False
    fences = True
    term = 1

    def __init__(self, seed: int, former: ShuffledWal | None = None) -> None:
        """``former``: whose log to open again."""
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self.written: list[bytes] = [] if former is None else former.written
        """In the order of their sequences: what recovery reads."""
        self.landed: list[bytes] = [] if former is None else former.landed
        self._late: list[bytes] = [] if former is None else former._late
        """Confirmed, and not there for readers yet."""
        self.position = sum(map(len, self.written))

    @property
    def tip_id(self) -> SegmentId:
        return _ID

    def recover(self) -> Recovered:
        state = ChannelState()
        state.segment = tuple(_ID)
        for data in self.written:
            header = unpack_header(data)
            state.apply(header, data[HEADER_SIZE_BYTES:])
        return Recovered(state, [], self.position)

    def has_room(self, size: int) -> bool:
        return True

    def make_room(self, size: int, state: ChannelState) -> None: ...

    def append(self, messages: Sequence[Message], confirmed_below: int) -> None:
        ticks: list[bytes] = []
        others: list[bytes] = []
        for one in messages:
            one.header, _ = pack_header(one, self.term, self.position, 0, confirmed_below, _SEED)
            data = one.header + bytes(one.body)
            self.position += len(data)
            self.written.append(data)
            (ticks if one.type == MessageType.TIME_TICK else others).append(data)
        with self._lock:
            if ticks:
                early = [one for one in others if self._chance.random() < 0.5]
                block = self._late + early
                self._chance.shuffle(block)
                self.landed += block + ticks
                self._late[:] = [one for one in others if one not in early]
            else:
                self._late += others
            self._let_some_land()

    def cover(self, tso: int) -> None: ...

    def scanner(self, vchannel: int, offset: int) -> ShuffledScanner:
        with self._lock:
            start = min(self._needed(vchannel, offset), default=len(self.landed))
            start -= self._chance.randint(0, min(start, 20))
        return ShuffledScanner(self, vchannel, start)

    def offset_at(self, vchannel: int, tso: int) -> int:
        for data in self.written:
            header = unpack_header(data)
            if header.vchannel == vchannel and header.tso >= tso and header.first_offset >= 0:
                return header.first_offset
        return -1

    def is_current(self) -> bool:
        return True

    def close(self, *, seal: bool) -> None: ...

    def read(self, vchannel: int, at: int) -> tuple[list[Run], int]:
        """(a few messages of the VChannel from the ``at``-th that landed on, where to go on)."""
        runs: list[Run] = []
        with self._lock:
            if self._chance.random() < 0.3:
                self._let_some_land()
            wanted = self._chance.randint(1, 8)
            while at < len(self.landed) and len(runs) < wanted:
                data = self.landed[at]
                at += 1
                header = unpack_header(data)
                if header.vchannel == vchannel or header.type == MessageType.TIME_TICK:
                    runs.append(Run(*_ID, memoryview(data), 0))
        return runs, at

    def _let_some_land(self) -> None:
        self._chance.shuffle(self._late)
        for _ in range(self._chance.randint(0, len(self._late))):
            self.landed.append(self._late.pop())

    def _needed(self, vchannel: int, offset: int) -> list[int]:
        """Where the landed messages are on which rows from ``offset`` on rest."""
        ours = [
            (at, header)
            for at, data in enumerate(self.landed)
            if (header := unpack_header(data)).vchannel == vchannel
        ]
        done = {header.txn_id for _, header in ours if _is_done(header, offset)}
        return [
            at
            for at, header in ours
            if (header.txn_id and header.txn_id not in done)
            or (not header.txn_id and header.first_offset + header.rows > offset)
        ]


class ShuffledScanner:
    """See ``LogScanner``: messages as they landed."""

    def __init__(self, wal: ShuffledWal, vchannel: int, at: int) -> None:
        self._wal = wal
        self._vchannel = vchannel
        self._at = at

    def read(self) -> list[Run]:
        runs, self._at = self._wal.read(self._vchannel, self._at)
        return runs

    def close(self) -> None: ...


def _is_done(header: Header, offset: int) -> bool:
    """Whether this message ends a transaction without rows from ``offset`` on."""
    if header.type == MessageType.COMMIT_TXN:
        return header.first_offset + header.rows <= offset
    return header.type == MessageType.ROLLBACK_TXN
