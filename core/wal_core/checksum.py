"""CRC-32C, the checksum of every batch and file (Castagnoli polynomial, as in iSCSI and ext4)."""

from __future__ import annotations

from crc32c import crc32c

__all__ = ["crc32c"]
