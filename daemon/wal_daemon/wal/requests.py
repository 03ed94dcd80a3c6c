"""An append on its way through a PChannel, and where its answer goes."""

from __future__ import annotations

import asyncio
import struct
from typing import Protocol

from wal_core.errors import ProtocolError, WalError
from wal_core.frames import APPEND_META_SIZE_BYTES, EXPECT
from wal_core.limits import TXN_COMMIT_BODY_MAX_BYTES
from wal_core.message import (
    CLIENT_HALF,
    HEADER_SIZE_BYTES,
    MAGIC,
    VERSION,
    Compression,
    Encoding,
    Message,
    MessageType,
)

ANY_OFFSET = -1
ROW_KINDS = frozenset(
    bytes((MessageType.INSERT, encoding, compression))
    for encoding in (Encoding.LINES, Encoding.LEN32, Encoding.COLUMNS)
    for compression in Compression
)
"""Bytes 5 to 8 of what clients may append: type, encoding and compression."""
_START = MAGIC + bytes([VERSION])
_CLIENT_HALF_SIZE_BYTES = CLIENT_HALF.size
_unpack = struct.Struct("<5xB2x2xHIQIIQQIIQ8xq").unpack
"""The fields of an append's meta that the write path looks at, and the expected offset."""


class Replies(Protocol):
    """Who asked. All methods are called on the event loop."""

    def acknowledge(self, request: AppendRequest) -> None:
        """The message is confirmed (or, for a buffered request, sequenced)."""

    def flush(self) -> None:
        """Send the answers that have gathered, as one."""

    def refuse(self, request: AppendRequest, error: WalError, outcome_unknown: bool) -> None:
        """The message is not acknowledged; ``outcome_unknown``: its bytes may be in the log."""


class AppendRequest(Message):
    """A message, the condition it carries, and who waits for it."""

    __slots__ = (
        "body_checksum",
        "buffered",
        "expect",
        "partition",
        "producer_epoch",
        "producer_id",
        "producer_sequence",
        "replies",
        "request_id",
        "txn_id",
    )

    def __init__(
        self,
        replies: Replies,
        request_id: int,
        buffered: bool,
        meta: bytes | memoryview,
        body: bytes | memoryview,
    ) -> None:
        """From an APPEND frame's meta and body. Raises ProtocolError where they do not agree."""
        if len(meta) != APPEND_META_SIZE_BYTES or meta[:5] != _START:
            raise ProtocolError("an append without a batch header of this version")
        (
            self.type,
            properties_length,
            self.rows,
            self.vchannel,
            body_length,
            self.body_checksum,
            self.producer_id,
            self.producer_sequence,
            self.producer_epoch,
            self.partition,
            self.txn_id,
            self.expect,
        ) = _unpack(meta)
        if properties_length + body_length != len(body):
            raise ProtocolError("an append whose lengths do not agree")
        self.size = HEADER_SIZE_BYTES + properties_length + body_length
        self.properties = b""
        if properties_length:
            self.properties = bytes(body[:properties_length])
            body = body[properties_length:]
        self.body = body
        self.client_half = bytes(meta[:_CLIENT_HALF_SIZE_BYTES])
        self.buffered = buffered
        self.replies = replies
        self.request_id = request_id

    def replace(self, message: Message) -> None:
        """Become another message: what stands in it was known only in its turn."""
        self.client_half = message.client_half
        self.rows = message.rows
        self.body = message.body
        self.size = message.size


class FutureReplies:
    """For messages of the daemon itself: the answer is a future."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Message] = loop.create_future()

    def acknowledge(self, request: AppendRequest) -> None:
        if not self.future.done():
            self.future.set_result(request)

    def flush(self) -> None: ...

    def refuse(self, request: AppendRequest, error: WalError, outcome_unknown: bool) -> None:
        if outcome_unknown:
            error.details["outcome_unknown"] = True
        if not self.future.done():
            self.future.set_exception(error)


class _Nobody:
    """Stands in once an answer was given, so that a buffered message holds no connection."""

    def acknowledge(self, request: AppendRequest) -> None: ...
    def flush(self) -> None: ...
    def refuse(self, request: AppendRequest, error: WalError, outcome_unknown: bool) -> None: ...


NOBODY: Replies = _Nobody()


def own_request(message: Message, replies: Replies, expect: int = ANY_OFFSET) -> AppendRequest:
    """A message of the daemon itself as a request."""
    meta = message.client_half + EXPECT.pack(expect)
    request = AppendRequest(replies, 0, False, meta, message.properties + bytes(message.body))
    if request.type == MessageType.COMMIT_TXN:
        request.size += TXN_COMMIT_BODY_MAX_BYTES  # It is written when the commit has its place.
    return request
