"""The commands of the Kubernetes images: `fusefs csi-plugin` and `fusefs csi-mounter`.

What they do is in `fusefs.kubernetes`, imported when one is run: grpcio comes with the extra
`kubernetes` only.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from fusefs.cli.resolve import resolve_config
from fusefs.errors import ConfigError
from fusefs.kubernetes.places import DRIVER_NAME, MOUNTER_UID, Places, check_driver_name
from fusefs.telemetry.log import configure_log
from fusefs.values import Value

Commands = Any  # argparse has no public name for what add_subparsers returns


def add_kubernetes(commands: Commands) -> None:
    """Add both commands."""
    plugin = commands.add_parser("csi-plugin", help="Kubernetes: mount volumes on this node")
    plugin.add_argument(
        "--endpoint", required=True, metavar="unix:///PATH", help="socket that kubelet calls"
    )
    plugin.add_argument("--node-id", required=True, metavar="N", help="the node's name")
    plugin.add_argument(
        "--kubelet-dir", type=Path, default=Path("/var/lib/kubelet"), metavar="DIR",
        help="kubelet's folder, mounted at the same path with Bidirectional propagation",
    )  # fmt: skip
    plugin.add_argument(
        "--driver-name", default=DRIVER_NAME, metavar="NAME", help=f"(default {DRIVER_NAME})"
    )
    plugin.add_argument(
        "--controller", action="store_true", help="also serve the controller, for StorageClasses"
    )
    plugin.add_argument(
        "--registrar", choices=("builtin", "none"), default="builtin",
        help="register with kubelet, or leave it to a sidecar",
    )  # fmt: skip
    plugin.add_argument(
        "--mounter-uid", type=int, default=MOUNTER_UID, metavar="UID",
        help="user and group of the mounter",
    )  # fmt: skip
    plugin.add_argument(
        "--allow-driver-identity", action="store_true",
        help="let volumes use the mounter's own credentials",
    )  # fmt: skip
    plugin.add_argument(
        "--file-root", metavar="DIR", help="allow file:// sources below this folder of the mounter"
    )
    _add_shared(plugin)
    plugin.set_defaults(command=_plugin)

    mounter = commands.add_parser("csi-mounter", help="Kubernetes: serve what the plugin mounts")
    _add_shared(mounter)
    mounter.set_defaults(command=_mounter)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir", type=Path, default=Path("/run") / DRIVER_NAME, metavar="DIR",
        help="folder on a tmpfs that plugin and mounter share, at the same path",
    )  # fmt: skip
    parser.add_argument(
        "--http-port", type=int, default=0, metavar="PORT",
        help="serve /healthz and /metrics there (0: nowhere)",
    )  # fmt: skip
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )


def _plugin(arguments: argparse.Namespace) -> int:
    _check_installed()
    from fusefs.kubernetes.attributes import Rules
    from fusefs.kubernetes.plugin import Options, run_plugin

    driver = check_driver_name(arguments.driver_name)
    configure_log(arguments.log_level, None, foreground=True)
    return run_plugin(
        Options(
            arguments.endpoint,
            arguments.node_id,
            # Kubelet's folder may be a link: what is mounted below it has the name behind it.
            Places(driver, arguments.kubelet_dir.resolve(), arguments.run_dir.absolute()),
            Rules(arguments.allow_driver_identity, arguments.file_root, _defaults()),
            arguments.mounter_uid,
            arguments.controller,
            arguments.registrar == "builtin",
            arguments.http_port,
        )
    )


def _defaults() -> dict[str, Value]:
    """The settings of /etc/fusefs.toml and of the environment: for every volume of the node."""
    config = resolve_config(file=None, environ=os.environ).to_json_dict()
    return {f"{part}.{key}": value for part, row in config.items() for key, value in row.items()}


def _mounter(arguments: argparse.Namespace) -> int:
    from fusefs.kubernetes.mounter import run_mounter

    configure_log(arguments.log_level, None, foreground=True)
    return run_mounter(arguments.run_dir.absolute(), arguments.http_port)


def _check_installed() -> None:
    try:
        import grpc
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the plugin needs a package that is not installed: pip install 'fusefs[kubernetes]'"
        ) from error
    assert grpc.__version__
