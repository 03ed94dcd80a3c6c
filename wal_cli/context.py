"""What every command works with: settings, output format, a client."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from wal_client.endpoint import Endpoint
from wal_client.sync import Client
from wal_core.errors import ConfigError, UnreachableError, UsageError
from wal_core.settings import Settings, resolve

_COLORS = ("auto", "always", "never")


class Context:
    """Made once per run from the flags of the command line."""

    def __init__(
        self,
        flags: Mapping[str, Any],
        output: str | None = None,
        outputs: Sequence[str] = ("text", "json", "ndjson"),
    ) -> None:
        """``flags``: values of settings given on the command line (None: not given).
        ``output``: one of ``outputs``; None where the command decides."""
        if output is not None and output not in outputs:
            raise UsageError(f"-o {output} is not possible here; it knows {', '.join(outputs)}")
        self.flags = dict(flags)
        self.output = output
        self.settings: Settings = resolve(flags, os.environ)
        if self.settings["color"] not in _COLORS:
            value, origin = self.settings.values["color"]
            raise ConfigError(f"color = {value!r} is none of {', '.join(_COLORS)} (from {origin})")

    @property
    def json(self) -> bool:
        return self.output in ("json", "ndjson")

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint.from_settings(self.settings)

    def client(self, *, autostart: bool | None = None) -> Client:
        """A connected client. Starts a daemon for this user where none answers, unless
        ``autostart`` (default: the setting) forbids it. Raises UnreachableError and the like."""
        client = Client(self.endpoint, timeout=self.settings["timeout"])
        try:
            client.connection  # noqa: B018
        except UnreachableError:
            allowed = self.settings["autostart"] if autostart is None else autostart
            if not allowed:
                raise
            from wal_cli.lifecycle import start_daemon

            start_daemon(self.settings)
        return client

    def colored(self, stream: TextIO | None = None) -> bool:
        """Whether to colour what goes to the stream (default: stdout)."""
        choice = self.settings["color"]
        if choice == "auto":
            return is_terminal(stream) and not os.environ.get("NO_COLOR")
        return bool(choice == "always")


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person looks at the stream (default: stdout)."""
    return (stream or sys.stdout).isatty()
