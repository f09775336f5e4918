"""What a volume may say: the table of its attributes, and from them to a `Volume`.

Pure: text in, values or one sentence out. The one idea: a name with a dot is a setting of
`fusefs.config`, checked by its own row there; names without are the driver's own and stand in
`ATTRIBUTES`. What a volume must not decide (log files, profiles of the driver's host) is no
attribute.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fusefs.config import SETTINGS, Config, Setting, config_from_json_dict
from fusefs.errors import ConfigError
from fusefs.store.base import Source
from fusefs.store.source import parse_source
from fusefs.values import Value

FROM_KUBELET = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
"""Attributes that kubelet and the provisioner add; none of them says what to mount."""

TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"
POD_UID = "csi.storage.k8s.io/pod.uid"


@dataclass(frozen=True, slots=True)
class Attribute:
    """One row: what may be written, what it means."""

    written: str
    help: str


SECRET, SERVICE_ACCOUNT, DRIVER, ANONYMOUS = "secret", "serviceAccount", "driver", "anonymous"
AUTHENTICATIONS = (SECRET, SERVICE_ACCOUNT, DRIVER, ANONYMOUS)

SHARED, SIDECAR = "shared", "sidecar"
MODES = (SHARED, SIDECAR)
SIDECAR_VOLUME = "fusefs"

ATTRIBUTES: dict[str, Attribute] = {
    "source": Attribute("s3://bucket/prefix, gs://…, az://…, redis://…", "what the volume shows"),
    "mode": Attribute(
        " or ".join(MODES),
        "who serves the volume: the node's mounter, for all pods that ask for the same (shared), or"
        " a container of the pod, with its own credentials and memory (sidecar)",
    ),
    "sidecarVolume": Attribute(
        "name of an emptyDir of the pod",
        f"where plugin and sidecar meet, with mode: sidecar ({SIDECAR_VOLUME})",
    ),
    "authentication": Attribute(
        ", ".join(AUTHENTICATIONS),
        "whose credentials are used: those of the secret, of the pod's service account, of the"
        " driver itself (only where it is allowed), or none. Without it: the secret if there is"
        " one, else the service account if one of the attributes below is there",
    ),
    "roleArn": Attribute(
        "arn:aws:iam::ACCOUNT:role/NAME", "the role that the pod's service account takes on at AWS"
    ),
    "googleAudience": Attribute(
        "identitynamespace:POOL:PROVIDER or //iam.googleapis.com/…",
        "the workload identity provider that knows the pod's service account",
    ),
    "googleTokenAudience": Attribute(
        "a text on one line",
        "audience of the pod's token, where it does not follow from googleAudience",
    ),
    "googleServiceAccount": Attribute(
        "NAME@PROJECT.iam.gserviceaccount.com", "the account that is impersonated, if any"
    ),
    "azureClientId": Attribute("a UUID", "the application that trusts the pod's service account"),
    "azureTenantId": Attribute("a UUID", "the tenant of that application"),
}
"""The one table of the driver's own attributes, by name."""

ENDPOINTS = frozenset({"s3.endpoint_url", "gcs.endpoint_url", "azure.endpoint_url"})

_NOT_A_VOLUMES = {
    "mount.allow_other": "pods of other users must be able to read",
    "mount.grace_s": "its mount ends with the last pod that shows it",
    "log.level": "it is the driver's",
    "log.file": "it is the driver's",
    "s3.profile": "it would name a profile of the driver's own files",
    "redis.ca_file": "it would name a file of the driver's",
}
"""Settings that a volume does not make, each with its reason."""

_OF_THE_MOUNTER = frozenset({"engine.memory"})
"""Defaults that fit the mounter's container, and not a sidecar's."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label, as Kubernetes wants names of volumes to be; a pod's UID is one as well."""

_MEANINGLESS_FLAGS = frozenset({"ro", "rw", "nosuid", "nodev", "noexec", "noatime", "relatime"})
"""Mount options that say what every mount of ours is, or (`rw`) what claims carry by default."""


def volume_settings() -> dict[str, Setting]:
    """The settings that a volume may make, by name."""
    return {name: row for name, row in SETTINGS.items() if name not in _NOT_A_VOLUMES}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the administrator of the driver lets volumes do.

    `defaults` are the settings, by name, of volumes that do not say otherwise.
    """

    allow_driver_identity: bool = False
    file_root: str | None = None
    defaults: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodVolume:
    """An emptyDir of a pod, by its name there."""

    pod_uid: str
    name: str


@dataclass(frozen=True, slots=True)
class Volume:
    """What a volume asks for, checked; holds no secret.

    `meeting` is where the sidecar that serves it is met, or None if the node's mounter serves it.
    """

    source: Source
    config: Config
    authentication: str
    attributes: Mapping[str, str]
    meeting: PodVolume | None = None

    def describe(self) -> dict[str, Any]:
        """Plain values; two volumes are served alike if these and the identity are equal."""
        return {"source": self.source.text, "config": self.config.to_json_dict()}


def parse_volume(
    context: Mapping[str, str],
    has_secret: bool,
    flags: Iterable[str] = (),
    group: str = "",
    rules: Rules | None = None,
) -> Volume:
    """What the attributes `context`, mount options and group of a volume ask for.

    Raises ConfigError with one sentence that names the attribute.
    """
    rules = rules or Rules()
    own: dict[str, str] = {}
    settings: dict[str, Value] = {"mount.allow_other": True}
    for name, text in context.items():
        if name.startswith(FROM_KUBELET):
            continue
        if name in ATTRIBUTES:
            own[name] = _one_line(name, text)
        else:
            settings[name] = _setting(name, text)
    for flag in flags:
        settings.update(_flag(flag))
    if group:
        settings["mount.gid"] = SETTINGS["mount.gid"].parse(group, "volume_mount_group")
    if not own.get("source"):
        raise ConfigError(
            "the volume has no attribute source: set it to s3://bucket/prefix, or to another SOURCE"
        )
    meeting = _meeting(own, context)
    left_out = frozenset() if meeting is None else _OF_THE_MOUNTER
    defaults = {name: value for name, value in rules.defaults.items() if name not in left_out}
    config = _config({**defaults, **settings})
    source = parse_source(own["source"], config)
    if meeting is not None:
        authentication = _of_a_sidecar(own, has_secret)
    else:
        authentication = _authentication(own, has_secret, source, config, rules)
    if authentication == ANONYMOUS:
        config = _config({**defaults, **settings, **_anonymous(source)})
    if meeting is None:  # else it is the pod's own container that opens and connects
        _check_allowed(source, authentication, settings, rules)
    return Volume(source, config, authentication, own, meeting)


def tokens_in(context: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """The pod's tokens by audience: of the secrets, where newer clusters put them, or the context.

    Raises ConfigError without repeating any of it.
    """
    text = secrets.get(TOKENS) or context.get(TOKENS)
    if not text:
        return {}
    try:
        found = json.loads(text)
        return {str(audience): str(entry["token"]) for audience, entry in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        # `from None`: the error's own text would repeat a token.
        raise ConfigError(f"{TOKENS} is not what kubelet writes: a JSON object of tokens") from None


def _one_line(name: str, text: str) -> str:
    if not text.isprintable() or len(text) > 4096:
        raise ConfigError(f"the attribute {name} must be one line of text")
    choices = {"authentication": AUTHENTICATIONS, "mode": MODES}.get(name)
    if choices is not None and text not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {text[:80]!r}")
    return text


def _setting(name: str, text: str) -> Value:
    if name in _NOT_A_VOLUMES:
        raise ConfigError(f"a volume cannot set {name}: {_NOT_A_VOLUMES[name]}")
    known = volume_settings()
    if name not in known:
        close = difflib.get_close_matches(name, [*known, *ATTRIBUTES], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown attribute {name[:80]!r} of the volume{hint}")
    return known[name].parse(text, "the volume's attributes")


def _flag(flag: str) -> dict[str, Value]:
    name, equals, text = flag.partition("=")
    if not equals:
        if name in _MEANINGLESS_FLAGS:
            return {}
        raise ConfigError(f"mountOptions: {name[:80]!r} is no option; write component.key=value")
    return {name: _setting(name, text)}


def _config(settings: Mapping[str, Value]) -> Config:
    parts: dict[str, dict[str, Value]] = {}
    for name, value in settings.items():
        component, _, key = name.partition(".")
        parts.setdefault(component, {})[key] = value
    config = config_from_json_dict(parts)
    if (config.engine.range_size or 0) % config.engine.block_size:
        raise ConfigError("engine.range_size must be a multiple of engine.block_size")
    return config


def _meeting(own: Mapping[str, str], context: Mapping[str, str]) -> PodVolume | None:
    if own.get("mode", SHARED) == SHARED:
        if "sidecarVolume" in own:
            raise ConfigError("sidecarVolume is for volumes with mode: sidecar: leave it out")
        return None
    name, uid = own.get("sidecarVolume", SIDECAR_VOLUME), context.get(POD_UID, "")
    if _LABEL.fullmatch(name) is None:
        raise ConfigError(f"sidecarVolume must be the name of an emptyDir, not {name[:80]!r}")
    if _LABEL.fullmatch(uid) is None:
        raise ConfigError(
            "mode: sidecar needs to know the pod: the CSIDriver object needs podInfoOnMount: true"
        )
    return PodVolume(uid, name)


def _of_a_sidecar(own: Mapping[str, str], has_secret: bool) -> str:
    """Whose credentials a sidecar's volume uses: the container's own, or none."""
    if own.get("authentication", ANONYMOUS) != ANONYMOUS or has_secret:
        raise ConfigError(
            "with mode: sidecar the credentials are those of the sidecar's container: give them to"
            " it, and leave out authentication and nodePublishSecretRef"
        )
    return own.get("authentication", SIDECAR)


def _anonymous(source: Source) -> dict[str, Value]:
    component = {"s3": "s3", "gs": "gcs", "az": "azure"}.get(source.scheme)
    return {f"{component}.anonymous": True} if component else {}


def _authentication(
    own: Mapping[str, str], has_secret: bool, source: Source, config: Config, rules: Rules
) -> str:
    """Whose credentials; "" if nobody's are known."""
    if said := own.get("authentication"):
        return said
    if has_secret:
        return SECRET
    if any(name in own for name in ("roleArn", "googleAudience", "azureClientId")):
        return SERVICE_ACCOUNT
    says_anonymous = {
        "s3": config.s3.anonymous,
        "gs": config.gcs.anonymous,
        "az": config.azure.anonymous,
    }
    if source.scheme == "file" or says_anonymous.get(source.scheme):
        return ANONYMOUS
    return DRIVER if rules.allow_driver_identity else ""


def _check_allowed(
    source: Source, authentication: str, settings: Mapping[str, Value], rules: Rules
) -> None:
    if source.scheme == "file":
        if rules.file_root is None:
            raise ConfigError(
                "file:// sources are not allowed: the administrator allows those below a folder"
                " with --file-root"
            )
        if not PurePosixPath(source.bucket).is_relative_to(rules.file_root):
            raise ConfigError(f"file:// sources must lie below {rules.file_root}")
    if authentication == DRIVER and not rules.allow_driver_identity:
        raise ConfigError(
            "authentication: driver is not allowed: the administrator allows it with"
            " --allow-driver-identity"
        )
    if authentication == DRIVER and (named := ENDPOINTS & settings.keys()):
        # Bearer tokens of the driver would be sent to whatever server the volume names.
        raise ConfigError(
            f"a volume with the driver's own credentials cannot set {min(named)}: use a secret"
        )
