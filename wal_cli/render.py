"""How results look: JSON lines, tables, sizes, progress. The same content with and without a
terminal; only colour, boxes and width differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

from wal_cli.context import Context, is_terminal
from wal_core.clock import Clock
from wal_core.errors import UsageError

_PROGRESS_DELAY_SECONDS = 1.0
_PROGRESS_WIDTH = 30


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout."""
    print(json.dumps(value))


def print_table(context: Context, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows under headings; numbers stand to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    numeric = [bool(rows) and all(_is_number(row[n]) for row in rows) for n in range(len(columns))]
    if is_terminal():
        _print_rich(context, columns, texts, numeric)
        return
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for number, cells in enumerate([list(columns), *texts]):
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ).rstrip()
        bold = number == 0 and context.colored()
        print(f"\x1b[1m{line}\x1b[0m" if bold else line)


def print_pairs(context: Context, pairs: Sequence[tuple[str, Any]]) -> None:
    """Names and values, a line each."""
    width = max((len(name) for name, _ in pairs), default=0)
    colored = context.colored()
    for name, value in pairs:
        shown = f"\x1b[1m{name.ljust(width)}\x1b[0m" if colored else name.ljust(width)
        print(f"{shown}  {value}".rstrip())


def size_text(size: int) -> str:
    """``812 B``, ``64.0 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def confirm(what: str, question: str, hint: str) -> None:
    """Ask the person at the terminal; where there is none, only ``--yes`` answers.

    Raises UsageError unless the answer is yes."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{what} takes a confirmation", hint=hint)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(f"{what} was not confirmed", hint="answer y, or give --yes")


class Progress:
    """A bar on stderr: on a terminal only, and only when the work takes more than a second."""

    def __init__(self, clock: Clock, what: str, total: int) -> None:
        """``total``: bytes (or anything else that is counted)."""
        self._clock = clock
        self._what = what
        self._total = max(total, 1)
        self._done = 0
        self._started = clock.monotonic()
        self._visible = is_terminal(sys.stderr)
        self._shown = -1

    def advance(self, amount: int) -> None:
        """So much more is done."""
        self._done += amount
        if not self._visible:
            return
        percent = min(100 * self._done // self._total, 100)
        late = self._clock.monotonic() - self._started > _PROGRESS_DELAY_SECONDS
        if late and percent != self._shown:
            self._shown = percent
            bar = "#" * (percent * _PROGRESS_WIDTH // 100)
            sys.stderr.write(f"\r{self._what} [{bar:<{_PROGRESS_WIDTH}}] {percent:3}%")
            sys.stderr.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self._shown >= 0:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _print_rich(
    context: Context, columns: Sequence[str], texts: list[list[str]], numeric: list[bool]
) -> None:
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.table import Table

    table = Table(box=ROUNDED, header_style="bold")
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for cells in texts:
        table.add_row(*cells)
    # Without a colour system Rich writes no escape codes at all: `no_color` keeps the bold ones.
    system: Literal["standard"] | None = "standard" if context.colored() else None
    Console(color_system=system, highlight=False, markup=False, emoji=False).print(table)
