"""Cut a stream of bytes into frames. No I/O: its owner receives into ``buffer()``.

Small frames are parsed where they were received; a large one is received straight into memory of
its own, without a copy. Both ends of a connection use this.
"""

from __future__ import annotations

from collections.abc import Callable

from wal_core.frames import FRAME, FRAME_SIZE_BYTES, Frame, Kind, check_frame_head
from wal_core.limits import DIRECT_FRAME_MIN_BYTES


class FrameReader:
    """``view`` may be shared by many readers, as long as each ``received`` follows its own
    ``buffer`` before another reader receives.

    ``on_frame`` gets each frame; meta and body are valid during the call only, except the body of
    an APPEND or BATCHES frame, which belongs to the receiver. Raises ProtocolError."""

    __slots__ = ("_frame", "_got", "_large", "_on_frame", "_partial", "_view")

    def __init__(self, view: memoryview, on_frame: Callable[[Frame], None]) -> None:
        self._view = view
        self._on_frame = on_frame
        self._partial = b""
        self._large: memoryview | None = None
        self._got = 0
        self._frame = (0, 0, 0, 0)

    @property
    def is_waiting(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._large is not None or len(self._partial) > 0

    def buffer(self) -> memoryview:
        """Where the next bytes must go; never empty."""
        if self._large is not None:
            return self._large[self._got :]
        return self._view

    def received(self, size: int) -> None:
        """``size`` bytes have arrived in ``buffer()``."""
        if self._large is not None:
            self._received_large(size)
        elif self._partial:
            data = memoryview(self._partial + self._view[:size])
            self._partial = b""
            self._parse(data)
        else:
            self._parse(self._view[:size])

    def forget(self) -> None:
        """Give back what an incomplete frame holds."""
        self._large = None
        self._partial = b""

    def _parse(self, data: memoryview) -> None:
        at = 0
        length = len(data)
        while length - at >= FRAME_SIZE_BYTES:
            size, kind, flags, meta_size, request_id = FRAME.unpack_from(data, at)
            check_frame_head(size, meta_size)
            start = at + FRAME_SIZE_BYTES
            end = start + size
            if end > length:
                if size >= DIRECT_FRAME_MIN_BYTES:
                    self._begin_large(data[start:], size, (kind, flags, meta_size, request_id))
                    return
                break
            middle = start + meta_size
            body: memoryview | bytes = data[middle:end]
            if kind in (Kind.APPEND, Kind.BATCHES):
                body = bytes(body)  # The buffer is overwritten by the next read.
            self._on_frame(Frame(kind, flags, request_id, data[start:middle], body))
            at = end
        self._partial = bytes(data[at:])

    def _begin_large(self, first: memoryview, size: int, frame: tuple[int, int, int, int]) -> None:
        self._large = memoryview(bytearray(size))
        self._large[: len(first)] = first
        self._got = len(first)
        self._frame = frame

    def _received_large(self, size: int) -> None:
        large = self._large
        assert large is not None
        self._got += size
        if self._got < len(large):
            return
        kind, flags, meta_size, request_id = self._frame
        self._large = None
        self._on_frame(Frame(kind, flags, request_id, large[:meta_size], large[meta_size:]))
