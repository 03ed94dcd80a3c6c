"""The way in, and a short cut: ``wal append COLLECTION BODY`` without Typer, Rich or our packages.

Importing these costs five times what the append itself does. So the plain forms (one or more
bodies, or a little input on stdin; ``-q``) are done here with what the interpreter has loaded
anyway. Everything else, every doubt and every refusal goes on to ``wal_cli.main``: until the append
itself is sent nothing has happened that the long way would not do again. What the two have in
common is held together by ``tests/cli/test_fast.py``.

No import at the top, not even ``__future__``: whoever starts ``wal`` pays for it.
"""

TYPE_CHECKING = False  # Not from `typing`, which is no small import.
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Mapping
    from typing import NoReturn

_MAX_BYTES = 16 * 1024
"""Of all bodies together: their checksum is made in Python here, 0.1 µs a byte."""
_STDIN_PAUSE_MS = 5
"""How long stdin may keep us waiting: importing the rest takes longer than that."""
_TIMEOUT_SECONDS = 30.0
_SOCKET_PATH_MAX_BYTES = 107
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_SLOW_SETTINGS = ("WAL_TXN", "WAL_TIMEOUT", "WAL_COLOR")
_FRAME = "<IBBHI"
_APPEND = "<4sBBBBHHIQIIQQIIQQq"
_APPEND_OK = "<qQI"
_HELLO, _HELLO_OK, _OPEN, _OPEN_OK, _KIND_APPEND, _KIND_APPEND_OK = 1, 2, 4, 5, 6, 7
_ERROR, _CREATE, _OUTCOME_UNKNOWN = 3, 1, 1
_LINES, _LEN32, _INSERT = 1, 2, 1
_CRC_OF_NIBBLE = (
    0x00000000, 0x105EC76F, 0x20BD8EDE, 0x30E349B1, 0x417B1DBC, 0x5125DAD3, 0x61C69362, 0x7198540D,
    0x82F63B78, 0x92A8FC17, 0xA24BB5A6, 0xB21572C9, 0xC38D26C4, 0xD3D3E1AB, 0xE330A81A, 0xF36E6F75,
)  # fmt: skip

_taken: list[bytes] = []
"""What was read of stdin before the long way was chosen."""


def entry() -> int:
    """The program ``wal``. Returns its exit status."""
    import sys

    arguments = sys.argv[1:]
    plain = parse(arguments)
    closed = None in (sys.stdin, sys.stdout, sys.stderr)  # A socket would take the number.
    if plain is not None and not closed:
        try:
            status = _append(*plain)
        except KeyboardInterrupt:
            return 130
        if status is not None:
            _leave(status)
    from wal_cli.main import run

    return run(arguments)


def _leave(status: int) -> "NoReturn":
    """End the process here: taking the interpreter down in order costs a tenth of the run, and
    nothing is left to flush."""
    import os

    os._exit(status)


def take_stdin() -> bytes:
    """What was read of stdin already; it is the caller's now."""
    taken = b"".join(_taken)
    _taken.clear()
    return taken


def parse(arguments: list[str]) -> tuple[str, list[str] | None, bool] | None:
    """(collection, bodies or None for stdin, quiet) of a plain append; None: not a plain one."""
    if arguments[:1] != ["append"]:
        return None
    words: list[str] = []
    quiet = False
    for number, word in enumerate(arguments[1:], 2):
        if word == "--":
            words += arguments[number:]
            break
        if word == "-q":
            quiet = True
        elif word.startswith("-") and word != "-":
            return None
        else:
            words.append(word)
    if not words:
        return None
    collection, bodies = words[0], words[1:]
    if not 0 < len(collection) <= 128 or collection[0] in "._-" or not _NAME.issuperset(collection):
        return None
    if not bodies or bodies == ["-"]:
        return collection, None, quiet
    return collection, bodies, quiet


def crc32c(data: bytes) -> int:
    """CRC-32C, half a byte at a time: the library for it takes 70 ms to import."""
    table = _CRC_OF_NIBBLE
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        crc = crc >> 4 ^ table[crc & 15]
        crc = crc >> 4 ^ table[crc & 15]
    return crc ^ 0xFFFFFFFF


def _append(collection: str, bodies: list[str] | None, quiet: bool) -> int | None:
    """The exit status; None: nothing was written, the long way must do it."""
    import os

    where = _find(os.environ)
    if where is None:
        return None
    rows = _stdin_rows() if bodies is None else _pack(list(map(os.fsencode, bodies)))
    if rows is None:
        return None
    import _socket

    path, directory = where
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.settimeout(_TIMEOUT_SECONDS)
        sock.connect(path)
        opened = _open(sock, collection, directory)
    except (OSError, EOFError):
        return None
    if opened is None:
        return None
    try:
        answer = _send(sock, opened, rows)
    except TimeoutError:
        return _outcome_unknown("no answer in time; 1 batches were sent and not answered")
    except (OSError, EOFError):
        return _outcome_unknown("the daemon hung up; 1 batches were sent and not answered")
    return _print(collection, answer, quiet)


def _find(environment: "Mapping[str, str]") -> tuple[bytes, bytes] | None:
    """(socket, directory that the daemon must serve or nothing), as ``wal_core.settings`` finds
    them; None where a setting or a file takes a closer look."""
    import os

    get = environment.get
    home = get("HOME")
    if not home or any(map(get, _SLOW_SETTINGS)):
        return None
    folder = get("XDG_CONFIG_HOME") or home + "/.config"
    for file in (folder + "/wal/config.toml", "/etc/wal/wal.toml"):
        try:
            os.stat(file)
        except FileNotFoundError:
            continue
        except OSError:
            pass
        return None
    named = get("WAL_DIR")
    node = get("WAL_NODE") or "main"
    directory = os.path.abspath(
        named or os.path.join(get("XDG_STATE_HOME") or home + "/.local/state", "wal")
    )
    name = "wald.sock" if node == "main" else f"wald-{node}.sock"
    path = os.fsencode(get("WAL_SOCKET") or os.path.join(directory, name))
    if len(path) > _SOCKET_PATH_MAX_BYTES or not _NAME.issuperset(node):
        return None
    return path, os.fsencode(directory) if named else b""


def _stdin_rows() -> tuple[int, int, bytes] | None:
    """Rows of stdin, if it is short and ends at once; else it is kept for the long way."""
    import os
    import select

    poll = select.poll()
    poll.register(0, select.POLLIN)
    size = 0
    while size <= _MAX_BYTES and poll.poll(_STDIN_PAUSE_MS):
        try:
            some = os.read(0, _MAX_BYTES + 1 - size)
        except OSError:
            return None
        if not some:
            if not size:
                return None
            data = b"".join(_taken)  # Kept: the long way may still have to do it.
            if not data.endswith(b"\n"):
                data += b"\n"
            return _LINES, data.count(b"\n"), data
        _taken.append(some)
        size += len(some)
    return None


def _pack(bodies: list[bytes]) -> tuple[int, int, bytes] | None:
    """(encoding, rows, body) as ``wal_core.batch.encode_bodies`` makes them, if they are short."""
    body = b"\n".join(bodies)
    if len(body) > _MAX_BYTES:
        return None
    if body.count(b"\n") == len(bodies) - 1:
        return _LINES, len(bodies), body + b"\n"
    lengths = b"".join(len(one).to_bytes(4, "little") for one in bodies)
    return _LEN32, len(bodies), lengths + b"".join(bodies)


def _open(sock: "socket", collection: str, directory: bytes) -> int | None:
    """The id of a collection, created where it is missing; None where anything is unusual."""
    sock.sendall(_frame(_HELLO, 0, b"WALS\1\0"))
    kind, _, meta, body = _receive(sock)
    if kind != _HELLO_OK or meta[:2] != b"\1\0":
        return None
    if directory and body.split(b"\n", 2)[2] != directory:
        return None
    sock.sendall(_frame(_OPEN, 1, b"\1\0", collection.encode(), _CREATE))
    kind, _, meta, _ = _receive(sock)
    if kind != _OPEN_OK:
        return None
    return int.from_bytes(meta[:4], "little")


def _send(
    sock: "socket", collection_id: int, rows: tuple[int, int, bytes]
) -> tuple[int, int, bytes, bytes]:
    """Send the rows to the first shard and wait for the answer."""
    from _struct import pack

    encoding, count, body = rows
    meta = pack(
        _APPEND,
        *(b"WALB", 1, _INSERT, encoding, 0, 0, 0, count),
        *(collection_id << 16, len(body), crc32c(body)),
        *(0, 0, 0, 0, 0, 0, -1),
    )
    sock.sendall(_frame(_KIND_APPEND, 2, meta, body))
    return _receive(sock)


def _print(collection: str, answer: tuple[int, int, bytes, bytes], quiet: bool) -> int | None:
    """Print what became of an append. None: it was refused, and surely not written."""
    import os
    from _struct import unpack

    kind, flags, meta, body = answer
    if kind == _ERROR and not flags & _OUTCOME_UNKNOWN:
        return None
    if kind != _KIND_APPEND_OK:
        code, message = body.decode().split("\n")[:2]
        return _outcome_unknown(f"{message} [{code}]")
    first, tso, count = unpack(_APPEND_OK, meta)
    if not quiet:
        last = first + count - 1
        line = f"appended {count} to {collection}  offsets {first}..{last}  tso {tso}\n"
        try:
            os.write(1, line.encode())
        except OSError as error:
            return _fail(error)
    return 0


def _outcome_unknown(why: str) -> int:
    """The append was sent and not answered."""
    from wal_core.errors import OutcomeUnknownError

    return _fail(OutcomeUnknownError(why))


def _fail(error: Exception) -> int:
    """Print an error as the long way does. Returns its exit status."""
    import sys

    from wal_cli.exits import guarded

    def fail() -> int:
        raise error

    return guarded(fail, sys.argv[1:])


def _frame(kind: int, request_id: int, meta: bytes, body: bytes = b"", flags: int = 0) -> bytes:
    from _struct import pack

    return pack(_FRAME, len(meta) + len(body), kind, flags, len(meta), request_id) + meta + body


def _receive(sock: "socket") -> tuple[int, int, bytes, bytes]:
    """(kind, flags, meta, body) of the next frame."""
    from _struct import unpack

    size, kind, flags, meta_size, _ = unpack(_FRAME, _exactly(sock, 12))
    payload = _exactly(sock, size)
    return kind, flags, payload[:meta_size], payload[meta_size:]


def _exactly(sock: "socket", size: int) -> bytes:
    data = b""
    while len(data) < size:
        some = sock.recv(size - len(data))
        if not some:
            raise EOFError
        data += some
    return data
