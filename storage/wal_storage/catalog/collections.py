"""Catalog keys ``collection/<name>``: what a collection is and where its shards live.

A mirror of the CreateCollection and DropCollection messages in the logs.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from wal_core.names import vchannel_name
from wal_storage.catalog.base import Catalog

PREFIX = b"collection/"


class Shard(msgspec.Struct, array_like=True):
    pchannel: int
    vchannel: int

    @property
    def name(self) -> str:
        return vchannel_name(self.pchannel, self.vchannel)


class Collection(msgspec.Struct, array_like=True):
    name: str
    id: int
    created_tso: int
    shards: list[Shard]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Collection).decode


def put(catalog: Catalog, collection: Collection) -> None:
    catalog.commit({PREFIX + collection.name.encode(): _encode(collection)})


def remove(catalog: Catalog, name: str) -> None:
    catalog.commit({PREFIX + name.encode(): None})


def read_all(catalog: Catalog) -> dict[str, Collection]:
    found = (_decode(value) for _, value in catalog.range(PREFIX))
    return {collection.name: collection for collection in found}


def replace_all(catalog: Catalog, collections: Iterable[Collection]) -> None:
    """Make the catalog say exactly this, in one transaction."""
    changes: dict[bytes, bytes | None] = {key: None for key, _ in catalog.range(PREFIX)}
    changes |= {PREFIX + one.name.encode(): _encode(one) for one in collections}
    if changes:
        catalog.commit(changes)
