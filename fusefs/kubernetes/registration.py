"""How kubelet finds the driver: the socket in plugins_registry, served by the plugin itself.

Does what the upstream sidecar node-driver-registrar does (its main.go), without another image:
kubelet sees the socket, asks for name and endpoint, and says how registering went.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import grpc

from fusefs.kubernetes.wire import Method, Server, handler, message

log = logging.getLogger("fusefs.kubernetes")

VERSIONS = ("1.0.0",)


class Registration:
    """pluginregistration.Registration.

    The mutable state of Registration is what kubelet said last.
    """

    def __init__(self, driver: str, endpoint: Path) -> None:
        self._driver = driver
        self._endpoint = endpoint
        self.registered = threading.Event()
        self.error = ""

    def get_info(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Who and where we are."""
        return message("pluginregistration.PluginInfo")(
            type="CSIPlugin",
            name=self._driver,
            endpoint=str(self._endpoint),
            supported_versions=VERSIONS,
        )

    def notify(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Kubelet says how it went; after a refusal it asks again when the socket is new."""
        if request.plugin_registered:
            self.error = ""
            self.registered.set()
            log.info("kubelet registered %s", self._driver)
        else:
            self.error = request.error or "kubelet gave no reason"
            self.registered.clear()
            log.error("kubelet did not register %s: %s", self._driver, self.error)
        return message("pluginregistration.RegistrationStatusResponse")()

    def server(self, path: Path) -> Server:
        """The server on the socket that kubelet looks for."""
        methods: dict[str, Method] = {
            "GetInfo": self.get_info,
            "NotifyRegistrationStatus": self.notify,
        }
        return Server(path, [handler("pluginregistration.Registration", methods)])
