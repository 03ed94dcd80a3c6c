"""Figures of a run: quantiles, rows of the table, how they are printed."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple


class Latencies(NamedTuple):
    """Seconds."""

    p50: float
    p99: float


def quantiles(samples: list[float]) -> Latencies:
    """Median and 99th percentile of a list that is not empty."""
    ordered = sorted(samples)
    return Latencies(
        ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    )


class Row(NamedTuple):
    """A line of the table. ``figure`` is what the goal speaks of: a ratio where it has a peer."""

    work: str
    ours: str
    peer: str
    figure: float
    goal: str
    holds: bool

    @classmethod
    def at_least(cls, work: str, ours: str, peer: str, figure: float, bound: float) -> Row:
        return cls(work, ours, peer, figure, f">= {bound:g}", figure >= bound)

    @classmethod
    def at_most(cls, work: str, ours: str, peer: str, figure: float, bound: float) -> Row:
        return cls(work, ours, peer, figure, f"<= {bound:g}", figure <= bound)


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float]) -> str:
    """Smallest and largest of the rounds, relative to the median."""
    middle = statistics.median(values)
    return f"{min(values) / middle - 1:+.0%}..{max(values) / middle - 1:+.0%}"


def print_row(row: Row) -> None:
    mark = "ok   " if row.holds else "SHORT"
    print(
        f"{mark} {row.work:<46} {row.figure:>9.3g}  goal {row.goal:<9} {row.ours}  |  {row.peer}",
        flush=True,
    )


def save(rows: list[Row], path: Path, machine: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": machine, "rows": [row._asdict() for row in rows]}, indent=1) + "\n"
    )
