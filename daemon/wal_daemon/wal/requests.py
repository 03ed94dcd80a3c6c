"""An append on its way through a PChannel, and where its answer goes."""

from __future__ import annotations

import asyncio
from typing import Protocol

from wal_core.errors import WalError
from wal_core.message import Message

ANY_OFFSET = -1


class Replies(Protocol):
    """Who asked. All methods are called on the event loop."""

    failed_producers: dict[int, WalError]
    """Producers of which a batch was refused. What they had sent behind it is refused too, so that
    the log never holds a later batch without the earlier one."""

    def acknowledge(self, request: AppendRequest) -> bool:
        """The message is confirmed. True where ``flush`` must follow, after the whole group."""

    def flush(self) -> None:
        """Send the answers that have gathered, in one write."""

    def refuse(self, request: AppendRequest, error: WalError, outcome_unknown: bool) -> None:
        """The message is not acknowledged; ``outcome_unknown``: its bytes may be in the log."""


class AppendRequest:
    """A message, the condition it carries, and who waits for it."""

    __slots__ = ("buffered", "expect", "message", "replies", "request_id")

    def __init__(
        self,
        message: Message,
        replies: Replies,
        request_id: int = 0,
        expect: int = ANY_OFFSET,
        buffered: bool = False,
    ) -> None:
        self.message = message
        self.replies = replies
        self.request_id = request_id
        self.expect = expect
        self.buffered = buffered


class FutureReplies:
    """For messages of the daemon itself: the answer is a future."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.failed_producers: dict[int, WalError] = {}
        self.future: asyncio.Future[Message] = loop.create_future()

    def acknowledge(self, request: AppendRequest) -> bool:
        if not self.future.done():
            self.future.set_result(request.message)
        return False

    def flush(self) -> None: ...

    def refuse(self, request: AppendRequest, error: WalError, outcome_unknown: bool) -> None:
        if not self.future.done():
            self.future.set_exception(error)
