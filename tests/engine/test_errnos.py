"""Which errno a reader gets for what went wrong: the table of docs/semantics.md."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import cast

import pytest
import trio.testing
from pyfuse3 import FUSEError

from fusefs.errors import (
    AccessDenied,
    CorruptData,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreUnavailable,
)
from fusefs.mount.operations import Operations, answering
from fusefs.mount.requests import Requests
from fusefs.telemetry.counters import Counters
from tests.conftest import ExpectedWarnings
from tests.engine.simulated import BLOCK, content, open_engine

DEADLINE_S = 30.0


@pytest.mark.parametrize(
    ("fault", "times", "number"),
    [
        (ObjectChanged("another version"), 1, errno.ESTALE),
        (ObjectNotFound("gone"), 1, errno.ENOENT),
        (AccessDenied("no"), 1, errno.EACCES),
        (StoreUnavailable("away"), 1000, errno.ETIMEDOUT),
        (CorruptData("other bytes"), 3, errno.EIO),
    ],
    ids=["overwritten", "missing", "refused", "silent", "lying"],
)
async def test_each_fault_has_its_errno(
    fault: FusefsError,
    times: int,
    number: int,
    autojump_clock: trio.testing.MockClock,
    expect_warning: ExpectedWarnings,
) -> None:
    """A read fails with the documented errno, and the same engine serves the next one."""
    if number != errno.ETIMEDOUT:
        expect_warning("fetching a.bin failed")
    if number == errno.ESTALE:
        expect_warning("a.bin changed in the store while it was open")
    async with open_engine(deadline_s=DEADLINE_S) as engine:
        engine.bucket.put("a.bin", BLOCK)
        engine.bucket.put("b.bin", BLOCK)
        engine.bucket.faults.extend([fault] * times)
        with pytest.raises(FusefsError) as caught:
            await engine.read(engine.open("a.bin"), 0, BLOCK)
        assert caught.value.errno == number, os.strerror(caught.value.errno)
        engine.bucket.faults.clear()
        assert await engine.read(engine.open("b.bin"), 0, BLOCK) == content("b.bin", 1, BLOCK)


async def test_two_wrong_answers_cost_time_alone(autojump_clock: trio.testing.MockClock) -> None:
    """Bytes that are not what was asked for are asked for again, twice."""
    async with open_engine() as engine:
        engine.bucket.put("a.bin", BLOCK)
        engine.bucket.faults.extend([CorruptData("other bytes")] * 2)
        assert await engine.read(engine.open("a.bin"), 0, BLOCK) == content("a.bin", 1, BLOCK)


async def test_a_defect_is_eio_with_a_traceback(expect_warning: ExpectedWarnings) -> None:
    """A handler that fails in an unforeseen way answers EIO, and the log says where."""
    expect_warning("handler failed in an unforeseen way")

    @answering
    async def handler(operations: Operations) -> None:
        raise ZeroDivisionError

    requests = Requests(Counters(), read_deadline_s=120.0)
    with pytest.raises(FUSEError) as caught:
        await handler(cast(Operations, SimpleNamespace(requests=requests)))
    assert caught.value.errno == errno.EIO
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
