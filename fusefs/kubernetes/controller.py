"""The services that know no node: who we are, and volumes of a StorageClass.

A volume is a name for something that exists already: creating one touches no bucket, and deleting
one deletes no object. So nothing is remembered: a volume's id is made of its name, and its last
characters tell ids of ours from others.
"""

from __future__ import annotations

import hashlib
from typing import Any

import grpc

import fusefs
from fusefs.errors import ConfigError, Unsupported
from fusefs.kubernetes.answers import Refused
from fusefs.kubernetes.attributes import FROM_KUBELET, Rules, parse_volume
from fusefs.kubernetes.capabilities import check_capabilities, needed
from fusefs.kubernetes.wire import csi

_ID = "ffs1"
_LET_NODES_DECIDE = Rules(allow_driver_identity=True, file_root="/")


class Identity:
    """csi.v1.Identity. Stateless."""

    def __init__(self, driver: str) -> None:
        self._driver = driver

    def get_plugin_info(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Name and version."""
        return csi("GetPluginInfoResponse")(name=self._driver, vendor_version=fusefs.__version__)

    def get_plugin_capabilities(self, request: Any, context: grpc.ServicerContext) -> Any:
        """That there is a controller: said by every instance, also where it is not asked."""
        answer = csi("GetPluginCapabilitiesResponse")()
        answer.capabilities.add().service.type = 1  # CONTROLLER_SERVICE
        return answer

    def probe(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Ready as soon as this can be asked: a mounter that is away is waited for by each call."""
        answer = csi("ProbeResponse")()
        answer.ready.value = True
        return answer


class Controller:
    """csi.v1.Controller. Stateless."""

    def create_volume(self, request: Any, context: grpc.ServicerContext) -> Any:
        """A volume id for a name, with the parameters of its StorageClass as attributes."""
        name = needed(request.name, "name")
        check_capabilities(request.volume_capabilities)
        if request.HasField("volume_content_source"):
            raise ConfigError("a volume cannot be made of a snapshot or another volume")
        asked, limit = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
        if asked < 0 or limit < 0 or (limit and asked > limit):
            raise Refused(
                grpc.StatusCode.OUT_OF_RANGE,
                "capacity_range asks for more than its own limit",
            )
        parameters = {
            key: value
            for key, value in request.parameters.items()
            if not key.startswith(FROM_KUBELET)
        }
        if parameters:  # csi-sanity gives none, and none is needed until a volume is published
            parse_volume(parameters, has_secret=True, rules=_LET_NODES_DECIDE)
        answer = csi("CreateVolumeResponse")()
        answer.volume.volume_id = volume_id(name)
        answer.volume.volume_context.update(parameters)
        return answer

    def delete_volume(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Forget what was never remembered; no object is touched."""
        needed(request.volume_id, "volume_id")
        return csi("DeleteVolumeResponse")()

    def validate_volume_capabilities(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Confirm what a volume of ours can do."""
        identifier = needed(request.volume_id, "volume_id")
        if not request.volume_capabilities:
            raise ConfigError("volume_capabilities are missing in the request")
        if not is_volume_id(identifier):
            raise Refused(grpc.StatusCode.NOT_FOUND, "no volume with this id was made by us")
        answer = csi("ValidateVolumeCapabilitiesResponse")()
        try:
            check_capabilities(request.volume_capabilities)
        except Unsupported as error:
            answer.message = str(error)
            return answer
        answer.confirmed.volume_context.update(request.volume_context)
        answer.confirmed.volume_capabilities.extend(request.volume_capabilities)
        answer.confirmed.parameters.update(request.parameters)
        return answer

    def get_capabilities(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Creating and deleting, no more."""
        answer = csi("ControllerGetCapabilitiesResponse")()
        answer.capabilities.add().rpc.type = 1  # CREATE_DELETE_VOLUME
        return answer


def volume_id(name: str) -> str:
    """The id of the volume that is called `name`."""
    body = f"{_ID}-{hashlib.sha256(name.encode()).hexdigest()[:40]}"
    return f"{body}-{_check(body)}"


def is_volume_id(identifier: str) -> bool:
    """Whether `volume_id` made this."""
    body, _, check = identifier.rpartition("-")
    return body.startswith(f"{_ID}-") and check == _check(body)


def _check(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:8]
