"""The commands that move bytes without a mount: push, pull, ls, cat.

They speak to stores through `fusefs.transfer`; here is what they take, what they show meanwhile,
and how they end. A transfer that was cut says how to go on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from fusefs.cli.arguments import add_settings, add_source, config_of
from fusefs.cli.report import file_row, listing_lines, listing_rows, transfer_lines
from fusefs.cli.terminal import complain, say
from fusefs.config import Config
from fusefs.errors import ConfigError, FusefsError, ObjectNotFound
from fusefs.objects import Extent, ListPage
from fusefs.store.base import Source
from fusefs.store.source import open_store, open_writer, parse_source
from fusefs.transfer.crew import Crew
from fusefs.transfer.progress import Report, TransferCut
from fusefs.transfer.pull import Pull
from fusefs.transfer.push import Destination, Push, discard
from fusefs.transfer.reading import read_in_order, split_object
from fusefs.transfer.remote import list_below
from fusefs.tree.names import RESERVED

JOBS = 16
"""Requests at once: 16 of 8 MiB hold 128 MiB, and are past the knee of every store measured."""
JOBS_MAX = 256
CAT_JOBS = 8
"""A pipe takes 1-2 GB/s; eight streams of a store give about that."""

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

_RANGE = re.compile(r"(\d+)-(\d*)")


class Bar:
    """A bar of `tqdm` on stderr, if that is a terminal: bytes, rate, and time to go."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def begin(self, what: str, total_bytes: int) -> None:
        """See `Progress`."""
        self.close()
        self._bar = tqdm(
            total=total_bytes,
            desc=what,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=sys.stderr,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def advance(self, count: int) -> None:
        """See `Progress`."""
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        """Take the bar away, so that what is said next stands on a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def add_transfers(commands: Any) -> None:
    """Add the commands of this module to `commands`, the subparsers of `fusefs`."""
    _add_push(commands)
    _add_pull(commands)
    ls = _command(
        commands, "ls", "list a SOURCE without mounting it",
        "fusefs ls s3://models/llama\n  fusefs ls -R --json s3://models/llama | jq '.[].size'",
    )  # fmt: skip
    add_source(ls)
    ls.add_argument("-l", "--long", action="store_true", help="show versions (ETags), too")
    ls.add_argument("-R", "--recursive", action="store_true", help="all files below, at any depth")
    ls.add_argument("--json", action="store_true", help="for scripts: a list of objects")
    add_settings(ls)
    ls.set_defaults(command=_ls, by_mount8=False)

    cat = _command(
        commands, "cat", "write an object to stdout",
        "fusefs cat s3://models/llama/config.json\n"
        "  fusefs cat s3://models/llama/model.safetensors --range 0-8 | xxd",
    )  # fmt: skip
    cat.add_argument("source", metavar="SOURCE/KEY", help="s3://bucket/key or file:///folder/file")
    cat.add_argument(
        "--range", type=_range, metavar="START-[STOP]",
        help="the bytes from START up to, not including, STOP; without STOP to the end",
    )  # fmt: skip
    add_settings(cat)
    cat.set_defaults(command=_cat, by_mount8=False)


def _add_push(commands: Any) -> None:
    push = _command(
        commands, "push", "publish the files of a folder to a store",
        "fusefs push ./llama s3://models/llama\n"
        "  fusefs push ./llama file:///mnt/nfs/models/llama --dry-run\n"
        "  fusefs push --discard s3://models/llama\n\n"
        "A push that was cut goes on when the same command is given again. Readers see the whole\n"
        "model or none: what names its files is written last.",
    )  # fmt: skip
    places = [
        push.add_argument("folder", metavar="LOCALDIR", help="the folder that holds the model"),
        push.add_argument("source", metavar="DEST", help="where to, as a SOURCE of a mount"),
    ]
    push.add_argument("--force", action="store_true", help="replace another model there")
    push.add_argument(
        "--discard", action=_Discard, places=places, metavar="DEST",
        help="push nothing: remove what pushes to DEST that were cut left",
    )  # fmt: skip
    _add_transfer_flags(push)
    push.set_defaults(command=_push, by_mount8=False)


def _add_pull(commands: Any) -> None:
    pull = _command(
        commands, "pull", "fetch all files of a SOURCE into a folder",
        "fusefs pull s3://models/llama ./llama\n"
        "  fusefs pull s3://models/llama ./llama --dry-run\n\n"
        "A pull that was cut goes on when the same command is given again. Files get their names\n"
        "when all of them are there and were compared with the manifest.",
    )  # fmt: skip
    add_source(pull)
    pull.add_argument("folder", metavar="LOCALDIR", help="where to; made if it is missing")
    pull.add_argument("--force", action="store_true", help="replace files that differ")
    _add_transfer_flags(pull)
    pull.set_defaults(command=_pull, by_mount8=False)


def _command(commands: Any, name: str, help: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"for example:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_transfer_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    parser.add_argument(
        "--jobs", type=_jobs, default=JOBS, metavar="N", help=f"requests at once ({JOBS})"
    )
    parser.add_argument("--json", action="store_true", help="for scripts: the report as an object")
    add_settings(parser)


class _Discard(argparse.Action):
    """`--discard DEST`: the places of a push are not needed then."""

    def __init__(self, *arguments: Any, places: Sequence[argparse.Action], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._places = places

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for place in self._places:
            place.required = False
        namespace.discard = values


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= JOBS_MAX:
        raise argparse.ArgumentTypeError(f"a number from 1 to {JOBS_MAX}, not {text!r}")
    return int(text)


def _range(text: str) -> tuple[int, int | None]:
    match = _RANGE.fullmatch(text)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise argparse.ArgumentTypeError(f"START-STOP or START-, not {text!r}")
    return int(match[1]), int(match[2]) if match[2] else None


def _push(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    text = arguments.source if arguments.discard is None else arguments.discard
    source = parse_source(text, config)
    crew = Crew(arguments.jobs)
    with closing(open_store(source, config)) as store, closing(open_writer(source, config)) as w:
        destination = Destination(source, store, w)
        if arguments.discard is not None:
            count = discard(destination, crew)
            say([f"discarded {count} unfinished files below {source.text}"])
            return 0
        bar = Bar()
        push = Push(arguments.folder, destination, crew, bar, arguments.force)
        advice = (
            "run the same command again to go on, or give it up with fusefs push --discard"
            f" {source.text}"
        )
        return _transfer("pushed", lambda: push.run(arguments.dry_run), bar, arguments, advice)


def _pull(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    source = parse_source(arguments.source, config)
    with closing(open_store(source, config)) as store:
        bar = Bar()
        crew = Crew(arguments.jobs)
        pull = Pull(source, store, arguments.folder, crew, bar, arguments.force)
        advice = (
            "run the same command again to go on, or give it up and remove"
            f" {os.path.join(arguments.folder, '.fusefs-pull')}"
        )
        return _transfer("pulled", lambda: pull.run(arguments.dry_run), bar, arguments, advice)


def _transfer(
    did: str,
    run: Callable[[], Report],
    bar: Bar,
    arguments: argparse.Namespace,
    advice: str,
) -> int:
    """Run a transfer and say how it went."""
    try:
        report = run()
    except KeyboardInterrupt:
        bar.close()
        complain(f"interrupted; {advice}")
        return _EXIT_INTERRUPTED
    except TransferCut as error:
        bar.close()
        complain(f"{error}; {advice}")
        return _EXIT_FAILED
    finally:
        bar.close()
    for name in report.left_out:
        complain(f"left out: {name}")
    if arguments.json:
        say([json.dumps(asdict(report), indent=2)])
    else:
        say(transfer_lines(did, report, arguments.dry_run))
    return 0


def _ls(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    source = parse_source(arguments.source, config)
    rows = _rows(source, config, arguments)
    say([json.dumps(rows, indent=2)] if arguments.json else listing_lines(rows))
    return 0


def _rows(source: Source, config: Config, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    with closing(open_store(source, config)) as store:
        try:
            store.check(source.prefix)  # what is missing or refused is said for what was typed
        except ObjectNotFound:
            row = _object_row(source, config, arguments.long)
            if row is None:
                raise
            return [row]
        if arguments.recursive:
            metas = list_below(store, Crew(1), source.prefix, _is_ours)
            rows = [file_row(source.prefix, meta, arguments.long) for meta in metas]
            return sorted((row for row in rows if row["name"]), key=lambda row: str(row["name"]))
        pages: list[ListPage] = [store.list_page(source.prefix, None)]
        while (token := pages[-1].next_token) is not None:
            pages.append(store.list_page(source.prefix, token))
        return listing_rows(source.prefix, pages, arguments.long)


def _object_row(source: Source, config: Config, long: bool) -> dict[str, Any] | None:
    """The row of the object that the source names, or None if there is none."""
    try:
        holder, key = split_object(source)
        with closing(open_store(holder, config)) as store:
            meta = store.head(key)
    except (ConfigError, ObjectNotFound):
        return None
    return file_row(key.removesuffix(key.rpartition("/")[2]), meta, long)


def _is_ours(prefix: str) -> bool:
    return f"/{prefix}".endswith(f"/{RESERVED}/")


def _cat(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    holder, key = split_object(parse_source(arguments.source, config))
    crew = Crew(CAT_JOBS)
    with closing(open_store(holder, config)) as store:
        meta = crew.retry(lambda: store.head(key))
        start, stop = arguments.range or (0, None)
        extent = Extent(start, meta.size if stop is None else stop)
        if extent.stop > meta.size or extent.start > extent.stop:
            raise FusefsError(f"{key!r} has {meta.size} bytes: ask for a range within them")
        for piece in read_in_order(store, crew, meta, extent):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return 0
