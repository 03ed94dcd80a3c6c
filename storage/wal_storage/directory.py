"""A data directory: its layout and its format version.

::

    DIR/format             which version of this layout it is
    DIR/nodes/NAME/        the terms of a node name (``fence``)
    DIR/pchannels/N/       the log of a PChannel: terms, segments, timestamp mark
    DIR/catalog/           LMDB
"""

from __future__ import annotations

import os

from wal_core.errors import ConfigError, FormatError, PermissionDeniedError
from wal_storage.disk import Disk

LAYOUT_VERSION = 1
_FORMAT_FILE = "format"
_FORMAT_PREFIX = "walstream "


class DataDirectory:
    """The folder that one or more daemons of a host serve."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def open(self) -> None:
        """Check the layout's version, or write it into an empty directory.

        Raises FormatError for a newer version, before anything was touched."""
        try:
            version = read_version(self.path)
            if version is None:
                self._require_ours()
                disk = Disk(self.path)
                disk.write_whole(_FORMAT_FILE, f"{_FORMAT_PREFIX}{LAYOUT_VERSION}\n".encode())
                disk.close()
        except PermissionError as error:
            shown = os.fsdecode(self.path)
            raise PermissionDeniedError(f"{shown}: {error.strerror}") from None
        except NotADirectoryError:
            raise ConfigError(f"{os.fsdecode(self.path)} is not a directory") from None

    def _require_ours(self) -> None:
        """A folder without a format file must be empty but for what `wal up` puts there: nobody
        wants a log in the middle of a home directory because of a slip of the keyboard."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        foreign = [name for name in names if not name.startswith((b"wald", b".", b"format."))]
        if set(foreign) - {b"lost+found", b"nodes", b"pchannels", b"catalog"}:
            raise ConfigError(
                f"{os.fsdecode(self.path)} holds other files and no log",
                hint="choose an empty directory with --dir or WAL_DIR",
            )

    def pchannels(self) -> list[int]:
        """Numbers of the PChannels that exist, in order."""
        try:
            names = os.listdir(os.path.join(self.path, b"pchannels"))
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdigit())

    def pchannel(self, number: int) -> Disk:
        return Disk(os.path.join(self.path, b"pchannels", b"%d" % number))

    def node(self, name: str) -> Disk:
        return Disk(os.path.join(self.path, b"nodes", name.encode()))

    @property
    def catalog_path(self) -> bytes:
        return os.path.join(self.path, b"catalog")


def read_version(path: bytes) -> int | None:
    """The layout version of a directory; None where it has none yet. Raises FormatError."""
    try:
        with open(os.path.join(path, _FORMAT_FILE.encode()), "rb") as file:
            text = file.read(64).decode("ascii", "replace")
    except FileNotFoundError:
        return None
    number = text.removeprefix(_FORMAT_PREFIX).strip()
    shown = os.fsdecode(path)
    if not text.startswith(_FORMAT_PREFIX) or not number.isdecimal():
        raise FormatError(f"{shown}: its format file says {text.strip()!r}; it was left untouched")
    if int(number) > LAYOUT_VERSION:
        raise FormatError(
            f"{shown} has format {number}, this version reads {LAYOUT_VERSION}; "
            "it was left untouched"
        )
    return int(number)
