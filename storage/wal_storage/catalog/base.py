"""The interface of the catalog: small values for look-up and coordination.

LMDB is the embedded default; etcd comes behind the same interface, so no code above may assume
that reads are local or free. The log holds the truth: a catalog that is lost is rebuilt from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol


class CatalogConflict(Exception):
    """A compare-and-set met another value than it expected. Read again and decide anew."""


class Catalog(Protocol):
    def get(self, key: bytes) -> bytes | None:
        """A value, or None. Raises CorruptError where its checksum fails."""

    def range(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys below a prefix with their values, in order of the keys."""

    def commit(
        self,
        changes: Mapping[bytes, bytes | None],
        expect: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """Write (None: delete) several keys at once, durably, if all of ``expect`` still hold.

        Raises CatalogConflict where one does not; then nothing changed."""

    def close(self) -> None: ...
