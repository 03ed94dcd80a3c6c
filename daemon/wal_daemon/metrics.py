"""The metrics of a node in the Prometheus text format.

Counters are plain integers where they are counted; this module reads them when asked, so an append
pays nothing. Imported on the first request only.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

if TYPE_CHECKING:
    from wal_daemon.node import Node
    from wal_daemon.wal.pchannel import PChannel

_Read = Callable[["PChannel"], float]
_Family = TypeVar("_Family", CounterMetricFamily, GaugeMetricFamily)
_PER_PCHANNEL = ("pchannel",)


def render(node: Node, cursors: Sequence[dict[str, Any]]) -> str:
    """``cursors``: their entries, as ``Cursors.entry`` makes them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(node, cursors))
    return generate_latest(registry).decode()


class _NodeCollector(Collector):
    def __init__(self, node: Node, cursors: Sequence[dict[str, Any]]) -> None:
        self._node = node
        self._cursors = cursors

    def collect(self) -> Iterator[Metric]:
        node = self._node
        server = node.server
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield GaugeMetricFamily("wal_ready", "1 when recovery is done", float(node.ready))
        yield GaugeMetricFamily(
            "wal_connections", "open connections", float(len(server.connections))
        )
        yield CounterMetricFamily("wal_accepted", "connections accepted", server.accepted)
        yield CounterMetricFamily("wal_refused", "connections refused", server.refused)
        yield GaugeMetricFamily(
            "wal_unacknowledged_bytes", "appends held in memory", server.unacknowledged
        )
        yield GaugeMetricFamily(
            "wal_memory_max_bytes", "largest resident size", usage.ru_maxrss * 1024
        )
        yield CounterMetricFamily(
            "wal_cpu_seconds", "processor time used", usage.ru_utime + usage.ru_stime
        )
        yield GaugeMetricFamily(
            "wal_open_transactions", "open transactions", float(node.transactions.open)
        )
        yield GaugeMetricFamily(
            "wal_subscriptions",
            "running subscriptions",
            float(sum(len(one.subscriptions) for one in server.connections)),
        )
        yield from self._pchannels()
        yield from self._cursor_lags()

    def _cursor_lags(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "wal_cursor_lag_rows", "rows behind a cursor", labels=("cursor", "collection")
        )
        members = GaugeMetricFamily(
            "wal_group_members", "readers of a group", labels=("group", "collection")
        )
        for one in self._cursors:
            labels = [one["cursor"], one["collection"]]
            lag.add_metric(labels, one["lag"])
            if count := len(self._node.groups.members(one["cursor"], one["id"])):
                members.add_metric(labels, count)
        yield lag
        yield members

    def _pchannels(self) -> Iterator[Metric]:
        counters: list[tuple[str, str, _Read]] = [
            ("wal_append_batches", "messages confirmed", lambda one: one.batches),
            ("wal_append_rows", "rows confirmed", lambda one: one.rows),
            ("wal_append_bytes", "bytes confirmed, headers included", lambda one: one.bytes),
            (
                "wal_commits",
                "group commits: one write and one fdatasync each",
                lambda one: one.commits,
            ),
            ("wal_commit_seconds", "time spent in group commits", lambda one: one.commit_seconds),
            (
                "wal_buffer_hits",
                "reads served by the write-ahead buffer",
                lambda one: one.buffer.hits,
            ),
            ("wal_buffer_misses", "reads that went to the log", lambda one: one.buffer.misses),
            (
                "wal_reorder_violations",
                "messages that landed behind a time tick which had excluded them",
                lambda one: one.reorder_violations,
            ),
        ]
        gauges: list[tuple[str, str, _Read]] = [
            ("wal_buffer_bytes", "write-ahead buffer", lambda one: one.buffer.size),
            (
                "wal_buffer_hit_ratio",
                "share of reads served by the write-ahead buffer since the start",
                _hit_ratio,
            ),
            (
                "wal_staged_bytes",
                "rows of open transactions in memory",
                lambda one: one.staged_bytes,
            ),
            (
                "wal_subscription_lag_rows",
                "confirmed rows that the slowest subscription was not sent yet",
                self._lag,
            ),
            (
                "wal_segments",
                "log segments",
                lambda one: len(self._node.wals[one.number].segments),
            ),
        ]
        for name, text, read in counters:
            yield self._family(CounterMetricFamily(name, text, labels=_PER_PCHANNEL), read)
        for name, text, read in gauges:
            yield self._family(GaugeMetricFamily(name, text, labels=_PER_PCHANNEL), read)

    def _family(self, family: _Family, read: _Read) -> _Family:
        for one in self._node.pchannels:
            family.add_metric([str(one.number)], read(one))
        return family

    def _lag(self, pchannel: PChannel) -> int:
        lags = (
            subscription.lag
            for connection in self._node.server.connections
            for subscription in connection.subscriptions
            if subscription.pchannel is pchannel
        )
        return max(lags, default=0)


def _hit_ratio(pchannel: PChannel) -> float:
    """NaN before the first read: neither good nor bad."""
    buffer = pchannel.buffer
    reads = buffer.hits + buffer.misses
    return buffer.hits / reads if reads else math.nan
