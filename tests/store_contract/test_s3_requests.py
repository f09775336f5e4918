"""What the S3 store asks, of whom and in whose name, and what it makes of a wrong place or time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from botocore.auth import AUTH_TYPE_MAPS

from fusefs.config import S3Config
from fusefs.errors import AccessDenied, ConfigError, StoreUnavailable
from fusefs.store.s3 import S3Store
from tests.store_contract.wire import (
    EXTENT,
    ID,
    SIZE,
    WireServer,
    answer,
    empty_listing,
    error,
    good,
)


def test_anonymous(endpoint: WireServer, stores: list[S3Store]) -> None:
    """Asked for, no credentials are looked for and nothing is signed."""
    store = S3Store("bucket", S3Config(anonymous=True), 1)
    stores.append(store)
    endpoint.answers += [empty_listing(), error("403 Forbidden", "AccessDenied")]
    store.check("")
    with pytest.raises(AccessDenied):
        store.check("")
    assert all("authorization" not in head.lower() for head in endpoint.requests)


def test_requester_pays(server: WireServer, stores: list[S3Store]) -> None:
    """Every request says, signed, that its sender pays; without the setting none does."""
    url = f"http://127.0.0.1:{server.port}"
    for agrees in (True, False):
        store = S3Store("bucket", S3Config(endpoint_url=url, requester_pays=agrees), 1)
        stores.append(store)
        server.answers += [empty_listing(), good()]
        store.check("")
        store.read_into(ID, EXTENT, memoryview(bytearray(SIZE)))
    said = ["x-amz-request-payer: requester" in head for head in server.requests]
    signed = ["x-amz-request-payer" in head.partition("SignedHeaders=")[2].partition(",")[0]
              for head in server.requests]  # fmt: skip
    assert said == signed == [True, True, False, False]


@pytest.mark.parametrize(
    ("bucket", "host"),
    [
        (
            "arn:aws:s3:eu-west-3:123456789012:accesspoint/models",
            "models-123456789012.s3-accesspoint.eu-west-3.amazonaws.com:443",
        ),
        (
            "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",
            "mfzwi23gnjvgw.mrap.accesspoint.s3-global.amazonaws.com:443",
        ),
        ("models-abc-s3alias", "models-abc-s3alias.s3.eu-west-1.amazonaws.com:443"),
    ],
)
def test_access_points(
    bucket: str,
    host: str,
    server: WireServer,
    stores: list[S3Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An access point is asked at its own host, in the region that its ARN names."""
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.answers.append(answer("403 Forbidden", {"Content-Length": "0"}, b"", "close"))
    store = S3Store(bucket, S3Config(region="eu-west-1"), 1)
    stores.append(store)
    with pytest.raises(StoreUnavailable):
        store.check("")
    assert server.requests[0].startswith(f"CONNECT {host}")


def test_access_points_of_several_regions(
    stores: list[S3Store], server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs a part of the SDK that is not there names the package."""
    monkeypatch.setattr("botocore.regions.HAS_CRT", False)
    for kind in ("s3v4a", "v4a"):
        monkeypatch.delitem(AUTH_TYPE_MAPS, kind, raising=False)
    arn = "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap"
    store = S3Store(arn, S3Config(region="eu-west-1"), 1)
    stores.append(store)
    with pytest.raises(ConfigError, match=r"pip install 'botocore\[crt\]'"):
        store.check("")
    assert server.requests == []


REGIONS: dict[str, tuple[str, str]] = {
    "301": ("301 Moved Permanently", "PermanentRedirect"),
    "400": ("400 Bad Request", "AuthorizationHeaderMalformed"),
    "constraint": ("400 Bad Request", "IllegalLocationConstraintException"),
}


@pytest.mark.parametrize("name", REGIONS)
def test_a_wrong_region(name: str, endpoint: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of S3 to say that the region is wrong names the setting, and the region if told."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    status, code = REGIONS[name]
    # The SDK looks once more by itself, with a HEAD of the bucket.
    endpoint.answers += [error(status, code, x_amz_bucket_region="eu-west-3") for _ in range(3)]
    store = S3Store("bucket", S3Config(), 1)
    with pytest.raises(ConfigError, match=r"region 'eu-west-3': set s3\.region"):
        store.check("")
    store.close()


def test_a_wrong_clock(server: WireServer, stores: list[S3Store]) -> None:
    """A HEAD is refused without a reason; a clock that is far off is one."""
    config = S3Config(endpoint_url=f"http://127.0.0.1:{server.port}")
    store = S3Store("bucket", config, 1)
    stores.append(store)
    for date in (
        "Wed, 21 Oct 2020 07:28:00 GMT",
        datetime.now(UTC).strftime("%a, %d %b %Y %T GMT"),
    ):
        refused = {"Content-Length": "0", "Date": date}
        server.answers.append(answer("403 Forbidden", dict(refused)))
    with pytest.raises(AccessDenied, match="clock of this machine is wrong"):
        store.head("object")
    with pytest.raises(AccessDenied, match="check credentials and policy"):
        store.head("object")
