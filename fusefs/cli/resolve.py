"""From all the places a setting can stand to one `Config`: which source wins, and what is unknown.

The one idea: whatever the source, a value becomes text and goes through the parser of its row in
the table. So a size, a flag or an error message is the same in TOML, environment and argv.
"""

from __future__ import annotations

import difflib
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from fusefs.config import (
    COMPONENTS,
    ENVIRONMENT_PREFIX,
    SETTINGS,
    SHORT_NAMES,
    Config,
    Setting,
    config_from_json_dict,
)
from fusefs.errors import ConfigError
from fusefs.values import OCTAL, Value

_SERVICE_LINK = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes sets in every pod of a namespace that has a Service called fusefs-something."""

DEFAULT_FILE = Path("/etc/fusefs.toml")


def resolve_config(
    *,
    file: Path | None,
    environ: Mapping[str, str],
    overrides: Iterable[tuple[str, str, str]] = (),
    default_file: Path = DEFAULT_FILE,
) -> Config:
    """Default < TOML < environment < `overrides`: (where, name, text), of which the last one wins.

    `file` is read instead of `default_file`, which need not exist. Raises ConfigError naming any
    unknown key or wrong value, whether or not something stronger would have hidden it.
    """
    values: dict[str, Value] = {}
    if file is not None or default_file.exists():
        values.update(_read_toml(file or default_file))
    values.update(_read_environment(environ))
    for where, name, text in overrides:
        setting = find_setting(name, where)
        values[setting.name] = setting.parse(text, where)
    parts: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        component, _, key = name.partition(".")
        parts.setdefault(component, {})[key] = value
    config = config_from_json_dict(parts)
    if (config.engine.range_size or 0) % config.engine.block_size:
        raise ConfigError("engine.range_size must be a multiple of engine.block_size")
    return config


def why_to_distrust(file: Path | None, default_file: Path = DEFAULT_FILE) -> str | None:
    """A sentence about a settings file that anybody may write to, else None.

    It holds no secret, but says to which server credentials are sent.
    """
    file = file or default_file
    try:
        mode = file.stat().st_mode
    except OSError:
        return None  # reading it says what is wrong
    if not mode & stat.S_IWOTH:
        return None
    return f"everybody may write to {file}, which says where credentials are sent: chmod o-w {file}"


def find_setting(name: str, where: str) -> Setting:
    """The row called `name`, or by its short name. Raises ConfigError with the nearest there is."""
    name = SHORT_NAMES.get(name, name)
    if name not in SETTINGS:
        raise ConfigError(f"{where}: unknown setting {name[:80]!r}{nearest(name, SETTINGS)}")
    return SETTINGS[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _read_toml(file: Path) -> dict[str, Value]:
    try:
        tables = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: it is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    values: dict[str, Value] = {}
    for component, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"{file}: {component!r} stands outside of any table; settings read [component]"
                " key = value"
            )
        if component not in COMPONENTS:
            known = nearest(component, COMPONENTS)
            raise ConfigError(f"{file}: unknown table [{component[:80]}]{known}")
        for key, value in table.items():
            setting = find_setting(f"{component}.{key}", str(file))
            values[setting.name] = setting.parse(_as_text(setting, value), str(file))
    return values


def _as_text(setting: Setting, value: object) -> str:
    """What a user would have typed for a TOML value."""
    if isinstance(value, bool):
        return str(value).lower()
    if setting.kind is OCTAL and isinstance(value, int):
        return f"{value:o}"  # TOML writes octal as 0o022 and has read it already
    return str(value)


def _read_environment(environ: Mapping[str, str]) -> dict[str, Value]:
    by_variable = {setting.variable: setting for setting in SETTINGS.values()}
    values: dict[str, Value] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue  # an empty variable is how scripts and compose files clear one
        if variable not in by_variable and _SERVICE_LINK.fullmatch(variable):
            continue
        if variable not in by_variable:
            known = nearest(variable, by_variable)
            raise ConfigError(f"unknown setting {variable[:80]} in the environment{known}")
        setting = by_variable[variable]
        values[setting.name] = setting.parse(text, variable)
    return values
