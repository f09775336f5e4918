"""csi.v1.Node: volumes appear at targets, go from there, and tell how they are.

A target is a bind of a source mount (`fusefs.kubernetes.sources`). The one idea is what a repeated
publish may do: kubelet sends one every minute to renew tokens, and again after each of its own
restarts. It looks at mountinfo and at our own record, writes tokens, and says OK: it never fails,
never unmounts, never asks the store, for a failure there costs a running pod its volume.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc

from fusefs.errors import ConfigError, FusefsError
from fusefs.kubernetes import mounts
from fusefs.kubernetes.answers import Refused
from fusefs.kubernetes.attributes import TOKENS, Rules, Volume, parse_volume
from fusefs.kubernetes.capabilities import VOLUME_ID_BYTES_MAX, check_capability, needed
from fusefs.kubernetes.credentials import Credentials, credentials_of, given_secrets
from fusefs.kubernetes.records import Records, Target
from fusefs.kubernetes.sources import SourceMount, Sources
from fusefs.kubernetes.stats import volume_stats
from fusefs.kubernetes.wire import csi
from fusefs.mount import kernel

log = logging.getLogger("fusefs.kubernetes")

PUBLISH_TIMEOUT_S = 60.0
"""For callers without a deadline; kubelet's own is 120 s."""

MARGIN_S = 1.0
"""Of a caller's deadline, kept for the answer and for what has to be taken back."""


@dataclass(frozen=True, slots=True)
class Publish:
    """One request, its parts in order."""

    volume_id: str
    path: str
    read_only: bool
    context: Mapping[str, str]
    secrets: Mapping[str, str]
    flags: tuple[str, ...]
    group: str

    @property
    def arguments(self) -> str:
        """A hash of all that is no credential: the same for a repeated publish."""
        said = {name: text for name, text in self.context.items() if name != TOKENS}
        whole = [self.volume_id, self.read_only, sorted(said.items()), self.flags, self.group]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


class Node:
    """The service.

    The mutable state of Node is the targets on which a call is at work, and counts.
    """

    def __init__(
        self,
        node_id: str,
        sources: Sources,
        records: Records,
        rules: Rules,
        volume_stats: bool = True,
    ) -> None:
        self._node_id = node_id
        self._has_stats = volume_stats
        self._sources = sources
        self._records = records
        self._rules = rules
        self._busy: set[str] = set()
        self._busy_lock = threading.Lock()
        self.republished: Counter[str] = Counter()

    def publish(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Show a volume at its target; said again, renew its tokens."""
        asked = _read_publish(request)
        with self._alone_on(asked.path):
            rows = mounts.rows_at(asked.path, kernel.mount_rows())
            known = self._records.target(asked.path)
            if rows and rows[-1].fstype != kernel.FSTYPE:
                raise mounts.TargetOccupied(
                    f"{rows[-1].fstype} is mounted at the target {asked.path}: unmount it"
                )
            if rows and known is not None:
                self._republish(asked, known)
            elif rows:  # ours, and what was known of it is lost: it may be dead, so over it
                self._show_again(asked, *self._read(asked))
            else:
                self._publish(asked, time.monotonic() + _time_left(context))
        return csi("NodePublishVolumeResponse")()

    def unpublish(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Take a volume from its target; that it is not there is fine."""
        needed(request.volume_id, "volume_id")
        path = mounts.resolve(needed(request.target_path, "target_path"))
        with self._alone_on(path):
            known = self._records.target(path)
            mounts.remove_target(path)
            self._records.remove_target(path)
            if known is not None:
                self._sources.remove_unused(known.key)
        return csi("NodeUnpublishVolumeResponse")()

    def get_volume_stats(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Sizes and health, from the daemon's memory: the mount is not touched."""
        if not self._has_stats:
            raise Refused(
                grpc.StatusCode.UNIMPLEMENTED, "the plugin was started with --no-volume-stats"
            )
        identifier = needed(request.volume_id, "volume_id")
        path = mounts.resolve(needed(request.volume_path, "volume_path"))
        known = self._records.target(path)
        if known is None or known.volume_id != identifier:
            raise Refused(
                grpc.StatusCode.NOT_FOUND, "this volume is not published at this path on this node"
            )
        return volume_stats(self._sources, known)

    def get_capabilities(self, request: Any, context: grpc.ServicerContext) -> Any:
        """What the node's side can do."""
        answer = csi("NodeGetCapabilitiesResponse")()
        stats = (2, 4) if self._has_stats else ()  # GET_VOLUME_STATS, VOLUME_CONDITION
        for number in (*stats, 6):  # VOLUME_MOUNT_GROUP
            answer.capabilities.add().rpc.type = number
        return answer

    def get_info(self, request: Any, context: grpc.ServicerContext) -> Any:
        """The node's name; as many volumes as one likes, and no topology."""
        return csi("NodeGetInfoResponse")(node_id=self._node_id)

    @contextmanager
    def _alone_on(self, path: str) -> Iterator[None]:
        with self._busy_lock:
            if path in self._busy:
                raise Refused(
                    grpc.StatusCode.ABORTED, f"another call is at work on {path}: try again"
                )
            self._busy.add(path)
        try:
            yield
        finally:
            with self._busy_lock:
                self._busy.discard(path)

    def _publish(self, asked: Publish, until: float) -> None:
        volume, credentials = self._read(asked)
        mounts.make_target(asked.path)
        try:
            with self._sources.using(volume, credentials, until) as mount:
                self._bind(asked, mount)
                self._sources.renew(mount, credentials)
        except BaseException:
            mounts.remove_target(asked.path)
            self._records.remove_target(asked.path)
            raise
        log.info("published %s at %s", asked.volume_id, asked.path)

    def _bind(self, asked: Publish, mount: SourceMount) -> None:
        key = mount.record.key
        self._records.write_target(
            Target(asked.path, asked.volume_id, key, asked.read_only, asked.arguments)
        )
        # With a sidecar, the whole mount turns read-only when it serves.
        read_only = asked.read_only or mount.record.meeting is not None
        mounts.bind(self._sources.mountpoint(key), asked.path, read_only)

    def _republish(self, asked: Publish, known: Target) -> None:
        """Renew; raise only if what is asked is another volume than what is there."""
        if known.arguments != asked.arguments:
            raise Refused(
                grpc.StatusCode.ALREADY_EXISTS,
                f"the target {asked.path} shows a volume with another id, other attributes or"
                " another readOnly: unpublish it first",
            )
        result = "renewed"
        try:
            volume, credentials = self._read(asked)
            mount = self._sources.find(known.key)
            if mount is None:
                self._show_again(asked, volume, credentials)
                result = "mounted again"
            elif mount.record.subject == credentials.subject:  # the volume is the same, see above
                self._sources.renew(mount, credentials)
            else:
                result = "kept"
                log.warning("%s came with another identity: it keeps its own", asked.volume_id)
        except (FusefsError, OSError) as error:
            result = "failed"
            log.warning("%s keeps what it has: %s", asked.volume_id, error)
        self.republished[result] += 1

    def _show_again(self, asked: Publish, volume: Volume, credentials: Credentials) -> None:
        """Its connection is gone for good: a new mount over the dead one.

        Over it, since a container that starts now must not find the bare folder.
        """
        until = time.monotonic() + PUBLISH_TIMEOUT_S
        with self._sources.using(volume, credentials, until) as mount:
            self._bind(asked, mount)

    def _read(self, asked: Publish) -> tuple[Volume, Credentials]:
        has_secret = bool(given_secrets(asked.secrets))
        volume = parse_volume(asked.context, has_secret, asked.flags, asked.group, self._rules)
        return volume, credentials_of(volume, asked.context, asked.secrets)


def _read_publish(request: Any) -> Publish:
    """Raises ConfigError or Unsupported."""
    identifier = needed(request.volume_id, "volume_id")
    if len(identifier.encode()) > VOLUME_ID_BYTES_MAX:
        raise ConfigError(f"volume_id has more than {VOLUME_ID_BYTES_MAX} bytes")
    path = needed(request.target_path, "target_path")
    if not path.startswith("/") or "\0" in path:
        raise ConfigError("target_path must be an absolute path")
    if not request.HasField("volume_capability"):
        raise ConfigError("volume_capability is missing in the request")
    check_capability(request.volume_capability)
    mount = request.volume_capability.mount
    return Publish(
        identifier, mounts.resolve(path), request.readonly, dict(request.volume_context),
        dict(request.secrets), tuple(mount.mount_flags), mount.volume_mount_group,
    )  # fmt: skip


def _time_left(context: grpc.ServicerContext) -> float:
    # None for a call without a deadline, whatever the types say.
    left = cast("float | None", context.time_remaining())
    return PUBLISH_TIMEOUT_S if left is None else min(left, PUBLISH_TIMEOUT_S) - MARGIN_S
