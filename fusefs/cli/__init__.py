"""The command line: from argv, environment and TOML to a mount, and the words on the terminal.

`main` is `fusefs`, `main_for_mount8` is `mount.fusefs`, which mount(8) runs. Nothing here serves
a mount: the keeper is a process of its own. What must not hang (a look at somebody's mount) happens
in child processes with a limit.
"""

from __future__ import annotations

from fusefs.cli.commands import main, main_for_mount8

__all__ = ["main", "main_for_mount8"]
