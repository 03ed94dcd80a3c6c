"""What `wal check` looks at. Changes nothing, except that ``accept_cuts`` renames."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wal_core.errors import CorruptError, NodeHeldError, NotFoundError
from wal_core.message import (
    MAGIC,
    Header,
    MessageType,
    header_is_valid,
    identity_seed,
    unpack_header,
)
from wal_core.names import split_vchannel_id
from wal_storage import fence
from wal_storage.directory import DataDirectory, read_version
from wal_storage.disk import Disk
from wal_storage.log.chain import Segment, read_chain, read_segment_header
from wal_storage.log.format import (
    HEADER_SIZE_BYTES,
    TRAILER_SIZE_BYTES,
    footer_size,
    parse_file_name,
    unpack_footer,
)
from wal_storage.log.repair import BROKEN_SUFFIX, judge_tail
from wal_storage.log.scan import ScanEnd, data_end, scan
from wal_storage.state import ChannelState
from wal_storage.tso_mark import read_mark

ACCEPTED_SUFFIX = ".accepted"
_CORRUPTION = frozenset(("damage", "missing", "chain", "state"))
Advance = Callable[[int], None]


class Problem(NamedTuple):
    """Something that `wal check` found. ``file`` is relative to the data directory.

    Kinds: ``damage`` (bytes are not what was written), ``missing`` (a file), ``chain`` (a segment
    does not follow from the one before), ``state`` (offsets do not follow); ``torn`` (the next
    start will cut it), ``cut`` (a start has cut it: possibly acknowledged), ``footer`` (readers do
    without it), ``catalog`` (rebuilt at the next start), ``cursor`` (to be removed by hand)."""

    kind: str
    file: str
    offset: int | None
    problem: str

    @property
    def is_corruption(self) -> bool:
        return self.kind in _CORRUPTION


class Bound(NamedTuple):
    """How far a running daemon has confirmed a PChannel."""

    tip: str
    position: int


class Report:
    """What a check found, and how much it read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.segments = 0
        self.batches = 0
        self.rows = 0
        self.bytes = 0
        self.states: dict[int, ChannelState] = {}
        """State at the end of each PChannel whose tip is whole."""

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": not self.problems,
            "problems": [problem._asdict() for problem in self.problems],
            "segments": self.segments,
            "batches": self.batches,
            "rows": self.rows,
            "bytes": self.bytes,
        }


def require_known_format(directory: str) -> None:
    """Raises FormatError for a directory of a newer version."""
    read_version(os.fsencode(directory))


def open_directory(directory: str) -> DataDirectory:
    """Raises NotFoundError where there is no data directory; nothing is made."""
    path = os.fsencode(directory)
    if not os.path.isdir(path) or read_version(path) is None:
        raise NotFoundError(
            f"{directory} is not a data directory of walstream", hint="wal config show --origin"
        )
    return DataDirectory(path)


def bytes_to_read(directory: DataDirectory) -> int:
    """Bytes of all log segments."""
    total = 0
    for number in directory.pchannels():
        with os.scandir(os.fsdecode(_folder(directory, number))) as entries:
            total += sum(one.stat().st_size for one in entries if parse_file_name(one.name))
    return total


def check_logs(
    directory: DataDirectory, *, deep: bool, bounds: Mapping[int, Bound] | None, advance: Advance
) -> Report:
    """Check every PChannel. ``bounds``: from the running daemon; None: none runs.

    ``advance`` is called with the sizes of segments when they are done."""
    report = Report()
    for number in directory.pchannels():
        disk = Disk(_folder(directory, number))
        try:
            if bounds is None:
                _require_no_owner(disk, number)
            bound = None if bounds is None else bounds.get(number)
            _PChannelCheck(disk, number, report, deep, bound, advance).run()
        finally:
            disk.close()
    return report


def check_catalog(directory: DataDirectory, report: Report) -> None:
    """Compare the catalog with what the logs say. Only while no daemon runs."""
    from wal_storage.catalog import collections as family
    from wal_storage.catalog import cursors
    from wal_storage.catalog.lmdb import LmdbCatalog

    if not os.path.isdir(directory.catalog_path) or len(report.states) < len(directory.pchannels()):
        return
    try:
        catalog = LmdbCatalog(directory.catalog_path, readonly=True)
        try:
            listed = {
                one.name: {shard.vchannel: 0 for shard in one.shards}
                for one in family.read_all(catalog).values()
            }
            try:
                cursors.read_all(catalog)
            except CorruptError as error:
                problem = f"{error}; wal cursor rm NAME COLLECTION"
                report.problems.append(Problem("cursor", "catalog/data.mdb", None, problem))
        finally:
            catalog.close()
    except (CorruptError, ValueError) as error:
        report.problems.append(Problem("catalog", "catalog/data.mdb", None, str(error)))
        return
    compare_collections(report, listed, "the catalog")


def compare_collections(
    report: Report, listed: Mapping[str, Mapping[int, int]], where: str
) -> None:
    """``listed``: collection → VChannel → a next offset that the log must have reached."""
    logged, unfinished = _collections(report.states)
    for name, shards in listed.items():
        if name not in logged:
            if name not in unfinished:
                _note_catalog(report, f"{where} has collection {name!r}, the logs do not")
        elif set(shards) != set(logged[name]):
            _note_catalog(report, f"{where} has other shards of {name!r} than the logs")
        else:
            for vchannel, offset in shards.items():
                if logged[name][vchannel] < offset:
                    shard = split_vchannel_id(vchannel)[1]
                    message = (
                        f"{name!r} shard {shard} ends at {logged[name][vchannel]} in the log, "
                        f"at {offset} in {where}"
                    )
                    report.problems.append(Problem("state", "", None, message))
    for name in logged.keys() - listed.keys():
        _note_catalog(report, f"the logs have collection {name!r}, {where} does not")


def accept_cuts(directory: DataDirectory) -> list[str]:
    """An operator's word for all cuts: ``.broken`` becomes ``.broken.accepted``. Returns names."""
    accepted = []
    for number in directory.pchannels():
        disk = Disk(_folder(directory, number))
        try:
            for name in sorted(disk.names()):
                if name.endswith(BROKEN_SUFFIX):
                    disk.rename(name, name + ACCEPTED_SUFFIX)
                    accepted.append(f"pchannels/{number}/{name}")
            disk.sync_folder()
        finally:
            disk.close()
    return accepted


class _PChannelCheck:
    """One log, from its first segment to its tip."""

    def __init__(
        self,
        disk: Disk,
        number: int,
        report: Report,
        deep: bool,
        bound: Bound | None,
        advance: Advance,
    ) -> None:
        self._disk = disk
        self._number = number
        self._report = report
        self._deep = deep
        self._bound = bound
        self._advance = advance

    def run(self) -> None:
        self._check_small_files()
        segments = self._segments()
        state: ChannelState | None = ChannelState()  # Of a log that has no segment yet.
        for at, segment in enumerate(segments):
            following = segments[at + 1] if at + 1 < len(segments) else None
            if self._deep and following is not None:
                with contextlib.suppress(OSError):  # Reported when its turn comes.
                    self._disk.prefetch_all(following.file_name)
            state = self._check_segment(segment, following)
        if state is not None:
            self._report.states[self._number] = state

    def _check_small_files(self) -> None:
        for name in sorted(self._disk.names()):
            if name.endswith(BROKEN_SUFFIX):
                offset = int(name.removesuffix(BROKEN_SUFFIX).rpartition(".")[2], 16)
                text = "a torn tail was cut here and saved; possibly it had been acknowledged"
                self._note("cut", name, offset, text)
        try:
            read_mark(self._disk)
        except CorruptError as error:
            self._note_error(error)

    def _segments(self) -> list[Segment]:
        """Those that make up the log; where the chain is broken, all that can be opened."""
        try:
            segments = read_chain(self._disk).segments
        except CorruptError:
            return self._single_segments()
        highest = fence.highest_term(self._disk.names())
        if segments and segments[-1].id.term > highest:
            self._note("missing", fence.term_name(segments[-1].id.term), None, "it is missing")
        if self._bound is not None:
            names = [segment.file_name for segment in segments]
            if self._bound.tip in names:  # The daemon may have gone on to a new one meanwhile.
                del segments[names.index(self._bound.tip) + 1 :]
                segments[-1].valid_length = self._bound.position
        return segments

    def _single_segments(self) -> list[Segment]:
        found: list[Segment] = []
        ids = sorted(id for name in self._disk.names() if (id := parse_file_name(name)))
        for id in ids:
            try:
                header = read_segment_header(self._disk, id.file_name)
            except CorruptError as error:
                self._note_error(error)
                continue
            before = header.predecessor.id
            if found and before in ids:
                for one in found:
                    if one.id == before:
                        one.valid_length = header.predecessor.valid_length
            elif before.term and id != header.log_start and before not in ids:
                self._note("missing", before.file_name, None, f"{id.file_name} follows it")
            found.append(Segment(self._disk, header, None))
        return found

    def _check_segment(self, segment: Segment, following: Segment | None) -> ChannelState | None:
        """The state at the segment's end; None where it cannot be known (or was not read)."""
        self._report.segments += 1
        name = segment.file_name
        data = self._disk.read_all(name) if self._deep or following is None else None
        try:
            opening = segment.opening()
        except CorruptError as error:
            self._note_error(error)
            opening = None
        if data is None:
            self._check_length(segment)
            return None
        reading = _Reading(segment, data, opening)
        self._count(reading, len(data))
        for offset, problem in reading.damage:
            self._note("damage", name, offset, problem)
        for offset, problem in reading.contradictions:
            self._note("state", name, offset, problem)
        if segment.valid_length is None:
            self._judge_tail(reading)
        elif not reading.damage:
            self._check_footer(reading)
        if following is not None and not reading.damage:
            self._check_following(reading, following)
        if reading.damage or reading.contradictions:
            return None
        return reading.state

    def _count(self, reading: _Reading, size: int) -> None:
        self._report.batches += reading.batches
        self._report.rows += reading.rows
        self._report.bytes += reading.end.valid_length
        self._advance(size)

    def _check_length(self, segment: Segment) -> None:
        fd = self._disk.open_read(segment.file_name)
        try:
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        self._report.bytes += min(size, segment.valid_length or 0)
        self._advance(size)
        if segment.valid_length is not None and size < segment.valid_length:
            text = f"the file ends here, {segment.valid_length} bytes of it are the log's"
            self._note("damage", segment.file_name, size, text)

    def _judge_tail(self, reading: _Reading) -> None:
        """Of a tip that nobody owns."""
        name, end = reading.segment.file_name, reading.end
        if reading.damage:
            return
        try:
            tail = judge_tail(reading.view, reading.segment.id, end)
        except CorruptError:
            # Behind the bad place stands a proof that it was durable once.
            self._note("damage", name, end.valid_length, end.problem or "it ends too early")
            for offset, problem in reading.damage_behind():
                self._note("damage", name, offset, problem)
            return
        if tail.torn:
            text = f"{tail.torn} bytes of a torn write ({end.problem}); the next start cuts them"
            self._note("torn", name, end.valid_length, text)
        elif tail.sealed:
            self._check_footer(reading)

    def _check_footer(self, reading: _Reading) -> None:
        """A footer is never trusted over its data; it is only said when it disagrees."""
        if self._bound is not None and self._bound.tip == reading.segment.file_name:
            return
        end = reading.end
        rest = reading.view[end.valid_length :]
        if data_end(rest, 0) == 0 or bytes(rest[:4]) == MAGIC:
            return  # Preallocated, or void rows of an owner that was fenced.
        try:
            footer = unpack_footer(rest)
        except (CorruptError, ValueError, KeyError, TypeError):
            footer = None
        name = reading.segment.file_name
        if footer is None:
            self._note("footer", name, end.valid_length, "the footer is damaged")
        elif footer[:3] != (end.valid_length, end.next_sequence, end.running):
            self._note("footer", name, end.valid_length, "the footer disagrees with the data")

    def _check_following(self, reading: _Reading, following: Segment) -> None:
        header, end = following.header, reading.end
        said = header.predecessor
        if said.id != reading.segment.id:
            return  # The chain is broken there, which was said already.
        if said.running != end.running:
            text = f"the running checksum of {reading.segment.file_name} is another one"
            self._note("chain", following.file_name, 0, text)
        if header.id.first_sequence != end.next_sequence:
            text = f"it begins with sequence {header.id.first_sequence}, {end.next_sequence} is due"
            self._note("chain", following.file_name, 0, text)
        if reading.state is None or reading.contradictions:
            return
        try:
            opening = following.opening()
        except CorruptError:
            return  # Said when that segment is checked.
        if _offsets(opening) != _offsets(reading.state):
            text = "the opening snapshot is not the state that the segment before leaves"
            self._note("state", following.file_name, HEADER_SIZE_BYTES, text)

    def _note(self, kind: str, name: str, offset: int | None, problem: str) -> None:
        file = f"pchannels/{self._number}/{name}"
        self._report.problems.append(Problem(kind, file, offset, problem))

    def _note_error(self, error: CorruptError) -> None:
        name, offset = str(error.details.get("file", "")), error.details.get("offset")
        problem = error.message.removeprefix(f"{name}: ").removeprefix(f"offset {offset}: ")
        kind = "missing" if problem == "missing" else "damage"
        self._note(kind, name, offset if isinstance(offset, int) else None, problem)


class _Reading:
    """All batches of a segment, also those behind damage, and the state they lead to."""

    def __init__(self, segment: Segment, data: bytearray, opening: ChannelState | None) -> None:
        self.segment = segment
        self.view = memoryview(data)
        self.state = opening
        self.batches = 0
        self.rows = 0
        self.damage: list[tuple[int, str]] = []
        self.contradictions: list[tuple[int, str]] = []
        self._data = data
        self._seed = identity_seed(*segment.id)
        known = segment.valid_length
        header = segment.header
        self.end = self._scan(
            self.view if known is None else self.view[:known],
            HEADER_SIZE_BYTES,
            header.id.first_sequence,
            header.predecessor.running,
        )
        if known is not None and self.end.valid_length != known:
            text = self.end.problem or f"the segment ends here, {known} is due"
            self.damage.append((self.end.valid_length, text))
            self.damage += self.damage_behind()

    def damage_behind(self) -> list[tuple[int, str]]:
        """The bad places behind the first one: look for the next whole header, go on from there."""
        found: list[tuple[int, str]] = []
        self.state = None  # A hole: nothing follows from what stands behind it.
        view = self.view[: self._limit()]
        end = self.end
        while (again := self._go_on(view, end)) is not None:
            end = self._scan(view, *again, 0)
            if not end.problem:
                break
            found.append((end.valid_length, end.problem))
        return found

    def _go_on(self, view: memoryview, end: ScanEnd) -> tuple[int, int] | None:
        """Position and sequence at which to read on behind a bad batch; None: nowhere.

        A whole header says where the next batch begins, so that this one is judged as well."""
        bad = self._header_at(view, end.valid_length)
        if bad is not None and bad.sequence == end.next_sequence:
            return bad.position + bad.size, bad.sequence + 1
        following = self._next_header(view, end.valid_length + 1)
        return None if following is None else (following.position, following.sequence)

    def _limit(self) -> int:
        """The position behind which no batch of the log can be."""
        if self.segment.valid_length is not None:
            return self.segment.valid_length
        footer = footer_size(bytes(self.view[-TRAILER_SIZE_BYTES:]))
        return len(self.view) - footer if footer else data_end(self.view, self.end.valid_length)

    def _next_header(self, view: memoryview, start: int) -> Header | None:
        at = self._data.find(MAGIC, start, len(view))
        while at >= 0:
            header = self._header_at(view, at)
            if header is not None:
                return header
            at = self._data.find(MAGIC, at + 1, len(view))
        return None

    def _header_at(self, view: memoryview, at: int) -> Header | None:
        """The header that stands there whole."""
        try:
            header = unpack_header(view, at)
        except struct.error:
            return None
        valid = header.position == at and header_is_valid(view, at, header, self._seed)
        return header if valid else None

    def _scan(self, view: memoryview, start: int, sequence: int, running: int) -> ScanEnd:
        return scan(view, start, self.segment.id, sequence, running, self._visit)

    def _visit(self, header: Header, batch: memoryview) -> None:
        self.batches += 1
        if header.type == MessageType.INSERT:
            self.rows += header.rows
        if self.state is None or header.sequence == self.segment.id.first_sequence:
            return
        try:
            self.state.apply(header, batch[len(batch) - header.body_length :])
        except CorruptError as error:
            self.contradictions.append((header.position, error.message))
            self.state = None


def _offsets(state: ChannelState) -> dict[int, tuple[Any, ...]]:
    """What two states must agree about."""
    return {
        one.id: (
            *(one.collection, one.next_offset, one.first_offset, one.dropped_tso > 0),
            *(one.txns, one.partitions, one.settings, one.ddl),
        )
        for one in state.vchannels.values()
    }


def _collections(states: Mapping[int, ChannelState]) -> tuple[dict[str, dict[int, int]], set[str]]:
    """Living collections (name → VChannel → next offset), and those half made or half dropped,
    which the next start finishes."""
    shards: dict[int, dict[int, int]] = {}
    names: dict[int, tuple[str, int]] = {}
    dropped: set[int] = set()
    for state in states.values():
        for one in state.vchannels.values():
            shards.setdefault(one.collection_id, {})[one.id] = one.next_offset
            names[one.collection_id] = (one.collection, one.shards)
            if one.dropped_tso:
                dropped.add(one.collection_id)
    whole: dict[str, dict[int, int]] = {}
    unfinished: set[str] = set()
    for id, (name, count) in names.items():
        if id in dropped:
            unfinished.add(name)
        elif len(shards[id]) == count:
            whole[name] = shards[id]
        else:
            unfinished.add(name)
    return whole, unfinished


def _note_catalog(report: Report, problem: str) -> None:
    report.problems.append(Problem("catalog", "catalog/data.mdb", None, problem))


def _folder(directory: DataDirectory, number: int) -> bytes:
    return os.path.join(directory.path, b"pchannels", b"%d" % number)


def _require_no_owner(disk: Disk, number: int) -> None:
    """The end of a log that is being written cannot be told from a torn one."""
    term = fence.highest_term(disk.names())
    if term and fence.held(disk, term):
        who = fence.holder(disk, term)
        raise NodeHeldError(
            f"PChannel {number} is held by node {who.get('node', '?')}, pid {who.get('pid', '?')}, "
            "which does not listen on this socket",
            hint="wal check --socket PATH   or stop that daemon",
            **who,
        )
