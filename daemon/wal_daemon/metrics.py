"""The metrics of a node in the Prometheus text format.

Counters are plain integers where they are counted; this module reads them when asked, so an append
pays nothing. Imported on the first request only.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

if TYPE_CHECKING:
    from wal_daemon.node import Node

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
        yield from self._pchannels()
        yield from self._lags()

    def _lags(self) -> Iterator[Metric]:
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
        channels = self._node.pchannels
        counters = {
            "wal_append_batches": ("batches confirmed", "batches"),
            "wal_append_rows": ("rows confirmed", "rows"),
            "wal_append_bytes": ("body bytes confirmed", "bytes"),
            "wal_commits": ("group commits: one write and one fdatasync each", "commits"),
            "wal_commit_seconds": ("time spent in group commits", "commit_seconds"),
        }
        for name, (text, attribute) in counters.items():
            family = CounterMetricFamily(name, text, labels=_PER_PCHANNEL)
            for one in channels:
                family.add_metric([str(one.number)], getattr(one, attribute))
            yield family
        for name, text, attribute in (
            ("wal_buffer_hits", "reads served by the write-ahead buffer", "hits"),
            ("wal_buffer_misses", "reads that went to the log", "misses"),
        ):
            family = CounterMetricFamily(name, text, labels=_PER_PCHANNEL)
            for one in channels:
                family.add_metric([str(one.number)], getattr(one.buffer, attribute))
            yield family
        size = GaugeMetricFamily("wal_buffer_bytes", "write-ahead buffer", labels=_PER_PCHANNEL)
        segments = GaugeMetricFamily("wal_segments", "log segments", labels=_PER_PCHANNEL)
        for number, one in enumerate(channels):
            size.add_metric([str(number)], one.buffer.size)
            segments.add_metric([str(number)], len(self._node.wals[number].segments))
        yield size
        yield segments
