"""Settings: flag over environment over the user's file over the machine's file over default."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

from wal_core.errors import ConfigError
from wal_core.limits import (
    PCHANNELS,
    SEGMENT_SIZE_BYTES,
    WRITE_AHEAD_BUFFER_BYTES,
    WRITE_AHEAD_BUFFER_SECONDS,
)
from wal_core.names import check_name

SYSTEM_FILE = "/etc/wal/wal.toml"


class Setting(NamedTuple):
    """A setting: its type, default, environment variable and meaning."""

    kind: type
    default: Any
    variable: str
    meaning: str


SETTINGS: dict[str, Setting] = {
    "dir": Setting(str, None, "WAL_DIR", "data directory (default: $XDG_STATE_HOME/wal)"),
    "socket": Setting(str, None, "WAL_SOCKET", "the daemon's socket (default: DIR/wald.sock)"),
    "node": Setting(str, "main", "WAL_NODE", "name of this daemon in its data directory"),
    "autostart": Setting(bool, True, "WAL_AUTOSTART", "start a daemon where none answers"),
    "txn": Setting(str, None, "WAL_TXN", "transaction that appends join"),
    "timeout": Setting(float, 30.0, "WAL_TIMEOUT", "seconds to wait for a daemon to be ready"),
    "color": Setting(str, "auto", "WAL_COLOR", "auto, always or never"),
    "pchannels": Setting(int, PCHANNELS, "", "logs that a new data directory gets"),
    "segment_size": Setting(int, SEGMENT_SIZE_BYTES, "", "bytes of a log segment"),
    "buffer_size": Setting(int, WRITE_AHEAD_BUFFER_BYTES, "", "bytes of the write-ahead buffer"),
    "buffer_seconds": Setting(
        float, WRITE_AHEAD_BUFFER_SECONDS, "", "how long the write-ahead buffer keeps rows"
    ),
    "log_level": Setting(str, "info", "", "debug, info, warning or error"),
}


_BOUNDS: dict[str, tuple[float, float]] = {
    "timeout": (0, 1e9),
    "pchannels": (1, 1024),
    "segment_size": (4096, 1 << 31),  # Positions in a segment are u32 (docs/format.md).
    "buffer_size": (0, 1 << 40),
    "buffer_seconds": (0, 1e9),
}
"""Least and most of a number; nan is within none."""


class Value(NamedTuple):
    value: Any
    origin: str
    """``flag``, ``environment NAME``, a file's path, or ``default``."""


class Settings:
    """All settings with their origins."""

    def __init__(self, values: dict[str, Value]) -> None:
        self.values = values

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    def is_explicit(self, name: str) -> bool:
        """Whether a flag or the environment set it."""
        return self.values[name].origin.startswith(("flag", "environment"))

    @property
    def directory(self) -> str:
        return str(self["dir"])

    @property
    def socket(self) -> str:
        return str(self["socket"])

    @property
    def node(self) -> str:
        return str(self["node"])


def resolve(
    flags: Mapping[str, Any], environment: Mapping[str, str], config: str | None = None
) -> Settings:
    """Bring flags, environment and files together. Raises ConfigError naming the culprit.

    ``config``: a file to read in place of the user's and the machine's."""
    values: dict[str, Value] = {}
    files = [(path, _read_file(path)) for path in config_files(environment, config)]
    for name, setting in SETTINGS.items():
        values[name] = _resolve_one(name, setting, flags, environment, files)
    _check_values(values)
    if values["dir"].value is None:
        values["dir"] = Value(default_directory(environment), "default")
    directory = os.path.abspath(values["dir"].value)
    values["dir"] = Value(directory, values["dir"].origin)
    if values["socket"].value is None:
        values["socket"] = Value(default_socket(directory, values["node"].value), "default")
    return Settings(values)


def default_directory(environment: Mapping[str, str]) -> str:
    """``$XDG_STATE_HOME/wal``."""
    state = environment.get("XDG_STATE_HOME") or os.path.join(
        environment.get("HOME") or os.path.expanduser("~"), ".local", "state"
    )
    return os.path.join(state, "wal")


def default_socket(directory: str, node: str) -> str:
    """``DIR/wald.sock``, of another node than ``main``: ``DIR/wald-NODE.sock``."""
    return os.path.join(directory, "wald.sock" if node == "main" else f"wald-{node}.sock")


def config_files(environment: Mapping[str, str], config: str | None = None) -> list[str]:
    """The files that are there, the user's first."""
    if config is not None:
        if not os.path.exists(config):
            raise ConfigError(f"{config}: no such file")
        return [config]
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(
        environment.get("HOME") or os.path.expanduser("~"), ".config"
    )
    paths = [os.path.join(home, "wal", "config.toml"), SYSTEM_FILE]
    return [path for path in paths if os.path.exists(path)]


def _read_file(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    unknown = sorted(set(found) - set(SETTINGS))
    if unknown:
        raise ConfigError(f"{path}: unknown setting {unknown[0]!r}")
    return found


def _resolve_one(
    name: str,
    setting: Setting,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    files: list[tuple[str, dict[str, Any]]],
) -> Value:
    if flags.get(name) is not None:
        return Value(_convert(name, setting, flags[name], "flag"), "flag")
    text = environment.get(setting.variable) if setting.variable else None
    if text:
        origin = f"environment {setting.variable}"
        return Value(_convert(name, setting, text, origin), origin)
    for path, found in files:
        if name in found:
            return Value(_convert(name, setting, found[name], path), path)
    return Value(setting.default, "default")


def _check_values(values: Mapping[str, Value]) -> None:
    check_name(values["node"].value, "node")
    if values["dir"].value == "":  # An unset variable in a script; not the current directory.
        raise ConfigError(f"dir is empty (from {values['dir'].origin})")
    for name, (least, most) in _BOUNDS.items():
        value, origin = values[name]
        if not least <= value <= most:
            raise ConfigError(f"{name} = {value} is not in {least}..{most} (from {origin})")


def _convert(name: str, setting: Setting, value: Any, origin: str) -> Any:
    kind = setting.kind
    if isinstance(value, str) and kind is bool:
        if value.lower() in ("0", "no", "false", "off"):
            return False
        if value.lower() in ("1", "yes", "true", "on"):
            return True
    elif isinstance(value, str) and kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise ConfigError(f"{name} = {value!r} is not a {kind.__name__} (from {origin})")
