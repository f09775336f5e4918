"""`python -m fusefs.cli` is the command `fusefs`."""

from __future__ import annotations

import sys

from fusefs.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
