"""Messages: the entries of a log. A batch is one Insert message that carries many rows.

The header is all that the write path reads. 128 bytes, little-endian, in two halves: what the
client says crosses the socket and goes to disk byte for byte; what the service gives follows. The
body stays opaque and carries the producer's CRC-32C. ``docs/format.md`` is the same in prose.

=======  ====  ================  ===================================================================
offset   size  field             meaning
=======  ====  ================  ===================================================================
0        4     magic             ``WALB``
4        1     version           of this layout, 1
5        1     type              ``MessageType``
6        1     encoding          of the body: ``Encoding``
7        1     compression       of the body: ``Compression``
8        2     flags             0; unknown flags survive
10       2     properties length bytes between header and body
12       4     rows              how many the body holds
16       8     vchannel          collection id << 16 | shard; 0: the PChannel itself
24       4     body length
28       4     body checksum     CRC-32C of the body bytes as they are
32       8     producer id       0: none
40       8     producer sequence of the producer in this VChannel
48       4     producer epoch
52       4     partition         of the rows; 0: the default one
56       8     transaction id    0: none
64       8     trace id
72       8     term              ownership under which it was written
80       8     sequence          of the PChannel, dense
88       8     tso               the message's timestamp
96       8     first offset      of the first row in the VChannel; -1: none
104      8     synced upto       PChannel sequence known durable before this write began
112      8     last confirmed    PChannel sequence from which a reader sees everything greater
120      4     position          of the header in its file
124      4     header checksum   CRC-32C of bytes 0..123 and the properties, seeded with the CRC-32C
                                 of the segment's identity (term, first sequence)
=======  ====  ================  ===================================================================
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from wal_core.checksum import crc32c

MAGIC = b"WALB"
VERSION = 1
CLIENT_HALF = struct.Struct("<4sBBBBHHIQIIQQIIQQ")
SERVICE_HALF = struct.Struct("<QQQqQQI")
HEADER = struct.Struct(CLIENT_HALF.format + SERVICE_HALF.format[1:] + "I")
HEADER_SIZE_BYTES = 128
CHECKSUM_AT = 124
NO_OFFSET = -1
_IDENTITY = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<I")

assert HEADER.size == HEADER_SIZE_BYTES


class MessageType(enum.IntEnum):
    """What a message is. Clients append DML and DDL; the rest belongs to the service."""

    INSERT = 1
    DELETE = 2
    CREATE_COLLECTION = 16
    DROP_COLLECTION = 17
    TRUNCATE_COLLECTION = 18
    CREATE_PARTITION = 19
    DROP_PARTITION = 20
    ALTER_COLLECTION = 21
    BEGIN_TXN = 32
    COMMIT_TXN = 33
    ROLLBACK_TXN = 34
    CREATE_SEGMENT = 48
    FLUSH = 49
    MANUAL_FLUSH = 50
    TIME_TICK = 64
    RECOVERY_BARRIER = 65
    MARK = 66
    """Carries ``synced upto`` alone: the proof that the last group of an idle log was durable."""
    SNAPSHOT = 67
    """Opens each segment: what the log before it knew."""


class Encoding(enum.IntEnum):
    """How the rows of a body lie."""

    NONE = 0
    LINES = 1
    """Bodies without newline, each followed by one: a pipe's bytes as they come."""
    LEN32 = 2
    """u32 lengths of all bodies, then all bodies."""
    COLUMNS = 3
    """Keys, headers and bodies: three columns of lengths, then three of bytes (``batch``)."""
    ARROW = 4
    """An Arrow IPC batch, for typed rows."""
    MSGPACK = 5
    """One msgpack value: bodies of DDL and of snapshots."""


class Compression(enum.IntEnum):
    NONE = 0
    ZSTD = 1


class Header(NamedTuple):
    """A decoded header; the fields in their order on disk."""

    magic: bytes
    version: int
    type: int
    encoding: int
    compression: int
    flags: int
    properties_length: int
    rows: int
    vchannel: int
    body_length: int
    body_checksum: int
    producer_id: int
    producer_sequence: int
    producer_epoch: int
    partition: int
    txn_id: int
    trace_id: int
    term: int
    sequence: int
    tso: int
    first_offset: int
    synced_upto: int
    last_confirmed: int
    position: int
    header_checksum: int

    @property
    def size(self) -> int:
        """Bytes of header, properties and body together."""
        return HEADER_SIZE_BYTES + self.properties_length + self.body_length


class Message:
    """A message on its way into the log: what the client said, then what the sequencer gave it."""

    __slots__ = (
        "body",
        "client_half",
        "first_offset",
        "header",
        "properties",
        "rows",
        "sequence",
        "size",
        "tso",
        "type",
        "vchannel",
    )

    def __init__(
        self,
        client_half: bytes,
        type: int,
        vchannel: int,
        rows: int,
        properties: bytes,
        body: bytes | bytearray | memoryview,
    ) -> None:
        """See ``message`` for the way to make one from named fields."""
        self.client_half = client_half
        self.type = type
        self.vchannel = vchannel
        self.rows = rows
        self.properties = properties
        self.body = body
        self.size = HEADER_SIZE_BYTES + len(properties) + len(body)
        """Bytes that the message takes in a log segment."""
        self.sequence = 0
        self.tso = 0
        self.first_offset = NO_OFFSET
        self.header = b""
        """Header and properties as they stand in the log, once it is written."""


def message(
    type: int,
    vchannel: int,
    body: bytes | bytearray | memoryview = b"",
    *,
    encoding: int = Encoding.NONE,
    compression: int = Compression.NONE,
    rows: int = 0,
    properties: bytes = b"",
    producer_id: int = 0,
    producer_epoch: int = 0,
    producer_sequence: int = 0,
    partition: int = 0,
    txn_id: int = 0,
    trace_id: int = 0,
) -> Message:
    """A message as its sender makes it."""
    half = CLIENT_HALF.pack(
        MAGIC,
        VERSION,
        type,
        encoding,
        compression,
        0,
        len(properties),
        rows,
        vchannel,
        len(body),
        crc32c(body),
        producer_id,
        producer_sequence,
        producer_epoch,
        partition,
        txn_id,
        trace_id,
    )
    return Message(half, type, vchannel, rows, properties, body)


def identity_seed(term: int, first_sequence: int) -> int:
    """What header checksums of a segment start from, so that no batch of another file passes."""
    return crc32c(_IDENTITY.pack(term, first_sequence))


def pack_header(
    message: Message, term: int, position: int, synced_upto: int, confirmed_below: int, seed: int
) -> tuple[bytes, bytes]:
    """Header and properties of a sequenced message, as they stand at ``position`` of a segment;
    and the header's checksum, 4 bytes, for the running checksum.

    ``confirmed_below``: sequence of the oldest BeginTxn that is still open."""
    sequence = message.sequence
    head = message.client_half + SERVICE_HALF.pack(
        term,
        sequence,
        message.tso,
        message.first_offset,
        synced_upto,
        (sequence if sequence < confirmed_below else confirmed_below) - 1,
        position,
    )
    properties = message.properties
    if properties:
        checksum = _CHECKSUM.pack(crc32c(properties, crc32c(head, seed)))
        return head + checksum + properties, checksum
    checksum = _CHECKSUM.pack(crc32c(head, seed))
    return head + checksum, checksum


def unpack_header(data: memoryview | bytes, at: int = 0) -> Header:
    """The header at ``at``, unchecked. Raises struct.error where fewer than 128 bytes are left."""
    return Header._make(HEADER.unpack_from(data, at))


def header_is_valid(data: memoryview, at: int, header: Header, seed: int) -> bool:
    """Whether magic, version and checksum hold, properties included. ``data`` may end early."""
    if header.magic != MAGIC or header.version != VERSION:
        return False
    end = at + HEADER_SIZE_BYTES + header.properties_length
    if end > len(data):
        return False
    checksum = crc32c(data[at : at + CHECKSUM_AT], seed)
    if header.properties_length:
        checksum = crc32c(data[at + HEADER_SIZE_BYTES : end], checksum)
    return checksum == header.header_checksum
