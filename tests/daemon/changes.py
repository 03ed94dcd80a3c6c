"""What the tests of changes of collections share: raw appends, a sequencer, a daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.daemon import Daemon
from tests.storage.writer import ManualClock
from wal_client.connection import Connection
from wal_client.sync import Client
from wal_core import frames
from wal_core.errors import WalError
from wal_core.frames import Kind
from wal_core.message import Encoding, Message, MessageType, message
from wal_core.tso import TsoSource
from wal_daemon.pipeline.sequencer import Sequencer
from wal_daemon.pipeline.timetick import TimeTick
from wal_daemon.pipeline.txn import Leases
from wal_daemon.wal.requests import NOBODY, AppendRequest, own_request
from wal_storage.state import Change, ChannelState, CreateCollection, encode_change, encode_create

SEVERAL = "pchannels = 3\nsegment_size = 1048576\n"


def rows(vchannel: int, *bodies: bytes, **options: Any) -> Message:
    """A batch of lines."""
    body = b"".join(one + b"\n" for one in bodies)
    return message(
        MessageType.INSERT, vchannel, body, encoding=Encoding.LINES, rows=len(bodies), **options
    )


def append_raw(connection: Connection, request_id: int, sent: Message) -> frames.Frame:
    """Send a message as it is and return the answer."""
    connection.send([frames.pack_append(request_id, sent), bytes(sent.body)])
    return connection.receive()


def refusal(frame: frames.Frame) -> WalError:
    assert frame.kind == Kind.ERROR, frame
    return frames.unpack_error(frame)


def serve(folder: Path, *arguments: str, settings: str = SEVERAL) -> Daemon:
    """A daemon of several PChannels on ``folder / "wal"``."""
    config = folder / "wal.toml"
    config.write_text(settings)
    return Daemon(folder / "wal", "--config", str(config), *arguments)


class Judge:
    """A sequencer alone: appends go in one by one, answers come out."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.state = ChannelState()
        self.leases = Leases(self.clock.monotonic)
        self._timetick = TimeTick(TsoSource(self.clock, 0))
        self._sequencer = Sequencer(self.state, self._timetick, self.leases)

    def append(self, *messages: Message) -> list[AppendRequest | WalError]:
        """One group; what each got."""
        group = [own_request(one, NOBODY) for one in messages]
        first = self._timetick.begin(len(group))
        outcome = self._sequencer.assign(group, first, 4096)
        self._timetick.done(first)
        refused: dict[int, WalError] = {id(one): error for one, error in outcome.refused}
        return [refused.get(id(one), one) for one in group]

    def create(
        self, vchannel: int, name: str = "demo", shards: int = 1
    ) -> AppendRequest | WalError:
        body = encode_create(CreateCollection(name, shards))
        (answer,) = self.append(message(MessageType.CREATE_COLLECTION, vchannel, body))
        return answer

    def change(
        self, vchannel: int, kind: MessageType, partition: int = 0, name: str = "", **settings: str
    ) -> AppendRequest | WalError:
        known = self.state.vchannels.get(vchannel)
        number = 1 if known is None else known.ddl + 1
        body = encode_change(Change(number, partition, name, settings))
        (answer,) = self.append(message(kind, vchannel, body, encoding=Encoding.MSGPACK))
        return answer


@contextlib.contextmanager
def serve_again(folder: Path) -> Iterator[Client]:
    """A client of a daemon that is started on what there is, and stopped at the end."""
    daemon = serve(folder)
    try:
        with daemon.client() as client:
            yield client
    finally:
        daemon.stop()
