"""Writes docs/configuration.md from the table: `python -m tests.cli.configuration_page`."""

from __future__ import annotations

from pathlib import Path

from fusefs.config import COMPONENTS, SETTINGS, Setting

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "configuration.md"

_HEAD = """\
# Configuration

No setting is needed. What a setting does, what it may be and why its default is what it is:
this page is generated from the table in `fusefs/config.py` and compared with it by a test;
`python -m tests.cli.configuration_page` writes it again.

## Where settings come from

Later ones win:

1. the default;
2. a TOML file: the one of `--config`, else `/etc/fusefs.toml` if it exists;
3. the environment: `FUSEFS_<COMPONENT>_<KEY>`; an empty variable counts as not set;
4. the command line: `--set component.key=value`, `-o component.key=value,…` and `--memory`,
   the last one said.

A key nobody knows is an error that names it, wherever it stands. Sizes are bytes or have a unit:
`512M`, `2GiB`, `1073741824`; K, M, G, T are powers of 1024. `automatic` can be written where it is
the default. `memory` is short for `engine.memory`.

```toml
[engine]
memory = "4GiB"

[s3]
endpoint_url = "https://storage.example.com"
```

Credentials are no settings: the SDK finds them in its own environment variables, files and roles.

## Options of mount(8)

`-o` and the fourth column of fstab also know `allow_other`, `uid` and `gid` (number or name) and
`umask` (octal) of the table `[mount]`. A backslash makes a comma part of a value. Accepted without
effect, since they say when fstab mounts or what every fusefs mount is anyway: `defaults`,
`_netdev`, `auto`, `noauto`, `nofail`, `user`, `users`, `nouser`, `owner`, `group`, `comment=…`,
`x-…`, `ro`, `nosuid`, `nodev`, `exec`, `noexec`, `async`, `noatime`, `relatime`, `nodiratime`.
`fusefs mount` refuses `rw`; `mount.fusefs` ignores it, because mount(8) adds it by itself.

```
s3://models/llama  /mnt/llama  fusefs  _netdev,nofail,allow_other,memory=4G  0  0
```
"""


def configuration_page() -> str:
    """The page's text."""
    parts = [_HEAD]
    for component, cls in COMPONENTS.items():
        about = " ".join((cls.__doc__ or "").split())
        parts.append(f"\n## [{component}]\n\n{about}\n\n")
        parts.append("| key | default | what it is | written as | why this default |\n")
        parts.append("|---|---|---|---|---|\n")
        rows = [row for name, row in SETTINGS.items() if name.startswith(f"{component}.")]
        parts.extend(_row(row) for row in rows)
    return "".join(parts)


def _row(row: Setting) -> str:
    key = row.name.partition(".")[2]
    return f"| `{key}` | `{row.default_text}` | {row.help} | {row.kind.written} | {row.reason} |\n"


if __name__ == "__main__":
    PAGE.write_text(configuration_page(), "utf-8")
