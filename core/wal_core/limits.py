"""Every limit of the system: its name, its unit (last in the name) and its reason."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * 1024

# -- records and batches ---------------------------------------------------------------------------
RECORD_SIZE_MAX_BYTES = 16 * MIB
"""A body of one record. Larger things belong in an object store, with a reference in the log."""
PROPERTIES_SIZE_MAX_BYTES = 64 * KIB - 1
"""Properties of one batch (constant key, headers, unknown ones): a u16 in the batch header."""
BATCH_BODY_MAX_BYTES = RECORD_SIZE_MAX_BYTES + 64 * KIB
"""One largest record with its column lengths and key."""
BATCH_RECORDS_MAX = 4 * MIB
"""Empty lines cost one byte each: without this a batch could claim 16 M of them."""
BATCH_TARGET_BYTES = 1 * MIB
"""Where a client cuts a batch: beyond it fdatasync gains little, below it the header costs more."""
NAME_LENGTH_MAX = 128
SHARDS_MAX = 1024
KEY_SIZE_MAX_BYTES = 32 * KIB
PARTITIONS_MAX = 1024
"""Of one collection. The opening of each segment names those of each shard."""
SETTINGS_MAX = 64
"""Of one collection; written like the partitions."""
SETTING_SIZE_MAX_BYTES = 4 * KIB
"""The value of one setting."""

# -- producers -------------------------------------------------------------------------------------
PRODUCER_RESULTS_MAX = 64
"""Results remembered per producer and VChannel, and so the batches that a producer may have under
way: after a lost connection each of them is sent again and must be known."""
PRODUCERS_MAX = 65_536
"""Remembered per VChannel; a new one beyond is refused until old ones expire."""
PRODUCERS_LOOK_AT = 1024
"""From so many on the expired ones are looked for, each time their number has doubled."""
NAMED_PRODUCER_SECONDS = 24 * 3600
"""How long a producer with a name (and a dedup id) is remembered after its last batch."""
ANONYMOUS_PRODUCER_SECONDS = 600
"""The same for the random ids of clients that gave no name. A client takes a new id after half of
it without a batch, so it never meets its own expiry."""

# -- transactions ----------------------------------------------------------------------------------
TXN_KEEPALIVE_SECONDS = 10.0
TXN_KEEPALIVE_MAX_SECONDS = 24 * 3600.0
TXN_ROWS_MAX = (1 << 32) - 1
"""The commit's header counts them in 32 bits."""
TXN_SEGMENTS_MAX = 1024
"""Log segments that the rows of one transaction may lie in: 64 GiB of full-sized ones."""
TXN_EXTENTS_MAX = 2048
"""Ranges of log that a commit names; neighbours are joined beyond it."""
TXN_COMMIT_BODY_MAX_BYTES = 64 * KIB
"""What so many ranges take: room for it is kept when a commit is queued."""
TXN_MEMORY_BYTES = 16 * MIB
"""Rows of open transactions kept for tailing readers, of all together; beyond it a commit's rows
are read back from the log."""
TXNS_OPEN_MAX = 10_000
TXNS_REMEMBERED_MAX = 65_536
TXN_REMEMBERED_SECONDS = 600
"""How long the end of a transaction is remembered per VChannel, for a repeated commit."""

# -- wire ------------------------------------------------------------------------------------------
FRAME_META_MAX_BYTES = 4 * KIB
FRAME_PAYLOAD_MAX_BYTES = BATCH_BODY_MAX_BYTES + PROPERTIES_SIZE_MAX_BYTES + FRAME_META_MAX_BYTES
"""Checked before memory is taken for a frame."""
RECEIVE_BUFFER_BYTES = 256 * KIB
"""One per daemon, shared by all connections: a read is parsed before the next one starts."""
DIRECT_FRAME_MIN_BYTES = 64 * KIB
"""From this size on a frame is received into memory of its own, without a copy."""
CONNECTIONS_MAX = 16_000
CONNECTION_UNACKNOWLEDGED_MAX_BYTES = 32 * MIB
"""Above it the daemon stops reading from the connection until acknowledgements went out."""
UNACKNOWLEDGED_MAX_BYTES = 256 * MIB
"""The same over all connections: what appends may hold in memory."""
HELLO_DEADLINE_SECONDS = 5.0
FRAME_DEADLINE_SECONDS = 30.0
"""A started frame must be complete by then; a byte a second holds no memory for hours."""
CLIENT_WINDOW_BYTES = 16 * MIB
"""Sent and not acknowledged by one producer."""
SUBSCRIBER_SOCKET_BUFFER_BYTES = 1 * MIB
"""Asked of the kernel for a connection that tails; it takes the memory only as it is used."""
SUBSCRIBER_STALL_SECONDS = 600.0
"""A subscriber that takes nothing for this long is cut with `slow-subscriber`."""

# -- cursors and groups ----------------------------------------------------------------------------
CURSOR_COMMIT_SECONDS = 1.0
"""A tail saves its cursor at most this often: each save is an fsync of the catalog."""
GROUP_LEASE_SECONDS = 10.0
"""A member that did not renew for so long is taken for dead. It renews three times as often."""
GROUP_LEASE_MIN_SECONDS = 0.5
GROUP_LEASE_MAX_SECONDS = 300.0
MEMBERSHIPS_MAX = 64
"""Of one connection."""

# -- log -------------------------------------------------------------------------------------------
SEGMENT_SIZE_BYTES = 64 * MIB
"""Capacity of a log segment: what recovery has to scan at most, and what is lost to preallocation
while a daemon runs."""
SEGMENT_SIZE_MIN_BYTES = 256 * KIB
"""On a nearly full disk a segment may be this small."""
GROUP_MAX_BYTES = 8 * MIB
"""One write + fdatasync. More gains no throughput and costs the waiting ones latency."""
GROUP_MAX_BATCHES = 511
"""Two buffers a batch and IOV_MAX is 1024."""
GROUP_INLINE_MAX_BYTES = 512 * KIB
"""Up to this size a commit runs on the event loop: a thread hop costs 20-30 us, the commit of a
small group little more than that (docs/performance.md)."""
INDEX_INTERVAL_BYTES = 1 * MIB
"""A sparse index entry per VChannel and this many bytes of log."""
MARK_DELAY_SECONDS = 0.1
"""After this long without appends a mark proves the last group durable (durability.md)."""
TSO_AHEAD_MS = 10_000
"""How far ahead of the clock the durable high-water mark is raised."""
CLOCK_JUMP_MAX_MS = 60_000
"""A wall clock that leaves the monotonic one by more than this is not followed until a restart."""
DISK_RESERVE_BYTES = 8 * MIB
"""Kept free so that catalog and recovery can still write when the disk is full."""
DISK_RETRY_SECONDS = 1.0

# -- buffers ---------------------------------------------------------------------------------------
WRITE_AHEAD_BUFFER_BYTES = 64 * MIB
WRITE_AHEAD_BUFFER_SECONDS = 30.0
SCAN_CHUNK_BYTES = 1 * MIB
SCAN_AHEAD_BYTES = 8 * MIB
"""How far the kernel is asked to read ahead of a scanner."""
TICK_INTERVAL_BYTES = 8 * MIB
"""After so much log a time tick follows at once, where messages land out of order."""
REORDER_MAX_BYTES = 64 * MIB
"""What a reader of such a log holds until the next time tick: more than the interval, the group
that came before the tick and the group that brought it."""
SEND_BUFFER_HIGH_BYTES = 2 * MIB
"""A subscriber's socket buffer in the daemon; above it the subscriber is served no more."""

# -- node ------------------------------------------------------------------------------------------
DRAIN_SECONDS = 3.0
SOCKET_PATH_MAX_BYTES = 107
CATALOG_MAP_BYTES = 64 * MIB
PCHANNELS = 1
"""One log a node: group commit then shares each fdatasync among all writers (docs/decisions)."""
