"""The stores besides S3, each with the model in it: Google's, Azure's and Redis."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.faults.chain import Shop
from tests.faults.model import Model
from tests.harness.azurite import ACCOUNT, open_azurite
from tests.harness.fake_gcs import open_fake_gcs
from tests.harness.mounted import run_cli
from tests.harness.redis_server import open_redis

PLACE = "faults"
"""The bucket's or container's name."""

PUSH_LIMIT_S = 120.0
"""13 MB; the rest is for a busy machine."""

FOLDERS = ("model", "after")


@contextmanager
def open_shops(schemes: Iterable[str], model: Model, folder: Path) -> Iterator[dict[str, Shop]]:
    """The servers of these schemes (gs, az, redis), with the model published by `fusefs push`."""
    with ExitStack() as stack:
        yield {scheme: _OPEN[scheme](stack, model, folder / scheme) for scheme in schemes}


def _open_gs(stack: ExitStack, model: Model, folder: Path) -> Shop:
    folder.mkdir(parents=True)
    server = stack.enter_context(open_fake_gcs(folder))
    server.make_bucket(PLACE)
    shop = Shop(_port(server.endpoint), f"gs://{PLACE}", server.environment)
    return _published(shop, model, [f"gs://{PLACE}/{name}" for name in FOLDERS])


def _open_az(stack: ExitStack, model: Model, folder: Path) -> Shop:
    folder.mkdir(parents=True)
    server = stack.enter_context(open_azurite(folder))
    with server.client() as client:
        client.create_container(PLACE)
    source = f"az://{ACCOUNT}/{PLACE}"
    shop = Shop(_port(server.endpoint), source, server.environment)
    return _published(shop, model, [f"{source}/{name}" for name in FOLDERS])


def _open_redis(stack: ExitStack, model: Model, folder: Path) -> Shop:
    server = stack.enter_context(open_redis(folder))
    shop = Shop(server.port, f"{server.source}/0", server.environment, speaks_http=False)
    return _published(shop, model, [f"{server.source}/0?model={name}" for name in FOLDERS])


_OPEN: dict[str, Any] = {"gs": _open_gs, "az": _open_az, "redis": _open_redis}


def _published(shop: Shop, model: Model, places: Iterable[str]) -> Shop:
    environment = {**os.environ, **shop.environment}
    for place in places:
        done = run_cli(
            "push", str(model.folder), place, environment=environment, timeout_s=PUSH_LIMIT_S
        )
        assert done.returncode == 0, done.stderr
    return shop


def _port(endpoint: str) -> int:
    return urlsplit(endpoint).port or 0
