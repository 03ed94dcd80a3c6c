"""`up`, `down`, `restart`, `logs`, `run` and autostart, with real daemons."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM, Wal, stop_process


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "State:\tZ" not in _proc(pid, "status")


def _proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def test_up_returns_when_ready_and_says_what_runs(wal: Wal) -> None:
    found = wal.ok("up", "-o", "json").json
    assert set(found) == {"pid", "dir", "socket", "started", "version"}
    assert found["dir"] == str(wal.dir)
    assert found["socket"] == str(wal.dir / "wald.sock")
    status = wal.ok("status", "-o", "json").json
    assert status["state"] == "ready"
    assert status["pid"] == found["pid"]
    again = wal.ok("up", "-o", "json").json
    assert again == found


def test_the_daemon_is_on_its_own(wal: Wal) -> None:
    pid = wal.ok("up", "-o", "json").json["pid"]
    assert _proc(pid, "comm") == "wald\n"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    open_files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)}
    assert open_files == {"/dev/null", str(wal.dir / "wald.log")}


def test_the_daemon_holds_none_of_the_callers_descriptors(wal: Wal) -> None:
    read, write = os.pipe()
    try:
        process = wal.start("append", "demo", "x", pass_fds=(write,), stdin=subprocess.DEVNULL)
        out, _ = process.communicate(timeout=20)  # Would hang if the daemon held stdout.
        assert process.returncode == 0
        assert out.startswith(b"appended 1 to demo")
        os.close(write)
        write = -1
        assert os.read(read, 1) == b""
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


def test_down_returns_when_the_process_is_gone(wal: Wal) -> None:
    pid = wal.ok("up", "-o", "json").json["pid"]
    assert wal.ok("down", "-o", "json").json["pid"] == pid
    assert not _alive(pid)
    assert wal.ok("down", "-o", "json").json["pid"] is None
    assert wal("status").status == 69


def test_down_and_status_start_and_make_nothing(wal: Wal) -> None:
    assert wal("down").status == 0
    assert wal("status").status == 69
    assert wal("check").status == 66
    assert wal("metrics").status == 69
    assert not wal.dir.exists()


def test_no_autostart(wal: Wal) -> None:
    for args, env in ((["--no-autostart"], {}), ([], {"WAL_AUTOSTART": "0"})):
        result = wal("collection", "ls", *args, env=env)
        assert result.status == 69
        assert result.errors.endswith("[unreachable]\n  try: wal up\n")
    assert not wal.dir.exists()


def test_many_starters_at_once_get_one_daemon(wal: Wal) -> None:
    starters = [wal.start("up", "-o", "json", stdin=subprocess.DEVNULL) for _ in range(4)]
    answers = [one.communicate(timeout=60) for one in starters]
    assert [one.returncode for one in starters] == [0] * 4, answers
    assert len({out for out, _ in answers}) == 1


def test_restart(wal: Wal) -> None:
    first = wal.ok("restart", "-o", "json").json["pid"]
    second = wal.ok("restart", "-o", "json").json["pid"]
    assert first != second
    assert not _alive(first)


def test_up_just_after_a_sigterm(wal: Wal) -> None:
    first = wal.ok("up", "-o", "json").json["pid"]
    os.kill(first, signal.SIGTERM)
    assert wal.ok("up", "-o", "json").json["pid"] != first


def test_a_killed_daemon_is_replaced(wal: Wal) -> None:
    pid = wal.ok("up", "-o", "json").json["pid"]
    wal.ok("append", "demo", "one")
    stop_process(pid, signal.SIGKILL)
    assert wal("status").status == 69
    wal.ok("append", "demo", "two")
    assert wal.ok("tail", "demo", "-o", "raw").out == b"one\ntwo\n"


def test_a_newer_format_is_refused_and_left_untouched(wal: Wal) -> None:
    wal.dir.mkdir()
    (wal.dir / "format").write_text("walstream 999\n")
    for command in (["up"], ["append", "demo", "x"], ["run", "--dir", wal.dir, "--", "true"]):
        result = wal(*command)
        assert result.status == 78, result
        assert "[format-too-new]" in result.errors
    assert wal("check").status == 78
    assert [one.name for one in wal.dir.iterdir()] == ["format"]


def test_a_held_node_name_says_who_holds_it(wal: Wal) -> None:
    pid = wal.ok("up", "--socket", wal.home / "other.sock", "-o", "json").json["pid"]
    try:
        result = wal("up", "-o", "json")
        assert result.status == 78
        assert result.error_json["code"] == "node-held"
        assert f"pid {pid}" in result.error_json["message"]
        assert wal("check").status == 78
    finally:
        wal.ok("down", "--socket", wal.home / "other.sock")


def test_up_waits_no_longer_than_it_was_told(wal: Wal) -> None:
    pid = wal.ok("up", "-o", "json").json["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        assert wal("up", "--wait", "0.5").status == 124
        assert time.monotonic() - started < 4
    finally:
        os.kill(pid, signal.SIGCONT)


def test_up_on_a_damaged_log_gives_the_daemons_own_error(wal: Wal) -> None:
    for row in ("one", "two", "three"):
        wal.ok("append", "demo", row)
    wal.ok("down")
    (segment,) = (wal.dir / "pchannels" / "0").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"two\n")] ^= 1
    segment.write_bytes(data)
    result = wal("up", "-o", "json")
    assert result.status == 5
    assert result.error_json["code"] == "corrupt"
    assert segment.name in result.error_json["message"]


def test_another_directory_is_never_reached(wal: Wal) -> None:
    socket = wal.ok("up", "-o", "json").json["socket"]
    result = wal("status", "--dir", wal.home / "elsewhere", "--socket", socket)
    assert result.status == 78
    assert "[wrong-directory]" in result.errors


def test_a_long_socket_path(wal: Wal) -> None:
    folder = wal.home / ("d" * 90) / ("e" * 60)
    wal.ok("append", "demo", "x", env={"WAL_DIR": str(folder)})
    assert wal.ok("tail", "demo", "-o", "raw", env={"WAL_DIR": str(folder)}).out == b"x\n"


def test_a_directory_that_is_none(wal: Wal) -> None:
    wal.dir.write_text("")
    assert wal("up").status == 78


def test_logs(wal: Wal) -> None:
    assert wal("logs").status == 66
    wal.ok("up")
    lines = wal.ok("logs").text.splitlines()
    assert any(" ready" in line for line in lines)
    assert wal.ok("logs", "-n", "1").text.splitlines() == lines[-1:]
    assert wal.ok("logs", "-n", "0").text == ""


def test_logs_follow(wal: Wal) -> None:
    wal.ok("up")
    process = wal.start("logs", "-f", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, b"")
    assert any(b" ready " in line for line in lines)
    wal.ok("down")
    assert any(b"stopped" in line for line in lines)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143


# -- run -------------------------------------------------------------------------------------------


def test_run_gives_a_daemon_and_takes_it_away(wal: Wal) -> None:
    script = 'wal append demo x >&2 && wal tail demo -o raw && echo "$WAL_DIR $WAL_AUTOSTART"'
    result = wal.ok("run", "--", "sh", "-c", script)
    row, rest = result.text.split("\n", 1)
    directory, autostart = rest.split()
    assert (row, autostart) == ("x", "0")
    assert directory != str(wal.dir)
    assert not Path(directory).exists()
    assert not wal.dir.exists()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_run_exits_as_the_command(wal: Wal, script: str, status: int) -> None:
    assert wal("run", "--", "sh", "-c", script).status == status


def test_run_of_nothing_and_of_what_is_not_there(wal: Wal) -> None:
    assert wal("run").status == 2
    assert wal("run", "--").status == 2
    missing = wal("run", "--", "no-such-command")
    assert missing.status == 127
    assert missing.errors == "wal run: no-such-command: command not found\n"


def test_run_keeps_a_named_directory_and_refuses_a_served_one(wal: Wal) -> None:
    wal.ok("run", "--dir", wal.dir, "--", "wal", "append", "demo", "x")
    assert wal("status").status == 69
    wal.ok("up")
    result = wal("run", "--dir", wal.dir, "--", "touch", wal.home / "touched")
    assert result.status == 78
    assert "already served" in result.errors
    assert not (wal.home / "touched").exists()
    assert wal.ok("tail", "demo", "-o", "raw").out == b"x\n"


def test_run_passes_signals_on(wal: Wal) -> None:
    process = wal.start(
        "run", "--", "sh", "-c", "trap 'echo term; exit 5' TERM; echo up; sleep 30 & wait"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == b"term\n"
    assert process.wait(20) == 5
    process.stdout.close()


def test_run_keeps_the_directory_of_a_daemon_that_failed(wal: Wal) -> None:
    kill = "kill -9 $(wal status -o json | sed 's/.*\"pid\": \\([0-9]*\\).*/\\1/'); exit 3"
    result = wal("run", "--", "sh", "-c", kill)
    assert result.status == 3
    kept = result.errors.rsplit(" ", 1)[1].strip()
    assert Path(kept, "wald.log").exists()


def test_run_without_the_shell_around_it(wal: Wal) -> None:
    """The command gets no descriptor of ours and its signals as they were."""
    code = "import os,signal; print(signal.pthread_sigmask(0, []), os.listdir('/proc/self/fd'))"
    result = wal.ok("run", "--", sys.executable, "-c", code)
    assert result.text == "set() ['0', '1', '2', '3']\n"  # 3 is listdir's own.


def test_the_program_is_installed() -> None:
    assert os.access(PROGRAM, os.X_OK)
