"""Log lines: one event a line, ``time level logger message key=value …``. Never per append."""

from __future__ import annotations

import logging
import sys

from wal_core.tso import rfc3339

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """What was given as ``extra`` follows the message as ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            rfc3339(int(record.created * 1000)),
            record.levelname.lower(),
            record.name,
            record.getMessage(),
        ]
        for key, value in record.__dict__.items():
            if key not in _STANDARD:
                text = str(value).replace("\n", " ")
                parts.append(f"{key}={text!r}" if " " in text else f"{key}={text}")
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(level: str) -> None:
    """Log to stderr: a file, a terminal or the journal, whoever started the daemon decides."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
