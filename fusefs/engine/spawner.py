"""The process that workers are forked from.

Run as `python -m fusefs.engine.spawner CONTROL_FD JOB_FD`.

It imports the store's SDK once, so that all workers share those pages copy-on-write (an SDK costs
30-40 MB otherwise, per worker), then waits. It has one thread and no connection, so forking is safe
at any time, also hours later when a worker died. It ends when its control socket does. (Not by
PR_SET_PDEATHSIG: that follows the *thread* that started it, and trio's threads come and go.)
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys

from fusefs.config import Config, config_from_json_dict
from fusefs.engine import jobs
from fusefs.engine.machine import name_process
from fusefs.engine.privileges import SERVER, settle
from fusefs.engine.verifier import open_verifier
from fusefs.engine.worker import Worker
from fusefs.errors import FusefsError, to_wire
from fusefs.store.base import Source
from fusefs.store.source import open_store, parse_source, preload
from fusefs.telemetry.log import configure_log


def main(control_fd: int, job_fd: int) -> int:
    """Serve fork requests until the daemon closes the control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the keeper's to act on
    name_process("fusefs-spawner")
    settle(SERVER)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    control = socket.socket(fileno=control_fd)
    with os.fdopen(job_fd) as file:
        file.seek(0)
        job = json.load(file)
    config = config_from_json_dict(job["config"])
    # The daemon's stderr is the log file, if there is one; we might not be let open it.
    configure_log(config.log.level, None, job["foreground"] or config.log.file is not None)
    source = parse_source(job["source"], config)
    try:
        preload(source)
        store = open_store(source, config)  # so that a bad setting is told once, here
        open_verifier(store, source, config)
        store.close()
    except FusefsError as error:
        control.send(jobs.encode({"error": to_wire(error)}))
        return 1
    gc.collect()
    gc.freeze()  # later collections in the children leave these pages alone, and shared
    control.send(jobs.encode({"ready": True}))
    return _serve(control, source, config)


def _serve(control: socket.socket, source: Source, config: Config) -> int:
    while True:
        data, fds, _, _ = socket.recv_fds(control, jobs.MESSAGE_BYTES_MAX, 2)
        if not data:
            return 0
        threads = jobs.decode(data)["threads"]
        channel, arena_fd = socket.socket(fileno=fds[0]), fds[1]
        try:
            pid = os.fork()
        except OSError as error:  # no process or no memory is left for us
            channel.close()
            os.close(arena_fd)
            control.send(jobs.encode({"error": error.strerror}))
            continue
        if pid == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            name_process("fusefs-fetch")
            _work(channel, arena_fd, threads, source, config)
        channel.close()
        os.close(arena_fd)
        control.send(jobs.encode({"pid": pid}))


def _work(
    channel: socket.socket, arena_fd: int, threads: int, source: Source, config: Config
) -> None:
    """The life of a forked worker; never returns."""
    status = 1
    try:
        store = open_store(source, config)
        Worker(store, arena_fd, channel, open_verifier(store, source, config)).run(threads)
        status = 0
    except FusefsError as error:
        logging.getLogger("fusefs.worker").error(  # noqa: TRY400 - a sentence for the user
            "a worker could not start: %s", error
        )
    finally:
        os._exit(status)  # threads may hang in the network; the daemon is gone


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
