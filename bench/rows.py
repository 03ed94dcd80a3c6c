"""The rows of the table: each measures one kind of work beside its peer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import floor, load
from bench.daemon import BIN, Daemon
from bench.redis_peer import Redis
from bench.results import Latencies, Row, median, quantiles, spread
from wal_client.sync import connect

MIB = 1 << 20
LINE = b"x" * 100 + b"\n"


class Bench:
    """What the rows share: a folder on the disk under test, the sizes of this run."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder = folder
        self.rounds = 1 if quick else 3
        self.pipe_bytes = (256 if quick else 1536) * MIB
        self.tail_bytes = (256 if quick else 1024) * MIB
        self.recovery_bytes = (512 if quick else 10240) * MIB
        self.requests = 4000 if quick else 20000
        self.with_redis = True

    def daemon(self) -> Daemon:
        return Daemon(self.folder / "wal")

    def redis(self) -> Redis:
        return Redis(self.folder / "redis")


def rotate(rounds: int, *works: Callable[[], float]) -> list[list[float]]:
    """Results of each work over the rounds; the order turns, so that nobody is always first."""
    results: list[list[float]] = [[] for _ in works]
    for turn in range(rounds):
        for step in range(len(works)):
            number = (turn + step) % len(works)
            results[number].append(works[number]())
    return results


def pipe_append(bench: Bench) -> Iterator[Row]:
    """100-byte lines from a pipe through ``wal append``, beside raw write + fdatasync."""
    source = Path("/dev/shm/wal-bench-lines")
    lines = bench.pipe_bytes // len(LINE)
    with source.open("wb") as file:
        for _ in range(lines // 10000):
            file.write(LINE * 10000)
    lines = lines // 10000 * 10000
    size = lines * len(LINE)
    disk_ratio: list[float] = []

    def ours() -> float:
        daemon = bench.daemon()
        started = time.perf_counter()
        with subprocess.Popen(["cat", source], stdout=subprocess.PIPE) as cat:
            subprocess.run(
                [BIN / "wal", "append", "lines", "-q"],
                stdin=cat.stdout,
                check=True,
                env=daemon.environment(),
            )
        seconds = time.perf_counter() - started
        with connect(daemon.folder) as client:
            rows = client.call("describe", name="lines")["rows"]
        if rows != lines:
            raise AssertionError(f"{rows} rows of {lines}")
        daemon.stop()
        stored = sum(path.stat().st_size for path in daemon.segments())
        disk_ratio.append(stored / lines)
        shutil.rmtree(daemon.folder)
        return size / seconds

    def raw() -> float:
        return floor.sequential(bench.folder, size // MIB * MIB)

    mine, disk = rotate(bench.rounds, ours, raw)
    source.unlink()
    rate = median(mine)
    yield Row.at_least(
        "append: 100-byte lines from a pipe / raw disk",
        f"{rate / 1e6:.0f} MB/s, {rate / len(LINE) / 1e6:.2f} M records/s ({spread(mine)})",
        f"write+fdatasync of 1 MiB: {median(disk) / 1e6:.0f} MB/s ({spread(disk)})",
        rate / median(disk),
        0.6,
    )
    yield Row.at_most(
        "bytes on disk per 100-byte record",
        f"{median(disk_ratio):.3f}",
        "101 with its newline",
        median(disk_ratio),
        101,
    )


def python_producer(bench: Bench) -> Iterator[Row]:
    """1 KiB records from one Python producer, beside Redis with pipelining."""
    count = bench.requests * 20
    body = b"x" * 1024

    def ours() -> float:
        daemon = bench.daemon()
        with connect(daemon.folder) as client, client.producer("rows") as producer:
            started = time.perf_counter()
            for _ in range(count):
                producer.append(body)
            receipt = producer.flush()
            seconds = time.perf_counter() - started
        if receipt.count != count:
            raise AssertionError("rows are missing")
        daemon.remove()
        return count / seconds

    def peer() -> float:
        redis = bench.redis()
        result = redis.append(connections=50, requests=count, size=1024, pipeline=16)
        redis.stop()
        return result.rate

    mine, other = rotate(bench.rounds, ours, peer)
    yield Row.at_least(
        "append: 1 KiB records, one Python producer / Redis",
        f"{median(mine):,.0f}/s ({spread(mine)})",
        f"Redis always, 50 clients x 16: {median(other):,.0f}/s ({spread(other)})",
        median(mine) / median(other),
        3,
    )


class _Sides:
    """Rate, p50 and p99 of both sides over the rounds, for one number of connections."""

    def __init__(self, bench: Bench, number: int) -> None:
        self._bench = bench
        self._number = number
        self._requests = min(bench.requests * (1 if number == 1 else 4), number * 4000)
        self.p50: tuple[list[float], list[float]] = ([], [])
        self.p99: tuple[list[float], list[float]] = ([], [])
        self.mine, self.other = rotate(bench.rounds, self._ours, self._peer)

    def _ours(self) -> float:
        daemon = self._bench.daemon()
        folder, number = str(daemon.folder), self._number
        load.run(folder, "warm", connections=number, requests=number * 20, size=1024)
        result = load.run(folder, "rows", connections=number, requests=self._requests, size=1024)
        daemon.remove()
        return self._note(0, result.rate, result.latencies)

    def _peer(self) -> float:
        redis = self._bench.redis()
        redis.append(connections=self._number, requests=self._number * 20, size=1024)
        result = redis.append(connections=self._number, requests=self._requests, size=1024)
        redis.stop()
        return self._note(1, result.rate, result.latencies)

    def _note(self, side: int, rate: float, latencies: Latencies) -> float:
        self.p50[side].append(latencies.p50)
        self.p99[side].append(latencies.p99)
        return rate


def connections(bench: Bench) -> Iterator[Row]:
    """1 KiB records, one request in flight on each of so many connections, beside Redis."""
    for number in (1, 10, 50, 200):
        sides = _Sides(bench, number)
        yield Row.at_least(
            f"append: {number} connections, 1 in flight / Redis",
            f"{median(sides.mine):,.0f}/s ({spread(sides.mine)})",
            f"Redis always: {median(sides.other):,.0f}/s ({spread(sides.other)})",
            median(sides.mine) / median(sides.other),
            1.2,
        )
        p99, their_p99 = map(median, sides.p99)
        yield Row.at_most(
            f"append: {number} connections, p99 / Redis",
            f"p99 {p99 * 1e3:.2f} ms",
            f"p99 {their_p99 * 1e3:.2f} ms",
            p99 / their_p99,
            1.0,
        )
        if number > 1:
            continue
        p50, their_p50 = map(median, sides.p50)
        yield Row.at_most(
            "append: one at a time, p50 / Redis",
            f"p50 {p50 * 1e3:.3f} ms",
            f"p50 {their_p50 * 1e3:.3f} ms",
            p50 / their_p50,
            0.9,
        )
        disk = floor.single(bench.folder, 3000)
        yield Row.at_most(
            "append: one at a time, p50 / fdatasync floor",
            f"p50 {p50 * 1e3:.3f} ms",
            f"4 KiB pwrite + fdatasync: p50 {disk.p50 * 1e3:.3f} ms",
            p50 / disk.p50,
            1.5,
        )


def pchannels(bench: Bench) -> Iterator[Row]:
    """Appends to 8 collections from 48 connections, on 1, 2 and 4 logs."""

    def on(number: int) -> Callable[[], float]:
        def once() -> float:
            config = bench.folder / "pchannels.toml"
            config.write_text(f"pchannels = {number}\n")
            daemon = Daemon(bench.folder / "wal", "--config", str(config))
            result = load.run(
                str(daemon.folder),
                "rows",
                connections=48,
                requests=bench.requests * 2,
                size=1024,
                collections=8,
            )
            daemon.remove()
            return result.rate

        return once

    rates = rotate(bench.rounds, on(1), on(2), on(4))
    for number, rate in zip((2, 4), rates[1:], strict=True):
        yield Row.at_most(
            f"{number} PChannels / 1: 8 collections, 48 connections",
            f"{median(rate):,.0f}/s ({spread(rate)})",
            f"1 PChannel: {median(rates[0]):,.0f}/s ({spread(rates[0])})",
            median(rate) / median(rates[0]),
            1.0,
        )


def tail(bench: Bench) -> Iterator[Row]:
    """Catch-up to a pipe, and the way from an append to a tailing reader."""
    daemon = bench.daemon()
    lines = bench.tail_bytes // len(LINE)
    block = LINE * 10000
    with connect(daemon.folder) as client, client.producer("lines") as producer:
        for _ in range(lines // 10000):
            producer.lines(block, 10000)
    size = lines // 10000 * len(block)

    def catch_up() -> float:
        started = time.perf_counter()
        with subprocess.Popen(
            [BIN / "wal", "tail", "lines", "-o", "raw"],
            stdout=subprocess.PIPE,
            env=daemon.environment(),
        ) as process:
            got = _drain(process)
        if got != size:
            raise AssertionError(f"{got} bytes of {size}")
        return size / (time.perf_counter() - started)

    def cat() -> float:
        started = time.perf_counter()
        with subprocess.Popen(["cat", *daemon.segments()], stdout=subprocess.PIPE) as process:
            got = _drain(process)
        return got / (time.perf_counter() - started)

    catch_up()
    warm, plain = rotate(bench.rounds, catch_up, cat)
    yield Row.at_least(
        "tail: catch-up to a pipe, page cache warm, GB/s",
        f"{median(warm) / 1e6:.0f} MB/s ({spread(warm)})",
        f"cat of the same files: {median(plain) / 1e6:.0f} MB/s",
        median(warm) / 1e9,
        1.0,
    )

    def cold() -> float:
        floor.forget(daemon.segments())
        return catch_up()

    chilled, raw = rotate(bench.rounds, cold, lambda: floor.read_cold(daemon.segments()))
    yield Row.at_least(
        "tail: catch-up to a pipe, cold / raw reads",
        f"{median(chilled) / 1e6:.0f} MB/s ({spread(chilled)})",
        f"plain reads: {median(raw) / 1e6:.0f} MB/s ({spread(raw)})",
        median(chilled) / median(raw),
        0.7,
    )
    yield _end_to_end(daemon, bench.requests // 10)
    daemon.remove()


def _drain(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    total = 0
    buffer = bytearray(MIB)
    while size := os.readv(process.stdout.fileno(), [buffer]):
        total += size
    return total


def _end_to_end(daemon: Daemon, count: int) -> Row:
    """p50 from the call of an append to its row at a tailing reader, less the append's own."""
    from wal_client.ranges import EARLIEST, FOLLOW

    own, through = [], []
    with connect(daemon.folder) as writer, connect(daemon.folder) as reader:
        producer = writer.producer("live")
        producer.lines(b"first\n", 1)
        producer.flush()
        rows = reader.tail("live", EARLIEST, FOLLOW)
        next(rows)  # The subscription stands once its first row came.
        for number in range(count):
            started = time.perf_counter()
            producer.lines(b"%d\n" % number, 1)
            producer.flush()
            acknowledged = time.perf_counter()
            next(rows)
            through.append(time.perf_counter() - started)
            own.append(acknowledged - started)
    added = quantiles(through).p50 - quantiles(own).p50
    return Row.at_most(
        "append to tailing reader, beyond the append, p50 ms",
        f"{quantiles(through).p50 * 1e3:.3f} ms in all",
        f"the append's own: {quantiles(own).p50 * 1e3:.3f} ms",
        added * 1e3,
        0.1,
    )


def start_up(bench: Bench) -> Iterator[Row]:
    """``wal append COLLECTION BODY`` as a whole process, beside an empty Python."""
    daemon = bench.daemon()
    environment = daemon.environment()

    def process(*argv: str | Path) -> Callable[[], float]:
        def once() -> float:
            started = time.perf_counter()
            subprocess.run(argv, check=True, env=environment, stdout=subprocess.DEVNULL)
            return time.perf_counter() - started

        return once

    ours, bare = rotate(
        60, process(BIN / "wal", "append", "small", "hello"), process(sys.executable, "-c", "pass")
    )
    yield Row.at_most(
        "wal append COLLECTION BODY, process / bare python",
        f"{median(ours) * 1e3:.1f} ms",
        f"python3 -c pass: {median(bare) * 1e3:.1f} ms",
        median(ours) / median(bare),
        1.6,
    )
    daemon.remove()


def resting(bench: Bench) -> Iterator[Row]:
    """Memory and wake-ups of a daemon that nobody uses, and memory at full rate."""
    daemon = bench.daemon()
    with connect(daemon.folder) as client:
        client.append("some", [b"row"])
    time.sleep(6.0)  # Deadlines and marks of that one append are over by then.
    switches = daemon.context_switches()
    time.sleep(5.0)
    wakeups = (daemon.context_switches() - switches) / 5
    yield Row.at_most("idle daemon, wake-ups a second", f"{wakeups:.1f}/s", "", wakeups, 0)
    idle = daemon.resident_bytes() / 1e6
    yield Row.at_most("idle daemon, memory MB", f"{idle:.0f} MB", "", idle, 80)
    largest = 0
    block = LINE * 10000
    with connect(daemon.folder) as client, client.producer("lines") as producer:
        for number in range(bench.tail_bytes // len(block)):
            producer.lines(block, 10000)
            if number % 16 == 0:
                largest = max(largest, daemon.resident_bytes())
    # The write-ahead buffer, what one connection may have under way, and the daemon itself.
    bound = 64 + 32 + 80
    yield Row.at_most(
        "full rate, memory MB (bound by buffers)",
        f"{largest / 1e6:.0f} MB",
        "64 MiB buffer + 32 MiB under way + 80 MB",
        largest / 1e6,
        bound,
    )
    daemon.remove()


def recovery(bench: Bench) -> Iterator[Row]:
    """Kill -9, then the time until a request is served; with the catalog, and without."""
    daemon = bench.daemon()
    block = LINE * 10000
    with connect(daemon.folder) as client, client.producer("lines") as producer:
        for _ in range(bench.recovery_bytes // len(block)):
            producer.lines(block, 10000)
    stored = sum(path.stat().st_size for path in daemon.segments())
    daemon.kill()
    floor.forget(daemon.segments())
    daemon.start()
    yield Row.at_most(
        f"recovery of a {stored / (1 << 30):.1f} GiB log, seconds",
        f"{daemon.ready_seconds:.2f} s",
        "process start included",
        daemon.ready_seconds,
        1.0,
    )
    daemon.kill()
    shutil.rmtree(daemon.folder / "catalog")
    daemon.start()
    rate = stored / daemon.ready_seconds / 1e6
    yield Row.at_least(
        "recovery without a catalog, MB of log a second",
        f"{daemon.ready_seconds:.2f} s",
        "",
        rate,
        500,
    )
    daemon.stop()
    started = time.perf_counter()
    subprocess.run(
        [BIN / "wal", "check", "--deep"],
        check=True,
        env=daemon.environment(),
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - started
    yield Row.at_least(
        "full replay (wal check --deep), MB/s", f"{seconds:.1f} s", "", stored / seconds / 1e6, 500
    )
    shutil.rmtree(daemon.folder)
    daemon.log.unlink()


GROUPS = {
    "pipe": pipe_append,
    "producer": python_producer,
    "connections": connections,
    "pchannels": pchannels,
    "tail": tail,
    "start": start_up,
    "rest": resting,
    "recovery": recovery,
}
NEEDS_REDIS = frozenset(("producer", "connections"))
