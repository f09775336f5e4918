"""Starts a stand-in for the keeper the way `fusefs mount` starts the keeper, for signal tests.

`python -m tests.cli.start_with_stand_in ROLE FOLDER front|back`; prints the failure, if any.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fusefs.cli.start import StartFailed, mount_in_background
from tests.cli.test_start import job_for, keeper_for, start_in_front


def main(role: str, folder: Path, where: str) -> int:
    """Start in front or in the background; returns the exit status the command would have."""
    start = start_in_front if where == "front" else mount_in_background
    try:
        start(job_for(folder, foreground=where == "front"), keeper_for(role, folder))
    except StartFailed as error:
        print(error)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
