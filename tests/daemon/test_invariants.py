"""The invariants of a VChannel, judged by the sequencer and by a real daemon: creation first,
nothing behind the drop, rows only for partitions that exist, service messages only from the
service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.daemon import Daemon
from tests.daemon.changes import Judge, append_raw, refusal, rows, serve
from tests.storage.writer import V1
from wal_client.sync import Client
from wal_core.errors import (
    AlreadyExistsError,
    BugError,
    NotFoundError,
    ProtocolError,
    TxnInvalidStateError,
    WalError,
)
from wal_core.frames import Kind
from wal_core.message import Encoding, MessageType, message
from wal_core.names import vchannel_id
from wal_daemon.wal.requests import AppendRequest
from wal_storage.state import Change, CreateCollection, encode_change, encode_create
from wal_storage.transactions import Begin, encode

OF_THE_SERVICE = [kind for kind in MessageType if kind != MessageType.INSERT]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = serve(tmp_path_factory.mktemp("invariants"))
    yield daemon
    daemon.stop()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client


# -- the sequencer ---------------------------------------------------------------------------------


def test_creation_comes_first() -> None:
    judge = Judge()
    (answer,) = judge.append(rows(V1, b"early"))
    assert isinstance(answer, NotFoundError)
    for kind in (MessageType.TRUNCATE_COLLECTION, MessageType.DROP_COLLECTION):
        assert isinstance(judge.change(V1, kind), NotFoundError)
    assert isinstance(judge.create(V1), AppendRequest)
    assert isinstance(judge.create(V1), AlreadyExistsError)
    (answer,) = judge.append(rows(V1, b"in time"))
    assert isinstance(answer, AppendRequest)
    assert answer.first_offset == 0


def test_nothing_behind_the_drop() -> None:
    judge = Judge()
    judge.create(V1)
    body = encode_create(CreateCollection("again", 1))
    before, dropped, after, again = judge.append(
        rows(V1, b"before"),
        message(MessageType.DROP_COLLECTION, V1),
        rows(V1, b"after"),
        message(MessageType.CREATE_COLLECTION, V1, body),
    )
    assert isinstance(before, AppendRequest)
    assert isinstance(dropped, AppendRequest)
    assert before.sequence < dropped.sequence
    assert before.tso < dropped.tso
    assert isinstance(after, NotFoundError)
    assert "dropped" in after.message
    assert isinstance(again, AlreadyExistsError)  # Ids are never given again.
    for kind in (MessageType.DROP_COLLECTION, MessageType.ALTER_COLLECTION):
        assert isinstance(judge.change(V1, kind), NotFoundError)
    begin = message(MessageType.BEGIN_TXN, V1, encode(Begin(1000)), txn_id=7)
    assert isinstance(judge.append(begin)[0], NotFoundError)
    assert judge.state.vchannels[V1].next_offset == 1


def test_rows_go_to_partitions_that_exist() -> None:
    judge = Judge()
    judge.create(V1)
    assert isinstance(judge.append(rows(V1, b"x", partition=1))[0], NotFoundError)
    assert isinstance(judge.change(V1, MessageType.CREATE_PARTITION, 1, "eu"), AppendRequest)
    assert isinstance(judge.append(rows(V1, b"x", partition=1))[0], AppendRequest)
    taken = judge.change(V1, MessageType.CREATE_PARTITION, 2, "eu")
    assert isinstance(taken, AlreadyExistsError)
    assert isinstance(judge.change(V1, MessageType.DROP_PARTITION, 9), NotFoundError)
    assert isinstance(judge.change(V1, MessageType.DROP_PARTITION, 1), AppendRequest)
    assert isinstance(judge.append(rows(V1, b"x", partition=1))[0], NotFoundError)
    assert isinstance(judge.change(V1, MessageType.DROP_PARTITION, 1), NotFoundError)
    assert isinstance(judge.append(rows(V1, b"x"))[0], AppendRequest)
    assert judge.state.vchannels[V1].next_offset == 2
    assert judge.state.vchannels[V1].ddl == 2  # What is refused is no change.


def test_a_refused_change_leaves_transactions_open() -> None:
    judge = Judge()
    judge.create(V1)
    judge.append(message(MessageType.BEGIN_TXN, V1, encode(Begin(1000)), txn_id=7))
    assert isinstance(judge.change(V1, MessageType.DROP_PARTITION, 9), NotFoundError)
    assert isinstance(judge.append(rows(V1, b"x", txn_id=7))[0], AppendRequest)
    assert isinstance(judge.change(V1, MessageType.ALTER_COLLECTION, a="1"), AppendRequest)
    refused, commit = judge.append(
        rows(V1, b"y", txn_id=7), message(MessageType.COMMIT_TXN, V1, txn_id=7)
    )
    assert isinstance(refused, TxnInvalidStateError)
    assert isinstance(commit, TxnInvalidStateError)
    assert judge.state.vchannels[V1].next_offset == 0


@pytest.mark.parametrize(
    "kind",
    [
        *(MessageType.DELETE, MessageType.CREATE_SEGMENT, MessageType.FLUSH),
        *(MessageType.MANUAL_FLUSH, MessageType.TIME_TICK, MessageType.RECOVERY_BARRIER),
        *(MessageType.MARK, MessageType.SNAPSHOT),
    ],
)
def test_no_other_message_gets_into_a_collection(kind: MessageType) -> None:
    judge = Judge()
    judge.create(V1)
    sequence = judge.state.next_sequence
    assert isinstance(judge.append(message(kind, V1))[0], BugError)
    assert judge.state.next_sequence == sequence


# -- a daemon --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*OF_THE_SERVICE, 200])
def test_a_client_appends_rows_only(client: Client, kind: int) -> None:
    vchannel = vchannel_id(client.open("plain", create=True).id, 0)
    before = client.call("describe", name="plain")
    body = encode_change(Change(99))
    for target in (vchannel, 0):
        for encoding in (Encoding.MSGPACK, Encoding.LINES):
            sent = message(kind, target, body, encoding=encoding, rows=1)
            assert isinstance(refusal(append_raw(client.connection, 9, sent)), ProtocolError)
    assert append_raw(client.connection, 10, rows(vchannel, b"fine")).kind == Kind.APPEND_OK
    after = client.call("describe", name="plain")
    assert after["shards"][0]["next"] == before["shards"][0]["next"] + 1


def test_rows_into_nothing(client: Client) -> None:
    for vchannel in (0, vchannel_id(4711, 0)):
        answer = append_raw(client.connection, 5, rows(vchannel, b"x"))
        assert isinstance(refusal(answer), NotFoundError)


def test_an_insert_behind_the_drop_is_refused(client: Client) -> None:
    opened = client.open("gone", create=True)
    vchannel = vchannel_id(opened.id, 0)
    assert append_raw(client.connection, 1, rows(vchannel, b"x")).kind == Kind.APPEND_OK
    client.call("drop", name="gone")
    error = refusal(append_raw(client.connection, 2, rows(vchannel, b"y")))
    assert isinstance(error, NotFoundError)
    assert "dropped" in error.message
    for operation in ("drop", "truncate", "describe"):
        with pytest.raises(NotFoundError):
            client.call(operation, name="gone")
    again = client.open("gone", create=True)
    assert again.id > opened.id
    assert list(client.tail("gone")) == []
    assert isinstance(refusal(append_raw(client.connection, 3, rows(vchannel, b"z"))), WalError)


def test_a_second_creation_is_refused(client: Client) -> None:
    client.call("create", name="twice", shards=4)
    with pytest.raises(AlreadyExistsError):
        client.call("create", name="twice", shards=4)
    assert len(client.open("twice", create=True, shards=2).vchannels) == 4


def test_of_many_creations_at_once_one_wins(daemon: Daemon) -> None:
    won: list[int] = []
    refused: list[WalError] = []

    def create() -> None:
        with daemon.client() as client:
            try:
                won.append(client.call("create", name="race", shards=8)["id"])
            except AlreadyExistsError as error:
                refused.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(won), len(refused)) == (1, 5)


def test_partitions_of_a_daemon(client: Client) -> None:
    client.call("create", name="parts", shards=8)
    with pytest.raises(NotFoundError):
        client.producer("parts", partition="eu")
    client.call("alter", name="parts", add_partitions=["eu", "us"])
    with pytest.raises(AlreadyExistsError):
        client.call("alter", name="parts", add_partitions=["eu"])
    with pytest.raises(NotFoundError):
        client.call("alter", name="parts", drop_partitions=["asia"])
    producer = client.producer("parts", partition="eu")
    for number in range(16):
        producer.lines(b"row %d\n" % number, 1)
    assert producer.flush().count == 16
    with pytest.raises(NotFoundError):
        _into_partition(client, "parts", 77)
    client.call("alter", name="parts", drop_partitions=["eu"])
    for number in range(8):  # Each of its shards refuses.
        with pytest.raises(NotFoundError, match="no partition 1"):
            _into_partition(client, "parts", 1, shard=number)
    client.call("alter", name="parts", add_partitions=["eu"])
    assert client.call("partition", name="parts", partition="eu") == 3  # Not the old id again.
    assert sum(batch.count for batch in client.tail("parts")) == 16


def _into_partition(client: Client, name: str, partition: int, shard: int = 0) -> None:
    vchannel = vchannel_id(client.open(name).id, shard)
    answer = append_raw(client.connection, 1, rows(vchannel, b"x", partition=partition))
    raise refusal(answer)


def test_offsets_go_on_behind_a_truncation(
    client: Client,
) -> None:
    """A truncation takes no offset and gives none again."""
    vchannel = vchannel_id(client.open("dense", create=True).id, 0)
    append_raw(client.connection, 1, rows(vchannel, b"a", b"b"))
    client.call("truncate", name="dense")
    answer = append_raw(client.connection, 2, rows(vchannel, b"c"))
    assert answer.kind == Kind.APPEND_OK
    assert [(one.first, one.bodies()) for one in client.tail("dense")] == [(2, [b"c"])]


def test_a_batch_that_is_sent_again_gets_its_first_answer_after_a_truncation(
    client: Client,
) -> None:
    vchannel = vchannel_id(client.open("again", create=True).id, 0)
    sent = rows(vchannel, b"a", producer_id=5, producer_sequence=1)
    first = append_raw(client.connection, 1, sent)
    client.call("truncate", name="again")
    assert bytes(append_raw(client.connection, 1, sent).meta) == bytes(first.meta)
    assert list(client.tail("again")) == []


def test_acknowledged_before_the_drop(tmp_path: Path) -> None:
    """Appends and the drop at once: what was acknowledged lies before the drop in the log."""
    daemon = serve(tmp_path)
    acknowledged: list[int] = []
    refused: list[WalError] = []
    try:
        with daemon.client() as client:
            client.call("create", name="busy", shards=8)
            opened = client.open("busy")

        def write(shard: int) -> None:
            with daemon.client() as client:
                vchannel = vchannel_id(opened.id, shard)
                for number in range(1, 10_000):
                    answer = append_raw(client.connection, number, rows(vchannel, b"row"))
                    if answer.kind == Kind.ERROR:
                        refused.append(refusal(answer))
                        return
                    acknowledged.append(vchannel)

        threads = [threading.Thread(target=write, args=(shard,)) for shard in range(8)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 100:
            pass
        with daemon.client() as client:
            client.call("drop", name="busy")
        for thread in threads:
            thread.join(20)
        assert all(isinstance(error, NotFoundError) for error in refused)
        assert len(refused) == 8
    finally:
        daemon.stop()
    inserted = _inserted_before_drops(daemon)
    assert {one: acknowledged.count(one) for one in set(acknowledged)} == inserted


def _inserted_before_drops(daemon: Daemon) -> dict[int, int]:
    """Rows of each VChannel in the log; none may stand behind its drop."""
    from wal_cli.offline import dumping

    inserted: dict[int, int] = {}
    dropped: set[int] = set()
    for path in daemon.segments():
        for piece in dumping.dump(str(path)):
            if piece["kind"] != "batch":
                continue
            vchannel = int(piece["vchannel"])
            if piece["type"] == "insert":
                assert vchannel not in dropped
                inserted[vchannel] = inserted.get(vchannel, 0) + piece["rows"]
            elif piece["type"] == "drop_collection":
                dropped.add(vchannel)
    assert len(dropped) == 8
    return inserted
