"""What outlives a daemon: handed on whole or refused, and readable whoever died writing it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fusefs.errors import FusefsError
from fusefs.mount.estate import ESTATE_VERSION, Estate
from fusefs.mount.vitals import VITALS_BYTES, Note, Vitals, map_memory, open_memory

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of what an estate travels through."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("with_listener", [False, True])
def test_an_estate_arrives_as_it_was_sent(pair: Pair, with_listener: bool) -> None:
    """With descriptors of the same files, which no child inherits."""
    before = open_fds()
    sent = Estate(os.memfd_create("fuse"), b"\0init", "0:42", open_memory(), None, "why")
    if with_listener:
        sent = sent.with_listener(os.memfd_create("listener"), "")
    sent.send(pair[0])
    got = Estate.receive(pair[1])
    assert (got.init_request, got.device, got.no_listener) == (
        sent.init_request,
        sent.device,
        sent.no_listener,
    )
    assert os.path.sameopenfile(got.fuse_fd, sent.fuse_fd)
    assert os.path.sameopenfile(got.memory_fd, sent.memory_fd)
    assert (got.listener_fd is not None) == with_listener
    assert not os.get_inheritable(got.fuse_fd)
    for estate in (sent, got):
        estate.close()
    assert open_fds() <= before


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"estate": ESTATE_VERSION + 1}, "unmount, and mount anew"),
        ({"estate": ESTATE_VERSION}, "not the estate of a mount"),
        ({"estate": ESTATE_VERSION, "listener": True}, "not the estate of a mount"),
        (["estate"], "not the estate of a mount"),
        (None, "not the estate of a mount"),
    ],
)
def test_what_is_no_estate_of_ours_is_refused(pair: Pair, message: object, said: str) -> None:
    """With one sentence, and its descriptors closed."""
    fd = os.memfd_create("fuse")
    socket.send_fds(pair[0], [json.dumps(message).encode()], [fd])
    os.close(fd)
    before = open_fds()
    with pytest.raises(FusefsError, match=said):
        Estate.receive(pair[1])
    assert open_fds() == before


def test_resending_is_the_kernels_to_offer() -> None:
    """Bit 39 of the flags in FUSE_INIT; requests of old kernels are too short to have it."""
    init = bytearray(104)
    estate = Estate(-1, bytes(init), "0:1", -1)
    assert not estate.can_resend
    init[40 + 16] = 1 << 7
    assert replace(estate, init_request=bytes(init)).can_resend
    assert not replace(estate, init_request=bytes(init[:56])).can_resend


def test_a_note_is_the_last_one_that_was_finished() -> None:
    """A death in the middle of writing leaves the one before."""
    fd = open_memory()
    memory = map_memory(fd)
    os.close(fd)
    vitals = Vitals(memory)
    began = vitals.note()
    assert began.started_ns > 0
    for number in range(5):
        vitals.write_note(replace(began, restarts=number, last_end="x" * 3000))
        assert vitals.note().restarts == number
        assert len(vitals.note().last_end or "") == 1000
    whole = bytes(memory[:VITALS_BYTES])
    vitals.write_note(replace(began, restarts=99))
    changed = [at for at in range(VITALS_BYTES) if memory[at] != whole[at]]
    torn = bytearray(whole)
    for at in changed[: len(changed) // 2]:
        torn[at] = memory[at]
    assert Vitals(memoryview(torn)).note().restarts == 4
    assert Vitals(memoryview(bytearray(VITALS_BYTES))).note() == Note()


def test_counters_and_beats_are_the_daemons() -> None:
    """Apart from the keeper's note."""
    vitals = Vitals(memoryview(bytearray(VITALS_BYTES)))
    assert vitals.counters() == {}
    for number in range(3):
        vitals.write_counters({"reads": number})
        vitals.beat()
        assert vitals.counters() == {"reads": number}
    assert vitals.beats() == 3
    assert vitals.note() == Note()
