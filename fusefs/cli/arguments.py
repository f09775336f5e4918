"""The arguments that several commands have: a SOURCE, and the settings."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from fusefs.cli.options import Override, parse_options
from fusefs.cli.report import printable
from fusefs.cli.resolve import resolve_config, why_to_distrust
from fusefs.cli.terminal import complain
from fusefs.config import SETTINGS, Config
from fusefs.errors import ConfigError
from fusefs.store.source import source_examples


def add_source(parser: argparse.ArgumentParser) -> None:
    """The argument SOURCE."""
    parser.add_argument("source", metavar="SOURCE", help=source_examples())


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags that change settings."""
    parser.add_argument(
        "--memory", dest="said", action="append", type=said("--memory"), metavar="SIZE",
        help=f"{SETTINGS['engine.memory'].help}: 512M, 2GiB ({SETTINGS['engine.memory'].reason})",
    )  # fmt: skip
    parser.add_argument(
        "--set", dest="said", action="append", type=said("--set"), metavar="COMPONENT.KEY=VALUE",
        help="any setting",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML, not /etc/fusefs.toml")
    parser.set_defaults(said=[])


def said(flag: str) -> Callable[[str], tuple[str, str]]:
    """Keeps with a value the flag it came from: all go to one list, whose order decides."""
    return lambda text: (flag, text)


def settings_help() -> str:
    """Every setting, a line each."""
    rows = [
        f"  {setting.name:<24}{setting.help} ({setting.default_text})"
        for setting in SETTINGS.values()
    ]
    return "\n".join(
        ["settings (--set, -o, [component] key = value in TOML, FUSEFS_COMPONENT_KEY):", *rows]
    )


def config_of(arguments: argparse.Namespace) -> Config:
    """The settings that hold for a command: default, file, environment, flags."""
    overrides: list[Override] = []
    for flag, text in arguments.said:
        if flag == "-o":
            overrides.extend(parse_options(text, by_mount8=arguments.by_mount8))
        elif flag == "--memory":
            overrides.append((flag, "memory", text))
        else:
            name, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"--set {printable(name)}: say COMPONENT.KEY=VALUE")
            overrides.append((flag, name, value))
    warning = why_to_distrust(arguments.config)
    if warning is not None:
        complain(warning)
    return resolve_config(file=arguments.config, environ=os.environ, overrides=overrides)
