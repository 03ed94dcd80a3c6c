"""Cutting a stream of bytes into batches, and headers in JSON."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_cli.framing import (
    Batch,
    Framing,
    Keyed,
    cut,
    framing,
    pack,
    pack_headers,
    stored_size,
    unpack_headers,
)
from wal_core.batch import Record, decode_bodies
from wal_core.errors import BadInputError, RecordTooLargeError, UsageError, WalError
from wal_core.limits import BATCH_BODY_MAX_BYTES, RECORD_SIZE_MAX_BYTES
from wal_core.message import Encoding


def records_of(batches: list[Batch | Keyed]) -> list[Record]:
    found: list[Record] = []
    for batch in batches:
        if isinstance(batch, Keyed):
            found += batch.records
        else:
            bodies = decode_bodies(batch.encoding, batch.body, batch.rows)
            found += [Record(bytes(body)) for body in bodies]
    return found


def feed(name: str, pieces: list[bytes]) -> list[Record]:
    """What a reader does: whatever arrives is added, whole records are taken now and then."""
    how = framing(name)
    data = bytearray()
    found: list[Record] = []
    start = 0
    for number, piece in enumerate(pieces):
        seen = len(data)
        data += piece
        start = how.whole(data, start, seen, len(data))
        if start and number % 2:
            found += records_of(list(how.batches(bytes(data), start)))
            del data[:start]
            start = 0
    if start:
        found += records_of(list(how.batches(bytes(data), start)))
    if data[start:]:
        found += records_of(list(how.last(bytes(data[start:]))))
    assert how.number == len(found)
    return found


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


sizes = st.lists(st.integers(0, 12), max_size=20)


@given(st.binary(max_size=80), sizes)
def test_lines_survive_any_cut(data: bytes, sizes: list[int]) -> None:
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [one.body for one in feed("line", split(data, sizes))] == expected


@given(st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\0", b"\n"))), sizes)
def test_nul_survives_any_cut(bodies: list[bytes], sizes: list[int]) -> None:
    data = b"".join(body + b"\0" for body in bodies)
    assert [one.body for one in feed("nul", split(data, sizes))] == bodies


@given(st.lists(st.binary(max_size=9)), sizes)
def test_len32_survives_any_cut(bodies: list[bytes], sizes: list[int]) -> None:
    data = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    assert [one.body for one in feed("len32", split(data, sizes))] == bodies


@given(st.binary(min_size=1, max_size=50), sizes)
def test_whole_is_one_record(data: bytes, sizes: list[int]) -> None:
    assert [one.body for one in feed("whole", split(data, sizes))] == [data]


@pytest.mark.parametrize("name", ["line", "nul", "len32", "whole", "ndjson"])
def test_no_bytes_are_no_records(name: str) -> None:
    assert feed(name, [b"", b""]) == []


def test_lines_are_passed_on_without_a_copy() -> None:
    data = bytearray(b"one\ntwo\nthr")
    how = Framing()
    assert how.whole(data, 0, 0, len(data)) == 8
    (batch,) = how.batches(data, 8)
    assert isinstance(batch, Batch)
    assert isinstance(batch.body, memoryview)
    assert batch.body.obj is data
    assert (batch.encoding, batch.rows) == (Encoding.LINES, 2)


def test_ndjson_takes_what_tail_prints_and_ignores_the_rest() -> None:
    rows = [
        {"collection": "c", "shard": 0, "offset": 3, "tso": "1", "time": "t", "body": "a\nb"},
        {"body_b64": "/wA=", "key": "k", "headers": {"h": "v", "r": ["1", {"b64": "/w=="}]}},
        {"body": "", "key_b64": "/w=="},
    ]
    data = "\n".join(map(json.dumps, rows)).encode()
    assert feed("ndjson", [data]) == [
        Record(b"a\nb"),
        Record(b"\xff\0", b"k", ((b"h", b"v"), (b"r", b"1"), (b"r", b"\xff"))),
        Record(b"", b"\xff"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"[]",
        b"{}",
        b'{"body":1}',
        b'{"body_b64":"?"}',
        b'{"body":"a","headers":{"x":1}}',
        b"",
    ],
)
def test_a_bad_json_line_is_named(line: bytes) -> None:
    with pytest.raises(BadInputError, match="line 2") as caught:
        feed("ndjson", [b'{"body":"a"}\n' + line + b"\n"])
    assert caught.value.details == {"line": 2}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\1\0\0\0a\5\0", "record 2: the input ends after 2 of 4 length bytes"),
        (b"\5\0\0\0ab", "record 1: the input ends after 2 of 5 bytes"),
    ],
)
def test_a_cut_off_len32_record_is_named(data: bytes, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        feed("len32", [data])


def test_a_len32_length_over_the_limit_is_refused_before_it_is_read() -> None:
    big = struct.pack("<I", RECORD_SIZE_MAX_BYTES + 1)
    with pytest.raises(RecordTooLargeError, match="record 1"):
        feed("len32", [big])
    with pytest.raises(RecordTooLargeError, match="record 2"):
        feed("len32", [b"\0\0\0\0", b"", big, b""])


def test_a_last_line_may_have_just_the_limit() -> None:
    most = bytes(RECORD_SIZE_MAX_BYTES)
    assert len(records_of(list(framing("whole").last(most)))) == 1
    for name in ("line", "nul", "whole"):
        with pytest.raises(RecordTooLargeError):
            framing(name).last(most + b"x")


def test_lengths_may_not_take_a_batch_over_its_limit() -> None:
    bodies = [bytes(RECORD_SIZE_MAX_BYTES - 10), *[b"\n"] * 100_000]
    batches = pack(bodies)
    assert max(len(batch.body) for batch in batches) <= BATCH_BODY_MAX_BYTES
    assert [one.body for one in records_of(list(batches))] == bodies


def test_cut_keeps_the_order_and_the_size() -> None:
    records = [Record(bytes(400_000)) for _ in range(5)] + [Record(bytes(2_000_000)), Record(b"x")]
    runs = cut(records)
    assert [one for run in runs for one in run] == records
    assert all(sum(map(stored_size, run)) <= 1 << 20 for run in runs if len(run) > 1)


headers = st.lists(st.tuples(st.text(min_size=1), st.binary()), max_size=5)


@given(headers)
def test_headers_survive_json(pairs: list[tuple[str, bytes]]) -> None:
    packed = tuple((name.encode(), value) for name, value in sorted(pairs, key=lambda p: p[0]))
    assert unpack_headers(json.loads(json.dumps(pack_headers(packed)))) == packed


def test_an_unknown_framing_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="none of line"):
        framing("csv")


def test_errors_say_how_the_record_is_counted() -> None:
    assert isinstance(framing("nul").too_large(), WalError)
    assert framing("nul").too_large().message.startswith("record 1:")
    assert framing("line").too_large().message.startswith("line 1:")
