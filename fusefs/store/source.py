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

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""What botocore takes for a bucket name, minus a leading dot or dash: S3-compatible servers allow
more than Amazon does (upper case, underscores, fewer than 3 or more than 63 characters)."""

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
        raise ConfigError(f"a SOURCE has a scheme: {_examples()}")
    if scheme not in _SCHEMES:
        raise ConfigError(f"unknown scheme {scheme[:32]!r} in SOURCE; known are {_examples()}")
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
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            "an s3 SOURCE holds no credentials and no port: type s3://bucket/prefix, and leave keys"
            " to AWS_ACCESS_KEY_ID or a profile, the server to s3.endpoint_url"
        )
    if not bucket:
        raise ConfigError("the s3 SOURCE names no bucket: type s3://bucket or s3://bucket/prefix")
    if _SURROGATE.search(prefix):
        raise ConfigError("the prefix of the s3 SOURCE is not UTF-8, and S3 keys are")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{bucket!r} is not a bucket name: letters, digits, '.', '-' and '_'")
    if prefix:
        prefix = prefix.removesuffix("/")
        if any(segment in ("", ".", "..") for segment in prefix.split("/")):
            raise ConfigError(
                "the prefix of an s3 SOURCE has an empty, '.' or '..' segment: such keys have no"
                " place in a file system"
            )
        prefix += "/"
    return Source("s3", bucket, prefix, f"s3://{bucket}/{prefix}")


def _parse_az(rest: str, config: Config) -> Source:
    server, container, prefix = split_azure(rest, config.azure)
    if _SURROGATE.search(prefix):
        raise ConfigError("the prefix of the az SOURCE is not UTF-8, and blob names are")
    if prefix:
        prefix = prefix.removesuffix("/")
        if any(segment in ("", ".", "..") for segment in prefix.split("/")):
            raise ConfigError(
                "the prefix of an az SOURCE has an empty, '.' or '..' segment: such names have no"
                " place in a file system"
            )
        prefix += "/"
    return Source("az", container, prefix, f"az://{server}/{container}/{prefix}", server)


def _parse_file(rest: str, config: Config) -> Source:
    if not rest.startswith("/"):
        raise ConfigError("a file SOURCE is an absolute path: type file:///directory")
    segments = [segment for segment in rest.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise ConfigError("the path of a file SOURCE has a '..' segment: type the path it leads to")
    directory = "/" + "/".join(segments)
    return Source("file", directory, "", f"file://{directory}")


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


def _examples() -> str:
    return ", ".join(entry.example for entry in _SCHEMES.values())


_SCHEMES: dict[str, _Scheme] = {
    "s3": _Scheme("s3://bucket/prefix", _parse_s3, "fusefs.store.s3", "s3"),
    "file": _Scheme("file:///directory", _parse_file, "fusefs.store.posix", None),
    "az": _Scheme("az://container/prefix", _parse_az, "fusefs.store.azure", "azure"),
}
