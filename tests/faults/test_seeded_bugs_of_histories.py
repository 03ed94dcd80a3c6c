"""Row 22, for transactions and producers: bugs that are planted in the real code. Each must be
caught by the histories or by the kills at every step.

A test here fails where nothing sees its bug."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checkers import expect_failure
from tests.faults.clients import Plan, run_history
from tests.faults.test_transactions import check_killed_at
from wal_core.message import Message, MessageType
from wal_daemon.pipeline.sequencer import Sequencer
from wal_daemon.pipeline.txn import Leases
from wal_daemon.transactions import ProducerOf, Transactions
from wal_daemon.wal.buffer import Rows
from wal_daemon.wal.pchannel import PChannel
from wal_daemon.wal.staged import Staged
from wal_storage.producers import Producers
from wal_storage.state import ChannelState

Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[Path], object]

# A task that dies of the bug is nobody's to wait for.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def histories(folder: Path) -> None:
    for seed in range(25):
        one = folder / str(seed)
        one.mkdir()
        run_history(one, seed, Plan())


def kills(folder: Path) -> None:
    for call in range(20, 220, 4):
        one = folder / str(call)
        one.mkdir()
        check_killed_at(one, call)


# -- the bugs --------------------------------------------------------------------------------------


def staged_rows_shown_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    plain = PChannel._confirm_special

    def confirm(self: PChannel, request: Any, segment: Any, some: Any, rows: Any) -> int:
        if request.type == MessageType.INSERT:
            first = self.next_offsets[request.vchannel]
            request.first_offset = first
            end = first + request.rows
            rows.append((request.vchannel, Rows(segment, [request], first, end, request.tso)))
        return plain(self, request, segment, some, rows)

    patch.setattr(PChannel, "_confirm_special", confirm)


def commit_answered_and_not_written(patch: pytest.MonkeyPatch) -> None:
    plain = Sequencer._commit

    def commit(self: Sequencer, vchannel: Any, request: Any, outcome: Any) -> bool:
        if plain(self, vchannel, request, outcome):
            outcome.repeated.append(request)
        return False

    patch.setattr(Sequencer, "_commit", commit)


def answered_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    plain = PChannel._write

    def write(self: PChannel, group: Any, size: int) -> Any:
        append = self.wal.append

        def early(messages: Sequence[Message], confirmed_below: int) -> None:
            self._acknowledge(list(messages))  # type: ignore[arg-type]
            append(messages, confirmed_below)

        patch.setattr(self.wal, "append", early)
        try:
            return plain(self, group, size)
        finally:
            patch.setattr(self.wal, "append", append)

    patch.setattr(PChannel, "_write", write)


def last_batch_of_a_transaction_left_out(patch: pytest.MonkeyPatch) -> None:
    plain = Staged.add

    def add(self: Staged, key: Any, segment: Any, batch: Message) -> None:
        kept = self._kept.get(key)
        if kept is None or not kept.batches:
            plain(self, key, segment, batch)

    patch.setattr(Staged, "add", add)


def rollback_forgotten_at_replay(patch: pytest.MonkeyPatch) -> None:
    plain = ChannelState.apply

    def apply(self: ChannelState, header: Any, body: Any) -> None:
        if header.type == MessageType.ROLLBACK_TXN:
            self.next_sequence = header.sequence + 1
            return
        plain(self, header, body)

    patch.setattr(ChannelState, "apply", apply)


def expired_transactions_are_committed(patch: pytest.MonkeyPatch) -> None:
    async def expire(self: Transactions, txn_id: int) -> None:
        if txn_id in self._leases:
            await self.commit(txn_id, ProducerOf())

    patch.setattr(Transactions, "_expire", expire)


def open_transactions_lost_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    plain = ChannelState.from_snapshot.__func__  # type: ignore[attr-defined]

    def from_snapshot(cls: type[ChannelState], body: Any) -> ChannelState:
        state: ChannelState = plain(cls, body)
        for vchannel in state.vchannels.values():
            vchannel.txns.clear()
        return state

    patch.setattr(ChannelState, "from_snapshot", classmethod(from_snapshot))


def first_answers_lost_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    plain = ChannelState.from_snapshot.__func__  # type: ignore[attr-defined]

    def from_snapshot(cls: type[ChannelState], body: Any) -> ChannelState:
        state: ChannelState = plain(cls, body)
        for vchannel in state.vchannels.values():
            vchannel.finished.clear()
        return state

    patch.setattr(ChannelState, "from_snapshot", classmethod(from_snapshot))


def sequences_not_restored_from_the_snapshot(patch: pytest.MonkeyPatch) -> None:
    plain = ChannelState.from_snapshot.__func__  # type: ignore[attr-defined]

    def from_snapshot(cls: type[ChannelState], body: Any) -> ChannelState:
        state: ChannelState = plain(cls, body)
        for producers in state.producers.values():
            producers.by_id.clear()
        return state

    patch.setattr(ChannelState, "from_snapshot", classmethod(from_snapshot))


def sequences_not_replayed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChannelState, "_note_producer", lambda self, vchannel, header: None)


def repeated_batches_written_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Producers, "judge", lambda self, id, epoch, sequence, dense: None)


def leases_not_renewed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "renew", lambda self, txn_id: None)


def leases_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "over", lambda self: ([], None))


BUGS: list[tuple[Plant, Check]] = [
    (staged_rows_shown_before_the_commit, histories),
    (commit_answered_and_not_written, histories),
    (answered_before_it_is_written, histories),
    (last_batch_of_a_transaction_left_out, histories),
    (expired_transactions_are_committed, histories),
    (sequences_not_restored_from_the_snapshot, histories),
    (sequences_not_replayed, histories),
    (repeated_batches_written_again, histories),
    (open_transactions_lost_at_a_restart, kills),
    (first_answers_lost_at_a_restart, kills),
    (rollback_forgotten_at_replay, kills),
    (leases_not_renewed, kills),
    (leases_never_end, kills),
]


@pytest.mark.parametrize(("plant", "check"), BUGS, ids=lambda one: one.__name__)
def test_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant, check: Check
) -> None:
    plant(monkeypatch)
    expect_failure(lambda: check(tmp_path))


@pytest.mark.parametrize("check", [histories, kills])
def test_no_false_alarm(tmp_path: Path, check: Check) -> None:
    """The same checks find nothing where nothing was planted."""
    check(tmp_path)
