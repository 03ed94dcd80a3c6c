"""Ship a real file, kill the daemon in the middle, go on, prove that every byte is there.

The file is the source of this Python's standard library: real text, tens of megabytes, and no
newline at its end. Everything happens in a temporary directory, which is removed with the daemon.
Run it by ``make run``; the exit status is 0 only if everything held.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import wal_client
from wal_core.clock import SystemClock, sleep

INPUT_BYTES = 48_000_000
PIECE_BYTES = 256 * 1024
FILES = 3
THROUGHPUT_RUNS = 2
SINGLE_APPENDS = 300
READY_MAX_SECONDS = 5.0
"""An idle machine takes well under a second; a busy one must not make the run fail."""
COLLECTION = "events"
clock = SystemClock()
console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)


class Failed(Exception):
    """Something did not hold."""


class Wal:
    """The installed command line on one data directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        beside = Path(sys.executable).with_name("wal")
        self._program = str(beside) if beside.exists() else "wal"
        # Off, so that nothing but `up` starts a daemon here.
        settings = {name: value for name, value in os.environ.items() if name[:4] != "WAL_"}
        self._environment = settings | {"WAL_DIR": str(directory), "WAL_AUTOSTART": "0"}

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([self._program, *arguments], env=self._environment, **options)

    def json(self, *arguments: str, stdin: Any = None) -> dict[str, Any]:
        """What a command prints with ``-o json``; of a failed one the error."""
        pipes: dict[str, Any] = {"stdin": stdin} | dict.fromkeys(
            ("stdout", "stderr"), subprocess.PIPE
        )
        out, err = self.start(*arguments, "-o", "json", **pipes).communicate()
        return dict(json.loads(out or err))

    def up(self) -> int:
        """Start the daemon, wait until it is ready. Returns its process id."""
        answer = self.json("up")
        if "pid" not in answer:
            raise Failed(f"the daemon did not start: {answer}")
        return int(answer["pid"])


def make_input(path: Path) -> None:
    """The standard library's sources one behind the other, as often as it takes."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = [one for one in sorted(library.rglob("*.py")) if "site-packages" not in one.parts]
    with path.open("wb") as file:
        for source in itertools.cycle(sources):
            file.write(source.read_bytes())
            if file.tell() >= INPUT_BYTES:
                break
        file.write(b"the last line has no newline")


def ship_and_kill(wal: Wal, pid: int, path: Path) -> dict[str, Any]:
    """Stream the file into `wal append`; kill -9 the daemon once half of it is durable. Returns
    the error that `append` ended with."""
    size = path.stat().st_size
    killed = threading.Event()
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    append = wal.start("append", COLLECTION, "-o", "json", **pipes)
    feeder = threading.Thread(target=feed, args=(path, append.stdin, killed))
    feeder.start()
    half = count_lines(path) // 2
    try:
        with wal_client.connect(wal.directory) as client:
            while durable_rows(client) < half and append.poll() is None:
                sleep(0.001)
        kill(pid)
    finally:
        killed.set()
        feeder.join()
    assert append.stdout is not None
    assert append.stderr is not None
    message = append.stderr.read()
    status = append.wait()
    append.stdout.close()
    append.stderr.close()
    if status == 0:
        raise Failed("append ended well although its daemon was killed")
    error: dict[str, Any] = json.loads(message)["error"]
    if "resume_at" not in error["details"]:
        raise Failed(f"append ended before the kill: {error['message']}")
    if not 0 < error["details"]["resume_at"] < size:
        raise Failed(f"append stopped at byte {error['details']['resume_at']} of {size}")
    return error


def feed(path: Path, pipe: Any, killed: threading.Event) -> None:
    """A source that cannot finish first: it holds the last quarter back until the kill."""
    held_back = path.stat().st_size * 3 // 4
    with contextlib.suppress(BrokenPipeError), pipe, path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            if file.tell() > held_back:
                killed.wait()
            pipe.write(piece)
            pipe.flush()


def durable_rows(client: wal_client.Client) -> int:
    with contextlib.suppress(wal_client.WalError):  # Not there before the first batch.
        return int(client.call("describe", name=COLLECTION)["rows"])
    return 0


def kill(pid: int) -> None:
    """kill -9, and wait until it is gone."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], 10)
    finally:
        os.close(fd)


def go_on(wal: Wal, path: Path, error: dict[str, Any]) -> int:
    """Ship the rest. Returns how many rows had become durable unacknowledged.

    What was under way at the kill may be in the log or not. `--expect` makes sure that nothing is
    written twice: it is refused where the log is longer than what was acknowledged, and the
    refusal tells the true length."""
    resume_at, acknowledged = error["details"]["resume_at"], error["details"]["durable_records"]
    surplus = 0
    for _ in range(2):
        answer = wal.json(
            *("append", COLLECTION, "-f", str(path)),
            *("--resume-at", str(resume_at), "--expect", str(acknowledged + surplus)),
        )
        if "error" not in answer:
            return surplus
        if answer["error"]["code"] != "expectation-failed":
            break
        surplus = answer["error"]["details"]["next"] - acknowledged
        resume_at = skip_lines(path, resume_at, surplus)
    raise Failed(f"append did not go on: {answer}")


def skip_lines(path: Path, position: int, lines: int) -> int:
    """The byte behind so many lines."""
    with path.open("rb") as file:
        file.seek(position)
        for _ in range(lines):
            file.readline()
        return file.tell()


def count_lines(path: Path) -> int:
    """Records that line framing makes of a file: also the last one, which has no newline."""
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b"")) + 1


def compare(wal: Wal, collection: str, path: Path) -> None:
    """`wal tail -o raw | cmp - FILE`. Each record comes out with its newline, so the file must
    come back with one newline more: the one that its last line lacks."""
    tail = wal.start("tail", collection, "-o", "raw", stdout=subprocess.PIPE)
    assert tail.stdout is not None
    with tail.stdout, path.open("rb") as file:
        while expected := file.read(1 << 20):
            if tail.stdout.read(len(expected)) != expected:
                raise Failed(f"{collection} differs from the file before byte {file.tell()}")
        if tail.stdout.read() != b"\n":
            raise Failed(f"{collection} does not end where the file does")
    if tail.wait() != 0:
        raise Failed("tail failed")


def throughput(wal: Wal, path: Path) -> tuple[float, float]:
    """Records and bytes a second of `cat FILE FILE FILE | wal append piped`. Both processes'
    starts are included, so a few files at once, not a single one."""
    started = clock.monotonic()
    with subprocess.Popen(["cat", *[path] * FILES], stdout=subprocess.PIPE) as source:
        answer = wal.json("append", "piped", stdin=source.stdout)
    seconds = clock.monotonic() - started
    if "error" in answer:
        raise Failed(f"the uninterrupted append failed: {answer}")
    return answer["count"] / seconds, FILES * path.stat().st_size / seconds


def latencies(directory: Path) -> list[float]:
    """Seconds of single appends of 100 bytes, sorted: each sent, made durable, acknowledged."""
    taken = []
    with wal_client.connect(directory) as client:
        producer = client.producer("single")
        for _ in range(SINGLE_APPENDS):
            started = clock.monotonic()
            producer.append(b"x" * 100)
            producer.flush()
            taken.append(clock.monotonic() - started)
    return sorted(taken)


def check(wal: Wal) -> str:
    """`wal check --deep` must find nothing, but for a batch that the kill cut in two.

    The daemon cannot know whether somebody was told that such a batch is safe, so it asks for an
    operator's word. Here the comparison with the file has shown that nothing is missing."""
    found = wal.json("check", "--deep")
    verdict = "every checksum holds"
    if any(problem["kind"] == "cut" for problem in found["problems"]):
        wal.json("check", "--repair", "--yes")
        found = wal.json("check", "--deep")
        verdict += "; the batch that the kill had cut in two was set aside"
    if found["ok"] is not True:
        raise Failed(f"wal check --deep: {found['problems']}")
    return verdict


def run(wal: Wal, folder: Path, report: Table) -> None:
    path = folder / "input"
    make_input(path)
    size, lines = path.stat().st_size, count_lines(path)
    report.add_row("input", f"{lines:,} lines, {size / 1e6:.1f} MB of Python source")

    error = ship_and_kill(wal, wal.up(), path)
    resume_at, acknowledged = error["details"]["resume_at"], error["details"]["durable_records"]
    report.add_row("kill -9", f"{acknowledged:,} records acknowledged, go on at byte {resume_at:,}")
    report.add_row("append said", f"exit {error['exit']}, {error['code']}")

    started = clock.monotonic()
    wal.up()
    ready = clock.monotonic() - started
    report.add_row("ready again", f"{ready:.2f} s after `wal up`")

    surplus = go_on(wal, path, error)
    report.add_row("went on", f"{surplus:,} records were durable but not yet acknowledged")
    compare(wal, COLLECTION, path)
    report.add_row("cmp", "identical; line framing ended the last line with a newline")

    records, volume = max(throughput(wal, path) for _ in range(THROUGHPUT_RUNS))
    rates = f"{records:,.0f} records/s, {volume / 1e6:,.0f} MB/s"
    report.add_row("cat | append", f"{rates} durable, best of {THROUGHPUT_RUNS}")
    taken = latencies(wal.directory)
    middle, late = taken[len(taken) // 2] * 1e3, taken[len(taken) * 99 // 100] * 1e3
    report.add_row("latency", f"p50 {middle:.2f} ms, p99 {late:.2f} ms, one append at a time")

    report.add_row("check --deep", check(wal))
    if ready > READY_MAX_SECONDS:
        raise Failed(f"it took {ready:.2f} s to be ready again")


def is_left(folder: Path) -> bool:
    """Whether a process runs that names the folder in its command line."""
    name = os.fsencode(folder)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # It has just ended.
            if name in process.read_bytes():
                return True
    return False


def main() -> int:
    report = Table(box=None, show_header=False, pad_edge=False)
    report.add_column(style="bold cyan", no_wrap=True)
    report.add_column()
    folder = Path(tempfile.mkdtemp(prefix="walstream-run-"))
    wal = Wal(folder / "data")
    failure = ""
    try:
        console.print("Shipping a file, killing the daemon half-way, going on: some ten seconds …")
        run(wal, folder, report)
    except Failed as error:
        failure = str(error)
    finally:
        stopped = wal.start("down", stdout=subprocess.DEVNULL).wait() == 0
        shutil.rmtree(folder)
    if not stopped or is_left(folder):
        failure = failure or "a process was left behind"
    console.print(report)
    if failure:
        console.print(f"[bold red]FAILED[/]  {failure}")
        return 1
    console.print("[bold green]held[/]  nothing lost, nothing twice, no process left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
