"""The source mounts of this node: one for each mount key, shared by every volume that fits.

Mounts, hands over to the mounter or to a pod's sidecar, renews credentials, and takes away what
nobody shows any more.
The one idea: a source mount lives as long as a bind of it is in mountinfo or a publish is under
way; both are looked at under one lock, so it never goes while somebody is about to bind it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from fusefs.errors import ConfigError, FusefsError
from fusefs.kubernetes import mounts
from fusefs.kubernetes.attributes import Volume
from fusefs.kubernetes.channel import Channel, LinkDown
from fusefs.kubernetes.credentials import Credentials
from fusefs.kubernetes.link import RELEASE_TIMEOUT_S, Callbacks, Link, serve_message
from fusefs.kubernetes.places import Places
from fusefs.kubernetes.raising import Raiser
from fusefs.kubernetes.records import Record, Records, new_key
from fusefs.kubernetes.sockets import listen_for_sidecar, wait_for_meeting
from fusefs.mount import kernel
from fusefs.mount.estate import Estate

log = logging.getLogger("fusefs.kubernetes")

RESUME_PAUSE_S = 1.0
"""After the first attempt to have a mount served whose readers wait; doubled each time."""

RESUME_PAUSE_MAX_S = 8.0

LEAVING_S = 15.0
"""A sidecar that ended in order comes back at once, or never: it was its pod that ended."""

ABSENT_S = 600.0
"""One that crashed comes back; kubelet makes it wait 5 minutes at most (CrashLoopBackOff)."""

RESUME_TIMEOUT_S = 60.0
"""A new mounter starts many daemons at once; each takes a second of two cores."""


@dataclass(slots=True, eq=False)
class SourceMount:
    """One key, served by who is at the other end of `link`.

    INVARIANT: `estate` is there once it is mounted, until it is taken away.
    """

    record: Record
    link: Link
    estate: Estate | None = None
    pending: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_alive(self) -> bool:
        """Whether its connection still lives, as far as we know: without a descriptor it may."""
        return self.estate is not None and kernel.is_connected(self.estate.fuse_fd)


class Sources:
    """All source mounts. Thread-safe.

    The mutable state of Sources is `_mounts`, by key, under `_lock`. A mount's own lock is taken
    before `_lock`, never within it.
    """

    def __init__(self, places: Places, records: Records, mounter: Link, raiser: Raiser) -> None:
        self._places = places
        self._records = records
        self._mounter = mounter
        self._raiser = raiser
        self._lock = threading.Lock()
        self._mounts: dict[str, SourceMount] = {}

    def load(self) -> None:
        """Know again what an earlier plugin mounted; estates come from the mounter."""
        rows = kernel.mount_rows()
        for record in list(self._records.all()):
            found = mounts.rows_at(str(self._places.mountpoint(record.key)), rows)
            mount = SourceMount(record, self._link_of(record))
            if not found or record.device is None or found[-1].device != record.device:
                self._forget(mount)
                continue
            self._mounts[record.key] = mount
            try:
                self._meet(mount)
            except (FusefsError, OSError) as error:  # the pod's folder is gone: so is the pod
                log.warning("the sidecar of %s cannot be met: %s", record.key, error)
        self._remove_strangers()

    @contextmanager
    def using(
        self, volume: Volume, credentials: Credentials, until: float
    ) -> Iterator[SourceMount]:
        """A mount of this volume, brought up if there is none; it stays while the context lasts.

        Raises what the source says, or LinkDown; then nothing stays.
        """
        mount = self._reserve(volume, credentials, until)
        try:
            with mount.lock:
                if mount.estate is None:
                    mount.estate = self._bring_up(mount, credentials, until)
                elif not mount.is_alive:
                    raise LinkDown("the mount was just lost: try again")
            yield mount
        finally:
            with self._lock:
                mount.pending -= 1
            self.remove_unused(mount.record.key)

    def find(self, key: str) -> SourceMount | None:
        """The mount with this key, if it is there."""
        with self._lock:
            return self._mounts.get(key)

    def renew(self, mount: SourceMount, credentials: Credentials) -> None:
        """Give a mount newer credentials of the same subject. Raises OSError."""
        if mount.record.meeting is not None:
            return  # those are its sidecar's own matter
        with mount.lock:
            changed = mount.record.fingerprint != credentials.fingerprint
            mount.record = replace(mount.record, fingerprint=credentials.fingerprint)
            self._records.write(mount.record, credentials)
        if changed:  # a token is read again from its file; variables need another daemon
            mount.link.renew(mount.record.key)

    def remove_unused(self, key: str) -> None:
        """Take a mount away if nobody shows it and nobody is about to."""
        with self._lock:
            mount = self._mounts.get(key)
            if mount is None or mount.pending or self._is_shown(mount):
                return
            del self._mounts[key]
        self._take_away(mount)

    def resume(self, old: Channel | None, channel: Channel, held: dict[str, Estate]) -> None:
        """A mounter is there: have it serve all mounts, after whoever served before it."""
        with self._lock:
            known = {
                key: mount for key, mount in self._mounts.items() if mount.record.meeting is None
            }
        threads = []
        for key, mount in known.items():
            # At once: each takes a second, and its readers wait.
            work = partial(self._resume_one, mount, held.pop(key, None), old, channel)
            threads.append(threading.Thread(target=work, name=key, daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
        for key, estate in held.items():  # unpublished while no plugin ran
            estate.close()
            channel.tell({"op": "drop", "key": key})

    def mountpoint(self, key: str) -> str:
        """Where the source of a key is mounted."""
        return str(self._places.mountpoint(key))

    def give_up(self, key: str) -> None:
        """No daemon could serve this mount for long: its readers get an error instead of hanging.

        The next publish of a volume of it mounts anew.
        """
        with self._lock:
            mount = self._mounts.pop(key, None)
        if mount is not None:
            self._take_away(mount)

    def all(self) -> list[SourceMount]:
        """Every mount there is."""
        with self._lock:
            return list(self._mounts.values())

    def _link_of(self, record: Record) -> Link:
        if record.meeting is None:
            return self._mounter
        return Link("the pod's sidecar", only=record.key)

    def _meet(self, mount: SourceMount) -> None:
        """Listen for the sidecar, if it is one that serves. Raises FusefsError or OSError."""
        if mount.record.meeting is None:
            return
        key = mount.record.key
        mount.link.start(
            listen_for_sidecar(mount.record.meeting),
            Callbacks(
                partial(self._resume_sidecar, mount), self.give_up, partial(self._miss, mount)
            ),
        )
        log.info("the sidecar of %s is awaited", key)

    def _resume_sidecar(
        self, mount: SourceMount, old: Channel | None, channel: Channel, held: dict[str, Estate]
    ) -> None:
        estate = held.pop(mount.record.key, None)
        if estate is not None:
            try:
                estate.check_kind()
            except FusefsError as error:
                log.warning("what the sidecar of %s holds is refused: %s", mount.record.key, error)
                estate.close()
                estate = None
        try:
            self._resume_one(mount, estate, old, channel)
        except FusefsError as error:
            log.error("%s: %s", mount.record.key, error)  # noqa: TRY400 - a sentence

    def _miss(self, mount: SourceMount, in_order: bool) -> None:
        """Its sidecar has gone: wait for the next one, but not for ever."""
        seen = mount.link.connections_total

        def look() -> None:
            if mount.link.connections_total == seen and not mount.link.is_connected:
                log.warning("no sidecar came for %s: it is given up", mount.record.key)
                if self.find(mount.record.key) is mount:
                    self.give_up(mount.record.key)

        timer = threading.Timer(LEAVING_S if in_order else ABSENT_S, look)
        timer.daemon = True
        timer.start()

    def _take_away(self, mount: SourceMount) -> None:
        """Forget a mount that nobody can find any more."""
        if mount.record.meeting is not None:
            mount.link.close()  # first: nobody is to wait for an answer of a pod that ends
        with mount.lock:
            self._forget(mount)

    def _reserve(self, volume: Volume, credentials: Credentials, until: float) -> SourceMount:
        asked = volume.describe()
        meeting = None
        if volume.meeting is not None:
            meeting = wait_for_meeting(self._places, volume.meeting, until)
        with self._lock:
            for mount in self._mounts.values():
                if meeting is not None and mount.record.meeting == meeting:
                    raise ConfigError(
                        "another volume of the pod meets its sidecar in the same emptyDir: name one"
                        " of its own with sidecarVolume, and give it a sidecar of its own"
                    )
                if (
                    meeting is None
                    and mount.record.serves(asked, credentials)
                    and (mount.estate is None or mount.is_alive)
                ):
                    mount.pending += 1
                    return mount
            record = Record(
                new_key(), asked["source"], asked["config"], credentials.subject,
                credentials.fingerprint, credentials.inherit, meeting=meeting,
            )  # fmt: skip
            mount = SourceMount(record, self._link_of(record), pending=1)
            self._mounts[record.key] = mount
            return mount

    def _bring_up(self, mount: SourceMount, credentials: Credentials, until: float) -> Estate:
        """Mount and have it served. Raises FusefsError; then nothing of it is left mounted."""
        record = mount.record
        if record.device is not None:
            raise LinkDown("the mount waits for the mounter, which has not come back yet")
        if record.meeting is None:
            mount.link.wait_connected(until)
        self._records.write(record, credentials)
        mountpoint = str(self._places.mountpoint(record.key))
        estate = self._raiser.mount(record, mountpoint)
        try:
            mount.record = replace(record, device=estate.device)
            self._records.write(mount.record, None)
            if record.meeting is not None:
                # Kubelet starts no container of the pod before it has all volumes.
                self._meet(mount)
                return estate
            mount.link.serve(mount.record, estate, until)
            estate = self._raiser.finish(mount.record, mountpoint, estate)
            mount.link.hand_listener(record.key, estate)
        except (FusefsError, OSError):
            mount.record = record
            mount.link.release(record.key)
            self._raiser.take_down(mountpoint, estate)
            raise
        return estate

    def _finish_for_sidecar(self, mount: SourceMount, estate: Estate) -> None:
        """What its daemon has to answer for, if it has not yet. Raises FusefsError."""
        if estate.is_finished:
            return
        mountpoint = str(self._places.mountpoint(mount.record.key))
        mount.estate = self._raiser.finish(mount.record, mountpoint, estate)
        with contextlib.suppress(LinkDown):  # it ended; the next one gets all
            mount.link.hand_listener(mount.record.key, mount.estate)

    def _resume_one(
        self, mount: SourceMount, held: Estate | None, old: Channel | None, channel: Channel
    ) -> None:
        with mount.lock:
            if self._take_back(mount, held):
                self._serve_again(mount, old, channel)
            elif mount.record.meeting is not None and mount.estate is not None:
                self._finish_for_sidecar(mount, mount.estate)

    def _take_back(self, mount: SourceMount, held: Estate | None) -> bool:
        """Whether the mount has to be served by the new mounter: it was ours, and it lives."""
        key = mount.record.key
        if held is not None:  # it serves; we came back
            # What comes from an unprivileged process is believed where it fits what we wrote down.
            if mount.estate is not None or held.device != mount.record.device:
                held.close()
            else:
                mount.estate = held
            if mount.estate is not None:
                return False
        if mount.estate is None:
            if mount.record.device is not None:
                log.error("the mount %s is lost: plugin and mounter ended at once", key)
                self._drop(mount)
            return False
        return True

    def _serve_again(self, mount: SourceMount, old: Channel | None, channel: Channel) -> None:
        key = mount.record.key
        if old is not None:
            with contextlib.suppress(LinkDown):  # it ended, and its daemons with it
                old.ask({"op": "release", "key": key}, time.monotonic() + RELEASE_TIMEOUT_S)
        pause_s = RESUME_PAUSE_S
        while self.find(key) is mount and mount.is_alive and not channel.closed:
            assert mount.estate is not None
            try:
                until = time.monotonic() + RESUME_TIMEOUT_S
                channel.ask(serve_message(mount.record), until, mount.estate)
                if mount.record.meeting is not None:
                    self._finish_for_sidecar(mount, mount.estate)
            except FusefsError as error:
                log.error("the mount %s is not served: %s", key, error)  # noqa: TRY400 - a sentence
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, RESUME_PAUSE_MAX_S)
            else:
                return
        if mount.record.meeting is not None and not mount.is_alive and self.find(key) is mount:
            self._drop(mount)  # the next publish mounts anew

    def _drop(self, mount: SourceMount) -> None:
        """Forget a mount whose connection is gone. Its lock is held."""
        with self._lock:
            self._mounts.pop(mount.record.key, None)
        if mount.record.meeting is not None:
            mount.link.close()
        self._forget(mount)

    def _is_shown(self, mount: SourceMount) -> bool:
        device, own = mount.record.device, str(self._places.mountpoint(mount.record.key))
        return any(row.device == device and row.mountpoint != own for row in kernel.mount_rows())

    def _forget(self, mount: SourceMount) -> None:
        """Take away the mount, its daemon, its credentials."""
        key = mount.record.key
        mount.link.release(key)
        self._raiser.take_down(str(self._places.mountpoint(key)), mount.estate)
        mount.estate = None
        self._records.remove(key)

    def _remove_strangers(self) -> None:
        """Folders of mounts that nobody knows: of a plugin that was killed while it mounted."""
        for folder in self._places.mounts.iterdir():
            if folder.name not in self._mounts:
                self._raiser.take_down(str(folder), None)
