"""Catalog keys ``cursor/<name>/<collection>``: how far a named reader has come.

Unlike the rest of the catalog these are not mirrored from messages of the log. Its snapshots carry
a copy (of PChannel 0's): a catalog that is lost gets the cursors of the last one back, which are
older. Their readers repeat rows then and never skip one.
"""

from __future__ import annotations

import msgspec

from wal_core.errors import CorruptError
from wal_storage.catalog.base import Catalog

PREFIX = b"cursor/"
MARKER = b"cursors"
"""Says that the catalog's cursors are the true ones: not there in one that was just made."""


class CursorRecord(msgspec.Struct, array_like=True):
    name: str
    collection: str
    collection_id: int
    """A collection that was dropped and created again has another one, and inherits nothing."""
    committed_ms: int
    """Wall clock of the last commit or seek."""
    offsets: list[int]
    """The next offset of each shard, in order of the shards."""


_decode = msgspec.msgpack.Decoder(CursorRecord).decode
encode = msgspec.msgpack.Encoder().encode


def key(name: str, collection: str) -> bytes:
    return PREFIX + f"{name}/{collection}".encode()


def decode(key: bytes, value: bytes) -> CursorRecord:
    """Raises CorruptError."""
    try:
        return _decode(value)
    except msgspec.DecodeError as error:
        raise CorruptError(f"the catalog's value of {key!r} cannot be read: {error}") from None


def read_all(catalog: Catalog, name: str = "") -> list[CursorRecord]:
    """Records of all cursors, or of one, in order of names. Raises CorruptError."""
    prefix = PREFIX + f"{name}/".encode() if name else PREFIX
    return [decode(key, value) for key, value in catalog.range(prefix)]


def copy(catalog: Catalog) -> dict[bytes, bytes]:
    """The values of all cursors, for a snapshot of the log; none where they cannot be read."""
    try:
        return dict(catalog.range(PREFIX))
    except CorruptError:
        return {}
