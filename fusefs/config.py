"""The settings: one frozen dataclass per component, and the one table made of them.

A field below is the whole truth about a setting: its name, kind, default, help and the reason for
its default feed `--help`, docs/configuration.md, the environment names and the checks. Adding
a setting is adding a field. Nothing here reads argv, files or the environment (`fusefs.cli.resolve`
does), and nothing here is a secret: credentials belong to the SDK's own chain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from fusefs.errors import ConfigError
from fusefs.policy.budget import MEMORY_MIN

ENVIRONMENT_PREFIX = "FUSEFS_"
SHORT_NAMES = {"memory": "engine.memory"}
"""The one setting that people do set has a name without its component."""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,18})(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})

Value = bool | int | float | str | None
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one sort of value is written. `parse` raises ValueError, `show` is its inverse.

    `echo` is false where a wrong value may hold a password and no message may repeat it.
    """

    written: str
    parse: Callable[[str], Value]
    show: Callable[[Any], str] = str
    echo: bool = True


def parse_size(text: str) -> int:
    """Bytes from "512M", "2GiB" or "1073741824"; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def show_size(size: int) -> str:
    """The shortest text that `parse_size` reads back as exactly `size`."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def _within(value: T, low: T, high: T) -> T:
    if not low <= value <= high:  # type: ignore[operator] # T is int or float
        raise ValueError(value)
    return value


def _parse_count(text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _parse_flag(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError(text)


def _parse_octal(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,4}", text, re.ASCII):
        raise ValueError(text)
    return _within(int(text, 8), 0, 0o777)


def _parse_block(text: str) -> int:
    size = _within(parse_size(text), 64 * KIB, 16 * MIB)
    if size & (size - 1):
        raise ValueError(text)
    return size


def _parse_url(text: str) -> str:
    parts = urlsplit(text)
    plain = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    if not plain or parts.query or parts.fragment or not (parts.port is None or parts.port):
        raise ValueError("no plain http URL")
    return text


def _parse_text(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(text)
    return text


def _parse_file(text: str) -> str:
    # The daemon's folder is "/": a relative name would lead somewhere else.
    if not _parse_text(text).startswith("/"):
        raise ValueError(text)
    return text


def _size(low: int, high: int) -> Kind:
    written = f"a size from {show_size(low)} to {show_size(high)}, like 512M or 2GiB"
    return Kind(written, lambda text: _within(parse_size(text), low, high), show_size)


def _count(low: int, high: int) -> Kind:
    written = f"a whole number from {low} to {high}"
    return Kind(written, lambda text: _within(_parse_count(text), low, high))


def _seconds(low: float, high: float) -> Kind:
    written = f"a number of seconds from {low:g} to {high:g}"
    return Kind(
        written, lambda text: _within(float(text), low, high), lambda value: f"{value:.17g}"
    )


def _choice(*choices: str) -> Kind:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return Kind(f"one of {', '.join(choices)}", parse)


_FLAG = Kind("true or false", _parse_flag, lambda value: str(value).lower())
OCTAL = Kind("an octal mode from 0 to 777", _parse_octal, lambda value: f"{value:03o}")
_BLOCK = Kind("a power of two from 64K to 16M", _parse_block, show_size)
_URL = Kind("a URL like https://host:port, without user or password", _parse_url, echo=False)
_TEXT = Kind("a text on one line", _parse_text)
_FILE = Kind("an absolute path", _parse_file)
_ID = _count(0, 2**32 - 2)
"""2**32 - 1 means "no user" to the kernel."""


def _setting(default: T, kind: Kind, help: str, reason: str) -> T:
    made: T = field(default=default, metadata={"kind": kind, "help": help, "reason": reason})
    return made


@dataclass(frozen=True, slots=True)
class MountConfig:
    """How the files look to others. Files are 0444 & ~umask, directories 0555 & ~umask."""

    allow_other: bool = _setting(
        False, _FLAG, "let other users read the mount",
        "the kernel's own default: whoever mounts decides who sees",
    )  # fmt: skip
    uid: int | None = _setting(
        None, _ID, "owner shown for every file", "automatic is whoever mounts"
    )
    gid: int | None = _setting(
        None, _ID, "group shown for every file", "automatic is that of whoever mounts"
    )
    umask: int = _setting(
        0o022, OCTAL, "permission bits taken from every file and directory",
        "the usual umask; readable by all whom allow_other lets in",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How bytes are fetched and held."""

    memory: int | None = _setting(
        None, _size(MEMORY_MIN, 1 << 40), "memory for object bytes",
        "automatic is a quarter of the cgroup's or the machine's, at most 2G",
    )  # fmt: skip
    block_size: int = _setting(
        1 * MIB, _BLOCK, "unit of caching, of fetching and of waiting",
        "as large as the largest request of the kernel",
    )  # fmt: skip
    range_size: int | None = _setting(
        None, _size(64 * KIB, 1 * GIB), "most bytes asked of the store by one request",
        "automatic is 8M, and up to 32M once the store limits requests",
    )  # fmt: skip
    connections: int | None = _setting(
        None, _count(1, 1024), "most requests under way at once, over all workers",
        "automatic starts at 32 and follows the measured throughput, up to 256",
    )  # fmt: skip
    workers: int | None = _setting(
        None, _count(1, 256), "processes that fetch", "automatic goes by the cores"
    )
    read_deadline_s: float = _setting(
        120.0, _seconds(1, 86400), "how long a read waits for the store before it fails",
        "outlasts a store's failover; an error in a mapped file kills the application",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """How long names are believed."""

    ttl_s: float = _setting(
        60.0, _seconds(0, 86400), "how long listings, sizes and times are believed",
        "models change rarely; a minute bounds the surprise",
    )  # fmt: skip
    negative_ttl_s: float = _setting(
        10.0, _seconds(0, 86400), "how long a missing name is believed missing",
        "short, since people upload and look again",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What is asked of the kernel, where the mount may."""

    read_ahead_kb: int = _setting(
        4096, _count(4, 1 << 20), "how far the kernel reads ahead, in KiB; in shards at most 1024",
        "the kernel's 128 costs a single reader a factor of ten; at 1024 a random MiB costs three",
    )  # fmt: skip
    max_background: int = _setting(
        128, _count(1, 65535), "requests the kernel keeps under way",
        "its own 12 are fewer than a dozen readers make",
    )  # fmt: skip
    push: bool = _setting(
        True, _FLAG, "put fetched pages into the page cache before they are asked for",
        "saves a request and its wait for each of them; memory limits are heeded",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class S3Config:
    """Where S3 is. Credentials come from the AWS environment, files or roles, never from here."""

    endpoint_url: str | None = _setting(
        None, _URL, "server that speaks S3", "automatic is AWS_ENDPOINT_URL, ~/.aws/config or AWS"
    )
    region: str | None = _setting(
        None, _TEXT, "region of the bucket", "automatic is AWS_DEFAULT_REGION or ~/.aws/config"
    )
    profile: str | None = _setting(
        None, _TEXT, "profile of ~/.aws/config", "automatic is AWS_PROFILE or the default profile"
    )
    path_style: bool | None = _setting(
        None, _FLAG, "name the bucket in the path instead of the host name",
        "automatic is the path wherever the server is not Amazon's",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is logged, and where."""

    level: str = _setting(
        "info", _choice("debug", "info", "warning", "error"), "least severe message that is logged",
        "one line per mount and event, none per read",
    )  # fmt: skip
    file: str | None = _setting(
        None, _FILE, "file the log is added to",
        "automatic is stderr with -f, else syslog if there is one",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one mount."""

    mount: MountConfig = field(default_factory=MountConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    s3: S3Config = field(default_factory=S3Config)
    log: LogConfig = field(default_factory=LogConfig)

    def to_json_dict(self) -> dict[str, dict[str, Value]]:
        """Plain values, for `config_from_json_dict` in another process."""
        return asdict(self)


COMPONENTS: dict[str, type[Any]] = {
    "mount": MountConfig,
    "engine": EngineConfig,
    "tree": TreeConfig,
    "kernel": KernelConfig,
    "s3": S3Config,
    "log": LogConfig,
}


def config_from_json_dict(values: Mapping[str, Mapping[str, Any]]) -> Config:
    """Undo `to_json_dict`; absent settings take their defaults. Raises KeyError, TypeError."""
    return Config(**{name: COMPONENTS[name](**part) for name, part in values.items()})


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `name` is "component.key"."""

    name: str
    default: Value
    kind: Kind
    help: str
    reason: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.name.replace(".", "_").upper()

    @property
    def default_text(self) -> str:
        """The default as a user would write it."""
        return "automatic" if self.default is None else self.kind.show(self.default)

    def parse(self, text: str, where: str) -> Value:
        """Read a value; "automatic" is None where that is the default. Raises ConfigError."""
        if self.default is None and text == "automatic":
            return None
        try:
            return self.kind.parse(text)
        except ValueError as error:
            given = f", not {text[:80]!r}" if self.kind.echo else ""
            automatic = " or automatic" if self.default is None else ""
            raise ConfigError(
                f"{where}: {self.name} must be {self.kind.written}{automatic}{given}"
            ) from error


def _settings() -> Iterator[Setting]:
    for component, cls in COMPONENTS.items():
        row: Field[Any]
        for row in fields(cls):
            about = row.metadata
            name = f"{component}.{row.name}"
            yield Setting(
                name, cast(Value, row.default), about["kind"], about["help"], about["reason"]
            )


SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _settings()}
"""The one table, by name."""
