"""kill -9 in the middle of a change that goes to several PChannels: after the restart all shards
agree, the logs alone tell everything, and a check finds nothing."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.daemon import BIN, Daemon
from tests.daemon.changes import serve
from wal_cli.offline import checking
from wal_client.sync import Client
from wal_core.errors import NotFoundError, WalError
from wal_storage.state import VChannelState

SHARDS = 8
OLD = [b"old %d" % number for number in range(16)]
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "create": ("create", {"name": "made", "shards": SHARDS}),
    "drop": ("drop", {"name": "wide"}),
    "truncate": ("truncate", {"name": "wide"}),
    "add": ("alter", {"name": "wide", "add_partitions": ["asia"]}),
    "remove": ("alter", {"name": "wide", "drop_partitions": ["eu"]}),
    "set": ("alter", {"name": "wide", "settings": {"retention": "", "a": "1"}}),
}


@contextlib.contextmanager
def _stopped(daemon: Daemon) -> Iterator[None]:
    yield
    if daemon.poll() is None:
        daemon.stop()


def _prepare(tmp_path: Path) -> Daemon:
    """A collection with rows, partitions and a setting, and another one."""
    daemon = serve(tmp_path)
    with daemon.client() as client:
        client.call("create", name="wide", shards=SHARDS)
        client.call("alter", name="wide", add_partitions=["eu", "us"], settings={"retention": "7d"})
        producer = client.producer("wide", partition="eu")
        for row in OLD:
            producer.lines(row + b"\n", 1)
        producer.flush()
        client.append("other", [b"beside it"])
    return daemon


def _config(tmp_path: Path) -> list[str]:
    return ["--config", str(tmp_path / "wal.toml")]


def _rows(client: Client, name: str) -> list[bytes]:
    return [body for batch in client.tail(name) for body in batch.bodies()]


def _logged(folder: Path) -> dict[str, list[VChannelState]]:
    """The shards of each collection as the logs alone tell them; a check must find nothing."""
    directory = checking.open_directory(str(folder))
    report = checking.check_logs(directory, deep=True, bounds=None, advance=lambda size: None)
    checking.check_catalog(directory, report)
    assert report.problems == []
    found: dict[str, list[VChannelState]] = {}
    for state in report.states.values():
        for one in state.vchannels.values():
            found.setdefault(f"{one.collection} {one.collection_id}", []).append(one)
    return found


def _assert_agreed(folder: Path) -> None:
    for name, shards in _logged(folder).items():
        assert len(shards) == shards[0].shards, f"{name} is not whole"
        for one in shards:
            assert (one.partitions, one.settings, one.ddl, one.dropped_tso > 0, one.txns) == (
                shards[0].partitions,
                shards[0].settings,
                shards[0].ddl,
                shards[0].dropped_tso > 0,
                {},
            ), name


def _described(client: Client) -> list[dict[str, Any]]:
    found = client.call("list")
    for one in found:
        for shard in one["shards"]:
            assert shard.pop("last_tso")
    return found


def _kill_in(daemon: Daemon, tmp_path: Path, failpoint: str, change: str) -> bool:
    """Make a change with an armed failpoint. Whether the daemon died of it."""
    operation, arguments = CHANGES[change]
    daemon.start(*_config(tmp_path), "--failpoint", failpoint)
    with _stopped(daemon):
        try:
            with daemon.client(timeout=5) as client:
                client.call(operation, **arguments)
        except WalError:
            daemon.wait(5)
            return True
        return False


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["append-before-write", "append-after-check"])
def test_killed_in_the_middle_of_a_change(tmp_path: Path, change: str, moment: str) -> None:
    _prepare(tmp_path).stop()
    shutil.copytree(tmp_path / "wal", tmp_path / "before")
    outcomes: list[bool] = []
    for nth in range(1, 10):
        shutil.rmtree(tmp_path / "wal")
        shutil.copytree(tmp_path / "before", tmp_path / "wal")
        daemon = Daemon.__new__(Daemon)
        daemon.folder, daemon.log = tmp_path / "wal", tmp_path / "wal.log"
        died = _kill_in(daemon, tmp_path, f"{moment}=kill:{nth}", change)
        if nth == 2:  # And once more, while the start finishes the change.
            daemon.spawn(*_config(tmp_path), "--failpoint", f"{moment}=kill")
            daemon.wait(10)
        daemon.start(*_config(tmp_path))
        with _stopped(daemon):
            outcomes.append(_check_outcome(daemon, change))
        _assert_agreed(tmp_path / "wal")
        if nth == 2:
            _forget_the_catalog(daemon, tmp_path)
        if not died:
            break
    else:
        raise AssertionError("the daemon never lived through the change")
    assert nth > 3, "the change is one write; nothing was killed in its middle"
    assert outcomes[1:] == [True] * (nth - 1)
    assert outcomes[0] == (moment == "append-after-check")  # Nothing of it had been written.


def _check_outcome(daemon: Daemon, change: str) -> bool:
    """Whether the change has happened: wholly or not at all."""
    with daemon.client() as client:
        names = {one["collection"] for one in client.call("list")}
        assert _rows(client, "other") == [b"beside it"]
        if change == "create":
            if "made" in names:
                assert client.append("made", [b"row"]).count == 1
            return "made" in names
        if change == "drop":
            if "wide" not in names:
                with pytest.raises(NotFoundError):
                    client.open("wide")
            return "wide" not in names
        described = client.call("describe", name="wide")
        rows = _rows(client, "wide")
        if change == "truncate":
            assert rows == [] or sorted(rows) == sorted(OLD)
            return rows == []
        assert sorted(rows) == sorted(OLD)
        if change == "set":
            return bool(described["settings"] == {"a": "1"})
        return bool(
            described["partitions"] == (["asia", "eu", "us"] if change == "add" else ["us"])
        )


def _forget_the_catalog(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start(*_config(tmp_path))
    with _stopped(daemon), daemon.client() as client:
        before = _described(client)
    shutil.rmtree(tmp_path / "wal" / "catalog")
    daemon.start(*_config(tmp_path))
    with _stopped(daemon), daemon.client() as client:
        assert _described(client) == before
    _assert_agreed(tmp_path / "wal")


def test_the_logs_alone_tell_everything(tmp_path: Path) -> None:
    """Without a catalog: the same collections, partitions, settings, offsets, rows, transactions
    and producers; and a rotation in between makes no difference."""
    daemon = _prepare(tmp_path)
    with _stopped(daemon), daemon.client() as client:
        client.call("truncate", name="wide")
        client.append("wide", [b"new"] * 9)
        client.call("create", name="gone", shards=3)
        client.call("drop", name="gone")
        client.call("create", name="gone", shards=2)
        txn = client.begin("wide", keepalive=600)
        txn.append("wide", [b"staged"] * 9)
        before = _described(client)
        daemon.kill()
    shutil.rmtree(tmp_path / "wal" / "catalog")
    daemon.start(*_config(tmp_path))
    with _stopped(daemon), daemon.client() as client:
        assert _described(client) == before
        for _ in range(3):  # Past the end of each PChannel's segment.
            client.append("other", [b"x" * 700_000])
            for shard in range(SHARDS):
                client.producer("wide", shard=shard).lines(b"y" * 300_000 + b"\n", 1)
        assert client.call("txn_commit", id=txn.id, expect=-1, producer=[0, 0, 0])
        assert sorted(set(_rows(client, "wide")))[:2] == [b"new", b"staged"]
        assert client.call("partition", name="wide", partition="us") == 2
        after = _described(client)
    assert len(daemon.segments()) > 9
    shutil.rmtree(tmp_path / "wal" / "catalog")
    daemon.start(*_config(tmp_path))
    with _stopped(daemon), daemon.client() as client:
        assert _described(client) == after
        check = [BIN / "wal", "check", "--deep"]  # Beside the daemon.
        checked = subprocess.run(
            check, env=daemon.environment(), capture_output=True, check=False, timeout=30
        )
        assert checked.returncode == 0, checked
    _logged(tmp_path / "wal")


@pytest.mark.parametrize("seed", range(2))
def test_random_kills_between_truncations(tmp_path: Path, seed: int) -> None:
    """Rows acknowledged behind a truncation that was answered are there after any kill, those from
    before it are not."""
    print(f"seed {seed}", file=sys.stderr)
    randomness = random.Random(seed)
    daemon = _prepare(tmp_path)
    kept: list[bytes] = []
    hidden: list[bytes] = list(OLD)
    row = truncations = 0
    with _stopped(daemon):
        for _ in range(12):
            timer = threading.Timer(randomness.uniform(0.01, 0.15), daemon.kill)
            timer.start()
            with contextlib.suppress(WalError), daemon.client(timeout=0.5) as client:
                while True:
                    before, kept = kept, []  # It may happen without an answer.
                    client.call("truncate", name="wide")
                    hidden += before
                    truncations += 1
                    for _ in range(randomness.randint(1, 6)):
                        body = b"%d" % row
                        row += 1
                        client.append("wide", [body])
                        kept.append(body)
                    client.call("alter", name="wide", settings={"row": str(row)})
            timer.join()
            daemon.wait(5)
            daemon.start(*_config(tmp_path))
            with daemon.client() as client:
                there = _rows(client, "wide")
                assert set(kept) <= set(there)
                assert set(hidden).isdisjoint(there)
                assert len(set(there)) == len(there)
    assert truncations > 12
    _assert_agreed(tmp_path / "wal")
