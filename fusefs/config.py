"""The settings: one frozen dataclass per component, and the one table made of them.

A field below is the whole truth about a setting: its name, kind, default, help and the reason for
its default feed `--help`, docs/configuration.md, the environment names and the checks. Adding
a setting is adding a field. Nothing here reads argv, files or the environment (`fusefs.cli.resolve`
does), and nothing here is a secret: credentials belong to the SDK's own chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, TypeVar, cast

from fusefs.errors import ConfigError
from fusefs.policy.budget import MEMORY_MIN
from fusefs.values import (
    BLOCK,
    FILE,
    FLAG,
    GIB,
    ID,
    KIB,
    MIB,
    OCTAL,
    TEXT,
    URL,
    Kind,
    Value,
    choice,
    count,
    seconds,
    size,
)

T = TypeVar("T")

ENVIRONMENT_PREFIX = "FUSEFS_"
SHORT_NAMES = {"memory": "engine.memory"}
"""The one setting that people do set has a name without its component."""


def _setting(default: T, kind: Kind, help: str, reason: str) -> T:
    made: T = field(default=default, metadata={"kind": kind, "help": help, "reason": reason})
    return made


@dataclass(frozen=True, slots=True)
class MountConfig:
    """How the files look to others. Files are 0444 & ~umask, directories 0555 & ~umask."""

    allow_other: bool = _setting(
        False, FLAG, "let other users read the mount",
        "the kernel's own default: whoever mounts decides who sees",
    )  # fmt: skip
    uid: int | None = _setting(
        None, ID, "owner shown for every file", "automatic is whoever mounts"
    )
    gid: int | None = _setting(
        None, ID, "group shown for every file", "automatic is that of whoever mounts"
    )
    umask: int = _setting(
        0o022, OCTAL, "permission bits taken from every file and directory",
        "the usual umask; readable by all whom allow_other lets in",
    )  # fmt: skip
    grace_s: float = _setting(
        10.0, seconds(0, 3600), "how long readers may go on once the mount was told to end",
        "well below the 30 s after which Kubernetes kills, and the 90 s of systemd",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How bytes are fetched and held."""

    memory: int | None = _setting(
        None, size(MEMORY_MIN, 1 << 40), "memory for object bytes",
        "automatic is a quarter of the cgroup's or the machine's, at most 2G",
    )  # fmt: skip
    block_size: int = _setting(
        1 * MIB, BLOCK, "unit of caching, of fetching and of waiting",
        "as large as the largest request of the kernel",
    )  # fmt: skip
    range_size: int | None = _setting(
        None, size(64 * KIB, 1 * GIB), "most bytes asked of the store by one request",
        "automatic is 8M, and up to 32M once the store limits requests",
    )  # fmt: skip
    connections: int | None = _setting(
        None, count(1, 1024), "most requests under way at once, over all workers",
        "automatic starts at 32 and follows the measured throughput, up to 256",
    )  # fmt: skip
    workers: int | None = _setting(
        None, count(1, 256), "processes that fetch", "automatic goes by the cores"
    )
    read_deadline_s: float = _setting(
        120.0, seconds(1, 86400), "how long a read waits for the store before it fails",
        "outlasts a store's failover; an error in a mapped file kills the application",
    )  # fmt: skip
    checksums: str = _setting(
        "off", choice("off", "check", "require"),
        "compare what arrives with checksums: those of fusefs push, or the store's own",
        "TLS guards the wire already; checks cost a few requests for each file and 3-7 % of CPU;"
        " check what comes over plain http; require refuses files without any",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """How long names are believed."""

    ttl_s: float = _setting(
        60.0, seconds(0, 86400), "how long listings, sizes and times are believed",
        "models change rarely; a minute bounds the surprise",
    )  # fmt: skip
    negative_ttl_s: float = _setting(
        10.0, seconds(0, 86400), "how long a missing name is believed missing",
        "short, since people upload and look again",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What is asked of the kernel, where the mount may."""

    read_ahead_kb: int = _setting(
        4096, count(4, 1 << 20), "how far the kernel reads ahead, in KiB; in shards at most 1024",
        "the kernel's 128 costs a single reader a factor of ten; at 1024 a random MiB costs three",
    )  # fmt: skip
    max_background: int = _setting(
        128, count(1, 65535), "requests the kernel keeps under way",
        "its own 12 are fewer than a dozen readers make",
    )  # fmt: skip
    push: bool = _setting(
        True, FLAG, "put fetched pages into the page cache before they are asked for",
        "saves a request and its wait for each of them; memory limits are heeded",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class S3Config:
    """Where S3 is. Credentials come from the AWS environment, files or roles, never from here."""

    endpoint_url: str | None = _setting(
        None, URL, "server that speaks S3", "automatic is AWS_ENDPOINT_URL, ~/.aws/config or AWS"
    )
    region: str | None = _setting(
        None, TEXT, "region of the bucket", "automatic is AWS_DEFAULT_REGION or ~/.aws/config"
    )
    profile: str | None = _setting(
        None, TEXT, "profile of ~/.aws/config", "automatic is AWS_PROFILE or the default profile"
    )
    path_style: bool | None = _setting(
        None, FLAG, "name the bucket in the path instead of the host name",
        "automatic is the path wherever the server is not Amazon's",
    )  # fmt: skip
    anonymous: bool = _setting(
        False, FLAG, "ask without credentials",
        "public buckets refuse nobody, and credentials that are no good there would be sent",
    )  # fmt: skip
    requester_pays: bool = _setting(
        False, FLAG, "agree to pay for what is read of a requester-pays bucket",
        "costs money: nobody agrees by accident",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class GcsConfig:
    """Where Google Cloud Storage is. Credentials are Google's application default ones."""

    endpoint_url: str | None = _setting(
        None, URL, "server that speaks Google's JSON API",
        "automatic is STORAGE_EMULATOR_HOST or Google",
    )  # fmt: skip
    anonymous: bool | None = _setting(
        None, FLAG, "ask without credentials", "automatic is yes with STORAGE_EMULATOR_HOST only"
    )
    billing_project: str | None = _setting(
        None, TEXT, "project that pays for what is read of a requester-pays bucket",
        "costs money: nobody agrees by accident",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class AzureConfig:
    """Where Azure Blob is. Credentials come from AZURE_STORAGE_… or DefaultAzureCredential."""

    account: str | None = _setting(
        None, TEXT, "storage account",
        "automatic is the SOURCE's, AZURE_STORAGE_ACCOUNT or the connection string's",
    )  # fmt: skip
    endpoint_url: str | None = _setting(
        None, URL, "server of the account",
        "automatic is the connection string's or https://ACCOUNT.blob.core.windows.net",
    )  # fmt: skip
    anonymous: bool = _setting(
        False, FLAG, "ask without credentials", "only public containers answer that"
    )


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """How a Redis or Valkey server is spoken to. The password comes from REDISCLI_AUTH."""

    username: str | None = _setting(
        None, TEXT, "user of the server's access list", "automatic is the server's default user"
    )
    ca_file: str | None = _setting(
        None, FILE, "certificates a rediss:// server is checked with, PEM",
        "automatic is the system's",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is logged, and where."""

    level: str = _setting(
        "info", choice("debug", "info", "warning", "error"), "least severe message that is logged",
        "one line per mount and event, none per read",
    )  # fmt: skip
    file: str | None = _setting(
        None, FILE, "file the log is added to",
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
    gcs: GcsConfig = field(default_factory=GcsConfig)
    azure: AzureConfig = field(default_factory=AzureConfig)
    redis: RedisConfig = field(default_factory=RedisConfig)
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
    "gcs": GcsConfig,
    "azure": AzureConfig,
    "redis": RedisConfig,
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
