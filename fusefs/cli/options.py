"""The `-o a,b=c` of mount(8): which words mean a setting, which mean nothing here, which are wrong.

Words that are about when and by whom fstab entries are mounted, or that describe what every fusefs
mount is anyway, are accepted so that an fstab line or a script needs no special case.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Iterator

from fusefs.cli.resolve import find_setting, nearest
from fusefs.config import SHORT_NAMES
from fusefs.errors import ConfigError

Override = tuple[str, str, str]
"""Where it was said, a setting's name, its value as text."""

_WHERE = "-o"

# fmt: off
_MEANINGLESS = frozenset({
    "defaults", "_netdev", "auto", "noauto", "nofail", "user", "users", "nouser", "owner", "group",
    "comment", "ro", "nosuid", "nodev", "noexec", "exec", "async",
    "noatime", "relatime", "nodiratime", "norelatime", "nostrictatime", "nolazytime",
})
# fmt: on
"""mount(8), fstab(5). Files have no x bit to ignore, and times that are the store's."""

_MOUNT_SETTINGS = frozenset({"allow_other", "uid", "gid", "umask"})


def split_options(text: str) -> list[str]:
    """Cut at commas; a backslash makes the next character plain, as in libfuse. Empty parts go."""
    parts, part, characters = [], "", iter(text)
    for character in characters:
        if character == "\\":
            part += next(characters, "\\")
        elif character == ",":
            parts.append(part)
            part = ""
        else:
            part += character
    return [part for part in [*parts, part] if part]


def parse_options(text: str, *, by_mount8: bool) -> Iterator[Override]:
    """Yield the settings in one `-o` argument.

    `rw` is a wish that cannot be met, unless mount(8) added it by itself (`by_mount8`). Raises
    ConfigError naming the option that is unknown.
    """
    for option in split_options(text):
        name, equals, value = option.partition("=")
        if name == "rw" and not by_mount8:
            raise ConfigError("-o rw: a fusefs mount is read-only; leave rw out")
        if name in _MEANINGLESS or name == "rw" or name[:2].lower() == "x-":
            continue
        if name not in _MOUNT_SETTINGS and name not in SHORT_NAMES and "." not in name:
            known = nearest(name, [*_MOUNT_SETTINGS, *SHORT_NAMES, *_MEANINGLESS])
            raise ConfigError(f"-o: unknown option {name[:80]!r}{known}")
        setting = find_setting(f"mount.{name}" if name in _MOUNT_SETTINGS else name, _WHERE)
        if not equals and setting.name != "mount.allow_other":
            raise ConfigError(f"-o: {name} needs a value, like {name}=…")
        yield _WHERE, setting.name, _NUMBERS.get(name, str)(value) if equals else "true"


def _uid(text: str) -> str:
    """A user's number, by number or name. An unknown name is left for the setting to refuse."""
    try:
        return str(pwd.getpwnam(text).pw_uid)
    except (KeyError, ValueError):
        return text


def _gid(text: str) -> str:
    try:
        return str(grp.getgrnam(text).gr_gid)
    except (KeyError, ValueError):
        return text


_NUMBERS: dict[str, Callable[[str], str]] = {"uid": _uid, "gid": _gid}
