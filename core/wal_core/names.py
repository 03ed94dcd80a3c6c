"""Names that users give, and names made of ids."""

from __future__ import annotations

import re

from wal_core.errors import BadNameError, UsageError
from wal_core.limits import NAME_LENGTH_MAX, SETTING_SIZE_MAX_BYTES

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
SHARD_BITS = 16


def check_name(name: str, what: str = "collection") -> str:
    """The name itself, if it may be used; else BadNameError."""
    if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name):
        shown = name if len(name) <= 40 else name[:40] + "…"
        raise BadNameError(f"{what} name {shown!r} is not allowed")
    return name


def check_setting(key: str, value: str) -> None:
    """Raises BadNameError, UsageError for what cannot be a setting of a collection."""
    check_name(key, "setting")
    if not value.isprintable():
        raise UsageError(f"setting {key!r} is not plain text")
    if len(value.encode()) > SETTING_SIZE_MAX_BYTES:
        raise UsageError(f"setting {key!r} is larger than {SETTING_SIZE_MAX_BYTES} bytes")


def vchannel_id(collection_id: int, shard: int) -> int:
    """The 64-bit id of a VChannel: collection id above, shard in the low 16 bits."""
    return collection_id << SHARD_BITS | shard


def split_vchannel_id(vchannel: int) -> tuple[int, int]:
    """(collection id, shard) of a VChannel's id."""
    return vchannel >> SHARD_BITS, vchannel & ((1 << SHARD_BITS) - 1)


def vchannel_name(pchannel: int, vchannel: int) -> str:
    """``p0_7v1``: PChannel 0, collection 7, shard 1."""
    collection_id, shard = split_vchannel_id(vchannel)
    return f"p{pchannel}_{collection_id}v{shard}"


_NAMED = 1 << 63


def producer_id(kind: str, name: str) -> int:
    """The id of a producer (kind ``producer``) or of a dedup id (kind ``dedup``) with this name."""
    import hashlib  # Three milliseconds that no command pays which names no producer.

    digest = hashlib.blake2b(f"{kind}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") | _NAMED


def is_named_producer(id: int) -> bool:
    """Whether an id was made of a name; random ones have 63 bits."""
    return id & _NAMED != 0
