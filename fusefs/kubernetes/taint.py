"""The taint that keeps pods off a new node goes when kubelet knows the driver there.

For `node.startupTaint` of the chart. The one idea: "the driver is ready" is what the API server
says, the node's CSINode listing it, since the scheduler and kubelet go by that; drivers that went
by their own start let pods in too early (kubernetes-sigs/aws-efs-csi-driver#1936). Puts no taint
anywhere, touches no other node and no other taint. Nothing that goes wrong here ends the plugin:
it is told once, and tried again.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fusefs import __version__
from fusefs.errors import ConfigError, FusefsError

log = logging.getLogger("fusefs.kubernetes")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where every pod that may have it finds its service account's token and the cluster's CA."""

TIMEOUT_S = 10.0
"""For each step of a request: an API server that is well answers in milliseconds."""

ANSWER_BYTES_MAX = 4 << 20
"""etcd keeps no object above 1.5 MiB; JSON makes it longer."""

PAUSES_S = (0.5, 1.0, 2.0, 2.0, 5.0, 5.0, 10.0, 10.0, 30.0)
"""Before the same is asked again. A node is kept waiting for seconds; and a thousand nodes without
the right to ask cost the API server 33 refusals a second."""

LOOKS_S = (5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 180.0, 180.0)
"""Between looks at the node: ten minutes in all. Karpenter puts a startup taint on a node it has
just got to know, also one that was taken in the meantime (kubernetes-sigs/karpenter#1772)."""

_KEY = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
"""A qualified name (kubernetes/apimachinery, validation.go: IsQualifiedName)."""

_CONFLICT, _TEST_FAILED = 409, 422
_NOT_FOUND = 404


class ApiRefused(FusefsError):
    """The API server did not do what it was asked; `status` is HTTP's, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ApiServer:
    """The API server, and the account that it is asked by.

    A connection, a token and a CA for each request: kubelet replaces both files under a running
    pod, and there are a dozen requests in a plugin's life.
    """

    host: str
    port: int
    account: Path = ACCOUNT

    def ask(
        self, method: str, path: str, patch: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """The object it answers with. `patch` is a JSON patch (RFC 6902). Raises ApiRefused."""
        headers = {"Accept": "application/json", "User-Agent": f"fusefs/{__version__}"}
        body = None
        if patch is not None:
            headers["Content-Type"] = "application/json-patch+json"
            body = json.dumps(patch)
        headers["Authorization"] = f"Bearer {self._token()}"
        connection = http.client.HTTPSConnection(
            self.host, self.port, timeout=TIMEOUT_S, context=self._trust()
        )
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            what = getattr(error, "verify_message", "") or getattr(error, "strerror", "")
            raise ApiRefused(
                f"the API server at {self.host} port {self.port} cannot be asked"
                f" ({what or type(error).__name__}): look at NetworkPolicies and firewalls"
            ) from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise ApiRefused(_sentence(answer.status, method, path), answer.status)
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ApiRefused("what answers for the API server does not answer as one does")
        return found

    def _token(self) -> str:
        try:
            token = (self.account / "token").read_text("ascii").strip()
        except (OSError, ValueError):
            token = ""
        if not token.isprintable() or not token:  # http.client would repeat it in its complaint
            raise ApiRefused(
                f"no token of a service account can be read in {self.account}: the pod needs"
                " automountServiceAccountToken: true"
            )
        return token

    def _trust(self) -> ssl.SSLContext:
        # Not create_default_context: from Python 3.13 on that refuses authorities without a key
        # identifier, as EKS has them (kubernetes-client/python#2394).
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.account / "ca.crt")
        except OSError as error:  # ssl.SSLError is one
            raise ApiRefused(
                f"no certificate of the cluster's authority can be read in {self.account}/ca.crt"
            ) from error
        return context


def _sentence(status: int, method: str, path: str) -> str:
    """What a refusal means to whoever runs the cluster. What the server says goes into no log."""
    resource, name = path.rsplit("/", 2)[1:]
    if status == http.client.FORBIDDEN:
        return (
            f"the API server forbids to {method.lower()} {resource} (403): give the plugin's"
            " service account that right, as the chart does with rbac.create=true"
        )
    if status == http.client.UNAUTHORIZED:
        return "the API server does not accept the token of the plugin's service account (401)"
    if status == http.client.NOT_FOUND:
        return (
            f"the API server knows no {name} among {resource} (404): --node-id must be the node's"
        )
    return f"the API server answered {status} to {method} {resource}"


def api_server_of(environment: Mapping[str, str]) -> ApiServer:
    """The API server of the cluster that this pod is in. Raises ConfigError outside of one."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdecimal():
        raise ConfigError(
            "--startup-taint works in a pod only: KUBERNETES_SERVICE_HOST and"
            " KUBERNETES_SERVICE_PORT say where the API server is"
        )
    return ApiServer(host, int(port))


def check_taint_key(key: str) -> str:
    """`key`, if a taint may have it. Raises ConfigError."""
    if _KEY.fullmatch(key) is None:
        raise ConfigError(
            f"--startup-taint {key[:80]!r}: a taint's key is like example.com/not-ready"
        )
    return key


class StartupTaint:
    """Takes one taint from one node, in a thread of its own that ends by itself.

    The mutable state of StartupTaint is which troubles were told.
    """

    def __init__(
        self,
        key: str,
        node: str,
        driver: str,
        api: ApiServer,
        registered: threading.Event,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """`registered` is set once kubelet said so; `wait` gets seconds."""
        self._key = key
        self._node = node
        self._driver = driver
        self._api = api
        self._registered = registered
        self._wait = wait
        self._told: set[str] = set()

    def start(self) -> None:
        """Begin, in the background."""
        threading.Thread(target=self._attend, name="taint", daemon=True).start()

    def run(self) -> None:
        """Take the taint when kubelet lists the driver, and again if it comes back soon."""
        log.info(
            "the taint %s goes when kubelet lists %s in the CSINode %s",
            self._key, self._driver, self._node,
        )  # fmt: skip
        # A CSINode outlives a reboot, and lists then what was there before it: so not sooner.
        self._registered.wait()
        self._insist(self._is_listed)
        for pause_s in LOOKS_S:
            self._insist(self._take)
            self._wait(pause_s)
        self._insist(self._take)

    def _attend(self) -> None:
        try:
            self.run()
        except Exception:
            log.exception("the taint %s is not looked after: restart this pod", self._key)

    def _insist(self, attempt: Callable[[], bool]) -> None:
        """Attempt until it is true."""
        tries = 0
        while not self._attempt(attempt):
            self._wait(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
            tries += 1

    def _attempt(self, attempt: Callable[[], bool]) -> bool:
        try:
            return attempt()
        except ApiRefused as error:
            self._tell(str(error))
            return False

    def _tell(self, trouble: str) -> None:
        """Once for each kind: what is tried every half minute would fill the log."""
        if trouble not in self._told:
            self._told.add(trouble)
            log.warning("the taint %s stays for now: %s", self._key, trouble)

    def _is_listed(self) -> bool:
        """Whether kubelet has written the driver into the CSINode. Raises ApiRefused."""
        node = quote(self._node, safe="")
        try:
            listing = self._api.ask("GET", f"/apis/storage.k8s.io/v1/csinodes/{node}")
        except ApiRefused as error:
            if error.status == _NOT_FOUND:  # of a node that is quite new
                return False
            raise
        drivers = listing.get("spec", {}).get("drivers") or []
        return any(driver.get("name") == self._driver for driver in drivers)

    def _take(self) -> bool:
        """Take the taint, whatever its effects; true if the node is without it. Raises ApiRefused.

        Each removal is bound to what was seen at that place: whatever somebody else changes at the
        same time, it is our taint that goes, or nothing.
        """
        path = f"/api/v1/nodes/{quote(self._node, safe='')}"
        taints = self._api.ask("GET", path).get("spec", {}).get("taints") or []
        places = [place for place, taint in enumerate(taints) if taint.get("key") == self._key]
        if not places:
            return True
        patch: list[dict[str, Any]] = []
        for place in reversed(places):  # from the end: a removal moves what stands behind it
            at = f"/spec/taints/{place}"
            patch.append({"op": "test", "path": at, "value": taints[place]})
            patch.append({"op": "remove", "path": at})
        try:
            self._api.ask("PATCH", path, patch)
        except ApiRefused as error:
            if error.status in (_CONFLICT, _TEST_FAILED):  # somebody was faster: look again
                log.debug("%s was changed in the meantime", self._node)
                return False
            raise
        log.info("kubelet knows %s: took the taint %s from %s", self._driver, self._key, self._node)
        return True
