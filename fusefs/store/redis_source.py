"""How a `redis://` or `rediss://` SOURCE reads: `redis://host[:port][/db][?model=NAME]`.

Pure text. The one idea: SGLang's form of it has the model in the path, and a number there is a
database; so a path that is no number is answered with the sentence that says what to type.
"""

from __future__ import annotations

import re

from fusefs.errors import ConfigError
from fusefs.store.base import Source

_DB_DIGITS_MAX = 9
"""Servers count their databases in an int; Python reads no number of more than 4,300 digits."""

_DEFAULT_PORT = 6379

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]+\]")

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def parse_redis(scheme: str, rest: str) -> Source:
    """Parse what follows `scheme://`. Raises `ConfigError`, and repeats nothing before an "@"."""
    place, question, query = rest.partition("?")
    server, _, path = place.partition("/")
    if "@" in server:
        raise ConfigError(
            f"a {scheme} SOURCE holds no credentials: leave the password to REDISCLI_AUTH, the user"
            " to redis.username"
        )
    if _SURROGATE.search(rest):
        raise ConfigError(f"the {scheme} SOURCE is not UTF-8, and names of models are")
    host, port = _parse_server(scheme, server)
    path = path.removesuffix("/")
    if path and not (path.isascii() and path.isdecimal()):
        raise ConfigError(
            f"what follows the host of a {scheme} SOURCE is the number of a database: for a model"
            f" type {scheme}://{server}?model={path}"
        )
    if len(path) > _DB_DIGITS_MAX:
        raise ConfigError(f"no {scheme} server has so many databases as the SOURCE's number says")
    db = int(path or "0")
    model = ""
    if question:
        name, _, model = query.partition("=")
        if name != "model" or not model:
            raise ConfigError(
                f"after '?' a {scheme} SOURCE has one word, the model: type"
                f" {scheme}://{server}?model=NAME"
            )
        check_model(model)
    text = f"{scheme}://{host}:{port}/{db}" + (f"?model={model}" if model else "")
    prefix = f"{model}/" if model else ""
    return Source(scheme, model, prefix, text, f"{host}:{port}/{db}")


def check_model(name: str) -> None:
    """Raise `ConfigError` unless `name` can be a folder and a hash tag."""
    if any(segment in ("", ".", "..") for segment in name.split("/")):
        raise ConfigError("the name of a model has no empty, '.' or '..' segment")
    if "{" in name or "}" in name:
        raise ConfigError("the name of a model has no braces: they choose the slot in a cluster")


def _parse_server(scheme: str, server: str) -> tuple[str, int]:
    host, colon, port = server, "", ""
    if not server.endswith("]"):  # an IPv6 address without a port
        host, colon, port = server.rpartition(":")
        if not colon:
            host = server
    if not _HOST.fullmatch(host):
        raise ConfigError(f"the {scheme} SOURCE names no host: type {scheme}://host?model=NAME")
    if not colon:
        return host, _DEFAULT_PORT
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ConfigError(f"the port of the {scheme} SOURCE is a number from 1 to 65535")
    return host, int(port)
