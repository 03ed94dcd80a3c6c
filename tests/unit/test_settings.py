"""Settings: who wins, and who is named as the culprit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wal_core import settings as module
from wal_core.errors import BadNameError, ConfigError
from wal_core.settings import SETTINGS, default_socket, resolve


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with a user's file, beside a machine's file."""
    system = tmp_path / "wal.toml"
    system.write_text('node = "machine"\npchannels = 3\nlog_level = "debug"\n')
    monkeypatch.setattr(module, "SYSTEM_FILE", str(system))
    user = tmp_path / "config" / "wal" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('node = "user"\npchannels = 2\ntimeout = 5\n')
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path)}


def test_flag_over_environment_over_user_over_machine_over_default(
    home: dict[str, str], tmp_path: Path
) -> None:
    user = str(tmp_path / "config" / "wal" / "config.toml")
    all_of = resolve({"node": "flag"}, home | {"WAL_NODE": "env"})
    assert all_of.values["node"] == ("flag", "flag")
    assert all_of.is_explicit("node")
    without_flag = resolve({"node": None}, home | {"WAL_NODE": "env"})
    assert without_flag.values["node"] == ("env", "environment WAL_NODE")
    assert without_flag.is_explicit("node")
    without_environment = resolve({}, home | {"WAL_NODE": ""})
    assert without_environment.values["node"] == ("user", user)
    assert not without_environment.is_explicit("node")
    assert without_environment.values["log_level"] == ("debug", module.SYSTEM_FILE)
    assert without_environment.values["timeout"] == (5.0, user)
    assert without_environment.values["color"] == ("auto", "default")
    os.unlink(user)
    assert resolve({}, home).values["pchannels"] == (3, module.SYSTEM_FILE)


def test_a_named_file_stands_in_for_both(home: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("pchannels = 7\nbuffer_seconds = 5\n")
    found = resolve({}, home, str(other))
    assert found.values["pchannels"] == (7, str(other))
    assert found.values["buffer_seconds"] == (5.0, str(other))
    assert found.values["node"] == ("main", "default")
    with pytest.raises(ConfigError, match="no such file"):
        resolve({}, home, str(tmp_path / "missing"))


def test_directory_and_socket(home: dict[str, str]) -> None:
    found = resolve({}, {"HOME": "/h", "XDG_CONFIG_HOME": "/none"}, None)
    assert found.directory == "/h/.local/state/wal"
    found = resolve({}, home | {"XDG_STATE_HOME": "/s"})
    assert found.directory == "/s/wal"
    assert found.socket == "/s/wal/wald-user.sock"
    found = resolve({"dir": "relative", "node": "main"}, home)
    assert found.directory == os.path.abspath("relative")
    assert found.socket == os.path.abspath("relative/wald.sock")
    assert default_socket("/d", "n2") == "/d/wald-n2.sock"


@pytest.mark.parametrize(
    ("text", "value"), [("0", False), ("no", False), ("OFF", False), ("1", True), ("true", True)]
)
def test_booleans(text: str, value: bool) -> None:
    assert resolve({}, {"HOME": "/h", "WAL_AUTOSTART": text})["autostart"] is value


@pytest.mark.parametrize(
    ("flags", "environment", "culprit"),
    [
        ({}, {"WAL_TIMEOUT": "soon"}, "WAL_TIMEOUT"),
        ({}, {"WAL_AUTOSTART": "perhaps"}, "WAL_AUTOSTART"),
        ({"pchannels": "x"}, {}, "flag"),
        ({"timeout": True}, {}, "flag"),
        ({}, {"WAL_TIMEOUT": "nan"}, "WAL_TIMEOUT"),
        ({"timeout": -1.0}, {}, "flag"),
        ({"pchannels": 0}, {}, "pchannels"),
        ({"segment_size": 1 << 33}, {}, "segment_size"),
        ({"buffer_size": -1}, {}, "buffer_size"),
        ({"buffer_seconds": -0.5}, {}, "buffer_seconds"),
        ({"dir": ""}, {}, "dir is empty"),
    ],
)
def test_a_wrong_value_names_its_origin(
    flags: dict[str, object], environment: dict[str, str], culprit: str
) -> None:
    with pytest.raises(ConfigError, match=culprit):
        resolve(flags, {"HOME": "/h", **environment})


def test_wrong_files(home: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    for text, culprit in [
        ("nod = 1", "nod"),
        ("node = ", "bad.toml"),
        ("autostart = 1", "autostart"),
        ('pchannels = "many"', "pchannels"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=culprit):
            resolve({}, home, str(path))
    with pytest.raises(BadNameError):
        resolve({"node": "../x"}, home)


def test_the_environment_is_exactly_what_is_promised() -> None:
    variables = {setting.variable for setting in SETTINGS.values() if setting.variable}
    assert variables == {
        "WAL_DIR",
        "WAL_SOCKET",
        "WAL_NODE",
        "WAL_AUTOSTART",
        "WAL_TXN",
        "WAL_TIMEOUT",
        "WAL_COLOR",
    }
