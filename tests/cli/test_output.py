"""What commands print: text, JSON, errors, exit statuses; in pipes and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Wal, stop_process
from wal_core.errors import ERRORS


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["bogus"], "wal"),
        (["status", "--bogus"], "wal status"),
        (["append"], "wal append"),
        (["collection"], "wal collection"),
        (["collection", "drop"], "wal collection drop"),
        (["status", "-o", "yaml"], "wal status"),
        (["dump"], "wal dump"),
        (["up", "--wait", "long"], "wal up"),
    ],
)
def test_a_usage_error_is_one_line_and_a_hint(wal: Wal, args: list[str], name: str) -> None:
    result = wal(*args)
    assert result.status == 2
    assert result.out == b""
    lines = result.errors.splitlines()
    assert re.fullmatch(rf"{name}: .* \[usage\]", lines[0])
    assert lines[1:] == [] or lines[1].startswith("  try: wal ")
    assert len(lines) <= 2


def test_errors_are_json_where_json_was_asked_for(wal: Wal) -> None:
    for args in (["status", "-o", "json"], ["status", "--output=ndjson"], ["-ojson", "status"]):
        error = wal(*args).error_json
        assert error["code"] == "unreachable"
        assert error["exit"] == 69
        assert error["hint"] == "wal up"
        assert set(error) == {"code", "exit", "message", "hint", "details"}
    usage = wal("status", "--bogus", "-o", "json")
    assert usage.status == 2
    assert usage.error_json["code"] == "usage"


def test_shared_flags_may_stand_before_the_command(wal: Wal) -> None:
    result = wal("--dir", wal.home / "x", "--no-autostart", "collection", "ls")
    assert result.status == 69
    assert str(wal.home / "x") in result.errors
    assert result.errors.startswith("wal collection ls: ")


def test_version_and_help(wal: Wal) -> None:
    assert re.fullmatch(r"wal \d+\.\d+\.\d+\n", wal.ok("--version").text)
    text = wal.ok("--help").text
    assert wal.ok().text == text
    order = ["append", "up", "check", "explain", "Examples"]
    assert sorted(order, key=text.index) == order
    for command in ("append", "tail", "run", "up", "check"):
        assert wal.ok(command, "--help").text.startswith(f"Usage: wal {command}")


def test_reserved_commands_say_so(wal: Wal) -> None:
    for args in (["flush"], ["doctor"]):
        result = wal(*args)
        assert result.status == 2
        assert "[unsupported]" in result.errors


def test_explain(wal: Wal) -> None:
    listed = wal.ok("explain", "-o", "json").json
    assert {one["code"] for one in listed} == set(ERRORS)
    assert "No daemon answers" in wal.ok("explain", "unreachable").text
    assert wal.ok("explain", "[corrupt]", "-o", "json").json["exit"] == 5
    assert wal("explain", "nonsense").status == 66


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(wal: Wal, shell: str) -> None:
    assert "_WAL_COMPLETE" in wal.ok("completion", shell).text


def test_completion_completes(wal: Wal) -> None:
    env = {"_WAL_COMPLETE": "complete_bash", "COMP_WORDS": "wal collection d", "COMP_CWORD": "2"}
    assert wal(env=env).text.split() == ["describe", "drop"]


def test_config_show(wal: Wal) -> None:
    (wal.home / "config" / "wal").mkdir(parents=True)
    file = wal.home / "config" / "wal" / "config.toml"
    file.write_text('timeout = 7\nnode = "n1"\n')
    found = wal.ok("config", "show", "--origin", "--color", "never", "-o", "json").json
    assert found["timeout"] == {"value": 7.0, "origin": str(file)}
    assert found["dir"] == {"value": str(wal.dir), "origin": "environment WAL_DIR"}
    assert found["color"]["origin"] == "flag"
    assert found["socket"]["value"] == str(wal.dir / "wald-n1.sock")
    assert found["autostart"] == {"value": True, "origin": "default"}
    assert re.search(r"^timeout +7\.0$", wal.ok("config", "show").text, re.MULTILINE)
    file.write_text("tmeout = 7\n")
    assert wal("status").status == 78
    file.write_text('color = "blue"\n')
    assert wal("status").status == 78


def test_collections(wal: Wal) -> None:
    assert wal.ok("collection", "ls", "-o", "json").json == []
    wal.ok("collection", "create", "orders", "--shards", "3")
    assert wal("collection", "create", "orders").status == 3
    assert wal("collection", "create", "Orders!").status == 2
    assert "[unsupported]" in wal("collection", "create", "x", "--field", "a:int").errors
    described = wal.ok("collection", "describe", "orders", "-o", "json").json
    assert described["rows"] == 0
    assert [one["shard"] for one in described["shards"]] == [0, 1, 2]
    assert all(isinstance(one["id"], str) for one in described["shards"])
    assert "SHARD" in wal.ok("collection", "describe", "orders").text
    lines = wal.ok("collection", "ls", "-o", "ndjson").text.splitlines()
    assert [json.loads(line)["collection"] for line in lines] == ["orders"]
    refused = wal("collection", "drop", "orders", input="y\n")
    assert refused.status == 2
    assert "--yes" in refused.errors
    wal.ok("collection", "drop", "orders", "--yes")
    assert wal("collection", "describe", "orders").status == 66
    assert wal("collection", "drop", "orders", "--yes").status == 66


def test_metrics(served: Wal) -> None:
    assert "wal_ready 1.0" in served.ok("metrics").text


def test_status_watch_in_a_pipe(served: Wal) -> None:
    process = served.start("status", "--watch", "-o", "ndjson", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    states = [json.loads(process.stdout.readline())["state"] for _ in range(2)]
    assert states == ["ready", "ready"]
    process.stdout.close()  # The next line meets a broken pipe.
    assert process.wait(20) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_broken_pipe_at_the_last_flush(wal: Wal) -> None:
    read, write = os.pipe()
    os.close(read)
    process = wal.start("explain", stdin=subprocess.DEVNULL, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


def test_a_full_disk_behind_stdout(wal: Wal) -> None:
    with open("/dev/full", "wb") as full:
        process = wal.start("explain", stdin=subprocess.DEVNULL, stdout=full)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 74
    assert b"[io-error]" in err


def test_without_stdout_and_stdin(served: Wal) -> None:
    done = subprocess.run(
        ["sh", "-c", "wal status <&- >&- && wal append demo x <&- >&-"],
        env=served.environment(),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


# -- a terminal ------------------------------------------------------------------------------------


def _on_terminal(wal: Wal, *args: str, input: bytes = b"") -> tuple[int, str]:
    """Exit status and screen of a run whose three streams are a terminal."""
    main, side = pty.openpty()
    process = wal.start(
        *args,
        env={"TERM": "xterm", "COLUMNS": "200"},
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    os.write(main, input)
    screen = b""
    while select.select([main], [], [], 20)[0]:
        try:
            some = os.read(main, 65536)
        except OSError:  # EIO: the other end is closed.
            break
        screen += some
    os.close(main)
    return process.wait(20), screen.decode()


def _words(text: str) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    words = re.sub(r"[│╭╮╰╯├┤┼─┬┴]", " ", plain).split()
    return [word for word in words if not re.fullmatch(r"[\d.]+|s", word)]


def test_the_same_content_on_a_terminal_and_in_a_pipe(wal: Wal) -> None:
    wal.ok("append", "demo", "x")
    for args in (["status"], ["collection", "ls"], ["collection", "describe", "demo"]):
        status, screen = _on_terminal(wal, *args)
        assert status == 0
        assert "\x1b[" in screen
        piped = wal.ok(*args).text
        assert "\x1b" not in piped
        assert _words(screen) == _words(piped)


def test_no_color_on_a_terminal(served: Wal) -> None:
    status, screen = _on_terminal(served, "status", "--color", "never")
    assert status == 0
    assert "\x1b[" not in screen
    assert "\x1b[1m" in served.ok("status", "--color", "always").text


def test_drop_asks_on_a_terminal(wal: Wal) -> None:
    wal.ok("append", "demo", "x")
    status, screen = _on_terminal(wal, "collection", "drop", "demo", input=b"n\n")
    assert status == 2
    assert "drop demo with 1 rows? [y/N]" in screen
    status, _ = _on_terminal(wal, "collection", "drop", "demo", input=b"y\n")
    assert status == 0
    assert wal("collection", "describe", "demo").status == 66


# -- check and dump --------------------------------------------------------------------------------


def _segments(wal: Wal) -> list[Path]:
    return sorted((wal.dir / "pchannels" / "0").glob("*.seg"))


def _files(wal: Wal) -> dict[str, bytes]:
    return {str(one): one.read_bytes() for one in wal.dir.rglob("*") if one.is_file()}


@pytest.fixture(scope="module")
def three_segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with three segments of rows, made once."""
    wal = Wal(tmp_path_factory.mktemp("three"))
    try:
        for number in range(3):
            wal.ok("append", "demo", *[f"{number}-{row}-{'x' * 50}" for row in range(20)])
            wal.ok("append", "demo", "last of its segment")
            wal.ok("down")
    finally:
        wal.close()
    return wal.dir


@pytest.fixture
def stopped(wal: Wal, three_segments: Path) -> Wal:
    """`wal` with a copy of the three segments, and no daemon."""
    shutil.copytree(three_segments, wal.dir)
    return wal


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_check_of_a_clean_directory_changes_nothing(stopped: Wal) -> None:
    before = _files(stopped)
    found = stopped.ok("check", "--deep", "-o", "json").json
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["segments"] == 3
    assert found["rows"] == 63
    assert stopped.ok("check").text.startswith("ok  segments 3")
    assert _files(stopped) == before


def test_check_beside_a_running_daemon(stopped: Wal) -> None:
    stopped.ok("append", "demo", "more")
    stopped.ok("collection", "create", "other", "--shards", "2")
    found = stopped.ok("check", "--deep", "-o", "json").json
    assert found["ok"] is True
    assert found["rows"] == 64
    assert found["segments"] == 4


def test_check_lists_all_damage(stopped: Wal) -> None:
    first, second, _ = _segments(stopped)
    batches = stopped.ok("dump", first, "-o", "json").json["batches"]
    rows = [one for one in batches if one["type"] == "insert"]
    places = [rows[0]["position"], rows[1]["position"] + 20]
    _flip(first, rows[0]["position"] + 128)  # A body.
    _flip(first, places[1])  # A header.
    _flip(second, 100)  # The file's header.
    result = stopped("check", "--deep", "-o", "json")
    assert result.status == 5
    damage = {(one["file"].rsplit("/", 1)[1], one["offset"]) for one in result.json["problems"]}
    assert (first.name, rows[0]["position"]) in damage
    assert (first.name, rows[1]["position"]) in damage
    assert (second.name, 0) in damage
    text = stopped("check", "--deep")
    assert text.status == 5
    assert f"damage: pchannels/0/{second.name}: offset 0:" in text.text


def test_check_finds_a_missing_segment(stopped: Wal) -> None:
    _segments(stopped)[1].unlink()
    result = stopped("check", "-o", "json")
    assert result.status == 5
    assert [one["kind"] for one in result.json["problems"]] == ["missing"]


def test_check_finds_a_damaged_footer_and_catalog(stopped: Wal) -> None:
    first = _segments(stopped)[0]
    _flip(first, first.stat().st_size - 5)
    (stopped.dir / "catalog" / "data.mdb").write_bytes(b"nonsense")
    result = stopped("check", "--deep", "-o", "json")
    assert result.status == 1
    assert sorted(one["kind"] for one in result.json["problems"]) == ["catalog", "footer"]


def test_a_cut_tail_is_reported_until_it_is_accepted(wal: Wal) -> None:
    pid = wal.ok("up", "-o", "json").json["pid"]
    wal.ok("append", "demo", "one")
    stop_process(pid, 9)
    tip = _segments(wal)[-1]
    with open(tip, "r+b") as file:
        end = len(tip.read_bytes().rstrip(b"\0"))
        file.seek(end + 1)
        file.write(b"torn")
    torn = wal("check", "-o", "json")
    assert torn.status == 1
    assert [one["kind"] for one in torn.json["problems"]] == ["torn"]
    wal.ok("up")
    wal.ok("down")
    cut = wal("check", "-o", "json")
    assert cut.status == 1
    assert [one["kind"] for one in cut.json["problems"]] == ["cut"]
    assert wal("check", "--repair").status == 2
    assert wal.ok("check", "--repair", "--yes", "-o", "json").json["ok"] is True
    assert wal.ok("check").status == 0
    assert list(tip.parent.glob("*.broken.accepted"))


def test_dump(stopped: Wal) -> None:
    segment = _segments(stopped)[1]
    found = stopped.ok("dump", segment, "-o", "json").json
    assert found["header"]["segment"] == segment.name
    assert found["header"]["predecessor"] == _segments(stopped)[0].name
    (vchannel,) = found["snapshot"]["vchannels"]
    assert (vchannel["collection"], vchannel["next"]) == ("demo", 21)
    rows = [one for one in found["batches"] if one["type"] == "insert"]
    assert [(one["first"], one["last"]) for one in rows] == [(21, 40), (41, 41)]
    assert found["end"]["what"] == "sealed"
    text = stopped.ok("dump", segment).text
    assert "offsets 21..40  rows 20" in text
    kinds = [
        json.loads(line)["kind"]
        for line in stopped.ok("dump", segment, "-o", "ndjson").text.splitlines()
    ]
    assert kinds[:2] == ["header", "snapshot"]
    assert kinds[-2:] == ["footer", "end"]
    assert stopped("dump", stopped.home / "none.seg").status == 66
    _flip(segment, rows[0]["position"] + 130)
    damaged = stopped("dump", segment)
    assert damaged.status == 5
    assert "what damaged" in damaged.text
