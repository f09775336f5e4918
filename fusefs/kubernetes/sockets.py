"""The plugin's listening sockets: where a mounter, or a pod's sidecar, finds it.

The mounter's is in a folder of our own. A sidecar's is in an emptyDir, where a hostile pod may put
symbolic links and rename what we make: so nothing there is followed, and what is changed is what
was opened and looked at. Who connects is not judged here.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

from fusefs.kubernetes.attributes import PodVolume
from fusefs.kubernetes.channel import LinkDown
from fusefs.kubernetes.mounts import TargetUnusable
from fusefs.kubernetes.places import Places, link_of

MEETING_TIMEOUT_S = 5.0
"""Kubelet asks again; meanwhile the call would keep one of the plugin's few threads."""

LOOK_S = 0.1
"""Between two looks whether kubelet has set up an emptyDir: it does so beside our publish."""


def listen_for_mounter(path: Path, gid: int) -> socket.socket:
    """The socket at `path`, for root and one group. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    os.chown(path, -1, gid)
    path.chmod(0o660)
    listener.listen()
    return listener


def wait_for_meeting(places: Places, asked: PodVolume, until: float) -> str:
    """The folder of an emptyDir, once kubelet has set it up: a tmpfs would hide what comes sooner.

    Raises LinkDown.
    """
    ready = places.meeting_ready(asked.pod_uid, asked.name)
    until = min(until, time.monotonic() + MEETING_TIMEOUT_S)
    while not ready.exists():
        if time.monotonic() > until:
            raise LinkDown(
                f"the pod has no emptyDir {asked.name}, or it is not set up yet: add it to the"
                " pod's volumes, or name another one with sidecarVolume"
            )
        time.sleep(LOOK_S)  # another process makes it, and kubelet's folder has no end of events
    return str(places.meeting(asked.pod_uid, asked.name))


def listen_for_sidecar(folder: str) -> socket.socket:
    """The socket in a pod's folder, for every process that sees it: those of the pod.

    Raises TargetUnusable or OSError.
    """
    folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        name = link_of(Path()).name
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _unlink(name, folder_fd, folder)
            listener.bind(f"/proc/self/fd/{folder_fd}/{name}")
            inode = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
            try:
                if not stat.S_ISSOCK(os.fstat(inode).st_mode):
                    raise TargetUnusable(f"{folder}/{name} was replaced by somebody else")
                # Whoever runs in the pod, and nobody else: others cannot reach the folder.
                os.chmod(f"/proc/self/fd/{inode}", 0o666)  # noqa: S103
            finally:
                os.close(inode)
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener
    finally:
        os.close(folder_fd)


def _unlink(name: str, folder_fd: int, folder: str) -> None:
    try:
        os.unlink(name, dir_fd=folder_fd)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise TargetUnusable(f"{folder}/{name} is a directory: remove it") from None
