"""One flat tree of errors. Each class is one code: its exit status, its next step, its long text.

The class docstring is what ``wal explain CODE`` prints, so it is written for the person who met
the error. An error crosses the socket as (code, message, hint, details) and is raised again on the
other side as the same class.
"""

from __future__ import annotations

from typing import Any, ClassVar

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_PRECONDITION = 3
EXIT_OUTCOME_UNKNOWN = 4
EXIT_CORRUPT = 5
EXIT_BAD_INPUT = 65
EXIT_NOT_FOUND = 66
EXIT_UNREACHABLE = 69
EXIT_BUG = 70
EXIT_IO = 74
EXIT_TRY_AGAIN = 75
EXIT_PROTOCOL = 76
EXIT_PERMISSION = 77
EXIT_CONFIG = 78
EXIT_TIMEOUT = 124
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


class WalError(Exception):
    """The root of every error that walstream names."""

    code: ClassVar[str] = "bug"
    exit_status: ClassVar[int] = EXIT_BUG
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.details = details


class BugError(WalError):
    """walstream met a state it holds to be impossible.

    Nothing that was acknowledged is at risk: the daemon refuses the request rather than go on.
    Please report it with the output of `wal status -o json` and the end of `wald.log`.
    """

    code = "bug"
    exit_status = EXIT_BUG
    default_hint = "wal logs"


class UsageError(WalError):
    """The command line or the request cannot be understood, or asks for two things at once.

    Nothing was sent. `wal COMMAND --help` lists the flags of a command.
    """

    code = "usage"
    exit_status = EXIT_USAGE


class BadNameError(WalError):
    """A name that walstream cannot use.

    Names of collections, cursors and nodes match [a-z0-9][a-z0-9._-]{0,127}: lower case, digits,
    dot, underscore and dash, at most 128 characters, the first one a letter or a digit.
    """

    code = "bad-name"
    exit_status = EXIT_USAGE
    default_hint = "use lower-case letters, digits, '.', '_' and '-', at most 128"


class UnsupportedError(WalError):
    """The flag or operation is reserved, and this version does not have it yet.

    Nothing was sent or written.
    """

    code = "unsupported"
    exit_status = EXIT_USAGE


class AlreadyExistsError(WalError):
    """A collection of this name exists, or did exist with other settings.

    `wal collection describe NAME` shows it.
    """

    code = "already-exists"
    exit_status = EXIT_PRECONDITION


class ExpectationFailedError(WalError):
    """The next offset of the shard is not the one that `--expect` named.

    Somebody else appended in between. Nothing of the batch was written; the message carries the
    true next offset. Read what came in between, then decide whether to append again.
    """

    code = "expectation-failed"
    exit_status = EXIT_PRECONDITION


class OutOfSequenceError(WalError):
    """A producer's batch does not follow the last one that the log has of it.

    Nothing of the batch was written; the message carries the true last sequence. Either a batch
    before this one is missing (a gap), or this one was written so long ago that its result is no
    longer remembered. With `--producer NAME` the sequences of a collection with one shard go up by
    one; with several shards they only go up.
    """

    code = "out-of-sequence"
    exit_status = EXIT_PRECONDITION


class ProducerFencedError(WalError):
    """A newer epoch of the same producer has written: this one is at its end.

    Nothing of the batch was written. Another process has taken the producer's name over; stop
    this one, or open the producer again, which takes a newer epoch and fences the other.
    """

    code = "producer-fenced"
    exit_status = EXIT_PRECONDITION


class TxnExpiredError(WalError):
    """The transaction's keepalive passed without an append, and the daemon rolled it back.

    None of its rows will ever be seen. Begin again, with a longer `--keepalive` where the work
    between two appends takes its time; `wal txn run` renews it by itself.
    """

    code = "txn-expired"
    exit_status = EXIT_PRECONDITION
    default_hint = "wal txn begin --keepalive 60s …"


class TxnInvalidStateError(WalError):
    """The transaction cannot do this any more, or not here.

    It was committed, or rolled back (by its owner, or by a drop, a truncation or another change of
    a collection in its scope), or the collection is outside of its scope. Nothing was written.
    """

    code = "txn-invalid-state"
    exit_status = EXIT_PRECONDITION
    default_hint = "wal txn ls"


class UnknownTxnError(WalError):
    """There is no transaction with this id, and none that ended in the last ten minutes.

    `wal txn ls` lists the open ones.
    """

    code = "unknown-txn"
    exit_status = EXIT_NOT_FOUND
    default_hint = "wal txn ls"


class TxnTooLargeError(WalError):
    """The transaction reached a limit: four billion rows, or rows in 1024 log segments (64 GiB).

    The append that met the limit was not written; what was staged before can still be committed.
    """

    code = "txn-too-large"
    exit_status = EXIT_BAD_INPUT


class FencedError(WalError):
    """Another owner took this PChannel over while the request was under way.

    This daemon acknowledges nothing any more for that PChannel. If the append had been handed to
    the file, its outcome is unknown: it may or may not be in the new owner's log.
    """

    code = "fenced"
    exit_status = EXIT_PRECONDITION
    default_hint = "wal status"


class CursorMovedError(WalError):
    """The cursor is not where this reader left it: somebody else committed, moved or removed it.

    Nothing was saved. Two readers under one cursor name each get all rows; to share the rows out
    use `wal tail --group`. A commit never moves a cursor back: that is what `wal cursor seek` is
    for. `wal cursor show NAME` says where it stands.
    """

    code = "cursor-moved"
    exit_status = EXIT_PRECONDITION
    default_hint = "wal cursor show NAME"


class MemberFencedError(WalError):
    """The shards of a group belong to its members, and the request came from nobody who holds them.

    A member that was stopped for longer than its lease, or whose connection broke, is a member no
    more: its shards went to the others, and what it printed and had not committed comes again
    there. `wal tail --group` then joins anew by itself. Commits and seeks from outside are refused
    while a group has members: end them first, then `wal cursor seek`.
    """

    code = "member-fenced"
    exit_status = EXIT_PRECONDITION
    default_hint = "wal cursor show NAME"


class OutcomeUnknownError(WalError):
    """The append was sent, and no answer came: it may or may not be in the log.

    Look at the end of the collection (`wal tail NAME -n 5 --until end`), or repeat with the same
    `--producer NAME --seq N` or `--dedup ID`, which can never write twice.
    """

    code = "outcome-unknown"
    exit_status = EXIT_OUTCOME_UNKNOWN


class CorruptError(WalError):
    """Bytes of the log are damaged: a checksum, a sequence or a length does not hold.

    The message names the file and the offset. Rows before the damage can still be read; the
    PChannel that owns the file takes no more appends, the other ones go on. `wal check --deep`
    lists all damage; keep a copy of the file before anything else.
    """

    code = "corrupt"
    exit_status = EXIT_CORRUPT
    default_hint = "wal check --deep"


class BadInputError(WalError):
    """The input does not follow its framing.

    Nothing of the batch at fault was written. Earlier batches stay: the message says how many
    records are durable and the byte at which to go on with `--resume-at`.
    """

    code = "bad-input"
    exit_status = EXIT_BAD_INPUT


class RecordTooLargeError(WalError):
    """A record is larger than the limit of 16 MiB.

    Nothing of its batch was written. Split the record, or keep its body elsewhere and append a
    reference.
    """

    code = "record-too-large"
    exit_status = EXIT_BAD_INPUT


class CursorFileError(WalError):
    """The file given to `--cursor-file` is damaged, or holds a position of another collection.

    Nothing was read, and the file was left as it is. Mend it, or remove it to begin anew at
    `--from` (default: the first row). It is one JSON object:
    {"version":1,"collections":{"orders":{"id":1,"created":"2026-…Z","next":{"0":812,"1":90}}}}
    """

    code = "bad-cursor-file"
    exit_status = EXIT_BAD_INPUT


class NotFoundError(WalError):
    """There is no collection (cursor, transaction, segment) of this name.

    `wal collection ls` lists the collections. `wal append` creates a missing one unless it is
    told `--no-create`.
    """

    code = "not-found"
    exit_status = EXIT_NOT_FOUND
    default_hint = "wal collection ls"


class OutOfRangeError(WalError):
    """The offset asked for is not in the collection (yet, or any more).

    The message carries the earliest and the next offset.
    """

    code = "out-of-range"
    exit_status = EXIT_NOT_FOUND


class UnreachableError(WalError):
    """No daemon answers on the socket.

    Nothing was sent. `wal up` starts a daemon for this directory; `wal status` says whether one
    runs; `wal logs` shows why it stopped.
    """

    code = "unreachable"
    exit_status = EXIT_UNREACHABLE
    retryable = True
    default_hint = "wal up"


class IoFailureError(WalError):
    """The operating system failed to read or write.

    After a failed write or fsync walstream never trusts the file again: it goes on in a new
    segment, after the old one was read back from the disk itself. Look at `dmesg`.
    """

    code = "io-error"
    exit_status = EXIT_IO
    default_hint = "wal logs"


class NotReadyError(WalError):
    """The daemon is starting, stopping or replaying; the message says how far it is.

    Clients wait by themselves up to their timeout. Nothing was written.
    """

    code = "not-ready"
    exit_status = EXIT_TRY_AGAIN
    retryable = True
    default_hint = "wal status"


class ThrottledError(WalError):
    """A limit of the daemon is reached (connections, bytes under way). Try again in a moment."""

    code = "throttled"
    exit_status = EXIT_TRY_AGAIN
    retryable = True


class SlowSubscriberError(WalError):
    """The client took none of its rows for ten minutes and was cut off; the daemon's log says so.

    Nothing is lost: subscribe again at the next offset, as `wal tail` and the Python client do.
    """

    code = "slow-subscriber"
    exit_status = EXIT_TRY_AGAIN
    retryable = True


class DiskFullError(WalError):
    """The disk that holds the log has no room for another segment.

    Nothing of the request was written; reading goes on. Make room: the daemon takes writes again
    by itself within five seconds.
    """

    code = "disk-full"
    exit_status = EXIT_TRY_AGAIN
    retryable = True
    default_hint = "df -h on the data directory, make room, and repeat"


class ProtocolError(WalError):
    """The two ends do not speak the same version of the protocol, or sent bytes outside of it.

    Use the `wal` that was installed together with the running `wald`, or `wal restart`.
    """

    code = "protocol"
    exit_status = EXIT_PROTOCOL
    default_hint = "wal restart"


class PermissionDeniedError(WalError):
    """This user may not use the socket or the data directory.

    The service's socket is open to the group `wal`.
    """

    code = "permission"
    exit_status = EXIT_PERMISSION


class ConfigError(WalError):
    """A setting cannot be used; the message names it and where it came from.

    `wal config show --origin` lists every setting with its origin.
    """

    code = "config"
    exit_status = EXIT_CONFIG
    default_hint = "wal config show --origin"


class FormatError(WalError):
    """The data directory, or a file in it, was written by a newer walstream.

    It was left untouched. Use the version that wrote it, or a newer one.
    """

    code = "format-too-new"
    exit_status = EXIT_CONFIG


class WrongDirectoryError(WalError):
    """The daemon on this socket serves another data directory than the one asked for.

    Nothing was sent. Set only one of `--dir` and `--socket`, or make them agree.
    """

    code = "wrong-directory"
    exit_status = EXIT_CONFIG
    default_hint = "wal config show --origin"


class NodeHeldError(WalError):
    """Another daemon holds this node name or this PChannel; the message says which process.

    Stop it with `wal down`. If it hangs (it is stopped, or stuck in the kernel), `wald --takeover`
    fences it and takes over; nothing acknowledged is lost.
    """

    code = "node-held"
    exit_status = EXIT_CONFIG
    default_hint = "wal down   or   wald --takeover"


class TimedOutError(WalError):
    """The time given by `--timeout` passed before anything was sent. Nothing was written."""

    code = "timeout"
    exit_status = EXIT_TIMEOUT
    retryable = True


JUDGED_IN_ORDER = (
    BadInputError,
    ExpectationFailedError,
    NotFoundError,
    OutOfSequenceError,
    RecordTooLargeError,
    TxnExpiredError,
    TxnInvalidStateError,
    TxnTooLargeError,
    UnknownTxnError,
)
"""Refusals that the sequencer gives once it knows that the batch was not written before: after one
of these also an earlier try with a lost answer is known to have left nothing."""

ERRORS: dict[str, type[WalError]] = {
    cls.code: cls for cls in [*WalError.__subclasses__()] if "code" in cls.__dict__
}


def error_from_wire(code: str, message: str, hint: str, details: object) -> WalError:
    """The error that the other side raised; a code of a newer version becomes a BugError.

    The other side is not trusted: details that are no object are dropped."""
    cls = ERRORS.get(code)
    error = BugError(f"{message} [{code}]") if cls is None else cls(message)
    error.hint = hint or error.hint
    error.details = details if isinstance(details, dict) else {}
    return error
