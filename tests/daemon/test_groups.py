"""Groups: how shards are shared out, handed over and taken over, and whose commits count."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.daemon import BIN, Daemon
from wal_client import cursors
from wal_client.cursors import Step
from wal_client.groups import Member
from wal_client.ranges import FOLLOW
from wal_client.sync import Client
from wal_core.errors import (
    CursorMovedError,
    MemberFencedError,
    NotFoundError,
    OutOfRangeError,
    WalError,
)
from wal_daemon.groups import share_out

LEASE_SECONDS = 1.0
SHARDS = 4


def eventually(check: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- sharing out -----------------------------------------------------------------------------------


@given(
    st.integers(1, 20),
    st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1),
    st.dictionaries(st.integers(0, 19), st.sampled_from("abcdefgh")),
)
def test_shares_are_even_and_few_shards_move(
    shards: int, members: list[str], current: dict[int, str]
) -> None:
    found = share_out(shards, members, current)
    counts = [list(found.values()).count(name) for name in members]
    assert sorted(found) == list(range(shards))
    assert set(found.values()) <= set(members)
    assert max(counts) - min(counts) <= 1
    # No even sharing out keeps more: each member keeps what it has, up to its share, and as many
    # as possible have the larger share.
    least, larger = divmod(shards, len(members))
    held = [sum(current.get(shard) == name for shard in range(shards)) for name in members]
    kept = sum(found[shard] == current.get(shard) for shard in range(shards))
    most = sum(min(count, least) for count in held) + min(
        larger, sum(count > least for count in held)
    )
    assert kept == most
    assert share_out(shards, members, found) == found


# -- a real daemon ---------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "wal")
    with daemon.client() as client:
        client.call("create", name="c", shards=SHARDS)
    yield daemon
    daemon.stop()


def append(daemon: Daemon, first: int, end: int) -> None:
    with daemon.client() as client, client.producer("c") as producer:
        for number in range(first, end):
            producer.append(b"%d" % number, key=b"%d" % (number % 97))


class Reader:
    """A member in a thread of its own that commits after each batch."""

    def __init__(self, daemon: Daemon, *, commits: bool = True) -> None:
        self.rows: list[int] = []
        self.lost: list[WalError] = []
        self.error: WalError | None = None
        self._commits = commits
        self.client: Client = daemon.client()
        self.member: Member = self.client.member(
            "g", "c", until=FOLLOW, lease_seconds=LEASE_SECONDS, on_lost=self.lost.append
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for batch in self.member:
                self.rows += map(int, batch.bodies())
                if self._commits:
                    self.member.commit({batch.shard: batch.end})
        except WalError as error:
            self.error = error
        except OSError:
            assert self.error is None

    @property
    def shards(self) -> set[int]:
        return self.member.held()

    def vanish(self) -> None:
        """As a killed process does: all its connections break, and it never says a word."""
        self.member._join = self._stay_away  # type: ignore[method-assign]
        self.member._lease.stop()
        connection = self.client._connection
        assert connection is not None
        connection._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self.client.close()
        self.member.close()

    def _stay_away(self) -> None:
        raise OSError("it is dead")


def position(daemon: Daemon) -> dict[int, int]:
    with daemon.client() as client:
        (entry,) = client.call("cursor_get", cursor="g")
        return cursors.position_of(entry)


def test_members_share_and_take_over_without_a_skip(daemon: Daemon) -> None:
    append(daemon, 0, 500)
    one = Reader(daemon)
    eventually(lambda: len(one.rows) == 500)
    assert one.shards == {0, 1, 2, 3}
    two = Reader(daemon)
    eventually(lambda: len(one.shards) == len(two.shards) == 2)
    assert one.shards | two.shards == {0, 1, 2, 3}
    append(daemon, 500, 1000)
    eventually(lambda: len(one.rows) + len(two.rows) == 1000)
    assert two.rows, "each has its part"
    assert sorted(one.rows + two.rows) == list(range(1000)), "handed over without a repeat"
    one.vanish()
    eventually(lambda: two.shards == {0, 1, 2, 3}, 5)
    append(daemon, 1000, 1500)
    eventually(lambda: set(one.rows + two.rows) == set(range(1500)))
    eventually(lambda: sum(position(daemon).values()) == 1500)
    two.vanish()


def test_the_surplus_waits_and_takes_over(daemon: Daemon) -> None:
    readers = [Reader(daemon) for _ in range(SHARDS + 2)]
    eventually(lambda: sorted(len(one.shards) for one in readers) == [0, 0, 1, 1, 1, 1])
    (busy, *_) = [one for one in readers if one.shards]
    append(daemon, 0, 200)
    rows = lambda: [row for one in readers for row in one.rows]  # noqa: E731
    eventually(lambda: len(rows()) == 200)
    busy.vanish()
    left = [one for one in readers if one is not busy]
    eventually(lambda: sorted(len(one.shards) for one in left) == [0, 1, 1, 1, 1], 5)
    append(daemon, 200, 400)
    eventually(lambda: set(rows()) == set(range(400)))
    for one in left:
        one.vanish()


def test_rows_that_were_not_committed_come_again(daemon: Daemon) -> None:
    append(daemon, 0, 100)
    careless = Reader(daemon, commits=False)
    eventually(lambda: len(careless.rows) == 100)
    assert set(position(daemon).values()) == {0}
    careless.vanish()
    careful = Reader(daemon)
    eventually(lambda: sorted(careful.rows) == list(range(100)))
    careful.vanish()


def test_a_lapsed_lease_is_taken_over_and_its_commit_refused(daemon: Daemon) -> None:
    append(daemon, 0, 400)
    with daemon.client() as client:
        cursors.place(client, "g", "c", {})
        name = client.call("group_join", group="g", collection="c", lease_seconds=LEASE_SECONDS)
        assignment = client.call("group_sync", **name)
        assert assignment["shards"] == [0, 1, 2, 3]
        other = Reader(daemon)
        time.sleep(LEASE_SECONDS / 2)
        assert other.shards == set()
        eventually(lambda: other.shards == {0, 1, 2, 3}, 5)
        eventually(lambda: len(other.rows) == 400)
        eventually(lambda: sum(position(daemon).values()) == 400)
        before = position(daemon)
        step = Step("c", client.open("c").id, {0: 1})
        with pytest.raises(MemberFencedError):
            cursors.commit(client, "g", [step], generation=assignment["generation"], **name)
        with pytest.raises(MemberFencedError):
            client.call("group_renew", **name)
        with pytest.raises(MemberFencedError):
            client.call("group_sync", **name)
        assert position(daemon) == before
        other.vanish()


def sync_until_fenced(client: Client, name: dict[str, str], held: set[int]) -> None:
    with pytest.raises(MemberFencedError):
        client.call("group_sync", held=sorted(held), **name)


def test_a_shard_waits_for_its_owner_to_let_go(daemon: Daemon) -> None:
    append(daemon, 0, 400)
    with daemon.client() as client, daemon.client() as beside:
        cursors.place(client, "g", "c", {})
        name = client.call("group_join", group="g", collection="c", lease_seconds=LEASE_SECONDS)
        held = client.call("group_sync", **name)
        other = Reader(daemon)
        asked = client.call("group_sync", held=held["shards"], **name)
        kept = set(asked["shards"])
        assert len(kept) == 2
        for _ in range(4):  # Longer than its lease: a member that lives is not robbed.
            time.sleep(LEASE_SECONDS / 3)
            beside.call("group_renew", **name)
        assert other.shards == set()
        given_up = sorted({0, 1, 2, 3} - kept)
        step = Step("c", client.open("c").id, {given_up[0]: 7})
        cursors.commit(beside, "g", [step], generation=asked["generation"], **name)
        sync = threading.Thread(target=sync_until_fenced, args=(client, name, kept))
        sync.start()
        eventually(lambda: other.shards == set(given_up), 5)
        late = Step("c", step.id, {given_up[0]: 8})
        with pytest.raises(MemberFencedError):
            cursors.commit(beside, "g", [late], generation=asked["generation"], **name)
        assert position(daemon)[given_up[0]] >= 7, "the next owner went on there"
        sync.join(10)  # Its lease ends, for nobody renews it any more.
        assert not sync.is_alive()
        other.vanish()


def test_an_earlier_generation_is_refused(daemon: Daemon) -> None:
    append(daemon, 0, 100)
    with daemon.client() as client:
        cursors.place(client, "g", "c", {})
        name = client.call("group_join", group="g", collection="c")
        generation = client.call("group_sync", **name)["generation"]
        step = Step("c", client.open("c").id, {0: 1})
        cursors.commit(client, "g", [step], generation=generation, **name)
        step = Step("c", step.id, {3: 1})
        with pytest.raises(MemberFencedError):
            cursors.commit(client, "g", [step], generation=generation - 1, **name)


def test_outsiders_are_refused_while_there_are_members(daemon: Daemon) -> None:
    append(daemon, 0, 100)
    reader = Reader(daemon)
    eventually(lambda: sum(position(daemon).values()) == 100)
    with daemon.client() as client:
        step = Step("c", client.open("c").id, {0: 0})
        with pytest.raises(MemberFencedError):
            cursors.commit(client, "g", [step])
        with pytest.raises(MemberFencedError):
            cursors.seek(client, "g", "c", {})
        with pytest.raises(MemberFencedError):
            client.call("cursor_remove", cursor="g")
        reader.vanish()
        eventually(lambda: not client.call("cursor_get", cursor="g")[0]["members"])
        client.call("cursor_remove", cursor="g")


def test_members_outlive_the_daemon(daemon: Daemon) -> None:
    append(daemon, 0, 100)
    readers = [Reader(daemon), Reader(daemon)]
    eventually(lambda: sum(position(daemon).values()) == 100)
    daemon.kill()
    daemon.start()
    append(daemon, 100, 200)
    eventually(lambda: {row for one in readers for row in one.rows} == set(range(200)))
    assert all(one.lost and one.error is None for one in readers)
    for one in readers:
        one.vanish()


def test_a_group_without_follow_drains_and_ends(daemon: Daemon) -> None:
    append(daemon, 0, 1000)
    found: list[list[int]] = [[], []]

    def drain(rows: list[int]) -> None:
        with daemon.client() as client, client.member("g", "c") as member:
            for batch in member:
                rows += map(int, batch.bodies())
                member.commit({batch.shard: batch.end})

    threads = [threading.Thread(target=drain, args=(rows,)) for rows in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert set(found[0] + found[1]) == set(range(1000))
    assert sum(position(daemon).values()) == 1000


def test_no_wake_ups_without_members(daemon: Daemon) -> None:
    reader = Reader(daemon)
    eventually(lambda: reader.shards == {0, 1, 2, 3})
    reader.vanish()
    time.sleep(LEASE_SECONDS + 0.5)
    before = daemon.context_switches()
    time.sleep(2)
    assert daemon.context_switches() - before <= 2


# -- commands --------------------------------------------------------------------------------------


def tail(daemon: Daemon, output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as file:
        return subprocess.Popen(
            [BIN / "wal", "tail", "c", "--group", "g", "-f", "-o", "raw"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            env=daemon.environment(),
        )


def members(daemon: Daemon) -> dict[int, list[int]]:
    with daemon.client() as client:
        try:
            (entry,) = client.call("cursor_get", cursor="g")
        except NotFoundError:
            return {}
        return {one["pid"]: one["shards"] for one in entry["members"]}


def numbers(*files: Path) -> list[int]:
    """Whole lines only: a killed process may leave half of one."""
    text = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [int(line) for line in text if line.endswith(b"\n")]


def test_killed_commands_skip_nothing(daemon: Daemon, tmp_path: Path) -> None:
    files = [tmp_path / f"out{number}" for number in range(6)]
    running = [tail(daemon, files[0]), tail(daemon, files[1])]
    for round, file in enumerate(files[2:]):
        eventually(lambda: len(members(daemon)) == 2)
        append(daemon, round * 500, round * 500 + 500)
        victim = running.pop(0)
        victim.kill()
        victim.communicate()
        running.append(tail(daemon, file))
    eventually(lambda: set(numbers(*files)) == set(range(2000)))
    eventually(lambda: set(members(daemon)) == {one.pid for one in running})
    for one in running:
        one.send_signal(signal.SIGTERM)
        assert one.wait(10) == 143
        one.communicate()
    assert sum(position(daemon).values()) == 2000
    assert members(daemon) == {}


@pytest.mark.slow
def test_a_stopped_command_is_taken_over_and_joins_again(daemon: Daemon, tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    one, two = tail(daemon, files[0]), tail(daemon, files[1])
    eventually(lambda: [len(shards) for shards in members(daemon).values()] == [2, 2])
    append(daemon, 0, 500)
    eventually(lambda: set(numbers(*files)) == set(range(500)))
    one.send_signal(signal.SIGSTOP)
    append(daemon, 500, 1000)
    eventually(lambda: members(daemon) == {two.pid: [0, 1, 2, 3]}, 20)
    eventually(lambda: sum(position(daemon).values()) == 1000)
    before = numbers(files[0])
    one.send_signal(signal.SIGCONT)
    eventually(lambda: sorted(map(len, members(daemon).values())) == [2, 2])
    append(daemon, 1000, 1500)
    eventually(lambda: set(numbers(*files)) == set(range(1500)))
    assert numbers(files[0])[: len(before)] == before
    assert all(row >= 1000 for row in numbers(files[0])[len(before) :]), "printed what it lost"
    for process in (one, two):
        process.send_signal(signal.SIGTERM)
    assert b"it joins again" in one.communicate(timeout=10)[1]
    assert two.communicate(timeout=10)[1] == b""
    assert sum(position(daemon).values()) == 1500


@pytest.mark.slow
def test_a_slow_reader_of_the_output_keeps_its_shards(daemon: Daemon) -> None:
    """The lease is renewed while a member waits for its pipe."""
    with daemon.client() as client, client.producer("c") as producer:
        for _ in range(4000):
            producer.append(b"x" * 1000)
    process = subprocess.Popen(
        [BIN / "wal", "tail", "c", "--group", "g", "-o", "raw"],
        stdout=subprocess.PIPE,
        env=daemon.environment(),
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    time.sleep(12)
    assert members(daemon) == {process.pid: [0, 1, 2, 3]}
    rest, _ = process.communicate(timeout=20)
    assert (process.returncode, len(rest)) == (0, 4000 * 1001 - 1)
    assert sum(position(daemon).values()) == 4000


# -- commits ---------------------------------------------------------------------------------------


def test_a_cursor_of_the_client(daemon: Daemon) -> None:
    append(daemon, 0, 100)
    with daemon.client() as client:
        cursor = client.cursor("me", "c")
        assert cursor.position() == dict.fromkeys(range(SHARDS), 0)
        for batch in cursor.tail():
            cursor.commit({batch.shard: batch.end})
        assert sum(cursor.position().values()) == 100
        assert list(client.cursor("me", "c").tail()) == []
        step = Step("c", client.open("c").id, cursor.position())
        cursors.commit(client, "me", [step])  # A commit that is repeated changes nothing.
        with pytest.raises(OutOfRangeError):
            cursor.commit({0: 101})
        with pytest.raises(NotFoundError):
            cursor.commit({SHARDS: 0})
        other = client.cursor("me", "c")
        assert other.seek({0: (2, 5)})[0] == 5  # type: ignore[dict-item]
        with pytest.raises(CursorMovedError):
            cursor.commit({0: cursor.position()[0]} | {0: 6})
        cursor.close()
        other.close()


def test_a_commit_for_a_dropped_collection_is_refused(daemon: Daemon) -> None:
    append(daemon, 0, 100)
    with daemon.client() as client:
        cursor = client.cursor("me", "c")
        client.call("drop", name="c")
        client.call("create", name="c", shards=SHARDS)
        append(daemon, 0, 100)
        with pytest.raises(NotFoundError):
            cursor.commit({0: 1})
        cursor.close()
        assert set(client.cursor("me", "c").position().values()) == {0}
