"""Where the daemon is: a socket, and the data directory it must serve."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from wal_core.errors import (
    PermissionDeniedError,
    TimedOutError,
    UnreachableError,
    WrongDirectoryError,
)
from wal_core.frames import Hello
from wal_core.limits import SOCKET_PATH_MAX_BYTES
from wal_core.settings import Settings


class Endpoint(NamedTuple):
    """``directory`` is set where the user named one: then the daemon must serve just that."""

    socket: str
    directory: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Endpoint:
        named = settings.directory if settings.is_explicit("dir") else None
        return cls(settings.socket, named)

    def check(self, hello: Hello) -> None:
        """Raises WrongDirectoryError."""
        served = os.fsdecode(hello.directory)
        if self.directory is not None and not _same(served, self.directory):
            raise WrongDirectoryError(
                f"the daemon on {self.socket} serves {served}, not {self.directory}",
                served=served,
                wanted=self.directory,
            )


def connect_socket(path: str, timeout: float | None) -> socket.socket:
    """A connected Unix socket. Paths over 107 bytes go through the folder's descriptor.

    Raises UnreachableError, PermissionDeniedError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder_fd = -1
    try:
        sock.settimeout(timeout)
        address = path
        if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
            folder, name = os.path.split(path)
            folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            address = f"/proc/self/fd/{folder_fd}/{name}"
        sock.connect(address)
    except PermissionError:
        sock.close()
        raise PermissionDeniedError(f"{path}: this user may not use the socket") from None
    except TimeoutError:
        sock.close()
        raise TimedOutError(f"{path}: no daemon took the connection in time") from None
    except OSError as error:
        sock.close()
        raise UnreachableError(f"no daemon on {path} ({error.strerror})", socket=path) from None
    finally:
        if folder_fd >= 0:
            os.close(folder_fd)
    return sock


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
