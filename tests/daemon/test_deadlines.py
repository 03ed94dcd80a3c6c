"""One timer for all deadlines, and none while nobody owes anything."""

from __future__ import annotations

import asyncio

from wal_daemon.deadlines import Deadlines


def test_only_the_late_ones_are_called_each_once() -> None:
    async def run() -> list[str]:
        called: list[str] = []
        deadlines = Deadlines(asyncio.get_running_loop())
        deadlines.set("slow", 60, lambda: called.append("slow"))
        deadlines.set("late", 0.02, lambda: called.append("late"))
        deadlines.set("later", 0.05, lambda: called.append("later"))
        deadlines.set("paid", 0.03, lambda: called.append("paid"))
        deadlines.set("late", 60, lambda: called.append("never"))
        deadlines.clear("paid")
        await asyncio.sleep(0.15)
        deadlines.clear("slow")
        assert deadlines._timer is None
        return called

    assert asyncio.run(run()) == ["late", "later"]
