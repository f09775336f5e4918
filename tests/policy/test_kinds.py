"""Kinds by suffix, and what of a container is data."""

import pytest

from fusefs.objects import Extent
from fusefs.policy.kinds import ARCHIVE_TAIL_BYTES, GGUF_HEAD_BYTES_MAX, Kind, kind_of
from fusefs.policy.plan import FilePlan, Priority
from tests.policy.test_plan import MIB, drain, nothing


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("a/model-00001-of-00002.safetensors", Kind.SHARD),
        ("m.Q4_K_M.gguf", Kind.GGUF),
        ("pytorch_model.bin", Kind.ARCHIVE),
        ("consolidated.00.PTH", Kind.ARCHIVE),
        ("model.safetensors.index.json", Kind.OPAQUE),
        ("safetensors", Kind.OPAQUE),
        ("", Kind.OPAQUE),
    ],
)
def test_a_kind_follows_from_the_suffix(key: str, kind: Kind) -> None:
    """The suffix alone, in any case, decides the first guess."""
    assert kind_of(key) is kind


@pytest.mark.parametrize("size", [1, MIB - 1, MIB, MIB + 1, 100 * MIB + 5, 100 * MIB])
def test_a_tail_is_the_end_of_an_archive(size: int) -> None:
    """The last MiB, in whole blocks, its end first; all of a file that is shorter."""
    plan = FilePlan(size, MIB, 8, Kind.ARCHIVE)
    plan.want_tail()
    wanted = drain(plan, Priority.HEAD)
    assert max(wanted) == plan.blocks - 1
    assert 1 <= len(wanted) <= 2
    assert min(wanted) * MIB <= max(0, size - ARCHIVE_TAIL_BYTES)
    plan.stop()
    assert drain(plan, Priority.HEAD) == []


def test_between_head_and_tail_of_an_archive_lies_data() -> None:
    """The magic number and the directory may be read without consequence."""
    plan = FilePlan(100 * MIB, MIB, 8, Kind.ARCHIVE)
    assert not plan.is_data(Extent(0, MIB), MIB)
    assert not plan.is_data(Extent(100 * MIB - 22, 100 * MIB), MIB)
    assert plan.is_data(Extent(50 * MIB, 51 * MIB), MIB)
    assert plan.is_data(Extent(MIB, 2 * MIB), MIB)


def test_metadata_of_gguf_ends_with_a_jump_or_at_its_limit() -> None:
    """Reads in order are metadata; a jump, or more than any metadata has, is data."""
    plan = FilePlan(1000 * MIB, MIB, 8, Kind.GGUF)
    size = 128 * 1024
    for start in range(0, GGUF_HEAD_BYTES_MAX // 2, size):
        assert not plan.is_data(Extent(start, start + size), MIB)
    assert plan.is_data(Extent(500 * MIB, 501 * MIB), MIB)
    for start in range(GGUF_HEAD_BYTES_MAX // 2, GGUF_HEAD_BYTES_MAX, size):
        assert not plan.is_data(Extent(start, start + size), MIB)
    assert plan.is_data(Extent(GGUF_HEAD_BYTES_MAX, GGUF_HEAD_BYTES_MAX + size), MIB)


def test_a_kind_that_proves_wrong_is_planned_like_any_other_file() -> None:
    """Garbage behind a known suffix gets the windows of an opaque file."""
    for kind in Kind:
        plan = FilePlan(1000 * MIB, MIB, 8, kind)
        plan.become_opaque()
        plain = FilePlan(1000 * MIB, MIB, 8, Kind.OPAQUE)
        for block in range(20):
            extent = Extent(block * MIB, (block + 1) * MIB)
            plan.access(extent, nothing)
            plain.access(extent, nothing)
            assert drain(plan, Priority.STREAM) == drain(plain, Priority.STREAM)
