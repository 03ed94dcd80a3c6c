"""Frames: the same whatever the pieces they arrive in; hostile bytes give ProtocolError alone."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wal_core.errors import ERRORS, BugError, NotFoundError, ProtocolError, WalError
from wal_core.frame_reader import FrameReader
from wal_core.frames import (
    APPEND_META_SIZE_BYTES,
    EXPECT,
    FRAME,
    FRAME_SIZE_BYTES,
    HELLO_OK,
    Frame,
    Kind,
    check_hello,
    details_of,
    pack_append,
    pack_error,
    pack_frame,
    pack_hello,
    pack_hello_ok,
    split_frame,
    unpack_error,
    unpack_hello_ok,
)
from wal_core.limits import DIRECT_FRAME_MIN_BYTES, FRAME_META_MAX_BYTES, FRAME_PAYLOAD_MAX_BYTES
from wal_core.message import MessageType, message

frames = st.tuples(
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=30),
    st.binary(max_size=60) | st.just(b"L" * (DIRECT_FRAME_MIN_BYTES + 5)),
    st.integers(0, 255),
)


Buffer = memoryview | bytes


def feed(stream: bytes, cuts: list[int], size: int = 1 << 17) -> list[tuple[object, ...]]:
    """What a FrameReader makes of a stream that arrives in pieces."""
    seen: list[tuple[object, ...]] = []

    def note(kind: int, flags: int, request_id: int, meta: Buffer, body: Buffer) -> None:
        seen.append((kind, request_id, bytes(meta), bytes(body), flags))

    view = memoryview(bytearray(size))
    reader = FrameReader(view, note)
    at = 0
    for cut in [*cuts, len(stream)]:
        while at < cut:
            buffer = reader.buffer()
            piece = stream[at : min(cut, at + len(buffer))]
            buffer[: len(piece)] = piece
            reader.received(len(piece))
            view[:] = bytes(size)  # Another connection uses the shared buffer.
            at += len(piece)
    assert not reader.waiting
    return seen


@settings(deadline=None, max_examples=60)
@given(st.lists(frames, max_size=5), st.data())
def test_any_split_gives_the_same_frames(
    sent: list[tuple[int, int, bytes, bytes, int]], data: st.DataObject
) -> None:
    stream = b"".join(pack_frame(*one) for one in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    assert feed(stream, cuts) == sent


def test_byte_by_byte() -> None:
    sent = [(Kind.APPEND, 7, b"meta", b"body", 1), (Kind.CANCEL, 8, b"", b"", 0)]
    stream = b"".join(pack_frame(*one) for one in sent)
    assert feed(stream, list(range(len(stream)))) == sent
    assert feed(stream, [], size=FRAME_SIZE_BYTES) == sent


@given(st.binary(max_size=200))
def test_hostile_streams(data: bytes) -> None:
    reader = FrameReader(memoryview(bytearray(256)), lambda *frame: None)
    reader.buffer()[: len(data)] = data
    try:
        reader.received(len(data))
        split_frame(data)
    except ProtocolError:
        reader.forget()
        assert not reader.waiting


@pytest.mark.parametrize(
    ("length", "meta"),
    [(FRAME_PAYLOAD_MAX_BYTES + 1, 0), (2**32 - 1, 0), (9, 10), (60_000, FRAME_META_MAX_BYTES + 1)],
)
def test_lengths_over_the_limits_are_refused_before_memory_is_taken(length: int, meta: int) -> None:
    reader = FrameReader(memoryview(bytearray(64)), lambda *frame: None)
    head = FRAME.pack(length, Kind.APPEND, 0, meta, 1)
    reader.buffer()[: len(head)] = head
    with pytest.raises(ProtocolError):
        reader.received(len(head))
    assert not reader.waiting


def _frame(data: bytes) -> Frame:
    found = split_frame(data)
    assert found is not None
    return found[0]


@given(st.binary(max_size=80), st.binary(max_size=80), st.integers(0, 20))
def test_hostile_meta_and_bodies(meta: bytes, body: bytes, kind: int) -> None:
    frame = Frame(kind, 0, 1, meta, body)
    allowed = WalError if kind == Kind.ERROR else ProtocolError
    for decode in (check_hello, unpack_hello_ok):
        with contextlib.suppress(allowed):
            decode(frame)
    assert isinstance(unpack_error(frame), WalError)


def test_a_hello_that_cannot_be_read() -> None:
    for body in (b"", b"main", b"\xff\n\xff\nx"):
        with pytest.raises(ProtocolError):
            unpack_hello_ok(Frame(Kind.HELLO_OK, 0, 0, HELLO_OK.pack(1, 5), body))


def test_hellos() -> None:
    check_hello(_frame(pack_hello()))
    with pytest.raises(ProtocolError, match="protocol 9"):
        check_hello(_frame(pack_hello(9)))
    hello = unpack_hello_ok(_frame(pack_hello_ok(12, b"/d\n/e", "main", "0.1")))
    assert hello.pid == 12
    assert hello.directory == b"/d\n/e"


@pytest.mark.parametrize(
    "details",
    ["[1]", "3", "null", '{"message": 1, "hint": 2, "self": 3}', "[" * 100_000, "nonsense"],
)
def test_hostile_error_details(details: str) -> None:
    body = "\n".join(["not-found", "no such", "hint", details]).encode()
    error = unpack_error(Frame(Kind.ERROR, 0, 1, b"", body))
    assert isinstance(error, NotFoundError | ProtocolError)


@pytest.mark.parametrize("cls", ERRORS.values())
def test_errors_cross_the_socket(cls: type[WalError]) -> None:
    error = cls("two\nlines", hint="do this", offset=5)
    back = unpack_error(_frame(pack_error(3, error, outcome_unknown=True)))
    assert type(back) is cls
    assert back.message == "two lines"
    assert back.hint == "do this"
    assert back.details == {"offset": 5, "outcome_unknown": True}
    assert json.loads(json.dumps(details_of(back)))["error"]["exit"] == cls.exit_status


def test_a_code_of_a_newer_version() -> None:
    body = b"from-the-future\nsomething\n\n{}"
    error = unpack_error(Frame(Kind.ERROR, 0, 1, b"", body))
    assert isinstance(error, BugError)
    assert "from-the-future" in error.message


@given(st.binary(max_size=50), st.binary(max_size=50), st.integers(-1, 2**63 - 1))
def test_appends_carry_the_clients_half_of_the_header(
    body: bytes, properties: bytes, expect: int
) -> None:
    sent = message(MessageType.INSERT, 9, body, rows=3, properties=properties, producer_id=8)
    frame = _frame(pack_append(4, sent, expect=expect) + body)
    assert len(frame.meta) == APPEND_META_SIZE_BYTES
    assert frame.meta[: len(sent.client_half)] == sent.client_half
    assert EXPECT.unpack(frame.meta[len(sent.client_half) :]) == (expect,)
    assert bytes(frame.body) == properties + body
