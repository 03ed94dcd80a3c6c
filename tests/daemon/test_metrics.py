"""What the metrics say, and that docs/metrics.md says what they mean."""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.daemon.rig import Reader, Rig
from tests.storage.disks import ProbeDisk
from tests.storage.writer import Inline
from wal_core.clock import SystemClock
from wal_daemon.metrics import render
from wal_storage.walstore.file import FileWal

V1 = 1 << 16
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


class Metered:
    """A PChannel over files, and as much of a node around it as the metrics look at."""

    def __init__(self, folder: Path, buffer_size: int = 1 << 20) -> None:
        self.disk = ProbeDisk(bytes(folder))
        self.wal = FileWal(self.disk, SystemClock(), Inline(), 0, "main")
        self.rig = Rig(self.wal, buffer_size)
        self.readers: list[Reader] = []

    def metrics(self) -> dict[str, float]:
        """Samples by name."""
        subscriptions = [reader.subscription for reader in self.readers]
        server = SimpleNamespace(
            connections=[SimpleNamespace(subscriptions=subscriptions)],
            accepted=7,
            refused=3,
            unacknowledged=11,
        )
        node: Any = SimpleNamespace(
            ready=True,
            server=server,
            transactions=self.rig.transactions,
            pchannels=[self.rig.pchannel],
            wals=[self.wal],
            groups=SimpleNamespace(members=lambda group, collection: ["one", "two"]),
        )
        cursors = [{"cursor": "me", "collection": "c", "id": 1, "lag": 4}]
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(render(node, cursors))
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    async def close(self) -> None:
        await self.rig.close()
        self.wal.close(seal=True)
        self.disk.close()


def test_each_metric_is_explained_and_each_explained_one_is_there(tmp_path: Path) -> None:
    async def run() -> None:
        metered = Metered(tmp_path)
        explained = re.findall(r"^\| `(wal_\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)
        assert sorted(explained) == sorted(metered.metrics())
        await metered.close()

    asyncio.run(run())


def test_hits_misses_and_the_lag_of_the_slowest(tmp_path: Path) -> None:
    async def run() -> None:
        metered = Metered(tmp_path, buffer_size=600)
        rig = metered.rig
        await rig.create(V1)
        found = metered.metrics()
        assert math.isnan(found["wal_buffer_hit_ratio"])
        assert found["wal_subscription_lag_rows"] == 0
        assert found["wal_subscriptions"] == 0
        quick, slow = Reader(rig, V1, 0), Reader(rig, V1, 0)
        metered.readers += [quick, slow]
        slow.pause()
        for _ in range(10):
            await rig.append(V1, [b"x" * 100, b"y"])
        found = metered.metrics()
        assert found["wal_subscriptions"] == 2
        assert found["wal_subscription_lag_rows"] == 20
        assert found["wal_buffer_hits_total"] == 10
        assert found["wal_buffer_misses_total"] == 0
        assert found["wal_buffer_hit_ratio"] == 1
        assert 0 < found["wal_buffer_bytes"] <= 600
        slow.resume()
        await slow.wait_for(20)
        found = metered.metrics()
        assert found["wal_subscription_lag_rows"] == 0
        assert found["wal_buffer_misses_total"] >= 1
        hits, misses = found["wal_buffer_hits_total"], found["wal_buffer_misses_total"]
        assert found["wal_buffer_hit_ratio"] == hits / (hits + misses) < 1
        assert found["wal_append_rows_total"] == 20
        await metered.close()

    asyncio.run(run())


def test_open_transactions_and_what_they_hold(tmp_path: Path) -> None:
    async def run() -> None:
        metered = Metered(tmp_path)
        rig = metered.rig
        await rig.create(V1)
        before = metered.metrics()
        rows = [[b"one"], [b"two"]]
        txn = await rig.transaction(V1, rows)
        other = await rig.transaction(V1, [])
        found = metered.metrics()
        assert found["wal_open_transactions"] == 2
        assert found["wal_staged_bytes"] > 256
        assert found["wal_buffer_bytes"] == 0
        assert found["wal_append_rows_total"] == 0
        await rig.commit(V1, txn, rows)
        await rig.transactions.roll_back(other)
        after = metered.metrics()
        assert after["wal_open_transactions"] == 0
        assert after["wal_staged_bytes"] == 0
        assert after["wal_buffer_bytes"] == found["wal_staged_bytes"]
        assert after["wal_append_rows_total"] == 2
        assert after["wal_append_batches_total"] - before["wal_append_batches_total"] == 6
        await metered.close()

    asyncio.run(run())


def test_violations_and_the_node_itself(tmp_path: Path) -> None:
    async def run() -> None:
        metered = Metered(tmp_path)
        assert metered.metrics()["wal_reorder_violations_total"] == 0
        metered.rig.pchannel.count_violation()
        found = metered.metrics()
        assert found["wal_reorder_violations_total"] == 1
        assert found["wal_ready"] == 1
        assert found["wal_connections"] == 1
        assert (found["wal_accepted_total"], found["wal_refused_total"]) == (7, 3)
        assert found["wal_unacknowledged_bytes"] == 11
        assert found["wal_segments"] == 1
        assert (found["wal_cursor_lag_rows"], found["wal_group_members"]) == (4, 2)
        await metered.close()

    asyncio.run(run())
