"""Planted secrets, and every place where a mount says something: they are in none of them.

Good runs, refused ones, and servers that repeat in their errors what they were told.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from fusefs.cli.resolve import resolve_config
from fusefs.config import Config
from fusefs.errors import FusefsError, to_wire
from fusefs.objects import Extent, ObjectId
from fusefs.store.source import open_store, parse_source
from tests.harness.azurite import ACCOUNT, VARIABLES, Azurite
from tests.harness.echo import Echo, open_echo, open_redis_echo
from tests.harness.fake_gcs import FakeGcs
from tests.harness.mounted import Mounted, MountFailed, open_mount
from tests.harness.redis_server import open_redis
from tests.harness.weed import ACCESS_KEY, SECRET_KEY, Weed
from tests.store_contract.test_gcs_credentials import open_token_server

PLANTED = "hunter2+Planted/Secret=="
"""Looks different in URLs, in headers and in JSON."""

DATA = bytes(range(256)) * 4096
QUICK = ("--set", "engine.read_deadline_s=2", "--set", "log.level=debug")
VERBS = ("stats", "progress", "prefetch", "socket", "cancel")


@dataclass(frozen=True, slots=True)
class Case:
    """A source behind an echo, how to reach it, and what nobody may repeat.

    `put` makes an object. `files` are secrets that stand in files, so not even in an environment.
    """

    source: str
    environment: Mapping[str, str]
    options: tuple[str, ...]
    secrets: tuple[str, ...]
    files: tuple[str, ...]
    put: Callable[[str], None]
    echo: Echo


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is to be closed."""
    with ExitStack() as opened:
        yield opened


def s3(request: pytest.FixtureRequest, stack: ExitStack, folder: Path) -> Case:
    """Keys in a file of credentials."""
    weed: Weed = request.getfixturevalue("weed")
    bucket: str = request.getfixturevalue("bucket")
    echo = stack.enter_context(open_echo(weed.endpoint))
    keys = folder / "credentials"
    keys.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    environment = {
        "AWS_SHARED_CREDENTIALS_FILE": str(keys),
        "AWS_ENDPOINT_URL": echo.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    def put(key: str) -> None:
        weed.client().put_object(Bucket=bucket, Key=key, Body=DATA)

    return Case(f"s3://{bucket}", environment, (), (SECRET_KEY,), (SECRET_KEY,), put, echo)


def gcs(request: pytest.FixtureRequest, stack: ExitStack, folder: Path) -> Case:
    """A service account's key file, and the tokens it becomes."""
    server: FakeGcs = request.getfixturevalue("fake_gcs")
    bucket: str = request.getfixturevalue("gcs_bucket")
    echo = stack.enter_context(open_echo(server.endpoint))
    tokens = stack.enter_context(open_token_server())
    command = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    about = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": PLANTED,
        "private_key": made,
        "client_email": "mount@project.iam.gserviceaccount.com",
        "token_uri": f"http://{tokens.endpoint}/token",
    }
    (folder / "key.json").write_text(json.dumps(about))
    environment = {
        "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "key.json"),
        "STORAGE_EMULATOR_HOST": "",
        "NO_GCE_CHECK": "true",
        "CLOUDSDK_CONFIG": "/nowhere",
    }
    secrets = (PLANTED, "ya29.hunter2", *made.splitlines()[1:3])
    options = ("--set", f"gcs.endpoint_url={echo.endpoint}")

    def put(key: str) -> None:
        server.put(bucket, key, DATA)

    return Case(f"gs://{bucket}", environment, options, secrets, secrets, put, echo)


def azure_key(request: pytest.FixtureRequest, stack: ExitStack, folder: Path) -> Case:
    """An account's key, in a connection string."""
    azurite: Azurite = request.getfixturevalue("azurite")
    container: str = request.getfixturevalue("container")
    echo = stack.enter_context(open_echo(azurite.endpoint.removesuffix(f"/{ACCOUNT}")))
    string = azurite.environment["AZURE_STORAGE_CONNECTION_STRING"]
    there = azurite.endpoint.removesuffix(f"/{ACCOUNT}")
    environment = {"AZURE_STORAGE_CONNECTION_STRING": string.replace(there, echo.endpoint)}

    def put(key: str) -> None:
        with azurite.client() as client:
            client.get_blob_client(container, key).upload_blob(DATA)

    return Case(f"az://{container}", environment, (), (azurite.key,), (), put, echo)


def azure_sas(request: pytest.FixtureRequest, stack: ExitStack, folder: Path) -> Case:
    """A shared access signature, which goes along in every URL."""
    case = azure_key(request, stack, folder)
    azurite: Azurite = request.getfixturevalue("azurite")
    sas = azurite.sas(case.source.removeprefix("az://"), "rl")
    signature = sas.partition("sig=")[2].partition("&")[0]
    environment = {
        "AZURE_STORAGE_CONNECTION_STRING": f"BlobEndpoint={case.echo.endpoint}/{ACCOUNT}",
        "AZURE_STORAGE_SAS_TOKEN": sas,
    }
    return Case(case.source, environment, (), (sas, signature), (), case.put, case.echo)


KINDS = {"s3": s3, "gcs": gcs, "azure key": azure_key, "azure sas": azure_sas}


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, stack: ExitStack, tmp_path: Path) -> Case:
    """Each kind of credentials over HTTP."""
    made = KINDS[request.param](request, stack, tmp_path)
    for name in ("one", "two", "three"):
        made.put(name)
    return made


def forms(secret: str) -> set[str]:
    """How a secret may look."""
    encoded = base64.b64encode(secret.encode()).decode()
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), encoded}


def assert_silent(said: Mapping[str, str], secrets: tuple[str, ...]) -> None:
    """No secret, in whatever form, in anything that was said."""
    found = [
        (place, secret[:4])
        for place, text in said.items()
        for secret in secrets
        if any(form in text for form in forms(secret))
    ]
    assert found == []


def all_that_it_says(mounted: Mounted, log: Path) -> dict[str, str]:
    """Status, attributes, log, argument lists and names of a mount."""
    said = {"status": json.dumps(mounted.status()), "log": log.read_text()}
    for command in (["status", str(mounted.path)], ["status", "--json", str(mounted.path)]):
        done = mounted.run_cli(*command)
        said[" ".join(command)] = done.stdout + done.stderr
    for verb in VERBS:
        for path in (mounted.path, mounted.path / "one"):
            try:
                answer = os.getxattr(path, f"user.fusefs.{verb}")
            except OSError as error:
                answer = str(error).encode()
            said[f"{verb} of {path.name}"] = answer.decode()
    for pid in mounted.pids():
        for file in ("cmdline", "comm"):
            said[f"{file} of {pid}"] = Path(f"/proc/{pid}/{file}").read_text()
    said["mountinfo"] = Path("/proc/self/mountinfo").read_text()
    return said


def test_no_secret_is_told(case: Case, tmp_path: Path) -> None:
    """Loads that work and reads that a server refuses in its own words: nothing says a secret.

    The log is at its most talkative. A secret that stands in a file is in no environment either.
    """
    log = tmp_path / "log"
    options = (*QUICK, "--set", f"log.file={log}", *case.options)
    with open_mount(
        case.source, *options, environment=case.environment, warnings_expected=True
    ) as mounted:
        assert (mounted.path / "one").read_bytes() == DATA
        assert_silent(all_that_it_says(mounted, log), case.secrets)
        for status, name in ((403, "two"), (500, "three")):
            case.echo.status = status
            asked = case.echo.asked
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is asserted
                (mounted.path / name).read_bytes()
            assert caught.value.errno in (errno.EACCES, errno.ETIMEDOUT, errno.EIO)
            assert case.echo.asked > asked
            assert_silent({"errno": str(caught.value)}, case.secrets)
        said = all_that_it_says(mounted, log)
        assert "two" in said["log"]
        assert_silent(said, case.secrets)
        for pid in mounted.pids():
            around = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            assert_silent({f"environ of {pid}": around}, case.files)
        case.echo.status = None


def test_no_secret_is_told_by_a_mount_that_fails(case: Case, tmp_path: Path) -> None:
    """A mount that the server refuses says why in one sentence, without what the server repeats."""
    case.echo.status = 403
    log = tmp_path / "log"
    options = (*QUICK, "--set", f"log.file={log}", *case.options)
    said = failed(case.source, case.environment, options)
    assert_silent({"stderr": said, "log": log.read_text()}, case.secrets)
    assert said.count("\n") == 1, said


def refusals(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the store says of each kind of request, as workers hear it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    pairs = [pair.partition("=") for pair in case.options[1::2]]
    overrides = [("test", name, value) for name, _, value in pairs]
    config = resolve_config(
        file=None, environ={}, overrides=overrides, default_file=Path("/nowhere")
    )
    source = parse_source(case.source, config)
    said = {}
    buffer = memoryview(bytearray(1))
    with closing(open_store(source, config)) as store:
        asks: dict[str, Callable[[], object]] = {
            "check": lambda: store.check(source.prefix),
            "list": lambda: store.list_page(source.prefix, None),
            "head": lambda: store.head("one"),
            "read": lambda: store.read_into(ObjectId("one", '"1"'), Extent(0, 1), buffer),
        }
        for name, ask in asks.items():
            with pytest.raises(FusefsError) as caught:
                ask()
            said[name] = f"{caught.value} {caught.value!r} {to_wire(caught.value)}"
    return said


@pytest.mark.parametrize("status", [301, 400, 403, 404, 409, 412, 416, 429, 500, 503])
def test_no_refusal_repeats_a_secret(
    case: Case, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a server answers, and repeats in it, the store's error holds no secret."""
    case.echo.status = status
    assert_silent(refusals(case, monkeypatch), case.secrets)


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "refuses"])
def test_the_password_of_a_proxy(
    case: Case, stack: ExitStack, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is not there, or that refuses, is told of without its password."""
    proxy = stack.enter_context(open_echo())
    proxy.status = 407
    host = "127.0.0.1:1" if dead else proxy.endpoint.removeprefix("http://")
    url = f"http://user:{quote(PLANTED, safe='')}@{host}"
    monkeypatch.setenv("NO_PROXY", "nothing.invalid")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, url)
    said = refusals(case, monkeypatch)
    assert dead or proxy.asked
    assert_silent(said, (PLANTED, f"user:{PLANTED}", *case.secrets))


def test_the_password_of_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good, wrong, or repeated by the server: the password of a Redis server is told nowhere."""
    log = tmp_path / "log"
    options = (*QUICK, "--set", f"log.file={log}")
    with open_redis(tmp_path / "redis", password=PLANTED) as server:
        environment = {**server.environment, "REDISCLI_AUTH": PLANTED}
        with open_mount(server.source, *options, environment=environment) as mounted:
            assert os.listdir(mounted.path) == []
            assert_silent(all_that_it_says(mounted, log), (PLANTED,))
        wrong = f"{PLANTED}-wrong"
        said = failed(server.source, {**environment, "REDISCLI_AUTH": wrong}, options)
        assert_silent({"stderr": said, "log": log.read_text()}, (PLANTED,))
    monkeypatch.setenv("REDISCLI_AUTH", PLANTED)
    with open_redis_echo() as place:
        source = parse_source(f"redis://{place}")
        store = open_store(source, Config())
        with closing(store), pytest.raises(FusefsError) as caught:
            store.check(source.prefix)
    assert_silent({"error": f"{caught.value!r} {caught.value}"}, (PLANTED,))


def failed(source: str, environment: Mapping[str, str], options: tuple[str, ...]) -> str:
    """What a mount says that fails."""
    with (
        pytest.raises(MountFailed) as caught,
        open_mount(source, *options, environment=environment),
    ):
        pytest.fail("mounted")
    return caught.value.stderr


@pytest.mark.parametrize(
    "source",
    [
        f"az://container/folder?sv=2024-11-04&sig={PLANTED}",
        f"https://account.blob.core.windows.net/container?sig={PLANTED}",
        f"redis://user:{PLANTED}@127.0.0.1:1/0",
        f"rediss://:{PLANTED}@127.0.0.1:1?model=m",
        f"s3://AKIAX:{PLANTED}@bucket",
        f"gs://{PLANTED}@bucket",
    ],
    ids=["sas", "https", "redis", "rediss", "s3", "gs"],
)
def test_a_source_with_credentials(source: str) -> None:
    """A SOURCE that holds credentials is refused, and its secret not said again."""
    assert_silent({"stderr": failed(source, {}, ())}, (PLANTED,))


def test_the_search_finds_what_is_planted() -> None:
    """The comparison is able to fail: it finds a secret as it is, in URLs, and in base64."""
    for form in forms(PLANTED):
        with pytest.raises(AssertionError):
            assert_silent({"log": f"before {form} after"}, (PLANTED,))
