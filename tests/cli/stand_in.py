"""Stands in for the keeper: `python stand_in.py ROLE FOLDER JOB_FD REPORT_FD`.

Plays the part that ROLE names, and writes into FOLDER what a test wants to know of it: the job it
got, its circumstances, and its end. Standard library only: it is run as a script.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn


def main(role: str, folder: Path, job_fd: int, report_fd: int) -> int:
    """Play one part; returns the exit status."""
    with os.fdopen(job_fd) as file:
        job = json.load(file)
    seen = {
        "job": job,
        "cwd": os.getcwd(),
        "leads_session": os.getsid(0) == os.getpid(),
        "arguments": sys.argv,
        "open": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "stdout": os.readlink("/proc/self/fd/1"),
    }
    write(folder / "seen", json.dumps(seen))
    write(folder / "pid", str(os.getpid()))
    report = os.fdopen(report_fd, "w")
    if role == "refuses":
        print(json.dumps({"ok": False, "status": 2, "message": "no such bucket"}), file=report)
        report.close()
        return 2
    if role == "dies":
        return 3
    if role == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if role == "babbles":
        print("Segmentation fault?", file=report)
        return 0
    if role == "abandons":
        child = subprocess.Popen(["sleep", "300"], stdin=subprocess.DEVNULL)
        write(folder / "child", str(child.pid))
        return 0
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    if role == "hangs":
        write(folder / "waits", "")
        signal.sigwait({signal.SIGUSR1})
    if role == "starts slowly":
        write(folder / "waits", "")
        signal.sigwait({signal.SIGTERM})
        write(folder / "told", "")
        print(json.dumps({"ok": False, "status": 1, "message": "stopped"}), file=report)
        return 1
    print(json.dumps({"ok": True, "pid": os.getpid()}), file=report)
    report.close()
    write(folder / "waits", "")
    if role == "breaks":
        return 4
    if role == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.sigwait({signal.SIGTERM})
    write(folder / "told", "")
    return 0


def write(path: Path, text: str) -> None:
    """Write a file that is whole as soon as it is there."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


def run() -> NoReturn:
    """Take the part from argv."""
    role, folder, job_fd, report_fd = sys.argv[1:]
    sys.exit(main(role, Path(folder), int(job_fd), int(report_fd)))


if __name__ == "__main__":
    run()
