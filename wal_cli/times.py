"""Where a tail starts and ends, as written on the command line.

=====================  ============================================================
``earliest``           the first row there is (``--from``)
``latest``             what comes from now on (``--from``)
``end``                the end at this moment (``--until``)
``812``                an offset; ``0:812,1:90`` one for each shard named
``tso:451``            a timestamp of the log
``-1h``, ``-1h30m``    so long ago: s, m, h, d, w
``2026-01-31T12:00Z``  a time of day or a date (ISO 8601); local time without a zone
=====================  ============================================================
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping

from wal_client.ranges import (
    EARLIEST,
    LATEST,
    NOW,
    From,
    Until,
    from_ms,
    from_offset,
    until_ms,
    until_offset,
)
from wal_core.errors import UsageError
from wal_core.frames import End, Start

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_AGO = re.compile(r"-(?:\d+(?:\.\d+)?[smhdw])+")
_STEP = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SHARDS = re.compile(r"\d+:\d+(?:,\d+:\d+)*")
_TSO_MAX = (1 << 64) - 1
_OFFSET_MAX = (1 << 63) - 1


def parse_from(text: str, now_ms: int, flag: str = "--from") -> From | Mapping[int, From]:
    """``flag``: whose value it is. Raises UsageError."""
    if text == "earliest":
        return EARLIEST
    if text == "latest":
        return LATEST
    if text.isascii() and text.isdigit():
        return from_offset(_bounded(text, _OFFSET_MAX))
    if _SHARDS.fullmatch(text):
        return {shard: from_offset(offset) for shard, offset in _shards(text).items()}
    if (tso := _tso(text)) is not None:
        return From(Start.TSO, tso)
    return from_ms(_moment_ms(text, now_ms, flag))


def parse_until(text: str, now_ms: int, *, follow: bool) -> Until | Mapping[int, Until]:
    """With ``follow`` an offset that is not there yet is waited for. Raises UsageError."""
    if text == "end":
        return NOW
    if text.isascii() and text.isdigit():
        return until_offset(_bounded(text, _OFFSET_MAX - 1), follow=follow)
    if _SHARDS.fullmatch(text):
        return {
            shard: until_offset(offset, follow=follow) for shard, offset in _shards(text).items()
        }
    if (tso := _tso(text)) is not None:
        return Until(End.TSO, tso)
    return until_ms(_moment_ms(text, now_ms, "--until"))


def _shards(text: str) -> dict[int, int]:
    pairs = [pair.split(":") for pair in text.split(",")]
    found = {int(shard): _bounded(offset, _OFFSET_MAX - 1) for shard, offset in pairs}
    if len(found) != len(pairs):
        raise UsageError(f"{text!r} names a shard twice")
    return found


def _tso(text: str) -> int | None:
    number = text.removeprefix("tso:")
    if number == text:
        return None
    if not (number.isascii() and number.isdigit()):
        raise UsageError(f"{text!r} is not tso: and a number")
    return _bounded(number, _TSO_MAX - 1)


def _bounded(digits: str, most: int) -> int:
    if len(digits) > 20 or int(digits) > most:
        raise UsageError(f"{digits} is too large")
    return int(digits)


def _moment_ms(text: str, now_ms: int, flag: str) -> int:
    if _AGO.fullmatch(text):
        ago = sum(float(number) * _UNITS_MS[unit] for number, unit in _STEP.findall(text))
        return max(now_ms - int(ago), 0)
    try:
        moment = datetime.datetime.fromisoformat(text).astimezone()
        return max(int(moment.timestamp() * 1000), 0)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{flag} {text!r} is no offset, tso:T, time or time ago (-1h)", hint="wal tail --help"
        ) from None
