"""A name server that knows one name, or claims to have failed.

glibc asks port 53 of what /etc/resolv.conf names and nothing else, so this listens on an address of
the loopback network of its own, and whoever uses it does so in a mount namespace of his own, with
an /etc/resolv.conf of his own (`open_resolver`). Needs root.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "127.0.77.53"
NAME = "store.test"
"""RFC 6761 keeps `test` for this."""

_A, _IN = 1, 1
_ANSWER, _SERVFAIL = 0x8180, 0x8182
_TTL_S = 0


class Resolver:
    """The server. `fails` may change at any time; `failures` is how often that was heard."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self.fails = False
        self.failures = 0

    def run(self) -> None:
        """Answer until the socket is shut."""
        while True:
            try:
                question, asker = self._wire.recvfrom(512)
            except OSError:
                return
            if not question:
                return
            self._wire.sendto(self._answer(question), asker)

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 5  # the name, its end, type and class
        asked, kind = question[12 : end - 4], struct.unpack_from(">H", question, end - 4)[0]
        flags, answers = _ANSWER, b""
        if self.fails:
            self.failures += 1
            flags = _SERVFAIL
        elif kind == _A and asked == _encoded(NAME):
            address = socket.inet_aton("127.0.0.1")
            answers = struct.pack(">HHHIH", 0xC00C, _A, _IN, _TTL_S, len(address)) + address
        head = question[:2] + struct.pack(">HHHHH", flags, 1, bool(answers), 0, 0)
        return head + question[12:end] + answers


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


@contextmanager
def open_resolver(folder: Path) -> Iterator[Resolver]:
    """Run one, and have this mount namespace, which must be a private one, ask it alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind((ADDRESS, 53))
        resolver = Resolver(wire)
        thread = threading.Thread(target=resolver.run, name="resolver", daemon=True)
        thread.start()
        for path, text in (
            ("/etc/resolv.conf", f"nameserver {ADDRESS}\noptions timeout:1 attempts:1\n"),
            ("/etc/nsswitch.conf", "hosts: files dns\n"),
        ):
            ours = folder / Path(path).name
            ours.write_text(text)
            subprocess.run(["mount", "--bind", str(ours), path], check=True)
        try:
            yield resolver
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", (ADDRESS, 53))
            thread.join()
