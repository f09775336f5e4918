"""The protocols of `*.proto` as message classes, and servers made of plain objects.

The one idea: what a build leaves behind is a descriptor set, and message classes are made of it
here. Generated Python would be tied to one version of the protobuf package. No request is ever
logged by this module: some of their fields are secrets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fusefs.errors import InternalError

COMPILED = Path(__file__).with_name("protocols.binpb")

THREADS = 16
"""Calls at once: kubelet makes ten for pods that start together, and a first publish waits."""

SOCKET_PATH_BYTES_MAX = 107
"""sockaddr_un.sun_path of <sys/un.h>, without the closing zero."""

Method = Callable[[Any, grpc.ServicerContext], Any]


def _load() -> descriptor_pool.DescriptorPool:
    try:
        data = COMPILED.read_bytes()
    except FileNotFoundError as error:
        raise InternalError(f"{COMPILED} was not built: run make protocols") from error
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool


_POOL = _load()


def message(name: str) -> Any:
    """The class of the message called `name`, with its package: `csi.v1.ProbeRequest`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def csi(name: str) -> Any:
    """The class of a message of the Container Storage Interface."""
    return message(f"csi.v1.{name}")


def handler(service: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
    """What a server does for `service`; a method that is not in `methods` is UNIMPLEMENTED."""
    known = _POOL.FindServiceByName(service).methods_by_name
    made = {}
    for name, method in methods.items():
        request = message(known[name].input_type.full_name)
        answer = message(known[name].output_type.full_name)
        made[name] = grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=request.FromString,
            response_serializer=answer.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service, made)


def caller(channel: grpc.Channel, service: str, name: str) -> Callable[..., Any]:
    """The method `name` of `service` at the other end of `channel`."""
    method = _POOL.FindServiceByName(service).methods_by_name[name]
    request = message(method.input_type.full_name)
    answer = message(method.output_type.full_name)
    made: Callable[..., Any] = channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=answer.FromString,
    )
    return made


class Server:
    """One gRPC server on a unix socket.

    The mutable state of Server is grpc's own.
    """

    def __init__(self, path: Path, handlers: list[grpc.GenericRpcHandler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server = grpc.server(ThreadPoolExecutor(THREADS, "rpc"))

    def start(self) -> None:
        """Listen, in the place of a server that is gone. Raises InternalError."""
        if len(bytes(self._path)) > SOCKET_PATH_BYTES_MAX:
            raise InternalError(
                f"the socket's path {self._path} has more than {SOCKET_PATH_BYTES_MAX} bytes:"
                " choose a shorter one"
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._server.add_generic_rpc_handlers(tuple(self._handlers))
        try:
            self._server.add_insecure_port(f"unix://{self._path}")
        except RuntimeError as error:
            raise InternalError(f"cannot listen on {self._path}") from error
        self._server.start()

    def stop(self, grace_s: float) -> threading.Event:
        """Take no more calls; those under way have `grace_s`. The event comes when all ended."""
        ended: threading.Event = self._server.stop(grace_s)
        return ended
