"""Names, ids made of numbers, limits that must agree with each other, and failpoints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_core import failpoints, limits
from wal_core.errors import BadNameError, UsageError
from wal_core.names import check_name, split_vchannel_id, vchannel_id, vchannel_name


@pytest.mark.parametrize("name", ["a", "0", "a.b_c-d", "x" * 128, "9..", "a-"])
def test_names_that_may_be_used(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "_a", "A", "a b", "a/b", "a\n", "ä", "x" * 129, "a\0", "٣"]
)
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(BadNameError):
        check_name(name)


@given(st.integers(0, 2**47), st.integers(0, 2**16 - 1))
def test_vchannel_ids(collection: int, shard: int) -> None:
    vchannel = vchannel_id(collection, shard)
    assert split_vchannel_id(vchannel) == (collection, shard)
    assert vchannel_name(3, vchannel) == f"p3_{collection}v{shard}"


def test_limits_agree() -> None:
    assert limits.PROPERTIES_SIZE_MAX_BYTES == 0xFFFF
    assert limits.BATCH_BODY_MAX_BYTES > limits.RECORD_SIZE_MAX_BYTES
    assert limits.FRAME_PAYLOAD_MAX_BYTES < 2**32
    assert 2 * limits.GROUP_MAX_BATCHES + 2 <= 1024, "IOV_MAX"
    assert limits.SHARDS_MAX <= 1 << 16
    assert limits.SEGMENT_SIZE_MIN_BYTES <= limits.SEGMENT_SIZE_BYTES
    assert limits.GROUP_MAX_BYTES < limits.SEGMENT_SIZE_BYTES


@pytest.mark.parametrize("setting", ["", "x=kill", "term-created=explode", "term-created=kill:x"])
def test_failpoints_that_do_not_exist(setting: str) -> None:
    with pytest.raises(UsageError):
        failpoints.arm(setting)


def test_an_unarmed_failpoint_does_nothing() -> None:
    for name in failpoints.NAMES:
        failpoints.failpoint(name)
