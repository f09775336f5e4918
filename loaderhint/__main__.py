"""The command line of loaderhint: `python -m loaderhint warm|progress|doctor PATH`.

For shells and init containers: it needs nothing but Python and the mount. Exit status 0 done,
1 failed, 2 wrong usage; a failure is one sentence on stderr. The bar is for terminals only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from loaderhint import hints
from loaderhint.doctor import advice, diagnose
from loaderhint.wishes import Progress

EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

_BAR_WIDTH = 30
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. `argv` is without the program's name."""
    parser = argparse.ArgumentParser(
        prog="python -m loaderhint", description="Hints to fusefs: what will be read next."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in (
        ("warm", "fetch files, or the shards of folders, and wait until they are here"),
        ("progress", "say how much of a file or folder is here"),
        ("doctor", "look at the mount and the way to its daemon, and advise"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("path", nargs="+" if name == "warm" else 1, metavar="PATH")
        command.add_argument("--json", action="store_true", help="for scripts: one object")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "warm":
            return _warm(arguments.path, arguments.json)
        if arguments.command == "progress":
            return _progress(arguments.path[0], arguments.json)
        return _doctor(arguments.path[0], arguments.json)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except OSError as error:
        return _complain(f"{error.filename or arguments.path[0]}: {error.strerror or error}")


def _warm(paths: list[str], as_json: bool) -> int:
    for path in paths:
        os.stat(path)  # what is not there is the user's mistake, though no loader's
    last: Progress | None = None
    with hints.hint(paths) as hint:
        for last in hint.watch():
            _draw(last)
        failed = hint.failed
    _draw(None)
    if last is None:
        return _complain(f"no daemon of fusefs takes hints for {paths[0]}; try doctor")
    if as_json:
        print(json.dumps(_as_json(last) | {"failed": failed}))
    else:
        print(f"{_bytes(last.ready_bytes)} of {_bytes(last.total_bytes)} are here")
    for sentence in failed:
        _complain(sentence)
    return EXIT_FAILED if failed or last.ready_bytes < last.total_bytes else 0


def _progress(path: str, as_json: bool) -> int:
    os.stat(path)
    found = hints.progress(path)
    if found is None:
        return _complain(f"nobody can say of {path}: it is on no mount of fusefs that takes hints")
    if as_json:
        print(json.dumps(_as_json(found)))
    else:
        print(f"{_bytes(found.ready_bytes)} of {_bytes(found.total_bytes)} are here")
    return 0


def _doctor(path: str, as_json: bool) -> int:
    seen = diagnose(path)
    if as_json:
        print(json.dumps(seen.as_json()))
    else:
        rows = (
            ("file system", seen.filesystem or "unknown"),
            ("daemon", f"{seen.channel} ({', '.join(seen.features) or 'no features'})"),
            ("answers in", "-" if seen.round_trip_ms is None else f"{seen.round_trip_ms} ms"),
            ("version", seen.server or "-"),
            ("readahead", "-" if seen.read_ahead_kb is None else f"{seen.read_ahead_kb} KiB"),
            ("files", f"{seen.files}, {_bytes(seen.size_bytes)}"),
            ("page cache", f"{_bytes(seen.cached_bytes)} of them"),
        )
        print(_printable(path))
        for label, text in rows:
            print(f"  {label:<12}{_printable(text)}")
        for sentence in advice(seen):
            print(f"  {_printable(sentence)}")
    return 0 if seen.channel != "none" else EXIT_FAILED


def _draw(progress: Progress | None) -> None:
    """The bar, drawn over itself; None wipes it away."""
    if not sys.stderr.isatty():
        return
    if progress is None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        return
    share = progress.ready_bytes / progress.total_bytes if progress.total_bytes else 1.0
    filled = int(share * _BAR_WIDTH)
    bar = "#" * filled + "." * (_BAR_WIDTH - filled)
    rate = f", {_bytes(progress.bytes_per_s)}/s" if progress.bytes_per_s else ""
    text = f"[{bar}] {share:4.0%} of {_bytes(progress.total_bytes)}{rate}"
    print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def _as_json(progress: Progress) -> dict[str, float]:
    return {
        "ready_bytes": progress.ready_bytes,
        "total_bytes": progress.total_bytes,
        "bytes_per_s": progress.bytes_per_s,
    }


def _bytes(size: float) -> str:
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _complain(sentence: str) -> int:
    print(f"loaderhint: {_printable(sentence)}", file=sys.stderr)
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
