"""`fusefs csi-webhook`: its arguments. What it does is in `fusefs.kubernetes.webhook`.

Unlike the other commands of the driver it needs no gRPC: it speaks HTTPS with the API server.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fusefs.kubernetes.places import DRIVER_NAME, check_driver_name
from fusefs.telemetry.log import configure_log


def add_webhook(commands: Any) -> None:
    """Add the command to `commands`, the subparsers of `fusefs`."""
    webhook = commands.add_parser("csi-webhook", help="Kubernetes: add sidecars to pods that ask")
    webhook.add_argument("--image", required=True, help="of the sidecars")
    webhook.add_argument(
        "--image-pull-policy", choices=("Always", "IfNotPresent", "Never"), default="IfNotPresent",
        help="of the sidecars (default IfNotPresent)",
    )  # fmt: skip
    webhook.add_argument(
        "--port", type=int, default=8443, metavar="PORT", help="serve HTTPS there (default 8443)"
    )
    webhook.add_argument(
        "--cert-dir", required=True, type=Path, metavar="DIR",
        help="folder with tls.crt and tls.key, read again when they change",
    )  # fmt: skip
    webhook.add_argument(
        "--driver-name", default=DRIVER_NAME, metavar="NAME", help=f"(default {DRIVER_NAME})"
    )
    webhook.add_argument(
        "--http-port", type=int, default=0, metavar="PORT",
        help="serve /healthz and /metrics there (0: nowhere)",
    )  # fmt: skip
    webhook.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )
    webhook.set_defaults(command=_webhook)


def _webhook(arguments: argparse.Namespace) -> int:
    from fusefs.kubernetes.injection import Recipe
    from fusefs.kubernetes.webhook import WebhookOptions, run_webhook

    driver = check_driver_name(arguments.driver_name)
    configure_log(arguments.log_level, None, foreground=True)
    return run_webhook(
        WebhookOptions(
            Recipe(driver, arguments.image, arguments.image_pull_policy),
            arguments.port,
            arguments.cert_dir,
            arguments.http_port,
        )
    )
