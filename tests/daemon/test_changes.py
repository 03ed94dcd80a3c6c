"""Changes of collections while others append: what was acknowledged afterwards stays, who waited is
answered, and all shards agree in the end, whatever one PChannel does meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
import time
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bench.daemon import Daemon
from tests.daemon.changes import SEVERAL, append_raw, refusal, rows, serve, serve_again
from wal_client.endpoint import Endpoint
from wal_client.receipts import Ack
from wal_client.sync import Client
from wal_core import frames
from wal_core.clock import SystemClock
from wal_core.errors import DiskFullError, NotReadyError, TxnInvalidStateError, WalError
from wal_core.frames import Kind
from wal_core.limits import RECEIVE_BUFFER_BYTES
from wal_core.message import Message
from wal_core.names import vchannel_id
from wal_core.settings import resolve
from wal_daemon import collections as collections_module
from wal_daemon import server as server_module
from wal_daemon.node import Node
from wal_daemon.wal.pchannel import PChannel

SHARDS = 8
KIB = 1024
MIB = 1024 * KIB


# -- a daemon under load ---------------------------------------------------------------------------


class Writer(threading.Thread):
    """Appends rows that name themselves until told to stop; notes what was acknowledged."""

    def __init__(self, daemon: Daemon, name: str, number: int) -> None:
        super().__init__()
        self.acked: list[tuple[int, int, bytes, float, float]] = []
        """(shard, offset, row, when it was sent, when it was acknowledged)"""
        self.failure: WalError | None = None
        self.stopping = False
        self._daemon = daemon
        self._name = name
        self._number = number
        self._sent: dict[bytes, float] = {}

    def run(self) -> None:
        randomness = random.Random(self._number)
        try:
            with self._daemon.client() as client:
                producer = client.producer(self._name, on_ack=self._on_ack)
                row = 0
                while not self.stopping:
                    body = b"%d.%d" % (self._number, row)
                    row += 1
                    self._sent[body] = time.monotonic()
                    producer.lines(body + b"\n", 1, tag=body)
                    if randomness.random() < 0.2:
                        producer.flush()
                producer.flush()
        except WalError as error:
            self.failure = error

    def _on_ack(self, ack: Ack) -> None:
        shard = int(ack.vchannel.rpartition("v")[2])
        now = time.monotonic()
        self.acked.append((shard, ack.first, ack.tag, self._sent[ack.tag], now))


def _visible(client: Client, name: str) -> dict[tuple[int, int], bytes]:
    return {
        (batch.shard, batch.first + at): body
        for batch in client.tail(name)
        for at, body in enumerate(batch.bodies())
    }


@pytest.mark.parametrize("seed", range(3))
def test_changes_under_load(tmp_path: Path, seed: int) -> None:
    daemon = serve(tmp_path)
    randomness = random.Random(seed)
    writers = [Writer(daemon, "wide", number) for number in range(5)]
    other = Writer(daemon, "other", 99)
    truncated: list[tuple[float, float]] = []
    try:
        with daemon.client() as client:
            client.call("create", name="wide", shards=SHARDS)
            for writer in (*writers, other):
                writer.start()
            for number in range(12):
                time.sleep(randomness.uniform(0, 0.05))
                client.call("alter", name="wide", add_partitions=[f"p{number}"])
                begun = time.monotonic()
                client.call("truncate", name="wide")
                truncated.append((begun, time.monotonic()))
            time.sleep(0.1)
            for writer in (*writers, other):
                writer.stopping = True
                writer.join(20)
                assert not writer.is_alive(), "an append was never answered"
                assert writer.failure is None
            _check_visible(client, writers, *truncated[-1])
            assert len(_visible(client, "other")) == len(other.acked)
    finally:
        daemon.stop()


def _check_visible(client: Client, writers: list[Writer], begun: float, ended: float) -> None:
    visible = _visible(client, "wide")
    firsts = [one["first"] for one in client.call("describe", name="wide")["shards"]]
    before = after = 0
    acked = [one for writer in writers for one in writer.acked]
    for shard, offset, body, sent, acknowledged in acked:
        assert visible.get((shard, offset), body) == body
        assert ((shard, offset) in visible) == (offset >= firsts[shard])
        if acknowledged < begun:
            before += 1
            assert offset < firsts[shard], "a row from before the truncation is still there"
        elif sent > ended:
            after += 1
            assert offset >= firsts[shard], "a row from behind the truncation is lost"
    assert before > 100
    assert after > 10
    assert len(visible) <= len(acked)
    assert len({(shard, offset) for shard, offset, *_ in acked}) == len(acked)


def test_a_drop_under_load(tmp_path: Path) -> None:
    daemon = serve(tmp_path)
    try:
        with daemon.client() as client:
            client.call("create", name="wide", shards=SHARDS)
            writers = [Writer(daemon, "wide", number) for number in range(5)]
            for writer in writers:
                writer.start()
            time.sleep(0.2)
            client.call("drop", name="wide")
            for writer in writers:
                writer.join(20)
                assert not writer.is_alive(), "an append was never answered"
                assert writer.failure is not None
                assert writer.failure.code == "not-found"
                assert writer.acked
            assert client.open("wide", create=True, shards=2).vchannels
            assert _visible(client, "wide") == {}
    finally:
        daemon.stop()


def test_a_change_breaks_transactions_in_its_scope_only(tmp_path: Path) -> None:
    daemon = serve(tmp_path)
    try:
        with daemon.client() as client:
            _check_scope(client, "truncate")
            _check_scope(client, "alter", settings={"a": "1"})
            _check_scope(client, "drop")
            assert client.call("status")["open_transactions"] == 0
    finally:
        daemon.stop()


def _check_scope(client: Client, operation: str, **arguments: Any) -> None:
    inside, outside = f"in-{operation}", f"out-{operation}"
    client.call("create", name=inside, shards=SHARDS)
    client.call("create", name=outside, shards=SHARDS)
    broken, both, fine = client.begin(inside), client.begin(inside, outside), client.begin(outside)
    for txn in (broken, both):
        txn.append(inside, [b"row"] * 20)
    for txn in (both, fine):
        txn.append(outside, [b"row"] * 20)
    assert client.call("status")["open_transactions"] == 3
    client.call(operation, name=inside, **arguments)
    assert client.call("status")["open_transactions"] == 2  # One is open outside still.
    for action in (broken.commit, broken.keep_alive, both.commit):
        with pytest.raises(TxnInvalidStateError):
            action()
    with pytest.raises(TxnInvalidStateError):  # It was ended as a whole.
        both.append(outside, [b"x"])
    fine.append(outside, [b"more"])
    assert fine.commit()[outside].count == 21
    assert sorted(_visible(client, outside).values()) == [b"more"] + [b"row"] * 20
    if operation != "drop":
        assert _visible(client, inside) == {}
        client.append(inside, [b"goes on"])
        assert list(_visible(client, inside).values()) == [b"goes on"]


# -- a node in this process ------------------------------------------------------------------------


def _with_node(tmp_path: Path, scenario: Callable[[Node], Awaitable[None]]) -> None:
    """Run ``scenario`` beside a node on the same loop; its clients use threads of their own."""
    config = tmp_path / "wal.toml"
    config.write_text(SEVERAL)
    node = Node(resolve({"dir": str(tmp_path / "wal")}, {}, str(config)), SystemClock())

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
        life = asyncio.create_task(node.run())
        while not node.ready:
            assert not life.done(), life
            await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(30):
                await scenario(node)
        finally:
            node.stop(None)
            failure = await life
        assert failure is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _client(node: Node, timeout: float = 20.0) -> Client:
    return Client(Endpoint(node.socket_path), timeout=timeout)


async def _call(node: Node, operation: str, **arguments: Any) -> Any:
    def call() -> Any:
        with _client(node) as client:
            return client.call(operation, **arguments)

    return await asyncio.to_thread(call)


async def _append(node: Node, sent: Message) -> frames.Frame:
    def append() -> frames.Frame:
        with _client(node) as client:
            return append_raw(client.connection, 1, sent)

    return await asyncio.to_thread(append)


def _send_and_leave(node: Node, sent: Message) -> None:
    with _client(node) as client:
        client.connection.send([frames.pack_append(1, sent), bytes(sent.body)])


def _refuse(monkeypatch: pytest.MonkeyPatch, pchannel: PChannel) -> None:
    """Its disk is full from now on."""

    def full(*_: object, **__: object) -> None:
        raise DiskFullError("no space")

    monkeypatch.setattr(pchannel.wal, "has_room", lambda size: False)
    monkeypatch.setattr(pchannel.wal, "make_room", full)


def test_those_who_wait_are_bounded_and_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CONNECTION_UNACKNOWLEDGED_MAX_BYTES", 2 * MIB)
    monkeypatch.setattr(server_module, "UNACKNOWLEDGED_MAX_BYTES", 5 * MIB)
    body = b"x" * (64 * KIB - 1)
    answers: list[frames.Frame] = []

    def flood(node: Node, vchannel: int) -> None:
        """6 MiB; reads no answer before all is sent."""
        with _client(node) as client:
            connection = client.connection
            for number in range(96):
                sent = rows(vchannel, body)
                connection.send([frames.pack_append(number + 1, sent), sent.body])
            answers.extend(connection.receive() for _ in range(96))

    async def scenario(node: Node) -> None:
        made = await _call(node, "create", name="wide", shards=SHARDS)
        ids = [int(one["id"]) for one in made["shards"]]
        await _call(node, "create", name="other")
        for pchannel in node.pchannels:
            pchannel.lock(ids)
        floods = [asyncio.to_thread(flood, node, ids[number % SHARDS]) for number in range(6)]
        tasks = [asyncio.create_task(one) for one in floods]
        most = before = 0
        while True:
            await asyncio.sleep(0.3)
            now = node.server.unacknowledged
            most = max(most, now)
            if now == before and now:
                break
            before = now
        over = RECEIVE_BUFFER_BYTES + 64 * KIB  # What a connection may have read before it stops.
        assert 2 * MIB < most <= 5 * MIB + 6 * over, "more is parked than may wait"
        assert answers == []
        # Others go on meanwhile.
        other = vchannel_id((await _call(node, "describe", name="other"))["id"], 0)
        assert (await _append(node, rows(other, b"row"))).kind == Kind.APPEND_OK
        # One that goes away has begun its append: it is finished, and counts until then.
        await asyncio.to_thread(_send_and_leave, node, rows(ids[0], b"of one who left"))
        for pchannel in node.pchannels:
            pchannel.unlock(ids)
        await asyncio.gather(*tasks)
        assert [answer.kind for answer in answers] == [Kind.APPEND_OK] * 6 * 96
        described = await _call(node, "describe", name="wide")
        assert described["rows"] == 6 * 96 + 1
        assert node.server.unacknowledged == 0

    _with_node(tmp_path, scenario)


@pytest.mark.parametrize("operation", ["truncate", "alter", "drop", "create"])
def test_a_change_that_has_begun_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """One PChannel's disk is full in the middle: nobody is told that his rows are safe before all
    shards have the change."""
    monkeypatch.setattr(collections_module, "DISK_RETRY_SECONDS", 0.05)
    arguments = {"alter": {"settings": {"a": "1"}}, "create": {"shards": SHARDS}}

    async def scenario(node: Node) -> None:
        ids: list[int] = []
        if operation != "create":
            made = await _call(node, "create", name="wide", shards=SHARDS)
            ids = [int(one["id"]) for one in made["shards"]]
            for id in ids:
                assert (await _append(node, rows(id, b"before"))).kind == Kind.APPEND_OK
        with monkeypatch.context() as patch:
            _refuse(patch, node.pchannels[1])
            change = asyncio.create_task(
                _call(node, operation, name="wide", **arguments.get(operation, {}))
            )
            await asyncio.sleep(0.3)
            assert not change.done()
            if ids:  # Who waits is told why, and may come again.
                answer = await _append(node, rows(ids[0], b"meanwhile"))
                assert isinstance(refusal(answer), NotReadyError)
            # Other collections do not wait for it.
            await _call(node, "list")
            with pytest.raises(DiskFullError):
                await _create_in(node, 1)
            await _create_in(node, 0)
        await change
        if operation == "drop":
            for id in ids:
                assert refusal(await _append(node, rows(id, b"after"))).code == "not-found"
            return
        shards = (await _call(node, "describe", name="wide"))["shards"]
        expected = {"truncate": (1, 1), "alter": (0, 1), "create": (0, 0)}[operation]
        assert [(one["first"], one["next"]) for one in shards] == [expected] * SHARDS
        for one in shards:
            assert (await _append(node, rows(int(one["id"]), b"after"))).kind == Kind.APPEND_OK
        if operation == "alter":
            _assert_settings(node, {"a": "1"})

    _with_node(tmp_path, scenario)
    with serve_again(tmp_path) as client:
        names = {one["collection"] for one in client.call("list")}
        assert ("wide" in names) == (operation != "drop")
        if operation == "truncate":
            assert list(_visible(client, "wide").values()) == [b"after"] * SHARDS


def test_a_change_that_reached_no_shard_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(node: Node) -> None:
        await _call(node, "create", name="wide", shards=SHARDS)
        with monkeypatch.context() as patch:
            for pchannel in node.pchannels:
                _refuse(patch, pchannel)
            for operation, arguments in (
                ("truncate", {}),
                ("drop", {}),
                ("alter", {"add_partitions": ["p"]}),
            ):
                with pytest.raises(DiskFullError):
                    await _call(node, operation, name="wide", **arguments)
        described = await _call(node, "describe", name="wide")
        assert described["partitions"] == []
        id = int(described["shards"][0]["id"])
        assert (await _append(node, rows(id, b"row"))).kind == Kind.APPEND_OK
        await _call(node, "alter", name="wide", add_partitions=["p"])
        await _call(node, "drop", name="wide")

    _with_node(tmp_path, scenario)


@pytest.mark.parametrize("operation", ["truncate", "drop"])
def test_a_change_over_a_failing_write_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The write of one PChannel fails, so its log is opened anew; meanwhile nobody knows whether
    the change is in it."""
    monkeypatch.setattr(collections_module, "DISK_RETRY_SECONDS", 0.05)

    async def scenario(node: Node) -> None:
        made = await _call(node, "create", name="wide", shards=SHARDS)
        ids = [int(one["id"]) for one in made["shards"]]
        for id in ids:
            assert (await _append(node, rows(id, b"before"))).kind == Kind.APPEND_OK
        term = node.wals[1].term

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(node.pchannels[1].wal, "append", fail)
        await _call(node, operation, name="wide")
        assert node.wals[1].term == term + 1
        if operation == "truncate":
            shards = (await _call(node, "describe", name="wide"))["shards"]
            assert [(one["first"], one["next"]) for one in shards] == [(1, 1)] * SHARDS
        for id in ids:
            kind = Kind.APPEND_OK if operation == "truncate" else Kind.ERROR
            assert (await _append(node, rows(id, b"after"))).kind == kind

    _with_node(tmp_path, scenario)


def test_rows_of_broken_transactions_are_let_go_of(tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        def begin() -> None:
            with _client(node) as client:
                client.begin("wide").append("wide", [b"x" * 1000] * 50)

        def staged() -> int:
            return sum(pchannel.staged_bytes for pchannel in node.pchannels)

        await _call(node, "create", name="wide", shards=2)
        for operation in ("truncate", "drop"):
            await asyncio.to_thread(begin)
            assert staged() > 50_000
            await _call(node, operation, name="wide")
            assert staged() == 0

    _with_node(tmp_path, scenario)


async def _create_in(node: Node, pchannel: int) -> None:
    """A collection of one shard that lies in a certain PChannel."""
    for number in range(100):
        name = f"single-{number}"
        if name in node.collections.by_name:
            continue
        if zlib.crc32(name.encode()) % len(node.pchannels) == pchannel:
            await _call(node, "create", name=name)
            return
    raise AssertionError


def _assert_settings(node: Node, settings: dict[str, str]) -> None:
    found = [
        vchannel.settings
        for pchannel in node.pchannels
        for vchannel in pchannel.vchannels.values()
        if vchannel.collection == "wide"
    ]
    assert found == [settings] * SHARDS
