"""An append on its way through a PChannel, and where its answer goes."""

from __future__ import annotations

import asyncio
import struct
from typing import Protocol

from wal_core.errors import ProtocolError, WalError
from wal_core.frames import APPEND_META_SIZE_BYTES, EXPECT
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
_unpack = struct.Struct("<5xB2x2xHIQIIQ32xq").unpack
"""The fields of an append's meta that the write path looks at, and the expected offset."""


class Replies(Protocol):
    """Who asked. All methods are called on the event loop."""

    failed_producers: dict[int, WalError]
    """Producers of which a batch was refused. What they had sent behind it is refused too, so that
    the log never holds a later batch without the earlier one."""

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
        "producer_id",
        "replies",
        "request_id",
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


class FutureReplies:
    """For messages of the daemon itself: the answer is a future."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.failed_producers: dict[int, WalError] = {}
        self.future: asyncio.Future[Message] = loop.create_future()

    def acknowledge(self, request: AppendRequest) -> None:
        if not self.future.done():
            self.future.set_result(request)

    def flush(self) -> None: ...

    def refuse(self, request: AppendRequest, error: WalError, outcome_unknown: bool) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Nobody:
    """Stands in once an answer was given, so that a buffered message holds no connection."""

    failed_producers: dict[int, WalError] = {}  # noqa: RUF012

    def acknowledge(self, request: AppendRequest) -> None: ...
    def flush(self) -> None: ...
    def refuse(self, request: AppendRequest, error: WalError, outcome_unknown: bool) -> None: ...


NOBODY: Replies = _Nobody()


def own_request(message: Message, replies: Replies) -> AppendRequest:
    """A message of the daemon itself as a request."""
    meta = message.client_half + EXPECT.pack(ANY_OFFSET)
    return AppendRequest(replies, 0, False, meta, message.properties + bytes(message.body))
