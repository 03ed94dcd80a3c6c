"""The README's tour as data, and a terminal to run it on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

HOME = "/home/ann"
"""Stands in the README for the home that the tour ran in."""
_MARK = "\x1e"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SESSION_SECONDS = 60


def blocks(text: str) -> list[list[tuple[str, str]]]:
    """The console blocks: (command, its output) in order."""
    return [_commands(block) for block in _BLOCK.findall(text)]


def _commands(block: str) -> list[tuple[str, str]]:
    pieces = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(head, body) for head, _, body in (piece.partition("\n") for piece in pieces)]


def run_session(commands: list[str], home: Path) -> list[str]:
    """Run commands in one shell, on a terminal, in an empty home. Returns the output of each."""
    script = home / "session.sh"
    ends = [f"{command}\nprintf '{_MARK}'\n" for command in commands]
    script.write_text(f"cd '{home}'\n" + "".join(ends) + "wal down >/dev/null\n")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "TERM": "dumb",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, 250, 0, 0))
    shell = subprocess.Popen(
        ["timeout", str(_SESSION_SECONDS), "bash", script],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: the last one that held the terminal is gone.
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    shell.wait()
    text = seen.decode().replace("\r\n", "\n").replace(str(home), HOME)
    return text.split(_MARK)[:-1]


def shape(output: str) -> str:
    """Output without what differs from run to run: times, timestamps, process ids, sizes."""
    output = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "TIME", output)
    output = re.sub(r"\d{18}", "TSO", output)
    output = re.sub(r"pid \d+", "pid N", output)
    output = re.sub(r"batches \d+", "batches N", output)  # Marks are written when it is idle.
    output = re.sub(r"[\d.]+ [KM]iB", "SIZE", output)
    return re.sub(r"[ \t]+$", "", output, flags=re.MULTILINE).strip()
