"""How statistics and listings read on a terminal.

Pure: values in, lines out. Text from outside (names, sources, messages) goes through `printable`,
since a key may hold what a terminal takes for a command. What is missing from the statistics of
another version shows as zero or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from fusefs.objects import ListPage, ObjectMeta
from fusefs.transfer.progress import Report
from fusefs.tree.names import is_reserved

_LABEL_WIDTH = 12
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: others than printable characters escaped."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def show_bytes(size: float) -> str:
    """Three digits or so: "512 B", "1.2 GiB"."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return (
        f"{size:.0f} {_UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {_UNITS[unit]}"
    )


def show_duration(seconds: float) -> str:
    """The two largest units: "3 d 4 h", "1 min 5 s"."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hour} h {minute} min"
    return f"{minutes} min {second} s" if minutes else f"{second} s"


def status_lines(mountpoint: str, stats: dict[str, Any]) -> Iterator[str]:
    """The statistics of one mount, in aligned lines."""
    yield printable(mountpoint)
    for label, text in _status_rows(stats):
        yield f"  {label:<{_LABEL_WIDTH}}{printable(text)}"


def _status_rows(stats: dict[str, Any]) -> Iterator[tuple[str, str]]:
    count = {name: int(value) for name, value in stats.get("counters", {}).items()}

    def number(name: str) -> int:
        return count.get(name, 0)

    yield "source", str(stats.get("source", "unknown"))
    yield "uptime", f"{show_duration(stats.get('uptime_s', 0))}, fusefs {stats.get('version', '')}"
    yield "processes", _processes(stats.get("pids", {}))
    yield (
        "bytes",
        f"{show_bytes(number('bytes_fetched'))} fetched, {show_bytes(number('bytes_read'))} read,"
        f" {show_bytes(number('bytes_pushed'))} pushed,"
        f" {show_bytes(number('prefetch_wasted_bytes'))} fetched in vain",
    )
    yield (
        "requests",
        f"{number('requests')}: {number('requests_read')} for bytes,"
        f" {number('requests_list')} for listings, {number('requests_head')} for names;"
        f" {number('retries')} retried, {number('fetch_errors')} failed",
    )
    yield (
        "reads",
        f"{number('reads')}: {number('hits')} hits, {number('joins')} joins,"
        f" {number('misses')} misses, {number('read_errors')} errors",
    )
    yield (
        "names",
        f"{number('list_hits')} answered without a request, {number('names_hidden')} hidden",
    )
    oldest = stats.get("requests", {}).get("oldest")
    if oldest:
        yield "oldest", f"{oldest}, for {show_duration(stats['requests'].get('oldest_s', 0))}"
    if number("requests_stuck"):
        yield "stuck", f"{number('requests_stuck')} requests outlived every deadline"
    if "fetching" in stats:
        yield "fetching", _fetching(stats["fetching"])
    if stats.get("restarts"):
        yield "restarts", f"{stats['restarts']}: the last daemon {stats.get('last_end')}"
    if number("workers_replaced"):
        yield "replaced", f"{number('workers_replaced')} workers that died"
    yield "arena", _arena(stats.get("arena", {}))
    yield "page cache", _page_cache(stats.get("page_cache", {}))
    if "checksums" in stats:
        yield "checksums", _checksums(stats["checksums"], count)
    knobs = stats.get("kernel", {})
    for position, name in enumerate(sorted(knobs, reverse=True)):
        yield "" if position else "kernel", _knob(name, knobs[name])
    for position, warning in enumerate(stats.get("warnings", [])):
        yield "" if position else "warnings", str(warning)


def _processes(pids: dict[str, Any]) -> str:
    singles = ("keeper", "daemon", "spawner", "pusher")
    parts = [f"{name} {pids[name]}" for name in singles if pids.get(name)]
    workers = " ".join(map(str, pids.get("workers", [])))
    return ", ".join([*parts, f"workers {workers}" if workers else "no workers"])


def _fetching(fetching: dict[str, Any]) -> str:
    return (
        f"{fetching.get('in_flight', 0)} requests in flight, now up to {fetching.get('limit', 0)}"
        f" (at most {fetching.get('limit_max', 0)}) of {show_bytes(fetching.get('range_bytes', 0))}"
        f"{', throttled by the store' if fetching.get('throttled') else ''}"
    )


def _arena(arena: dict[str, Any]) -> str:
    return (
        f"{show_bytes(arena.get('size_bytes', 0))} in blocks of"
        f" {show_bytes(arena.get('block_bytes', 0))}: {arena.get('free', 0)} free,"
        f" {arena.get('fetching', 0)} fetching, {arena.get('ready', 0)} ready"
        f" ({arena.get('unread', 0)} unread)"
    )


def _page_cache(pages: dict[str, Any]) -> str:
    if pages.get("refused"):
        return f"nothing is pushed: {pages['refused']}"
    return (
        f"{show_bytes(pages.get('ahead_bytes', 0))} pushed ahead of readers,"
        f" room for {show_bytes(pages.get('room_bytes', 0))}"
    )


def _checksums(checksums: dict[str, Any], count: dict[str, int]) -> str:
    if checksums.get("mode") == "off":
        return f"nothing is compared: {checksums.get('why')}"
    missing = count.get("checksums_missing_bytes", 0)
    return (
        f"{show_bytes(count.get('checksums_verified_bytes', 0))} compared,"
        f" {count.get('checksum_mismatches', 0)} times wrong, {show_bytes(missing)} without"
        f"{': ' + str(checksums['why']) if missing and checksums.get('why') else ''}"
    )


def _knob(name: str, knob: dict[str, Any]) -> str:
    if knob.get("set"):
        return f"{name} {knob.get('actual')}: set"
    actual = "unknown" if knob.get("actual") is None else knob["actual"]
    why = knob.get("why") or "no reason given"
    return f"{name} {actual} instead of {knob.get('wanted')}: not set, {why}"


def listing_rows(
    prefix: str, pages: Sequence[ListPage], with_etag: bool = False
) -> list[dict[str, Any]]:
    """What lies directly below `prefix`, by name: {"name", "type", "size"?, "mtime"?, "etag"?}.

    Directories end in "/"; times are UTC, in whole seconds. What is ours (`.fusefs`) is not shown.
    """
    rows = [
        {"name": key.removeprefix(prefix), "type": "directory"}
        for page in pages
        for key in page.prefixes
        if not is_reserved(prefix, key)
    ]
    rows += [
        file_row(prefix, meta, with_etag)
        for page in pages
        for meta in page.objects
        if meta.id.key != prefix and not is_reserved(prefix, meta.id.key)
    ]
    return sorted(rows, key=lambda row: str(row["name"]))


def file_row(prefix: str, meta: ObjectMeta, with_etag: bool = False) -> dict[str, Any]:
    """One object as `listing_rows` has it."""
    mtime = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(meta.mtime_ns // 10**9))
    row = {
        "name": meta.id.key.removeprefix(prefix),
        "type": "file",
        "size": meta.size,
        "mtime": mtime,
    }
    return {**row, "etag": meta.id.etag} if with_etag else row


def listing_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """`listing_rows` as a table: size in bytes, time, etag where there are any, name."""
    width = max((len(str(row["size"])) for row in rows if "size" in row), default=1)
    etag_width = max((len(row["etag"]) for row in rows if "etag" in row), default=0)
    for row in rows:
        size, mtime = row.get("size", "-"), row.get("mtime", "-")
        etag = f"{printable(row.get('etag', '-')):<{etag_width}}  " if etag_width else ""
        yield f"{size:>{width}}  {mtime:<20}  {etag}{printable(row['name'])}"


def transfer_lines(did: str, report: Report, dry_run: bool) -> Iterator[str]:
    """How a transfer went: what it did, or would do. `did` is "pushed" or "pulled"."""
    if dry_run:
        verb = did.removesuffix("ed")
        for name in report.moved:
            yield printable(f"would {verb} {name}")
        for name in report.removed:
            yield printable(f"would remove {name}")
    moved = f"{report.files_moved} of {report.files} files, {show_bytes(report.bytes_moved)}"
    if dry_run:
        yield f"{moved}; {show_bytes(report.bytes_there)} are there"
    elif not report.files_moved and not report.removed:
        yield f"already there: {report.files} files, {show_bytes(report.bytes_there)}"
    else:
        rate = show_bytes(report.bytes_moved / max(report.seconds, 0.001))
        yield (
            f"{did} {moved} in {report.seconds:.1f} s, {rate}/s;"
            f" {show_bytes(report.bytes_there)} were there"
        )
