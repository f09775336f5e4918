"""Who takes part: names, variants, and that each command line can be filled in."""

from __future__ import annotations

import pytest

from tests.bench import contestants, peers
from tests.bench.contestants import Programs, UnknownContestant, select
from tests.bench.mounts import Knobs
from tests.bench.raw import cut
from tests.bench.scenarios import SCENARIOS, Scenario

PROGRAMS = Programs(endpoint="http://127.0.0.1:1", rclone=None, s3fs="/usr/bin/s3fs")


@pytest.mark.parametrize("kind", sorted({scenario.tuned_for for scenario in SCENARIOS}))
def test_the_best_variants_exist(kind: str) -> None:
    """What is called best for a kind of scenario is in the table of variants."""
    assert peers.BEST[peers.S3FS][kind].removesuffix("+ra") in (peers.S3FS_VARIANTS)
    assert peers.BEST[peers.RCLONE][kind] in peers.RCLONE_VARIANTS
    with_streams = peers.RCLONE_VARIANTS | peers.RCLONE_STREAM_VARIANTS
    assert peers.BEST_STREAMS[kind] in with_streams


def test_a_name_is_its_best_variant() -> None:
    """A peer's bare name is the variant that is best for the scenario."""
    (chosen,) = select("s3fs", "read", PROGRAMS)
    assert chosen.label == f"s3fs:{peers.BEST['s3fs']['read']}"


def test_a_star_is_every_variant() -> None:
    """`PEER:*` is each variant once."""
    chosen = select("s3fs:*", "read", PROGRAMS)
    assert [taker.variant for taker in chosen] == list(peers.S3FS_VARIANTS)


def test_read_ahead_suffix_sets_the_window() -> None:
    """`+ra` is the same variant with the kernel's window set."""
    (plain,) = select("s3fs:32x5", "read", PROGRAMS)
    (chosen,) = select("s3fs:32x5+ra", "read", PROGRAMS)
    assert plain.mount is not None
    assert chosen.mount is not None
    assert chosen.mount.command == plain.mount.command
    assert plain.mount.knobs is None
    assert chosen.mount.knobs == contestants.READ_AHEAD


def test_kernel_defaults_differ_in_the_knobs_only() -> None:
    """The variant of fusefs for ordinary users is fusefs, with Linux' own two settings."""
    (plain,) = select("fusefs", "read", PROGRAMS)
    (chosen,) = select("fusefs:kernel-defaults", "read", PROGRAMS)
    assert plain.mount is not None
    assert chosen.mount is not None
    assert chosen.label == "fusefs:kernel-defaults"
    assert chosen.mount.command == plain.mount.command
    assert chosen.mount.knobs == Knobs(read_ahead_kb=128, max_background=12)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_has_takers(scenario: Scenario) -> None:
    """Fusefs takes part in every scenario, and whoever is named there is known."""
    assert contestants.FUSEFS in scenario.names
    assert set(scenario.names) <= set(contestants.NAMES)


def test_commands_have_only_known_places() -> None:
    """Every part of every command line is filled in from the mount point and the scratch folder."""
    takers = [*select("s3fs:*", "read", PROGRAMS), *select("fusefs", "read", PROGRAMS)]
    for taker in takers:
        assert taker.mount is not None
        filled = [part.format(mountpoint="/m", scratch="/s") for part in taker.mount.command]
        assert "/m" in filled


def test_a_missing_peer_takes_no_part() -> None:
    """A peer that is not installed is left out."""
    assert select("rclone", "read", PROGRAMS) == ()


@pytest.mark.parametrize("wanted", ["nobody", "s3fs:nothing", "fusefs:fast"])
def test_unknown_names_are_refused(wanted: str) -> None:
    """An unknown contestant or variant is refused by name."""
    with pytest.raises(UnknownContestant, match=wanted.rpartition(":")[2]):
        select(wanted, "read", PROGRAMS)


def test_ranges_cover_each_object_once() -> None:
    """The raw fetch asks for every byte of every object exactly once."""
    objects = [{"key": "a", "etag": "1", "size": 25}, {"key": "b", "etag": "2", "size": 10}]
    ranges = [(wanted.key, wanted.start, wanted.size) for wanted in cut(objects, 10)]
    assert ranges == [("a", 0, 10), ("a", 10, 10), ("a", 20, 5), ("b", 0, 10)]
