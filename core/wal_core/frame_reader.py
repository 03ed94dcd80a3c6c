"""Cut a stream of bytes into frames. No I/O: its owner receives into ``buffer()``.

Small frames are parsed where they were received; a large one is received straight into memory of
its own, without a copy. Both ends of a connection use this.
"""

from __future__ import annotations

from collections.abc import Callable

from wal_core.frames import FRAME, FRAME_SIZE_BYTES, check_frame_head
from wal_core.limits import DIRECT_FRAME_MIN_BYTES, FRAME_META_MAX_BYTES, FRAME_PAYLOAD_MAX_BYTES

_UNCHECKED_BYTES = FRAME_META_MAX_BYTES
"""A frame of this size breaks no limit, whatever its parts."""


class FrameReader:
    """``view`` may be shared by many readers, as long as each ``received`` follows its own
    ``buffer`` before another reader receives.

    ``on_frame`` gets kind, flags, request id, meta and body of each frame; all are the receiver's
    to keep. Raises ProtocolError."""

    __slots__ = (
        "_frame",
        "_got",
        "_large",
        "_on_frame",
        "_partial",
        "_view",
        "payload_max",
        "waiting",
    )

    def __init__(
        self,
        view: memoryview,
        on_frame: Callable[[int, int, int, memoryview | bytes, memoryview | bytes], None],
    ) -> None:
        self._view = view
        self._on_frame = on_frame
        self._partial = b""
        self._large: memoryview | None = None
        self._got = 0
        self._frame = (0, 0, 0, 0)
        self.payload_max = FRAME_PAYLOAD_MAX_BYTES
        """A stranger may be held to less."""
        self.waiting = False
        """Whether a frame has begun and is not complete."""

    def buffer(self, _: int = -1) -> memoryview:
        """Where the next bytes must go; never empty."""
        if self._large is not None:
            return self._large[self._got :]
        return self._view

    def received(self, size: int) -> None:
        """``size`` bytes have arrived in ``buffer()``."""
        if self._large is not None:
            self._received_large(size)
        elif self._partial:
            self._parse(self._partial + self._view[:size])
        else:
            self._parse(self._view[:size].tobytes())

    def forget(self) -> None:
        """Give back what an incomplete frame holds."""
        self._large = None
        self._partial = b""
        self.waiting = False

    def _parse(self, data: bytes) -> None:
        at = 0
        length = len(data)
        while length - at >= FRAME_SIZE_BYTES:
            size, kind, flags, meta_size, request_id = FRAME.unpack_from(data, at)
            if size > _UNCHECKED_BYTES or meta_size > size:
                check_frame_head(size, meta_size, self.payload_max)
            start = at + FRAME_SIZE_BYTES
            end = start + size
            if end > length:
                if size >= DIRECT_FRAME_MIN_BYTES:
                    self._begin_large(data[start:], size, (kind, flags, meta_size, request_id))
                    return
                break
            middle = start + meta_size
            self._on_frame(kind, flags, request_id, data[start:middle], data[middle:end])
            at = end
        self._partial = data[at:]
        self.waiting = at < length

    def _begin_large(self, first: bytes, size: int, frame: tuple[int, int, int, int]) -> None:
        self._large = memoryview(bytearray(size))
        self._large[: len(first)] = first
        self._got = len(first)
        self._frame = frame
        self._partial = b""
        self.waiting = True

    def _received_large(self, size: int) -> None:
        large = self._large
        assert large is not None
        self._got += size
        if self._got < len(large):
            return
        kind, flags, meta_size, request_id = self._frame
        self._large = None
        self.waiting = False
        self._on_frame(kind, flags, request_id, large[:meta_size], large[meta_size:])
