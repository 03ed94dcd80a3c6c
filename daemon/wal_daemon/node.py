"""The life of a node: take the name → bind → recover → serve → drain.

The socket is bound before recovery, so that a client is told how far the replay is instead of
meeting nobody. Everything that another daemon could also own is behind a term: the node's name,
and each PChannel.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import stat
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from wal_core import frames
from wal_core.clock import Clock
from wal_core.errors import (
    BugError,
    ConfigError,
    CorruptError,
    FencedError,
    IoFailureError,
    NotFoundError,
    NotReadyError,
    ProtocolError,
    WalError,
)
from wal_core.frames import Frame, Kind
from wal_core.limits import DISK_RETRY_SECONDS, DRAIN_SECONDS, SOCKET_PATH_MAX_BYTES
from wal_core.settings import Settings
from wal_core.version import VERSION
from wal_daemon import control, ranges
from wal_daemon.collections import Collections
from wal_daemon.cursors import Cursors
from wal_daemon.groups import Groups
from wal_daemon.pipeline.txn import Leases
from wal_daemon.server import Connection, Server
from wal_daemon.transactions import Transactions
from wal_daemon.wal.buffer import WriteAheadBuffer
from wal_daemon.wal.pchannel import PChannel
from wal_daemon.wal.subscription import Subscription
from wal_storage import fence
from wal_storage.catalog import collections as family
from wal_storage.catalog import cursors as cursor_family
from wal_storage.catalog.lmdb import LmdbCatalog
from wal_storage.directory import DataDirectory
from wal_storage.disk import Disk
from wal_storage.state import ChannelState
from wal_storage.walstore.base import Recovered
from wal_storage.walstore.file import FileWal

log = logging.getLogger("wald.node")


class Node:
    """One daemon on one data directory."""

    def __init__(self, settings: Settings, clock: Clock, *, takeover: bool = False) -> None:
        self.name = settings.node
        self.directory_name = settings.directory
        self.socket_path = settings.socket
        self.started_ms = clock.wall_ms()
        self.pid = os.getpid()
        self.state = "starting"
        self.ready = False
        self.pchannels: list[PChannel] = []
        self.wals: list[FileWal] = []
        self.collections: Collections
        self._leases = Leases(clock.monotonic)
        self.transactions = Transactions(clock, self._leases, self.spawn)
        self._catalog: LmdbCatalog
        self.cursors: Cursors
        self.groups: Groups
        self.server: Server
        self._settings = settings
        self._clock = clock
        self._takeover = takeover
        self._directory = DataDirectory(os.fsencode(settings.directory))
        self._disks: list[Disk] = []
        self._watched: list[Disk] = []
        self._progress: dict[int, tuple[int, int]] = {}
        self.readers = ThreadPoolExecutor(2, "reader")
        self._cursor_keeper = ThreadPoolExecutor(1, "cursors")
        self._housekeeper = ThreadPoolExecutor(1, "housekeeper")
        self._committers: list[ThreadPoolExecutor] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping: asyncio.Future[WalError | None]
        self._name_term: fence.Term | None = None

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> WalError | None:
        """Serve until told to stop. Returns the error that ended the node, if one did."""
        loop = asyncio.get_running_loop()
        self._stopping = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, None)
        self._directory.open()
        name_disk = self._directory.node(self.name)
        self._name_term = term = fence.acquire(
            name_disk, self._clock, self.name, f"node {self.name!r}", takeover=self._takeover
        )
        self.server = Server(self)
        listener = await loop.create_unix_server(
            lambda: Connection(self.server), sock=self._bind(), backlog=1024
        )
        self._watch([name_disk], loop)
        log.info("listening", extra={"socket": self.socket_path, "pid": self.pid})
        failure: WalError | None
        try:
            await self._recover(loop)
            failure = await self._stopping
            self.state = "stopping"
            if failure is None:
                await self._let_transactions_end()
        except WalError as error:
            failure = error
        finally:
            self.state = "stopping"
            listener.close()
        await self._shut_down(term, name_disk)
        return failure

    def stop(self, error: WalError | None) -> None:
        """End ``run``."""
        if not self._stopping.done():
            self._stopping.set_result(error)

    async def _recover(self, loop: asyncio.AbstractEventLoop) -> None:
        self.state = "recovering"
        started = self._clock.monotonic()
        numbers = self._directory.pchannels() or list(range(self._settings["pchannels"]))
        self._disks = [self._directory.pchannel(number) for number in numbers]
        self._catalog = catalog = await loop.run_in_executor(None, self._open_catalog)
        scanned = 0
        for number, disk in enumerate(self._disks):
            committer = ThreadPoolExecutor(1, f"commit-{number}")
            self._committers.append(committer)
            wal, recovered = await loop.run_in_executor(committer, self._open_wal, number, disk)
            self._add_pchannel(number, wal, recovered, committer)
            self._report(number, recovered)
            scanned += recovered.bytes_scanned
        self._watch(self._disks, loop)
        self.collections = Collections(catalog, self.pchannels)
        await self.collections.rebuild()
        for pchannel in self.pchannels:
            self.transactions.revive(pchannel)
        self.cursors = Cursors(
            catalog,
            self.collections,
            self.pchannels,
            self._cursor_keeper,
            self._clock,
            self._owns_name,
        )
        await self.cursors.rebuild()
        self.groups = Groups(self._clock, loop)
        if not self._stopping.done():
            self.ready = True
            self.state = "ready"
        log.info(
            "ready",
            extra={
                "pchannels": len(self.pchannels),
                "scanned_bytes": scanned,
                "seconds": round(self._clock.monotonic() - started, 3),
            },
        )

    async def _let_transactions_end(self) -> None:
        """Before a graceful stop: nothing new begins, what is open may go on for a moment. What is
        still open then stays so in the log, and goes on with the next daemon."""
        for pchannel in self.pchannels:
            pchannel.stop_beginning()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self.transactions.wait_until_none_is_open()

    async def _shut_down(self, term: fence.Term, name_disk: Disk) -> None:
        self.ready = False
        self.transactions.close()
        self._unwatch()
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                for pchannel in self.pchannels:
                    await pchannel.drain()
        except TimeoutError:
            log.error("the drain took too long")
        self.server.close()
        await asyncio.sleep(0)
        for wal in self.wals:
            with contextlib.suppress(OSError, WalError):
                wal.close(seal=True)
        self._unlink_socket()
        term.release()
        name_disk.close()
        for executor in (self.readers, self._cursor_keeper, self._housekeeper, *self._committers):
            executor.shutdown(wait=True, cancel_futures=True)
        log.info("stopped")

    # -- opening -----------------------------------------------------------------------------------

    def _bind(self) -> socket.socket:
        """The listening socket, visible to owner and group only from its first moment on."""
        path = self.socket_path
        folder, name = os.path.split(path)
        os.makedirs(folder, mode=0o750, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # sun_path is 108 bytes; a longer path is reached through the folder's descriptor.
        short = len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES
        address = path if short else f"/proc/self/fd/{folder_fd}/{name}"
        before = os.umask(0o117)
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISSOCK(os.lstat(path).st_mode):
                    raise ConfigError(f"{path} exists and is not a socket")
                os.unlink(path)
            listener.bind(address)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        finally:
            os.umask(before)
            os.close(folder_fd)
        return listener

    def _unlink_socket(self) -> None:
        """Remove our socket; never that of a daemon that took over. Whoever does so takes the
        node's term first and binds after, so while the term is ours the path is ours."""
        with contextlib.suppress(OSError):
            if self._owns_name():
                os.unlink(self.socket_path)

    def _owns_name(self) -> bool:
        """Whether no other daemon took the node's name over. Raises OSError where that cannot be
        known."""
        return self._name_term is not None and self._name_term.is_current()

    def _open_catalog(self) -> LmdbCatalog:
        path = self._directory.catalog_path
        try:
            catalog = LmdbCatalog(path)
            family.read_all(catalog)
            return catalog
        except (CorruptError, msgspec.DecodeError) as error:
            # Nothing in it that the logs do not say too.
            log.warning("the catalog is damaged and is rebuilt", extra={"error": str(error)})
            aside = path + b".broken-%d" % self._clock.wall_ms()
            os.rename(path, aside)
            return LmdbCatalog(path)

    def _open_wal(self, number: int, disk: Disk) -> tuple[FileWal, Recovered]:
        wal = FileWal(
            disk,
            self._clock,
            self._housekeeper,
            number,
            self.name,
            takeover=self._takeover,
            segment_size=self._settings["segment_size"],
        )

        def progress(done: int, total: int) -> None:
            self._progress[number] = (done, total)

        def complete(state: ChannelState) -> None:
            if number == 0:  # Older ones than the catalog's, or none yet.
                state.cursors = cursor_family.copy(self._catalog) or state.cursors

        try:
            return wal, wal.recover(progress, complete)
        except OSError as error:
            wal.close(seal=False)
            raise IoFailureError(f"PChannel {number}: {error.strerror}") from error
        except WalError:
            wal.close(seal=False)
            raise

    def _add_pchannel(
        self, number: int, wal: FileWal, recovered: Recovered, committer: ThreadPoolExecutor
    ) -> None:
        buffer = WriteAheadBuffer(
            self._clock.monotonic,
            self._settings["buffer_size"],
            self._settings["buffer_seconds"],
        )
        self.wals.append(wal)
        self.pchannels.append(
            PChannel(
                number,
                wal,
                recovered,
                self._clock,
                committer,
                buffer,
                self._leases,
                self._on_failure,
            )
        )

    def _report(self, number: int, recovered: Recovered) -> None:
        for cut in recovered.cuts:
            log.warning(
                "a torn tail was cut; it was possibly acknowledged",
                extra={"pchannel": number, **cut._asdict()},
            )

    # -- failures ----------------------------------------------------------------------------------

    def _watch(self, disks: list[Disk], loop: asyncio.AbstractEventLoop) -> None:
        """Have the kernel tell us when a folder of ours changes, so that an idle owner learns of
        its successor at once. dnotify: one signal, no thread, no wake-up while nothing happens
        (docs/decisions/0005-fence-watch.md)."""
        loop.add_signal_handler(signal.SIGIO, self._check_ownership)
        self._watched += disks
        for disk in disks:
            with contextlib.suppress(OSError):
                fcntl.fcntl(disk.descriptor, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)

    def _unwatch(self) -> None:
        """Before the loop gives its signal handlers up: SIGIO without one ends the process."""
        for disk in self._watched:
            with contextlib.suppress(OSError):
                fcntl.fcntl(disk.descriptor, fcntl.F_NOTIFY, 0)

    def _check_ownership(self) -> None:
        with contextlib.suppress(OSError):  # Not to be known now: the next append will meet it.
            if self._name_term is not None and not self._name_term.is_current():
                self.stop(FencedError(f"node name {self.name!r} was taken over"))
            for number, wal in enumerate(self.wals):
                if not wal.is_current():
                    self.stop(FencedError(f"PChannel {number} was taken over"))

    def _on_failure(self, pchannel: PChannel, error: WalError) -> None:
        if isinstance(error, FencedError):
            self.stop(error)
        else:
            self.spawn(self._reopen(pchannel))

    async def _reopen(self, pchannel: PChannel) -> None:
        """After a failed write or fsync: read the log back from the device, under a new term."""
        loop = asyncio.get_running_loop()
        number = pchannel.number
        committer = self._committers[number]
        self.wals[number].close(seal=False)
        while not self._stopping.done():
            try:
                wal, recovered = await loop.run_in_executor(
                    committer, self._open_wal, number, self._disks[number]
                )
            except WalError as error:
                log.error("reopening failed", extra={"pchannel": number, "error": error.message})
                pchannel.close(error)
                if isinstance(error, CorruptError):
                    return
                await asyncio.sleep(DISK_RETRY_SECONDS)
                continue
            self.wals[number] = wal
            pchannel.attach(wal, recovered)
            self.transactions.revive(pchannel)
            self._report(number, recovered)
            log.info("reopened", extra={"pchannel": number, "term": wal.term})
            return

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine of the node's own; it is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- service (see ``server.Service``) ----------------------------------------------------------

    def hello(self) -> bytes:
        return frames.pack_hello_ok(self.pid, os.fsencode(self.directory_name), self.name, VERSION)

    def pchannel_for_append(self, vchannel: int) -> PChannel:
        self._require_ready()
        pchannel = self.collections.pchannel_of(vchannel)
        if pchannel is None:
            raise NotFoundError(f"there is no VChannel {vchannel}")
        self.server.owners[vchannel] = pchannel
        return pchannel

    def handle(self, connection: Connection, frame: Frame) -> None:
        request_id = frame.request_id
        if frame.kind == Kind.CANCEL:
            connection.cancel(request_id)
        elif frame.kind == Kind.OPEN:
            self._require_ready()
            if len(frame.meta) != frames.OPEN.size:
                raise ProtocolError("an opening of a collection that is cut off")
            (shards,) = frames.OPEN.unpack(frame.meta)
            name = bytes(frame.body).decode("utf-8", "replace")
            create = bool(frame.flags & frames.FLAG_CREATE)
            if name in self.collections.by_name:
                connection.send([self._opened(request_id, name)])
            elif create:
                self._answer(connection, request_id, self._create(request_id, name, shards))
            else:
                self.collections.get(name)
        elif frame.kind == Kind.SUBSCRIBE:
            self._require_ready()
            meta = bytes(frame.meta)
            if len(meta) != frames.SUBSCRIBE.size:
                raise ProtocolError("a subscription that is cut off")
            self._answer(connection, request_id, self._subscribe(connection, request_id, meta))
        elif frame.kind == Kind.CALL:
            self._call(connection, request_id, bytes(frame.body))
        else:
            raise ProtocolError(f"a frame of kind {frame.kind}")

    def _require_ready(self) -> None:
        if self.ready:
            return
        done = sum(done for done, _ in self._progress.values())
        total = sum(total for _, total in self._progress.values())
        raise NotReadyError(
            f"node {self.name!r} is {self.state} ({done} of {total} segments replayed)",
            state=self.state,
        )

    def _answer(
        self, connection: Connection, request_id: int, work: Coroutine[Any, Any, bytes | None]
    ) -> None:
        async def answer() -> None:
            try:
                reply = await work
            except WalError as error:
                reply = frames.pack_error(request_id, error)
            except Exception as error:
                log.exception("an operation failed")
                reply = frames.pack_error(request_id, BugError(f"{type(error).__name__}"))
            if reply is not None:
                connection.send([reply])

        self.spawn(answer())

    async def _create(self, request_id: int, name: str, shards: int) -> bytes:
        await self.collections.create(name, shards, exist_ok=True)
        return self._opened(request_id, name)

    def _opened(self, request_id: int, name: str) -> bytes:
        collection = self.collections.get(name)
        names = "\n".join(shard.name for shard in collection.shards).encode()
        meta = frames.OPEN_OK.pack(collection.id, len(collection.shards))
        return frames.pack_frame(Kind.OPEN_OK, request_id, meta, names)

    async def _subscribe(self, connection: Connection, request_id: int, meta: bytes) -> None:
        wanted = ranges.Wanted(*frames.SUBSCRIBE.unpack_from(meta))
        pchannel = self.pchannel_for_append(wanted.vchannel)
        loop = asyncio.get_running_loop()
        span = await loop.run_in_executor(self.readers, ranges.resolve, pchannel, wanted)
        answer = frames.SUBSCRIBED.pack(span.first, span.next)
        connection.send([frames.pack_frame(Kind.SUBSCRIBED, request_id, answer)])
        connection.subscribe(
            request_id,
            lambda: Subscription(
                pchannel,
                wanted.vchannel,
                span.first,
                span.end,
                connection,
                request_id,
                self.readers,
            ),
        )

    def _call(self, connection: Connection, request_id: int, body: bytes) -> None:
        try:
            name, arguments = msgspec.msgpack.decode(body, type=tuple[str, dict[str, Any]])
        except msgspec.DecodeError as error:
            raise ProtocolError(f"a call that cannot be read: {error}") from None
        operation = control.operation(name, connection)
        if name not in control.WHILE_RECOVERING:
            self._require_ready()

        async def call() -> bytes:
            result = await operation(self, arguments)
            return frames.pack_frame(Kind.RESULT, request_id, body=msgspec.msgpack.encode(result))

        self._answer(connection, request_id, call())
