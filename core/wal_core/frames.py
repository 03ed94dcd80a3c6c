"""The frames of the wire protocol, version 1. Pure functions; no socket is known here.

A connection is a stream of frames in both directions, little-endian::

    u32 payload length   of what follows the 12-byte frame header
    u8  kind
    u8  flags            meaning depends on kind
    u16 meta length      first part of the payload
    u32 request id       chosen by the client; every answer carries it
    meta · body

The client opens with HELLO; the daemon answers HELLO_OK or ERROR and reads nothing else before.
Answers to appends of one VChannel come in the order in which these were sent.
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, NamedTuple

from wal_core.errors import ProtocolError, WalError, error_from_wire
from wal_core.limits import FRAME_META_MAX_BYTES, FRAME_PAYLOAD_MAX_BYTES
from wal_core.message import CLIENT_HALF, Message

PROTOCOL_VERSION = 1
HELLO_MAGIC = b"WALS"

FRAME = struct.Struct("<IBBHI")
FRAME_SIZE_BYTES = 12
HELLO = struct.Struct("<4sH")
HELLO_OK = struct.Struct("<HI")
OPEN = struct.Struct("<H")
OPEN_OK = struct.Struct("<IH")
EXPECT = struct.Struct("<q")
APPEND_META_SIZE_BYTES = CLIENT_HALF.size + EXPECT.size
"""An append's meta: the client's half of the batch header (``message``), then the offset that the
client expects (-1: any). Its body: the batch's properties, then its rows."""
APPEND_OK = struct.Struct("<qQI")
"""first offset, tso, rows; the frame flag DURABLE says whether it is on stable storage."""
APPEND_OK_FRAME = struct.Struct(FRAME.format + APPEND_OK.format[1:])
SUBSCRIBE = struct.Struct("<QBBHQQ")
"""vchannel, where to start (``Start``), where to end (``End``), reserved, start and end value."""
SUBSCRIBED = struct.Struct("<QQ")
"""first offset that will come, next offset of the VChannel at this moment."""
BATCHES = struct.Struct("<QQ")
"""term and first sequence of the segment in which the batches of the body lie."""
TXN_BATCHES = struct.Struct("<QQqQ")
"""The same, then what the commit gave: offset of the first row of the body, and the timestamp."""


class Kind(enum.IntEnum):
    HELLO = 1
    HELLO_OK = 2
    ERROR = 3
    OPEN = 4
    """Body: a collection's name. Flag CREATE: create a missing one with the shards of meta."""
    OPEN_OK = 5
    """Meta: collection id, shards. Body: names of the VChannels, a line each."""
    APPEND = 6
    APPEND_OK = 7
    SUBSCRIBE = 8
    SUBSCRIBED = 9
    BATCHES = 10
    """Body: whole batches just as they lie in the log."""
    END = 11
    """The subscription has delivered all that was asked for."""
    CANCEL = 12
    CALL = 13
    """Control. Body: msgpack [operation, {arguments}]."""
    RESULT = 14
    """Body: one msgpack value."""
    TXN_BATCHES = 15
    """Batches of a transaction; their headers know no offsets."""


class Start(enum.IntEnum):
    EARLIEST = 0
    LATEST = 1
    OFFSET = 2
    TSO = 3
    """The first row at or after a timestamp."""
    LAST = 4
    """So many rows before the end."""


class End(enum.IntEnum):
    NEVER = 0
    NOW = 1
    """The end at the moment of the request."""
    OFFSET = 2
    """This offset included; where it is not reached yet: the end at this moment."""
    TSO = 3
    """The last row at or before a timestamp; at most the end at this moment."""
    FOLLOW_OFFSET = 4
    """This offset included, waited for."""


FLAG_CREATE = 1
FLAG_DURABLE = 1
FLAG_BUFFERED = 1
FLAG_OUTCOME_UNKNOWN = 1


class Frame(NamedTuple):
    """A received frame. Small ones are bytes, large ones views of memory of their own."""

    kind: int
    flags: int
    request_id: int
    meta: memoryview | bytes
    body: memoryview | bytes


def pack_frame(
    kind: int, request_id: int, meta: bytes = b"", body: bytes = b"", flags: int = 0
) -> bytes:
    """A whole frame in one piece; for large bodies use ``frame_head`` and send the body after."""
    return FRAME.pack(len(meta) + len(body), kind, flags, len(meta), request_id) + meta + body


def frame_head(kind: int, request_id: int, meta: bytes, body_length: int, flags: int = 0) -> bytes:
    """Frame header and meta; ``body_length`` bytes must follow."""
    return FRAME.pack(len(meta) + body_length, kind, flags, len(meta), request_id) + meta


def check_frame_head(
    payload_length: int, meta_length: int, payload_max: int = FRAME_PAYLOAD_MAX_BYTES
) -> None:
    """Refuses lengths over the limits before any memory is taken for them."""
    if (
        payload_length > payload_max
        or meta_length > FRAME_META_MAX_BYTES
        or meta_length > payload_length
    ):
        raise ProtocolError(f"a frame declares {payload_length} bytes (meta {meta_length})")


def split_frame(data: memoryview | bytes, at: int = 0) -> tuple[Frame, int] | None:
    """The frame at ``at`` and the position behind it, or None where it is not complete."""
    if len(data) - at < FRAME_SIZE_BYTES:
        return None
    length, kind, flags, meta_length, request_id = FRAME.unpack_from(data, at)
    check_frame_head(length, meta_length)
    start = at + FRAME_SIZE_BYTES
    end = start + length
    if end > len(data):
        return None
    middle = start + meta_length
    return Frame(kind, flags, request_id, data[start:middle], data[middle:end]), end


def pack_hello(version: int = PROTOCOL_VERSION) -> bytes:
    """What a client sends first."""
    return pack_frame(Kind.HELLO, 0, HELLO.pack(HELLO_MAGIC, version))


def check_hello(frame: Frame) -> None:
    """Raises ProtocolError unless the frame opens a connection of this version."""
    if frame.kind != Kind.HELLO or len(frame.meta) < HELLO.size:
        raise ProtocolError("the first frame is not a hello")
    magic, version = HELLO.unpack_from(frame.meta)
    if magic != HELLO_MAGIC:
        raise ProtocolError("the first frame is not a hello")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the client speaks protocol {version}, this daemon {PROTOCOL_VERSION}",
            client=version,
            daemon=PROTOCOL_VERSION,
        )


class Hello(NamedTuple):
    """What the daemon says of itself."""

    version: int
    pid: int
    directory: bytes
    node: str
    software: str


def pack_hello_ok(pid: int, directory: bytes, node: str, software: str) -> bytes:
    body = b"\n".join([node.encode(), software.encode(), directory])
    return pack_frame(Kind.HELLO_OK, 0, HELLO_OK.pack(PROTOCOL_VERSION, pid), body)


def unpack_hello_ok(frame: Frame) -> Hello:
    if frame.kind == Kind.ERROR:
        raise unpack_error(frame)
    if frame.kind != Kind.HELLO_OK or len(frame.meta) < HELLO_OK.size:
        raise ProtocolError("the daemon did not answer the hello")
    version, pid = HELLO_OK.unpack_from(frame.meta)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"the daemon speaks protocol {version}, this client {PROTOCOL_VERSION}")
    try:
        node, software, directory = bytes(frame.body).split(b"\n", 2)
        return Hello(version, pid, directory, node.decode(), software.decode())
    except ValueError:
        raise ProtocolError("the daemon's hello cannot be read") from None


def pack_error(request_id: int, error: WalError, *, outcome_unknown: bool = False) -> bytes:
    """Meta: exit status. Body: code, message, hint and details (JSON), a line each.

    The flag OUTCOME_UNKNOWN says that bytes of the request had been handed to the file."""
    lines = [error.code, _one_line(error.message), _one_line(error.hint)]
    body = "\n".join([*lines, json.dumps(error.details, default=str)]).encode("utf-8", "replace")
    flags = FLAG_OUTCOME_UNKNOWN if outcome_unknown else 0
    return pack_frame(Kind.ERROR, request_id, bytes([error.exit_status]), body, flags)


def unpack_error(frame: Frame) -> WalError:
    """The error of an ERROR frame; ``details["outcome_unknown"]`` where the frame says so."""
    try:
        code, message, hint, details = bytes(frame.body).decode("utf-8", "replace").split("\n", 3)
        error = error_from_wire(code, message, hint, json.loads(details))
    except (ValueError, RecursionError):
        return ProtocolError("an error frame that cannot be read")
    if frame.flags & FLAG_OUTCOME_UNKNOWN:
        error.details["outcome_unknown"] = True
    return error


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def pack_append(
    request_id: int, message: Message, *, expect: int = -1, buffered: bool = False
) -> bytes:
    """Frame header, meta and properties of an append; the message's body must follow."""
    meta = message.client_half + EXPECT.pack(expect)
    length = len(message.properties) + len(message.body)
    flags = FLAG_BUFFERED if buffered else 0
    return frame_head(Kind.APPEND, request_id, meta, length, flags) + message.properties


def details_of(error: WalError) -> dict[str, Any]:
    """The stable JSON object of an error, as ``-o json`` prints it."""
    return {
        "error": {
            "code": error.code,
            "exit": error.exit_status,
            "message": error.message,
            "hint": error.hint,
            "details": error.details,
        }
    }
