"""The tree of errors: one code a class, the exit status that scripts rely on, a text to explain."""

from __future__ import annotations

import inspect

import pytest

from wal_core import errors
from wal_core.errors import ERRORS, WalError, error_from_wire

# Codes and statuses are a contract with scripts: change them nowhere but on purpose.
STATUS = {
    "already-exists": 3,
    "bad-cursor-file": 65,
    "bad-input": 65,
    "bad-name": 2,
    "bug": 70,
    "config": 78,
    "corrupt": 5,
    "cursor-moved": 3,
    "disk-full": 75,
    "expectation-failed": 3,
    "fenced": 3,
    "format-too-new": 78,
    "io-error": 74,
    "member-fenced": 3,
    "node-held": 78,
    "not-found": 66,
    "not-ready": 75,
    "out-of-range": 66,
    "outcome-unknown": 4,
    "permission": 77,
    "protocol": 76,
    "record-too-large": 65,
    "slow-subscriber": 75,
    "throttled": 75,
    "timeout": 124,
    "unreachable": 69,
    "unsupported": 2,
    "usage": 2,
    "wrong-directory": 78,
}


def classes() -> list[type[WalError]]:
    found = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
    return [one for one in found if issubclass(one, WalError) and one is not WalError]


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in classes()]
    assert len(codes) == len(set(codes))
    assert set(codes) == set(ERRORS)


def test_statuses() -> None:
    assert {code: ERRORS[code].exit_status for code in STATUS} == STATUS


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.code)
def test_every_code_is_explained(cls: type[WalError]) -> None:
    assert cls.__doc__
    assert len(cls.__doc__) > 60
    assert cls.code == cls.code.lower()
    assert " " not in cls.code
    assert cls.exit_status in {1, 2, 3, 4, 5, 65, 66, 69, 70, 74, 75, 76, 77, 78, 124}
    assert cls.retryable is (cls.exit_status in {69, 75, 124})


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.code)
def test_round_trip(cls: type[WalError]) -> None:
    error = error_from_wire(cls.code, "what", "", {"file": "f"})
    assert type(error) is cls
    assert str(error) == "what"
    assert error.hint == cls.default_hint
    assert error.details == {"file": "f"}
