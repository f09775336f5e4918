"""A loader's end of the hint socket: plans, progress, slots.

Thread-safe; one connection, one thread that reads it. The one idea: a client cannot fail. Every
method returns at once or within a bound, and says None (or False) where there is no answer: the
loader then reads files, as it would without hints. A daemon that starts again gets the plans again;
a peer that does not keep to the protocol is left for good.

A forked child has no client: its copy is shut at the fork, the parent's goes on.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from loaderhint import protocol
from loaderhint.channel import Connection, NoDaemon, connect, receive
from loaderhint.plan import Extent
from loaderhint.wishes import Events, Progress, Wanted, frames_of, progress_of

REQUEST_TIMEOUT_S = 2.0
"""Like the greeting's: answers take milliseconds."""

RECONNECT_TIMEOUT_S = 60.0
"""A daemon that is started again answers within seconds. After a minute the mount is taken for
gone; what was asked for is then simply read."""

_RECONNECT_DELAYS_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Before each attempt, the last one again and again."""

_STEADY_S = 5.0
"""A connection that lasted so long was a good one: the minute begins anew."""

LOST = "lost"
"""Our own event: the connection ended, slots that came over it are no longer ours."""

_log = logging.getLogger("loaderhint")


@dataclass(slots=True)
class _Plan:
    """One plan as sent, so that it can be sent again; `slots` live and die with a connection."""

    requests: list[dict[str, Any]]
    slots: bool
    events: Events = field(default_factory=Events)


@dataclass(slots=True)
class _Call:
    """One request that waits for its answer, and for a descriptor if it is to bring one."""

    brings_descriptor: bool = False
    answered: threading.Event = field(default_factory=threading.Event)
    ok: dict[str, Any] | None = None
    descriptor: int | None = None


class Client:
    """One greeted connection to a daemon, renewed when the daemon is.

    The mutable state of Client is the connection (None between two), the plans, the calls that
    wait, and whether it is closed. INVARIANT: `_lock` is held for each change of them.
    """

    def __init__(self, folder: str, device: int, connection: Connection) -> None:
        self._folder = folder
        self._device = device
        self.features = connection.features
        self._extents_max = connection.extents_max
        self._files_max = connection.files_max
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._ids = itertools.count(1)
        self._connection: Connection | None = connection
        self._plans: dict[str, _Plan] = {}
        self._calls: dict[int, _Call] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loaderhint-client", daemon=True)

    def start(self) -> None:
        """Begin to listen; once."""
        self._thread.start()
        _clients.add(self)

    def plan(
        self, plan: str, wanted: Sequence[Wanted], *, mode: str = "warm", **fields: Any
    ) -> Progress | None:
        """Ask for these extents under the name `plan`. None if the daemon does not promise them.

        `mode`, and `fields` such as order, priority, group and window_bytes, are those of the
        protocol. A plan of the same name is replaced.
        """
        common = {"plan": plan, "mode": mode, **fields}
        requests = [
            {**common, "files": files} | ({"append": True} if number else {})
            for number, files in enumerate(frames_of(wanted, self._files_max, self._extents_max))
        ]
        with self._lock:
            self._plans[plan] = _Plan(requests, mode == "slots")
        answer = None
        for request in requests:
            answer = self._call(protocol.PLAN, request)
            if answer is None:
                break
        return progress_of(answer)

    def subscribe(self, plan: str, every_bytes: int | None = None) -> Events | None:
        """The events of a plan from now on; None if there are none to come."""
        request = {"plan": plan} | ({"every_bytes": every_bytes} if every_bytes else {})
        with self._lock:
            known = self._plans.get(plan)
            if known is None:
                return None
            if not known.slots:
                known.requests = [*known.requests, {"op": protocol.SUBSCRIBE, **request}]
        return known.events if self._call(protocol.SUBSCRIBE, request) is not None else None

    def map(self, plan: str) -> tuple[Events, int] | None:
        """The events of a slots plan, and a descriptor of the arena that the caller closes."""
        with self._lock:
            known = self._plans.get(plan)
        call = _Call(brings_descriptor=True)
        if known is None or self._call(protocol.MAP, {"plan": plan}, call) is None:
            return None
        descriptor = call.descriptor
        return None if descriptor is None else (known.events, descriptor)

    def wait(self, plan: str, inode: int, extent: Extent, timeout_s: float) -> bool:
        """Wait until these bytes are ready; they are fetched first. False if they are not."""
        start, stop = extent
        request = {"plan": plan, "inode": inode, "start": start, "stop": stop}
        request["timeout_ms"] = int(timeout_s * 1000)
        return self._call(protocol.WAIT, request, timeout_s=timeout_s) is not None

    def release(self, plan: str, slots: Sequence[int]) -> None:
        """Give slots back, by the places the daemon named. Nobody waits for an answer."""
        self._post({"op": protocol.RELEASE, "plan": plan, "slots": list(slots)})

    def cancel(self, plan: str) -> None:
        """Forget a plan. What is ready stays, what is not is no longer fetched for it."""
        with self._lock:
            known = self._plans.pop(plan, None)
        if known is not None:
            self._post({"op": protocol.CANCEL, "plan": plan})

    def progress(self, plan: str) -> Progress | None:
        """How far a plan is; None if nobody can say."""
        return progress_of(self._call(protocol.PROGRESS, {"plan": plan}))

    def stats(self) -> dict[str, Any] | None:
        """What the daemon says of itself."""
        return self._call(protocol.STATS, {})

    def holds(self, plan: str) -> bool:
        """Whether what lies in the slots of this plan is still ours: the daemon has not hung up.

        Asked of the kernel, since the end may be there before our thread has read it. A daemon
        hangs up before it uses a slot again, so this is true after a copy only if the copy is good.
        """
        poll = select.poll()
        with self._lock:  # so that the descriptor is not closed meanwhile, and another's
            if self._connection is None or plan not in self._plans:
                return False
            poll.register(self._connection.socket, select.POLLRDHUP)
            return not poll.poll(0)

    def close(self) -> None:
        """Hang up, which cancels every plan and gives every slot back."""
        self._closed.set()
        with self._lock:
            connection = self._connection
        if connection is not None:
            _hang_up(connection)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(REQUEST_TIMEOUT_S + 1)

    def forget(self) -> None:
        """In a forked child: let go of the connection without a word, for it is the parent's."""
        self._closed.set()
        connection, self._connection = self._connection, None
        # The thread that held a lock is not here to give it back.
        self._lock, self._sending = threading.Lock(), threading.Lock()
        if connection is not None:
            os.close(connection.socket.detach())

    def _call(
        self,
        op: str,
        fields: dict[str, Any],
        call: _Call | None = None,
        timeout_s: float = 0.0,
    ) -> dict[str, Any] | None:
        call = call or _Call()
        number = next(self._ids)
        with self._lock:
            self._calls[number] = call
        if self._post({**fields, "op": op}, number):
            call.answered.wait(timeout_s + REQUEST_TIMEOUT_S)
        with self._lock:
            self._calls.pop(number, None)
        return call.ok

    def _post(self, message: dict[str, Any], number: int | None = None) -> bool:
        with self._lock:
            connection = self._connection
        if connection is None or self._closed.is_set():
            return False
        return self._send(connection, {"id": number or next(self._ids), **message})

    def _send(self, connection: Connection, message: dict[str, Any]) -> bool:
        try:
            frame = protocol.encode(message)
            with self._sending:
                connection.socket.sendall(frame)
        except (OSError, ValueError) as error:
            _log.debug("a hint was not sent: %s", error)
            _hang_up(connection)  # half a frame may be out
            return False
        return True

    def _run(self) -> None:
        """Read until there is nobody to read from any more."""
        connection = self._connection
        deadline, delays = 0.0, _delays()
        while connection is not None:
            began = time.monotonic()
            keeps = self._listen(connection)
            self._drop(connection)
            if not keeps or self._closed.is_set():
                return
            now = time.monotonic()
            if deadline == 0.0 or now - began > _STEADY_S:
                deadline, delays = now + RECONNECT_TIMEOUT_S, _delays()
            connection = self._reconnect(deadline, delays)

    def _listen(self, connection: Connection) -> bool:
        """Take what comes; False if the peer does not keep to the protocol."""
        try:
            receive(connection, self._dispatch)
        except protocol.ProtocolError as error:
            _log.debug("the daemon is not listened to any longer: %s", error)
            return False
        except (OSError, ValueError) as error:
            _log.debug("the connection to the daemon ended: %s", error)
        return True

    def _dispatch(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if "ev" in message:
            with self._lock:
                plan = self._plans.get(str(message.get("plan")))
            if plan is not None and not plan.events.put(message):
                raise protocol.ProtocolError("the daemon floods its client")
            return
        with self._lock:
            call = self._calls.pop(_number(message.get("id")), None)
            if call is None:
                return  # too late, or an answer that nobody waits for
            ok = message.get("ok")
            call.ok = ok if isinstance(ok, dict) else None
            if call.ok is None:
                _log.debug("the daemon refuses: %s", message.get("error"))
            elif descriptors and call.brings_descriptor:
                call.descriptor = descriptors.pop(0)
            call.answered.set()

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            self._connection = None
            calls, self._calls = list(self._calls.values()), {}
            slots = [name for name, plan in self._plans.items() if plan.slots]
            gone = [self._plans.pop(name) for name in slots]
        connection.socket.close()
        for call in calls:
            call.answered.set()
        for plan in gone:
            plan.events.put({"ev": LOST})

    def _reconnect(self, deadline: float, delays: Iterator[float]) -> Connection | None:
        for delay in delays:
            if self._closed.wait(delay) or time.monotonic() > deadline:
                return None
            try:
                connection = connect(self._folder, self._device)
            except NoDaemon as error:
                _log.debug("the daemon is not back yet: %s", error)
                continue
            with self._lock:
                if self._closed.is_set():
                    connection.socket.close()
                    return None
                self._connection = connection
                requests = [one for plan in self._plans.values() for one in plan.requests]
            for request in requests:
                self._send(connection, {"id": next(self._ids), "op": protocol.PLAN, **request})
            return connection
        raise AssertionError("delays never end")


def _delays() -> Iterator[float]:
    return itertools.chain(_RECONNECT_DELAYS_S, itertools.repeat(_RECONNECT_DELAYS_S[-1]))


def _number(value: object) -> int:
    return value if type(value) is int else -1


def _hang_up(connection: Connection) -> None:
    try:
        connection.socket.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        _log.debug("the connection had ended: %s", error)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _forget_all() -> None:
    for client in list(_clients):
        client.forget()


os.register_at_fork(after_in_child=_forget_all)
