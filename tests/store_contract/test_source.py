"""What a SOURCE may look like, and what is said of one that may not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.config import Config
from fusefs.errors import ConfigError
from fusefs.store.azure_write import AzureWriter
from fusefs.store.base import Source
from fusefs.store.gcs import GcsStore
from fusefs.store.gcs_write import GcsWriter
from fusefs.store.posix import PosixStore
from fusefs.store.posix_write import PosixWriter
from fusefs.store.redis_write import RedisWriter
from fusefs.store.s3 import S3Store
from fusefs.store.s3_write import S3Writer
from fusefs.store.source import open_store, open_writer, parse_source

SEGMENT = st.text(
    st.characters(blacklist_characters="/\x7f", blacklist_categories=["Cs", "Cc"]), min_size=1
).filter(lambda segment: segment not in (".", ".."))

ARN = "arn:aws:s3:eu-west-1:123456789012:accesspoint/models"
OUTPOST = "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/ap"


@pytest.mark.parametrize(
    ("text", "bucket", "prefix", "normal"),
    [
        ("s3://models", "models", "", "s3://models/"),
        ("s3://models/", "models", "", "s3://models/"),
        ("s3://models/llama", "models", "llama/", "s3://models/llama/"),
        ("s3://models/llama/70b/", "models", "llama/70b/", "s3://models/llama/70b/"),
        ("s3://my.bucket_1/a%2Fb c+d", "my.bucket_1", "a%2Fb c+d/", "s3://my.bucket_1/a%2Fb c+d/"),
        ("s3://models/user@host:x", "models", "user@host:x/", "s3://models/user@host:x/"),
        ("gs://models", "models", "", "gs://models/"),
        ("gs://my.bucket_1/a%2Fb c+d", "my.bucket_1", "a%2Fb c+d/", "gs://my.bucket_1/a%2Fb c+d/"),
        (f"s3://{ARN}", ARN, "", f"s3://{ARN}/"),
        (f"s3://{ARN}/a/b:c", ARN, "a/b:c/", f"s3://{ARN}/a/b:c/"),
        (f"s3://{OUTPOST}/a/", OUTPOST, "a/", f"s3://{OUTPOST}/a/"),
        (
            "s3://my-ap-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias/a",
            "my-ap-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias",
            "a/",
            "s3://my-ap-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias/a/",
        ),
        ("file:///srv/models", "/srv/models", "", "file:///srv/models"),
        ("file:///srv//models/./x/", "/srv/models/x", "", "file:///srv/models/x"),
        ("file:///", "/", "", "file:///"),
        ("file:///a%20b", "/a%20b", "", "file:///a%20b"),
    ],
)
def test_good_sources(text: str, bucket: str, prefix: str, normal: str) -> None:
    """A good SOURCE is taken apart and written back in one normal form, which parses to itself."""
    source = parse_source(text)
    assert source == Source(text.partition(":")[0], bucket, prefix, normal)
    assert parse_source(normal) == source


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "s3://bucket/prefix"),
        ("/srv/models", "file:///directory"),
        ("models", "s3://bucket/prefix"),
        ("gopher://models", "known are s3://bucket/prefix, "),
        ("S3://models", "unknown scheme 'S3'"),
        ("s3/key:hunter2@models://x", "unknown scheme in SOURCE"),
        ("s3://", "no bucket"),
        ("s3:///prefix", "no bucket"),
        ("s3://-models", "not a bucket name"),
        ("s3://mo dels", "not a bucket name"),
        ("s3://models//", "segment"),
        ("s3://models/a//b", "segment"),
        ("s3://models/a/../b", "segment"),
        ("s3://models/.", "segment"),
        ("s3://models/a\nb", "control"),
        ("s3://models/bad\udcff", "UTF-8"),
        ("s3://models:9000/x", "s3.endpoint_url"),
        ("gs://", "no bucket"),
        ("gs://models/a/../b", "segment"),
        ("gs://models/bad\udcff", "UTF-8"),
        ("gs://models:4443/x", "gcs.endpoint_url"),
        ("s3://arn:aws:s3:::models", "no ARN of an access point"),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/", "no ARN of an access point"),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/ap:9000/x", "no ARN"),
        (f"s3://{ARN}/a//b", "segment"),
        ("file://srv/models", "absolute"),
        ("file://", "absolute"),
        ("file:///srv/../etc", "'..'"),
        ("file:///srv\0", "control"),
    ],
)
def test_bad_sources(text: str, says: str) -> None:
    """A bad SOURCE is a ConfigError of one line that says what to type."""
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")) as raised:
        parse_source(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAKEY:hunter2@models/x",
        "s3://AKIAKEY:hunt/hunter2@models/x",
        "s3://hunter2@models",
        "gs://user:hunter2@models",
        "https://user:hunter2@host/models",
    ],
)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    """Credentials in a SOURCE are refused by a message that does not hold them."""
    with pytest.raises(ConfigError) as raised:
        parse_source(text)
    assert "hunter2" not in str(raised.value)


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    """No text makes the parser fail otherwise than by ConfigError."""
    for scheme in ("", "s3://", "s3://b/", "gs://b/", "file://", "file:///"):
        try:
            source = parse_source(scheme + text)
        except ConfigError:
            continue
        assert parse_source(source.text) == source
        assert source.prefix == "" or source.prefix.endswith("/")


@given(st.lists(SEGMENT, max_size=4))
def test_prefixes_are_literal(segments: list[str]) -> None:
    """Any good segments are the prefix, character by character."""
    prefix = "".join(f"{segment}/" for segment in segments)
    assert parse_source(f"s3://bucket/{prefix}").prefix == prefix


def test_each_scheme_has_its_store() -> None:
    """`open_store` makes the adapter of the scheme, and opens nothing."""
    assert isinstance(open_store(parse_source("s3://b"), Config()), S3Store)
    assert isinstance(open_store(parse_source("gs://b"), Config()), GcsStore)
    assert isinstance(open_store(parse_source("file:///nowhere"), Config()), PosixStore)


def test_who_writes() -> None:
    """`open_writer` makes the writer of the scheme, and opens nothing."""
    assert isinstance(open_writer(parse_source("s3://b"), Config()), S3Writer)
    assert isinstance(open_writer(parse_source("gs://b"), Config()), GcsWriter)
    assert isinstance(open_writer(parse_source("az://account.example/cde"), Config()), AzureWriter)
    assert isinstance(open_writer(parse_source("redis://h?model=m"), Config()), RedisWriter)
    assert isinstance(open_writer(parse_source("file:///nowhere"), Config()), PosixWriter)


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_missing_sdk_is_explained() -> None:
    """Without the SDK the message names the extra to install; other schemes work."""
    printed = run_python(
        "import sys; sys.modules['boto3'] = None\n"
        "from fusefs.config import Config\n"
        "from fusefs.errors import ConfigError\n"
        "from fusefs.store.source import open_store, parse_source\n"
        "open_store(parse_source('file:///x'), Config())\n"
        "try: open_store(parse_source('s3://x'), Config())\n"
        "except ConfigError as error: print(error)\n"
    )
    assert "pip install 'fusefs[s3]'" in printed


def test_the_sdk_is_imported_on_use() -> None:
    """A `file:///` mount never imports an SDK."""
    printed = run_python(
        "import sys\n"
        "from fusefs.config import Config\n"
        "from fusefs.store.source import open_store, parse_source, preload\n"
        "preload(parse_source('file:///x')); open_store(parse_source('file:///x'), Config())\n"
        "print('botocore' in sys.modules, 'google' in sys.modules)\n"
    )
    assert printed.strip() == "False False"


@pytest.mark.parametrize("source", ["s3://x", "gs://x"])
def test_preload_touches_nothing(source: str) -> None:
    """Preloading opens no socket, starts no thread, and reads no credentials."""
    printed = run_python(
        "import os, threading\n"
        "os.environ.update(AWS_PROFILE='does-not-exist', AWS_ENDPOINT_URL='http://127.0.0.1:9')\n"
        "os.environ.update(GOOGLE_APPLICATION_CREDENTIALS='/does-not-exist')\n"
        "from fusefs.config import Config\n"
        "from fusefs.store.source import open_store, parse_source, preload\n"
        f"preload(parse_source({source!r}))\n"
        f"open_store(parse_source({source!r}), Config())\n"
        "links = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')\n"
        "         if os.path.lexists(f'/proc/self/fd/{fd}')]\n"
        "print(threading.active_count(), any('socket:' in link for link in links))\n"
    )
    assert printed.strip() == "1 False"


def test_preload_is_all_there_is_to_load() -> None:
    """After `preload` a client is made without reading another model: they are shared by forks."""
    printed = run_python(
        "import sys\n"
        "opened = []\n"
        "def hook(name, args):\n"
        "    if name == 'open': opened.append(str(args[0]))\n"
        "sys.addaudithook(hook)\n"
        "def models(): return sum('/data/' in path and '.json' in path for path in opened)\n"
        "from fusefs.config import S3Config\n"
        "from fusefs.store.s3_client import make_client\n"
        "from fusefs.store.source import parse_source, preload\n"
        "preload(parse_source('s3://x'))\n"
        "before = models()\n"
        "make_client(S3Config(endpoint_url='http://127.0.0.1:9'), 1, 1, 1)\n"
        "print(before > 3, models() - before)\n"
    )
    assert printed.strip() == "True 0"
