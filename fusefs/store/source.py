"""From what the user typed to a store: parse a SOURCE, then open the adapter its scheme names.

A SOURCE is a name, not a URL: nothing in it is percent-decoded, so that what a shell completes or
a bucket browser shows can be pasted. It holds no credentials, and no message repeats what looks
like one. Adapters are imported when opened, because their SDKs are extras; the one idea here is the
table scheme -> adapter.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from fusefs.config import Config
from fusefs.errors import ConfigError
from fusefs.store.azure_source import split_azure
from fusefs.store.base import Source, Store, Writer
from fusefs.store.redis_source import parse_redis

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""What botocore takes for a bucket name, minus a leading dot or dash: S3-compatible servers allow
more than Amazon does (upper case, underscores, fewer than 3 or more than 63 characters)."""

_ACCESS_POINT = re.compile(
    r"arn:aws[a-z-]*:s3(?:-outposts)?:[a-z0-9-]*:\d{12}:"
    r"(?:outpost[/:][a-z0-9-]+[/:])?accesspoint[/:][a-z0-9][a-z0-9.-]{1,62}"
)
"""An ARN takes a bucket's place where requests go through an access point. No bucket has a ":" in
its name, and no access point a "/": what follows the next "/" is the prefix.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-naming.html"""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}", re.ASCII)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Never in a real bucket or path; a newline would tear log lines and /proc/mounts."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Bytes of argv that are not UTF-8, as Python shows them: a POSIX name may hold them, no S3 key."""


class _Adapter(Protocol):
    """What every adapter module offers."""

    def open_store(self, source: Source, config: Config) -> Store: ...

    def open_writer(self, source: Source, config: Config) -> Writer: ...

    def preload(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Scheme:
    """One kind of source: how its text reads, which module is its adapter, which extra its SDK."""

    example: str
    parse: Callable[[str, Config], Source]
    module: str
    extra: str | None


def parse_source(text: str, config: Config | None = None) -> Source:
    """Parse `text`, for example `s3://bucket/prefix` or `file:///dir`.

    `config` is asked where a SOURCE may leave something to it (an account's name).
    Raises `ConfigError` with one sentence that says what to type instead.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise ConfigError(f"a SOURCE has a scheme: {source_examples()}")
    if scheme not in _SCHEMES:
        # What is no scheme at all may be half of a URL with a password in it.
        named = f"scheme {scheme!r}" if _SCHEME.fullmatch(scheme) else "scheme"
        raise ConfigError(f"unknown {named} in SOURCE; known are {source_examples()}")
    if _CONTROL.search(rest):
        raise ConfigError("the SOURCE holds control characters")
    return _SCHEMES[scheme].parse(rest, config or Config())


def open_store(source: Source, config: Config) -> Store:
    """Make the store that serves `source`; no connection is opened yet.

    Raises `ConfigError` if the SDK it needs is not installed.
    """
    return _adapter(source.scheme).open_store(source, config)


def open_writer(source: Source, config: Config) -> Writer:
    """Make what writes to the place that `source` names. Raises like `open_store`."""
    return _adapter(source.scheme).open_writer(source, config)


def preload(source: Source) -> None:
    """Import what `open_store` will need and warm what forked workers can share copy-on-write.

    Opens no connection, starts no thread, reads no credentials. Raises like `open_store`.
    """
    _adapter(source.scheme).preload()


def _parse_s3(rest: str, config: Config) -> Source:
    access_point = _ACCESS_POINT.match(rest)
    if access_point and rest[access_point.end() :][:1] in ("", "/"):
        return _with_prefix("s3", access_point[0], rest[access_point.end() + 1 :])
    if rest.startswith("arn:"):
        raise ConfigError(
            "the s3 SOURCE is no ARN of an access point: type"
            " s3://arn:aws:s3:region:account:accesspoint/name/prefix"
        )
    return _bucket_source("s3", rest, "AWS_ACCESS_KEY_ID or a profile", "s3.endpoint_url")


def _parse_gs(rest: str, config: Config) -> Source:
    return _bucket_source("gs", rest, "GOOGLE_APPLICATION_CREDENTIALS", "gcs.endpoint_url")


def _bucket_source(scheme: str, rest: str, keys: str, server: str) -> Source:
    """A SOURCE of bucket and prefix; `keys` and `server` are where these belong instead."""
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"the {scheme} SOURCE holds credentials or a port: type {scheme}://bucket/prefix,"
            f" and leave keys to {keys}, the server to {server}"
        )
    if not bucket:
        raise ConfigError(
            f"the {scheme} SOURCE names no bucket: type {scheme}://bucket or"
            f" {scheme}://bucket/prefix"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{bucket!r} is not a bucket name: letters, digits, '.', '-' and '_'")
    return _with_prefix(scheme, bucket, prefix)


def _with_prefix(scheme: str, bucket: str, prefix: str, server: str = "") -> Source:
    """The SOURCE of a bucket that is known to be one."""
    if _SURROGATE.search(prefix):
        raise ConfigError(f"the prefix of the {scheme} SOURCE is not UTF-8, and keys are")
    if prefix:
        prefix = prefix.removesuffix("/")
        if any(segment in ("", ".", "..") for segment in prefix.split("/")):
            raise ConfigError(
                f"the prefix of the {scheme} SOURCE has an empty, '.' or '..' segment: such keys"
                " have no place in a file system"
            )
        prefix += "/"
    place = f"{server}/{bucket}" if server else bucket
    return Source(scheme, bucket, prefix, f"{scheme}://{place}/{prefix}", server)


def _parse_az(rest: str, config: Config) -> Source:
    server, container, prefix = split_azure(rest, config.azure)
    return _with_prefix("az", container, prefix, server)


def _parse_file(rest: str, config: Config) -> Source:
    if not rest.startswith("/"):
        raise ConfigError("a file SOURCE is an absolute path: type file:///directory")
    segments = [segment for segment in rest.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise ConfigError("the path of a file SOURCE has a '..' segment: type the path it leads to")
    directory = "/" + "/".join(segments)
    return Source("file", directory, "", f"file://{directory}")


def _parse_redis(scheme: str) -> Callable[[str, Config], Source]:
    def parse(rest: str, config: Config) -> Source:
        return parse_redis(scheme, rest)

    return parse


def _adapter(scheme: str) -> _Adapter:
    entry = _SCHEMES[scheme]
    try:
        return cast(_Adapter, importlib.import_module(entry.module))
    except ModuleNotFoundError as error:
        if entry.extra is None or (error.name or "").startswith("fusefs"):
            raise
        raise ConfigError(
            f"{scheme}:// sources need a package that is not installed ({error.name}):"
            f" pip install 'fusefs[{entry.extra}]'"
        ) from error


def source_examples() -> str:
    """One SOURCE of each kind, for help and messages."""
    return ", ".join(entry.example for entry in _SCHEMES.values())


_SCHEMES: dict[str, _Scheme] = {
    "s3": _Scheme("s3://bucket/prefix", _parse_s3, "fusefs.store.s3", "s3"),
    "gs": _Scheme("gs://bucket/prefix", _parse_gs, "fusefs.store.gcs", "gcs"),
    "az": _Scheme("az://container/prefix", _parse_az, "fusefs.store.azure", "azure"),
    "redis": _Scheme(
        "redis://host?model=NAME", _parse_redis("redis"), "fusefs.store.redis", "redis"
    ),
    "rediss": _Scheme(
        "rediss://host?model=NAME", _parse_redis("rediss"), "fusefs.store.redis", "redis"
    ),
    "file": _Scheme("file:///directory", _parse_file, "fusefs.store.posix", None),
}
