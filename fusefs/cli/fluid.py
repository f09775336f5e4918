"""`fusefs fluid-entrypoint`: what the FUSE container of a Fluid ThinRuntime runs.

Fluid writes what a Dataset and its ThinRuntime say into one JSON file: `targetPath`, where to
mount, and `mounts`, what. Its options become settings and credentials here, and then it is
`fusefs mount -f --prepare` like any other. Credentials come from `encryptOptions` only: Fluid
(1.0 and later) gives the name of a file for them, so that no secret stands in the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusefs.errors import ConfigError

CONFIG_FILES = (Path("/etc/fluid/config/config.json"), Path("/etc/fluid/config.json"))
"""Where Fluid puts it: from 1.1 on, and before."""

CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "REDISCLI_AUTH",
)
"""Variables of the SDKs whose value is a secret."""

CREDENTIAL_FILES = ("AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS")
"""Variables of the SDKs whose value names a file with secrets."""


def add_fluid(commands: Any, mount: Callable[[argparse.Namespace], int]) -> None:
    """Add the command to `commands`, the subparsers of `fusefs`; `mount` is `fusefs mount`."""
    fluid = commands.add_parser(
        "fluid-entrypoint", help="mount what the config.json of a Fluid ThinRuntime says, in front"
    )
    places = " or ".join(map(str, CONFIG_FILES))
    fluid.add_argument(
        "file", metavar="CONFIG.JSON", nargs="?", type=Path, help=f"instead of {places}"
    )

    def run(arguments: argparse.Namespace) -> int:
        job, credentials = read_fluid(arguments.file)
        os.environ.update(credentials)
        return mount(job)

    fluid.set_defaults(command=run)


def read_fluid(file: Path | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The arguments for `fusefs mount`, and the environment its credentials need.

    Raises ConfigError for what Fluid may not ask of us; never with a value in it.
    """
    path = file or next((path for path in CONFIG_FILES if path.exists()), CONFIG_FILES[0])
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is not a JSON object")
    mount = _only_mount(path, config)
    said, credentials = _sort_options(path, mount.get("options") or {})
    arguments = argparse.Namespace(
        source=_text(path, mount, "mountPoint"),
        mountpoint=_text(path, config, "targetPath"),
        foreground=True,
        prepare=True,
        said=said,
        config=None,
        by_mount8=False,
    )
    return arguments, credentials


def _only_mount(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    mounts = config.get("mounts")
    if not isinstance(mounts, list) or not all(isinstance(mount, dict) for mount in mounts):
        raise ConfigError(f"{path} has no list of mounts")
    if len(mounts) != 1:
        raise ConfigError(
            f"{path} has {len(mounts)} mounts: fusefs mounts one for a Dataset; give each a Dataset"
            " and a ThinRuntime of its own"
        )
    only: Mapping[str, Any] = mounts[0]
    return only


def _text(path: Path, part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{path} has no {name}")
    return value


def _sort_options(path: Path, options: object) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Settings as `-o` has them, and environment variables. Others may read: Fluid's pods do."""
    if not isinstance(options, dict) or not all(isinstance(v, str) for v in options.values()):
        raise ConfigError(f"{path} has options that are no object of texts")
    said = [("-o", "allow_other")]
    variables = {}
    for name, value in options.items():
        if name in CREDENTIALS:
            variables[name] = _secret(name, value)
        elif name in CREDENTIAL_FILES:
            variables[name] = value
        else:
            plain = value.replace("\\", "\\\\").replace(",", "\\,")
            said.append(("-o", f"{name}={plain}"))
    return said, variables


def _secret(name: str, file: str) -> str:
    advice = f"{name} belongs into the encryptOptions of the Dataset"
    if not file.startswith("/"):
        raise ConfigError(f"{advice}, not into its options: there everybody could read it")
    try:
        return Path(file).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{advice}: the file of its secret cannot be read") from error
