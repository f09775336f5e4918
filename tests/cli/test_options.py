"""The -o of mount(8): cut at commas, known words, unknown words."""

from __future__ import annotations

import grp
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.cli.options import parse_options, split_options
from fusefs.errors import ConfigError


def _parse(text: str, *, by_mount8: bool = False) -> dict[str, str]:
    return {name: value for _, name, value in parse_options(text, by_mount8=by_mount8)}


@given(st.lists(st.text(st.sampled_from("ab=,\\. \"'é"), min_size=1)))
def test_escaped_options_are_cut_where_they_were_joined(parts: list[str]) -> None:
    """Whatever an option holds, with commas and backslashes escaped it comes through."""
    escaped = [part.replace("\\", "\\\\").replace(",", "\\,") for part in parts]
    assert split_options(",".join(escaped)) == parts


@given(st.text())
def test_no_text_breaks_the_cutting(text: str) -> None:
    """Any text is a list of parts that are not empty; without backslashes none holds a comma."""
    parts = split_options(text)
    assert all(parts)
    if "\\" not in text:
        assert parts == [part for part in text.split(",") if part]


@given(st.text(max_size=30), st.booleans())
def test_any_text_is_settings_or_a_configuration_error(text: str, by_mount8: bool) -> None:
    """Options are understood or refused in one sentence, never a crash."""
    try:
        settings = _parse(text, by_mount8=by_mount8)
    except ConfigError as error:
        refused, settings = str(error), {}
    else:
        refused = ""
    assert refused.startswith("-o") or not refused
    assert all("." in name for name in settings)


def test_options_of_the_mount_are_settings() -> None:
    """allow_other, uid, gid and umask go to [mount], memory to [engine], dotted names to theirs."""
    assert _parse("allow_other,uid=1000,gid=5,umask=077,memory=1G,tree.ttl_s=5") == {
        "mount.allow_other": "true",
        "mount.uid": "1000",
        "mount.gid": "5",
        "mount.umask": "077",
        "engine.memory": "1G",
        "tree.ttl_s": "5",
    }


def test_users_and_groups_may_be_named() -> None:
    """uid=NAME and gid=NAME mean the numbers of that user and group."""
    user, group = pwd.getpwall()[0], grp.getgrall()[0]
    assert _parse(f"uid={user.pw_name},gid={group.gr_name}") == {
        "mount.uid": str(user.pw_uid),
        "mount.gid": str(group.gr_gid),
    }


def test_words_of_fstab_mean_nothing_here() -> None:
    """An fstab line needs no special case for fusefs."""
    words = (
        "defaults,_netdev,noauto,auto,nofail,user,users,nouser,nosuid,nodev,noatime,noexec,ro,"
        "x-systemd.automount,x-systemd.requires=network.target,X-mount.mkdir,comment=llm,user=joe"
    )
    assert _parse(words) == {}


def test_rw_is_refused_unless_mount8_added_it() -> None:
    """A wish to write is refused in a sentence; mount(8)'s own rw is no wish."""
    with pytest.raises(ConfigError, match="read-only"):
        _parse("ro,rw")
    assert _parse("rw,umask=077", by_mount8=True) == {"mount.umask": "077"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alow_other", "unknown option 'alow_other'; did you mean allow_other?"),
        ("password=hunter2", "unknown option 'password'"),
        ("remount", "unknown option 'remount'"),
        ("suid", "unknown option 'suid'"),
        ("=x", "unknown option ''"),
        ("tree.ttl=5", "unknown setting 'tree.ttl'; did you mean tree.ttl_s?"),
        ("uid", "uid needs a value"),
        ("memory", "memory needs a value"),
    ],
)
def test_unknown_options_are_refused_by_name(text: str, said: str) -> None:
    """An option nobody knows is an error with its name, never with its value."""
    with pytest.raises(ConfigError) as caught:
        _parse(text)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
