"""What a process may still do once it has settled, asked in a process that tries."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fusefs.engine import seccomp

ROOT = Path(__file__).resolve().parent.parent.parent

TRY = """
import ctypes, errno, os, sys
from fusefs.engine import privileges, seccomp
role = getattr(privileges, sys.argv[1])
assert privileges.settle(role) == []
column = 0 if os.uname().machine == "x86_64" else 1
libc = ctypes.CDLL(None, use_errno=True)
for table in (seccomp.NEVER, seccomp.MOUNTING, seccomp.ABSENT):
    for name, numbers in table.items():
        # Wrong arguments throughout: whatever is let through fails, or does nothing.
        result = libc.syscall(numbers[column], -1, 0, 0, -1, -1, -1)
        print(name, "0" if result == 0 else errno.errorcode[ctypes.get_errno()])
"""

WORK = """
import os, resource, socket, subprocess, sys, threading
from fusefs.engine import privileges
privileges.settle(getattr(privileges, sys.argv[1]))
done = []
threads = [threading.Thread(target=done.append, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == 4
assert subprocess.run(["sh", "-c", "exit 7"]).returncode == 7
pid = os.fork()
if pid == 0:
    os._exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
here, there = socket.socketpair()
here.send(b"x")
assert there.recv(1) == b"x"
assert socket.create_server(("127.0.0.1", 0)).getsockname()[1]
assert os.listdir("/proc/self/fd")
assert open("/proc/self/mountinfo").read()
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
print(open("/proc/self/status").read())
"""

PEEK = """
import os, sys
try:
    open(f"/proc/{sys.argv[1]}/environ", "rb").read()
except PermissionError:
    print("closed")
"""

_POWERLESS = ("setpriv", "--bounding-set", "-all", sys.executable)
"""Python as root without a capability: another process of the same user, no more."""


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("role", ["SERVER", "PUSHER"])
def test_what_is_refused(role: str) -> None:
    """No call of the lists is let through; those with another way look like an old kernel's."""
    said = dict(line.split() for line in _run(TRY, role).splitlines())
    assert said.pop("clone3") == "ENOSYS"
    assert {said.pop(name) for name in list(said) if name.startswith("io_uring")} == {"ENOSYS"}
    assert set(said) == {*seccomp.NEVER, *seccomp.MOUNTING}
    assert set(said.values()) == {"EPERM"}


def test_the_keeper_may_mount() -> None:
    """What mounts and unmounts is left to the keeper, and to it alone; the rest is refused."""
    said = dict(line.split() for line in _run(TRY, "KEEPER").splitlines())
    assert {said[name] for name in seccomp.NEVER} == {"EPERM"}
    assert "EPERM" not in {said[name] for name in seccomp.MOUNTING}


@pytest.mark.parametrize(
    ("role", "capabilities"),
    [("KEEPER", 1 << 1 | 1 << 2 | 1 << 8 | 1 << 21), ("SERVER", 1 << 2), ("PUSHER", 0)],
)
def test_what_still_works(role: str, capabilities: int) -> None:
    """Threads, children, sockets and files of its own work; capabilities are the role's."""
    status = _run(WORK, role)
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        match = re.search(rf"{kind}:\s*([0-9a-f]+)", status)
        assert match
        assert int(match[1], 16) == capabilities
    assert re.search(r"CapAmb:\s*0+$", status, re.MULTILINE)
    assert re.search(r"NoNewPrivs:\s*1$", status, re.MULTILINE)


def test_children_get_nothing_back() -> None:
    """A program that is started later, as root or setuid, has no more rights than its parent."""
    script = (
        "import os\nfrom fusefs.engine import privileges\nprivileges.settle(privileges.SERVER)\n"
        "os.execvp('grep', ['grep', 'CapEff', '/proc/self/status'])"
    )
    assert int(_run(script).split()[1], 16) == 1 << 2


def test_memory_is_closed_to_the_same_user() -> None:
    """Environment and memory are closed to a process of the same user."""
    script = "import sys; from fusefs.engine.privileges import hide_memory\n"
    for hide, said in (("hide_memory()", "closed"), ("", "")):
        process = subprocess.Popen(
            [*_POWERLESS, "-c", f"{script}{hide}\nprint(flush=True)\nsys.stdin.read()"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            peek = [*_POWERLESS, "-c", PEEK, str(process.pid)]
            done = subprocess.run(peek, capture_output=True, text=True, timeout=60, check=False)
            assert done.stdout.strip() == said, done.stderr
        finally:
            process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/*/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
    ids=["x86_64", "aarch64"],
)
def test_the_numbers_are_the_kernels(column: int, header: str) -> None:
    """Each number is the one in the kernel's own headers, as far as they know the call."""
    files = [*Path("/").glob(header[1:])]
    if not files:  # the first is on machines of its own kind alone
        assert column == 0 and os.uname().machine != "x86_64"
        return
    file = files[0]
    known = {
        name: int(number)
        for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", file.read_text())
    }
    table = {**seccomp.NEVER, **seccomp.MOUNTING, **seccomp.ABSENT}
    ours = {name: numbers[column] for name, numbers in table.items() if name in known}
    assert ours == {name: known[name] for name in ours}
    assert len(ours) == len(table)


def answer(program: bytes, number: int, architecture: int, argument: int = 0) -> int:
    """What the kernel would do: SECCOMP_RET_… of a call, by running the program as it does."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, argument, *[0] * 5)
    lines: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
            continue
        holds = {
            0x15: accumulator == value,
            0x35: accumulator >= value,
            0x45: bool(accumulator & value),
        }[code]
        at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("mounting", [True, False])
def test_the_filter_on_each_architecture(machine: str, mounting: bool) -> None:
    """Every call of the lists is refused, every other one is allowed, on both architectures."""
    allow, refuse, absent = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    column, architecture = seccomp._ARCHITECTURES[machine]
    tables = [seccomp.NEVER, *([seccomp.MOUNTING] if mounting else [])]
    refused = {numbers[column] for table in tables for numbers in table.values()}
    missing = {numbers[column] for numbers in seccomp.ABSENT.values()}
    clone = seccomp._CLONE[column]
    program = seccomp._program(architecture, [*refused], [*missing], clone, mounting)
    for number in range(500):
        want = refuse if number in refused else absent if number in missing else allow
        assert answer(program, number, architecture) == want, number
    assert answer(program, clone, architecture, 0x3D0F00) == allow  # a thread
    namespace = answer(program, clone, architecture, 0x10000000)
    assert namespace == (refuse if mounting else allow)
    assert answer(program, 0, 0x40000003) == absent  # 32-bit x86
    assert answer(program, 0x40000000, architecture) == absent
