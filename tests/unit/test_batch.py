"""The rows of a batch: what goes in comes out, and hostile bytes give CorruptError alone."""

from __future__ import annotations

import contextlib
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from wal_core.batch import (
    Record,
    compress,
    decode_bodies,
    decode_headers,
    decode_properties,
    decode_records,
    decompress,
    encode_bodies,
    encode_headers,
    encode_properties,
    encode_records,
)
from wal_core.errors import CorruptError, RecordTooLargeError
from wal_core.limits import BATCH_BODY_MAX_BYTES, KEY_SIZE_MAX_BYTES
from wal_core.message import Compression, Encoding

bodies = st.lists(st.binary(max_size=40) | st.sampled_from([b"", b"\n", b"a\n"]), max_size=20)
pairs = st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=3).map(tuple)
records = st.lists(
    st.builds(Record, st.binary(max_size=20), st.none() | st.binary(max_size=9), pairs),
    min_size=1,
    max_size=12,
)


@given(bodies)
def test_bodies_round_trip(rows: list[bytes]) -> None:
    encoding, body = encode_bodies(rows)
    assert decode_bodies(encoding, body, len(rows)) == rows


@given(records)
def test_records_round_trip(rows: list[Record]) -> None:
    encoding, body = encode_records(rows)
    assert decode_records(encoding, body, len(rows)) == rows
    assert decode_bodies(encoding, body, len(rows)) == [row.body for row in rows]


@given(st.none() | st.binary(max_size=50), pairs)
def test_properties_round_trip(key: bytes | None, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    assert decode_properties(encode_properties(key, headers)) == (key, headers)


@given(records, st.binary(max_size=9), pairs)
def test_a_row_without_key_takes_the_shared_one(
    rows: list[Record], key: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    encoding, body = encode_records(rows)
    found = decode_records(encoding, body, len(rows), encode_properties(key, headers))
    for row, one in zip(rows, found, strict=True):
        assert one.key == (key if row.key is None else row.key)
        assert one.headers == headers + row.headers
        assert one.body == row.body


@given(st.binary(max_size=60))
def test_unknown_properties_are_passed_over(value: bytes) -> None:
    unknown = struct.pack("<BH", 200, len(value)) + value
    assert decode_properties(unknown + encode_properties(b"k", ())) == (b"k", ())


@given(st.sampled_from([*Encoding, 99]), st.binary(max_size=90), st.integers(0, 2**32 - 1))
def test_hostile_bodies(encoding: int, body: bytes, count: int) -> None:
    for decode in (decode_bodies, decode_records):
        try:
            rows = decode(encoding, memoryview(body), count)
        except CorruptError:
            continue
        assert len(rows) == count


@given(records, st.data())
def test_a_changed_length_is_refused_or_keeps_the_count(
    rows: list[Record], data: st.DataObject
) -> None:
    encoding, body = encode_records([*rows, Record(b"x", b"key")])
    at = data.draw(st.integers(0, len(body) - 1))
    changed = bytearray(body)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_records(encoding, changed, len(rows) + 1)
    except CorruptError:
        return
    assert len(found) == len(rows) + 1


@given(st.binary(max_size=60))
def test_hostile_properties_and_headers(data: bytes) -> None:
    for decode in (decode_properties, decode_headers):
        try:
            decode(data)
        except CorruptError:
            continue


@given(st.binary(max_size=300))
def test_hostile_compression(data: bytes) -> None:
    with contextlib.suppress(CorruptError):
        decompress(Compression.ZSTD, data)
    with pytest.raises(CorruptError):
        decompress(7, data)


@given(st.binary(max_size=3000))
def test_compression_round_trips(body: bytes) -> None:
    assert decompress(Compression.ZSTD, compress(body)) == body
    assert decompress(Compression.NONE, body) == body


def test_a_bomb_is_refused_by_its_declared_size() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(BATCH_BODY_MAX_BYTES + 1))
    assert len(bomb) < 4096
    with pytest.raises(CorruptError, match="declares"):
        decompress(Compression.ZSTD, bomb)


def test_a_frame_without_a_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(CorruptError):
        decompress(Compression.ZSTD, frame)


def test_a_cut_off_frame_is_refused() -> None:
    frame = compress(b"abc" * 1000)
    for length in range(len(frame)):
        with pytest.raises(CorruptError):
            decompress(Compression.ZSTD, frame[:length])


def test_too_many_lines_are_refused_before_they_are_split() -> None:
    with pytest.raises(CorruptError):
        decode_bodies(Encoding.LINES, b"\n" * 1000, 999)
    with pytest.raises(CorruptError):
        decode_bodies(Encoding.LINES, b"a\nb", 2)
    assert decode_bodies(Encoding.LINES, b"", 0) == []


def test_bodies_without_newlines_are_lines() -> None:
    assert encode_bodies([b"a", b""]) == (Encoding.LINES, b"a\n\n")
    assert encode_bodies([b"a\n"])[0] == Encoding.LEN32


def test_limits_of_keys_and_headers() -> None:
    with pytest.raises(RecordTooLargeError):
        encode_properties(b"k" * (KEY_SIZE_MAX_BYTES + 1), ())
    with pytest.raises(RecordTooLargeError):
        encode_properties(None, ((b"n", b"v" * 65536),))
    with pytest.raises(RecordTooLargeError):
        encode_headers([(b"n" * 65536, b"")])
    largest = encode_properties(b"k" * KEY_SIZE_MAX_BYTES, ((b"n", b"v" * 32000),))
    assert len(largest) < 65536
