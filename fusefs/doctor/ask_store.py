"""A child of the doctor: asks the store of a mount one question, as the mount itself would.

Reads `{"source", "config"}` from standard input, with the mount's own environment around it, and
writes `{"error", "seconds"}`. It shows no setting and no secret.
"""

from __future__ import annotations

import json
import sys
import time

from fusefs.config import config_from_json_dict
from fusefs.errors import FusefsError
from fusefs.store.source import open_store, parse_source


def main() -> None:
    """List the source once."""
    asked = json.load(sys.stdin)
    began = time.monotonic()
    error = None
    try:
        config = config_from_json_dict(asked["config"])
        source = parse_source(asked["source"], config)
        store = open_store(source, config)
        began = time.monotonic()
        store.check(source.prefix)
    except FusefsError as failure:
        error = str(failure)
    answer = {"error": error, "seconds": time.monotonic() - began}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
