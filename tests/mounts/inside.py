"""Mounts, loads and unmounts in whatever circumstances it is run: `inside.py SOURCE FOLDER`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness.mounted import cli_command


def main(source: str, folder: str) -> None:
    """Print "exact" if the file of the source is that of the folder. The mountpoint is /mnt."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"], check=True)
    mountpoint = Path("/mnt/point")
    mountpoint.mkdir()
    subprocess.run([*cli_command(), "mount", source, str(mountpoint)], check=True)
    try:
        same = (mountpoint / "w.bin").read_bytes() == (Path(folder) / "w.bin").read_bytes()
    finally:
        subprocess.run([*cli_command(), "umount", str(mountpoint)], check=True)
    print("exact" if same else "wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
