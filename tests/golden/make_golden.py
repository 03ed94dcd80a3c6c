"""Make the golden log of what this source writes.

``python -m tests.golden.make_golden``, once for each version that writes something new, never
again: what it wrote is committed and must stay readable for ever. It refuses to write where
something is.

v1: rows, crashes, a fenced owner. v2: format 1 still, with snapshots of version 2; in addition
transactions (committed, empty, rolled back, expired, broken by a change, left open), producers,
partitions, settings, a truncation, and a drop.
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
from wal_core.limits import TXN_COMMIT_BODY_MAX_BYTES
from wal_core.message import Compression, Encoding, Message, MessageType, message
from wal_core.names import producer_id
from wal_daemon.pipeline.sequencer import Sequencer
from wal_daemon.pipeline.timetick import TimeTick
from wal_daemon.pipeline.txn import Leases
from wal_daemon.wal.requests import NOBODY, own_request
from wal_storage.directory import DataDirectory
from wal_storage.state import Change, CreateCollection, encode_change, encode_create
from wal_storage.transactions import Begin, End, Rollback, encode

GOLDEN = "v2"
SEGMENT = 2600
COMMIT_BODY = 256
"""More than the body of any commit takes here."""
HERE = Path(__file__).parent
V3 = 3 << 16
WHOLE, EMPTY, BACK, LATE, BROKEN, OPEN = 0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666
NAMED = producer_id("producer", "golden")


class Golden:
    """A writer of groups that the daemon's own sequencer judges, and the rows to be found."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.disk = ProbeDisk(os.fsencode(log))
        self.clock = ManualClock()
        self.rows: dict[int, list[Record]] = {}
        self._staged: dict[int, list[Record]] = {}
        self.open()

    def open(self, node: str = "golden", *, takeover: bool = False) -> None:
        self.writer = Writer(
            self.disk, clock=self.clock, segment_size=SEGMENT, node=node, takeover=takeover
        )
        self._timetick = TimeTick(self.writer.tso)
        self._sequencer = Sequencer(self.writer.state, self._timetick, Leases(self.clock.monotonic))

    def write(self, *messages: Message) -> None:
        """One group. All of it is taken."""
        self.clock.pass_ms(100)
        wal, state = self.writer.wal, self.writer.state
        group = [own_request(one, NOBODY) for one in messages]
        for one in group:
            if one.type == MessageType.COMMIT_TXN:
                one.size += COMMIT_BODY - TXN_COMMIT_BODY_MAX_BYTES
        size = sum(one.size for one in group)
        if not wal.has_room(size):
            wal.make_room(size, state)
        first = self._timetick.begin(len(group))
        outcome = self._sequencer.assign(group, first, wal.position)
        assert outcome.written == group, outcome
        wal.cover(self._timetick.last)
        wal.append(outcome.written, state.confirmed_below)
        self._timetick.done(first)

    def insert(self, *batches: tuple[int, list[Record], dict[str, Any]]) -> None:
        """A group of batches: (VChannel, rows, options of the batch)."""
        self.write(*(batch(vchannel, rows, **options) for vchannel, rows, options in batches))
        for vchannel, rows, options in batches:
            seen = _with_shared(rows, options.get("properties", b""))
            place = self._staged if "txn_id" in options else self.rows
            place.setdefault(options.get("txn_id", vchannel), []).extend(seen)

    def create(self, vchannel: int, name: str) -> None:
        self._control(
            MessageType.CREATE_COLLECTION, vchannel, encode_create(CreateCollection(name, 1))
        )
        self.rows[vchannel] = []

    def change(
        self, kind: MessageType, vchannel: int, partition: int = 0, name: str = "", **settings: str
    ) -> None:
        number = self.writer.state.vchannels[vchannel].ddl + 1
        self._control(kind, vchannel, encode_change(Change(number, partition, name, settings)))

    def begin(self, txn_id: int, vchannel: int) -> None:
        self._control(MessageType.BEGIN_TXN, vchannel, encode(Begin(10_000)), txn_id=txn_id)

    def commit(self, txn_id: int, vchannel: int, **options: Any) -> None:
        self._control(MessageType.COMMIT_TXN, vchannel, txn_id=txn_id, **options)
        self.rows[vchannel] += self._staged.pop(txn_id, [])

    def roll_back(self, txn_id: int, vchannel: int, end: End) -> None:
        self._control(MessageType.ROLLBACK_TXN, vchannel, encode(Rollback(end)), txn_id=txn_id)

    def crash(self) -> None:
        """The owner dies, and a torn write is behind its last batch; the next owner."""
        position, name = self.writer.wal.tip.position, self.writer.wal.tip_id.file_name
        self.writer.close(seal=False)
        with open(self.log / name, "r+b") as file:
            file.seek(position)
            file.write(b"WALB torn")
        self.open()

    def fence(self) -> None:
        """The next owner, and a segment that the one before makes too late."""
        late = self.writer
        self.open("second", takeover=True)
        late.wal._prepared = None  # The new owner has swept it away.
        try:
            late.wal.make_room(0, late.state)
        except FencedError:
            late.close(seal=False)

    def _control(self, kind: MessageType, vchannel: int, body: bytes = b"", **options: Any) -> None:
        self.write(message(kind, vchannel, body, encoding=Encoding.MSGPACK, **options))


def batch(vchannel: int, rows: list[Record], *, packed: bool = False, **options: Any) -> Message:
    encoding, body = encode_records(rows)
    if packed:
        body, options["compression"] = compress(body), Compression.ZSTD
    return message(MessageType.INSERT, vchannel, body, encoding=encoding, rows=len(rows), **options)


def plain_rows(golden: Golden) -> None:
    """Encodings, keys, headers, compression, properties; a crash in between."""
    shared = {"properties": encode_properties(b"all", ((b"source", b"golden"),))}
    unknown = {"properties": b"\xc8\x03\x00new" + encode_properties(b"k", ())}
    keyed = [
        Record(b"with key", b"key"),
        Record(b"without"),
        Record(b"", b"", ((b"h", b"1"), (b"", b"\0\xff"))),
    ]
    golden.insert((V1, [Record(b"first"), Record(b""), Record("größer".encode())], {}))
    golden.insert((V1, [Record(b"two\nlines"), Record(b"\n")], {}), (V2, [Record(b"other")], {}))
    golden.insert((V2, keyed, {}), (V1, [Record(b"x" * 300)] * 3, {"packed": True}))
    golden.crash()
    golden.insert((V1, [Record(b"shared")], shared), (V1, keyed, {**shared, "packed": True}))
    golden.insert((V2, [Record(b"future")], unknown), (V2, [Record(bytes(range(256)))], {}))
    golden.insert((V1, [Record(b"of a producer")], {"producer_id": 77, "producer_sequence": 1}))
    named = {"producer_id": NAMED, "producer_epoch": 3}
    golden.insert((V1, [Record(b"named")], {**named, "producer_sequence": 1}))


def transactions(golden: Golden) -> None:
    """One that outlives a crash and lies in segments of two owners, beside others' rows."""
    of_whole = {"txn_id": WHOLE}
    golden.begin(WHOLE, V1)
    golden.begin(LATE, V2)
    golden.insert((V1, [Record(b"whole 1", b"k")], of_whole), (V1, [Record(b"beside")], {}))
    golden.insert((V2, [Record(b"late")], {"txn_id": LATE}))
    golden.insert((V1, [Record(b"whole 2"), Record(b"y" * 700)], {**of_whole, "packed": True}))
    golden.begin(BACK, V1)
    golden.insert((V1, [Record(b"never seen")], {"txn_id": BACK}))
    golden.insert((V1, [Record(b"whole 3")], of_whole), (V2, [Record(b"beside")], {}))
    golden.roll_back(BACK, V1, End.ROLLED_BACK)
    golden.crash()
    golden.insert((V1, [Record(b"z" * 1500)], {}))
    shared = {"properties": encode_properties(b"all", ((b"txn", b"1"),))}
    golden.insert((V1, [Record(b"whole 4")], {**of_whole, **shared}))
    named = {"producer_id": NAMED, "producer_epoch": 3, "producer_sequence": 2}
    golden.commit(WHOLE, V1, **named)
    golden.roll_back(LATE, V2, End.EXPIRED)
    golden.begin(EMPTY, V1)
    golden.commit(EMPTY, V1)
    golden.insert((V1, [Record(b"behind the commit")], {}))


def changes(golden: Golden) -> None:
    """Partitions, settings, a truncation that breaks a transaction, a drop."""
    golden.change(MessageType.CREATE_PARTITION, V1, 1, "eu")
    golden.change(MessageType.CREATE_PARTITION, V1, 2, "us")
    golden.insert((V1, [Record(b"in eu")], {"partition": 1}))
    golden.change(MessageType.ALTER_COLLECTION, V1, retention="7d", note="b c")
    golden.change(MessageType.DROP_PARTITION, V1, 1)
    golden.change(MessageType.ALTER_COLLECTION, V1, note="", more="1")
    golden.begin(BROKEN, V2)
    golden.insert((V2, [Record(b"broken")], {"txn_id": BROKEN}))
    golden.change(MessageType.TRUNCATE_COLLECTION, V2)
    golden.insert((V2, [Record(b"behind the truncation")], {}))
    golden.create(V3, "third")
    golden.insert((V3, [Record(b"dropped")], {}))
    golden.write(message(MessageType.DROP_COLLECTION, V3))
    golden.begin(OPEN, V1)
    golden.insert((V1, [Record(b"open")], {"txn_id": OPEN}))


def make(folder: Path) -> None:
    """Write the log and, beside it, what a reader must find."""
    if folder.exists():
        sys.exit(f"{folder} exists; a golden log is never made again")
    DataDirectory(os.fsencode(folder / "dir")).open()
    log = folder / "dir" / "pchannels" / "0"
    log.mkdir(parents=True)
    golden = Golden(log)
    golden.create(V1, "first")
    golden.create(V2, "second")
    plain_rows(golden)
    transactions(golden)
    changes(golden)
    golden.fence()
    golden.insert((V1, [Record(b"last, and not sealed")], {}))
    golden.write(message(MessageType.MARK, 0))
    golden.writer.close(seal=False)
    golden.disk.close()
    for path in log.glob("term.*"):
        who = {"node": "golden", "pid": 1, "since": "2023-11-14T22:13:20.000Z"}
        path.write_text(json.dumps(who) + "\n")
    rows = {str(vchannel): [_plain(row) for row in some] for vchannel, some in golden.rows.items()}
    (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "shards.json").write_text(json.dumps(SHARDS, indent=1) + "\n")


SHARDS = {
    str(V1): {
        "collection": "first",
        "first": 0,
        "dropped": False,
        "partitions": {"2": "us"},
        "settings": {"retention": "7d", "more": "1"},
        "changes": 5,
        "open": [OPEN],
        "ended": {str(WHOLE): 0, str(BACK): 1, str(EMPTY): 0},
    },
    str(V2): {
        "collection": "second",
        "first": 7,
        "dropped": False,
        "partitions": {},
        "settings": {},
        "changes": 1,
        "open": [],
        "ended": {str(LATE): 2, str(BROKEN): 3},
    },
    str(V3): {
        "collection": "third",
        "first": 0,
        "dropped": True,
        "partitions": {},
        "settings": {},
        "changes": 0,
        "open": [],
        "ended": {},
    },
}
"""What ``changes`` and ``transactions`` leave: written down by hand, not computed."""


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
    make(HERE / GOLDEN)
