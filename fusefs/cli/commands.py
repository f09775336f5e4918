"""The commands: their arguments, what each does, and how each ends.

Exit status 0 done, 1 failed, 2 wrong usage or configuration; a failure is one sentence on stderr.
Those that move bytes without a mount are in `fusefs.cli.transfers`.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import fusefs
from fusefs.cli.arguments import add_settings, add_source, config_of, said, settings_help
from fusefs.cli.doctor import add_doctor
from fusefs.cli.fluid import add_fluid
from fusefs.cli.health import add_health
from fusefs.cli.kubernetes import add_kubernetes
from fusefs.cli.preflight import (
    check_apart,
    check_fuse,
    check_mountpoint,
    prepare_mountpoint,
    resolve_mountpoint,
)
from fusefs.cli.report import printable, status_lines
from fusefs.cli.start import StartFailed, mount_in_background, mount_in_front
from fusefs.cli.terminal import complain, say
from fusefs.cli.transfers import add_transfers
from fusefs.cli.upgrade import upgrade_mount
from fusefs.cli.webhook import add_webhook
from fusefs.client import Answer, ask_mount, ask_mounts, open_processes, process_ids, wait_ended
from fusefs.engine.privileges import hide_memory
from fusefs.errors import ConfigError, FusefsError
from fusefs.mount import kernel
from fusefs.store.source import parse_source
from fusefs.telemetry.log import check_log_file

END_TIMEOUT_S = 10.0
"""After an unmount the daemon has nothing left to do; a worker may wait for the network."""

EXIT_FAILED = 1
EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one sentence."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message} (see {self.prog} --help)")
        sys.exit(EXIT_USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `fusefs`; returns the exit status. `argv` is without the program's name."""
    return _run(argument_parser(), argv)


def main_for_mount8(argv: Sequence[str] | None = None) -> int:
    """The command `mount.fusefs`, as mount(8) calls it for `mount -t fusefs` and fstab."""
    return _run(_mount8_parser(), argv)


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    if argv is None:  # this process is the command's own
        hide_memory()
    arguments = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        status = command(arguments)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough. Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except StartFailed as error:
        complain(str(error))
        return error.status
    except ConfigError as error:
        complain(str(error))
        return EXIT_USAGE
    except FusefsError as error:
        complain(str(error))
        return EXIT_FAILED
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        complain(f"{named}{error.strerror or error}")
        return EXIT_FAILED
    return status


def argument_parser() -> argparse.ArgumentParser:
    """What `fusefs` understands."""
    parser = _Parser(prog="fusefs", description="Buckets as local files, at the speed of the link.")
    parser.add_argument("--version", action="version", version=f"fusefs {fusefs.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    mount = commands.add_parser(
        "mount",
        help="mount SOURCE on the folder MOUNTPOINT",
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source(mount)
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty folder")
    mount.add_argument("-f", "--foreground", action="store_true", help="stay in front")
    mount.add_argument(
        "-o", dest="said", action="append", type=said("-o"), default=[], metavar="OPTIONS",
        help="options as mount(8) has them, and settings: -o allow_other,umask=077,memory=1G",
    )  # fmt: skip
    mount.add_argument(
        "--prepare", action="store_true",
        help="make MOUNTPOINT if it is missing, and detach a mount there that has lost its daemon",
    )  # fmt: skip
    add_settings(mount)
    mount.set_defaults(command=_mount, by_mount8=False)

    umount = commands.add_parser("umount", help="unmount, and end every process of the mount")
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument(
        "-l", "--lazy", action="store_true",
        help="detach now; the processes end when the last user of a file does, or now if the mount"
        " does not answer",
    )  # fmt: skip
    umount.set_defaults(command=_umount)

    upgrade = commands.add_parser(
        "upgrade", help="have a mount go on with the fusefs that is installed now; reads wait"
    )
    upgrade.add_argument("mountpoint", metavar="MOUNTPOINT")
    upgrade.set_defaults(command=_upgrade)

    status = commands.add_parser("status", help="show what one mount, or every mount, is doing")
    status.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    status.add_argument("--json", action="store_true", help="for scripts: an object, or a list")
    status.set_defaults(command=_status)

    add_health(commands)
    add_doctor(commands)
    add_transfers(commands)
    add_fluid(commands, _mount)
    add_kubernetes(commands)
    add_webhook(commands)
    return parser


def _mount8_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mount.fusefs", description="Called by mount(8): mount -t fusefs …")
    add_source(parser)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("-o", dest="said", action="append", type=said("-o"), default=[])
    parser.add_argument("-f", dest="fake", action="store_true", help="check, but do not mount")
    parser.add_argument("-n", "-s", "-v", action="store_true", help="accepted, without effect")
    parser.add_argument("-t", metavar="TYPE", help="accepted, without effect")
    parser.add_argument("-N", dest="namespace", help="refused: enter it with nsenter(1) instead")
    parser.set_defaults(
        command=_mount_for_mount8, by_mount8=True, foreground=False, config=None, prepare=False
    )
    return parser


def _checked_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keeper's job, when all that can be known beforehand is in order."""
    config = config_of(arguments)
    source = parse_source(arguments.source, config)
    mountpoint = resolve_mountpoint(arguments.mountpoint)
    if arguments.prepare:
        prepare_mountpoint(mountpoint)
    check_mountpoint(mountpoint)
    check_apart(source, mountpoint)
    check_fuse(os.geteuid() == 0)
    check_log_file(config.log.file)
    return {
        "source": source.text,
        "mountpoint": mountpoint,
        "config": config.to_json_dict(),
        "foreground": arguments.foreground,
    }


def _mount(arguments: argparse.Namespace) -> int:
    job = _checked_job(arguments)
    if arguments.foreground:
        sentence = f"{job['source']} is mounted on {job['mountpoint']}"
        mount_in_front(job, lambda: say([printable(sentence)]))
    else:
        mount_in_background(job)
    return 0


def _mount_for_mount8(arguments: argparse.Namespace) -> int:
    if arguments.namespace is not None:
        raise ConfigError("-N is not supported: run the mount inside the namespace with nsenter(1)")
    job = _checked_job(arguments)
    if not arguments.fake:
        mount_in_background(job)
    return 0


def _find_mount(text: str) -> kernel.MountRow:
    mountpoint = resolve_mountpoint(text)
    row = kernel.find_mount(mountpoint)
    if row is None or row.fstype != kernel.FSTYPE:
        raise FusefsError(f"{mountpoint} is not a fusefs mount")
    return row


def _umount(arguments: argparse.Namespace) -> int:
    row = _find_mount(arguments.mountpoint)
    mountpoint = row.mountpoint
    answer = ask_mount(mountpoint)
    if arguments.lazy and answer.silent:
        kernel.abort_connection(row.device)  # its readers would wait for ever
    stats = answer.stats
    with open_processes(process_ids(stats) if stats else ()) as processes:
        try:
            kernel.unmount(mountpoint, arguments.lazy)
        except OSError as error:
            raise FusefsError(_unmount_failure(mountpoint, error)) from error
        if not arguments.lazy and not wait_ended(processes, END_TIMEOUT_S):
            raise FusefsError(
                f"{mountpoint} is unmounted, but some of its processes still run after"
                f" {END_TIMEOUT_S:.0f} s: something still holds it, another mount namespace"
                f" perhaps; fusefs doctor {mountpoint} tells who"
            )
    return 0


def _unmount_failure(mountpoint: str, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return (
            f"{mountpoint} is in use: end what uses it, or detach it with"
            f" fusefs umount -l {mountpoint}"
        )
    return f"cannot unmount {mountpoint}: {error.strerror}"


def _upgrade(arguments: argparse.Namespace) -> int:
    upgrade_mount(_find_mount(arguments.mountpoint).mountpoint)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    if arguments.mountpoint is not None:
        rows = [_find_mount(arguments.mountpoint)]
    else:
        rows = _all_mounts()
    answers = ask_mounts([row.mountpoint for row in rows])
    if arguments.json:
        objects = [_status_object(row, answer) for row, answer in zip(rows, answers, strict=True)]
        say([json.dumps(objects[0] if arguments.mountpoint is not None else objects, indent=2)])
    elif not rows:
        say(["no fusefs mounts"])
    for row, answer in zip(rows, answers, strict=True):
        if answer.stats is None:
            complain(f"{row.mountpoint} {answer.trouble}")
        elif not arguments.json:
            say(status_lines(row.mountpoint, answer.stats))
    return 0 if all(answer.stats is not None for answer in answers) else EXIT_FAILED


def _all_mounts() -> list[kernel.MountRow]:
    """Every fusefs mount that can be reached, once: a bind mount shows the same one again."""
    topmost = {row.mountpoint: row for row in kernel.mount_rows()}
    devices: dict[str, kernel.MountRow] = {}
    for row in topmost.values():
        if row.fstype == kernel.FSTYPE:
            devices.setdefault(row.device, row)
    return list(devices.values())


def _status_object(row: kernel.MountRow, answer: Answer) -> dict[str, Any]:
    if answer.stats is not None:
        return answer.stats
    return {"source": row.source, "mountpoint": row.mountpoint, "error": answer.trouble}
