"""Make the golden log of the format that this source writes.

``python -m tests.golden.make_golden``, once for each released format version, never again: what it
wrote is committed and must stay readable for ever. It refuses to write where something is.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.storage.disks import ProbeDisk
from tests.storage.writer import V1, V2, ManualClock, Writer
from wal_core.batch import Record, compress, decode_properties, encode_properties, encode_records
from wal_core.errors import FencedError
from wal_core.message import Compression, Message, MessageType, message
from wal_storage.directory import LAYOUT_VERSION, DataDirectory

SEGMENT = 1100
HERE = Path(__file__).parent


def batch(vchannel: int, rows: list[Record], *, packed: bool = False, **options: Any) -> Message:
    encoding, body = encode_records(rows)
    if packed:
        body, options["compression"] = compress(body), Compression.ZSTD
    return message(MessageType.INSERT, vchannel, body, encoding=encoding, rows=len(rows), **options)


def history() -> list[list[tuple[int, list[Record], dict[str, Any]]]]:
    """Groups of (VChannel, rows, options of the batch)."""
    shared = {"properties": encode_properties(b"all", ((b"source", b"golden"),))}
    unknown = {"properties": b"\xc8\x03\x00new" + encode_properties(b"k", ())}
    keyed = [
        Record(b"with key", b"key"),
        Record(b"without"),
        Record(b"", b"", ((b"h", b"1"), (b"", b"\0\xff"))),
    ]
    return [
        [(V1, [Record(b"first"), Record(b""), Record("größer".encode())], {})],
        [(V1, [Record(b"two\nlines"), Record(b"\n")], {}), (V2, [Record(b"other")], {})],
        [(V2, keyed, {}), (V1, [Record(b"x" * 300)] * 3, {"packed": True})],
        [(V1, [Record(b"shared")], shared), (V1, keyed, {**shared, "packed": True})],
        [(V2, [Record(b"future")], unknown), (V2, [Record(bytes(range(256)))], {})],
        [(V1, [Record(b"of a producer")], {"producer_id": 77, "producer_sequence": 5})],
    ]


def make(folder: Path) -> None:
    """Write the log and, beside it, the rows that a reader must find."""
    if folder.exists():
        sys.exit(f"{folder} exists; a golden log is never made again")
    DataDirectory(os.fsencode(folder / "dir")).open()
    log = folder / "dir" / "pchannels" / "0"
    log.mkdir(parents=True)
    disk = ProbeDisk(os.fsencode(log))
    clock = ManualClock()
    expected: dict[int, list[Record]] = {V1: [], V2: []}
    writer = Writer(disk, clock=clock, segment_size=SEGMENT, node="golden")
    writer.create(V1, "first")
    writer.create(V2, "second")
    for number, group in enumerate(history()):
        clock.pass_ms(100)
        messages = []
        for vchannel, rows, options in group:
            messages.append(batch(vchannel, rows, **options))
            expected[vchannel] += _with_shared(rows, options.get("properties", b""))
        writer.write(messages)
        if number == 2:  # An owner that dies, and a torn write behind its last batch.
            position, name = writer.wal.tip.position, writer.wal.tip_id.file_name
            writer.close(seal=False)
            with open(log / name, "r+b") as file:
                file.seek(position)
                file.write(b"WALB torn")
            writer = Writer(disk, clock=clock, segment_size=SEGMENT, node="golden")
    # An owner that is fenced, and the segment that it made too late.
    late = writer
    writer = Writer(disk, clock=clock, segment_size=SEGMENT, node="second", takeover=True)
    late.wal._prepared = None  # The new owner has swept it away.
    try:
        late.wal.make_room(0, late.state)
    except FencedError:
        late.close(seal=False)
    writer.write([batch(V1, [Record(b"last, and not sealed")])])
    expected[V1].append(Record(b"last, and not sealed"))
    writer.mark()
    writer.close(seal=False)
    disk.close()
    for path in log.glob("term.*"):
        who = {"node": "golden", "pid": 1, "since": "2023-11-14T22:13:20.000Z"}
        path.write_text(json.dumps(who) + "\n")
    rows = {str(vchannel): [_plain(row) for row in some] for vchannel, some in expected.items()}
    (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")


def _with_shared(rows: list[Record], properties: bytes) -> list[Record]:
    key, headers = decode_properties(properties)
    return [
        Record(row.body, key if row.key is None else row.key, headers + row.headers) for row in rows
    ]


def _plain(row: Record) -> dict[str, Any]:
    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return {
        "body": text(row.body),
        "key": None if row.key is None else text(row.key),
        "headers": [[text(name), text(value)] for name, value in row.headers],
    }


if __name__ == "__main__":
    make(HERE / f"v{LAYOUT_VERSION}")
