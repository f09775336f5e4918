"""The privileged process of a node: `fusefs csi-plugin`. Composition root.

Small: it mounts, binds, detaches and keeps descriptors. It starts no process (fork and gRPC do not
mix), opens no connection to any store, and asks no FUSE file system anything but what
`fusefs.kubernetes.raising` names.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from fusefs.errors import ConfigError
from fusefs.kubernetes.answers import Calls
from fusefs.kubernetes.attributes import Rules
from fusefs.kubernetes.controller import Controller, Identity
from fusefs.kubernetes.http import serve_http
from fusefs.kubernetes.link import Callbacks, Link
from fusefs.kubernetes.metrics import plugin_metrics
from fusefs.kubernetes.node import Node
from fusefs.kubernetes.places import Places
from fusefs.kubernetes.raising import Raiser
from fusefs.kubernetes.records import Records
from fusefs.kubernetes.registration import Registration
from fusefs.kubernetes.sockets import listen_for_mounter
from fusefs.kubernetes.sources import Sources
from fusefs.kubernetes.taint import ApiServer, StartupTaint
from fusefs.kubernetes.wire import Server, handler

log = logging.getLogger("fusefs.kubernetes")

GRACE_S = 5.0
"""For calls under way at SIGTERM; kubelet repeats what is cut."""

NODE_ID_BYTES_MAX = 192
"""csi.proto: the limit on `node_id`, for the sake of CSINode objects."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    endpoint: str
    node_id: str
    places: Places
    rules: Rules
    mounter_uid: int
    controller: bool
    registrar: bool
    http_port: int
    volume_stats: bool = True
    startup_taint: str = ""
    api: ApiServer | None = None


class Plugin:
    """The parts of the plugin, put together. Its mutable state is in its parts."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._socket = socket_path(options.endpoint)
        if len(options.node_id.encode()) > NODE_ID_BYTES_MAX:
            raise ConfigError(f"--node-id has more than {NODE_ID_BYTES_MAX} bytes")
        self._records = Records(options.places, options.mounter_uid)
        self.calls = Calls()
        self.mounter = Link("the mounter of this node", options.mounter_uid)
        self.sources = Sources(options.places, self._records, self.mounter, Raiser())
        self.node = Node(
            options.node_id, self.sources, self._records, options.rules, options.volume_stats
        )
        self.registration = Registration(options.places.driver, self._socket)

    def start(self) -> list[Server]:
        """Know again what is mounted, then listen. Raises FusefsError or OSError."""
        options = self._options
        self._records.prepare()
        self.sources.load()
        self.mounter.start(
            listen_for_mounter(options.places.link, options.mounter_uid),
            Callbacks(self.sources.resume, self.sources.give_up),
        )
        servers = [Server(self._socket, self._handlers())]
        if options.registrar:
            servers.append(self.registration.server(options.places.registration))
        for server in servers:
            server.start()
        if options.http_port:
            serve_http(options.http_port, self.trouble, lambda: plugin_metrics(self))
        log.info("%s listens at %s", options.places.driver, self._socket)
        self._start_taint()
        return servers

    def _start_taint(self) -> None:
        options, registered = self._options, self.registration.registered
        if options.api is None:
            return
        if not options.registrar:
            registered.set()  # the sidecar does not tell us: the CSINode alone says it
        StartupTaint(
            options.startup_taint, options.node_id, options.places.driver, options.api, registered
        ).start()

    def trouble(self) -> str | None:
        """What a restart of this process might heal, if anything."""
        return self.registration.error or None

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        identity, controller, node = Identity(self._options.places.driver), Controller(), self.node
        tables: dict[str, dict[str, Callable[[Any, grpc.ServicerContext], Any]]] = {
            "csi.v1.Identity": {
                "GetPluginInfo": identity.get_plugin_info,
                "GetPluginCapabilities": identity.get_plugin_capabilities,
                "Probe": identity.probe,
            },
            "csi.v1.Node": {
                "NodePublishVolume": node.publish,
                "NodeUnpublishVolume": node.unpublish,
                "NodeGetVolumeStats": node.get_volume_stats,
                "NodeGetCapabilities": node.get_capabilities,
                "NodeGetInfo": node.get_info,
            },
        }
        if self._options.controller:
            tables["csi.v1.Controller"] = {
                "CreateVolume": controller.create_volume,
                "DeleteVolume": controller.delete_volume,
                "ValidateVolumeCapabilities": controller.validate_volume_capabilities,
                "ControllerGetCapabilities": controller.get_capabilities,
            }
        return [
            handler(service, {name: self.calls.method(name, do) for name, do in methods.items()})
            for service, methods in tables.items()
        ]


def socket_path(endpoint: str) -> Path:
    """The path in `unix:///path` or `unix:/path`. Raises ConfigError."""
    scheme, _, rest = endpoint.partition(":")
    path = Path("/" + rest.lstrip("/"))
    if scheme != "unix" or not rest.startswith("/") or path == Path("/"):
        raise ConfigError("--endpoint must be a unix socket: unix:///csi/csi.sock")
    return path


def run_plugin(options: Options) -> int:
    """Serve until SIGTERM; exit status 0. Mounts stay, with the mounter."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    servers = Plugin(options).start()
    ended.wait()
    for stopping in [server.stop(GRACE_S) for server in servers]:
        stopping.wait()
    log.info("ended in order; the mounts stay")
    return 0
