"""What stands between a mount and its store: a link, a faulty server, and the real one behind it.

A store is a `Shop`: where it is, and what a mount must be told to find it, in which another port
may stand for its own. Of S3 every run has a bucket of its own, since some faults change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.link import FAIR, Link, Weather, open_link
from tests.faults.model import Model, changed
from tests.faults.origin import Origin, open_origin
from tests.faults.resolver import NAME, Resolver
from tests.harness.weed import SECOND_ACCESS_KEY, SECRET_KEY, Weed


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket with the model in two folders: `model`, and `after`, which no fault changes."""

    weed: Weed
    name: str
    model: Model

    def put(self, change: Callable[[bytes], bytes]) -> None:
        """Write all files, those of `model` changed."""
        client = self.weed.client()
        for folder in ("model", "after"):
            for name in self.model.wanted:
                data = (self.model.folder / name).read_bytes()
                body = change(data) if folder == "model" else data
                client.put_object(Bucket=self.name, Key=f"{folder}/{name}", Body=body)
        client.close()

    def delete(self) -> None:
        """Delete all files of `model`."""
        client = self.weed.client()
        for name in self.model.wanted:
            client.delete_object(Bucket=self.name, Key=f"model/{name}")
        client.close()


@dataclass(frozen=True, slots=True)
class Shop:
    """A server that holds the model in the folders `model` and `after` of `source`."""

    port: int
    source: str
    environment: Mapping[str, str]
    speaks_http: bool = True
    bucket: Bucket | None = None
    credentials: Path = field(default_factory=Path)


@dataclass(frozen=True, slots=True)
class Chain:
    """The way from a mount to a shop. Obeys `faults.Stage`."""

    shop: Shop
    link: Link
    faulty: Origin | None
    resolver: Resolver | None

    @property
    def origin(self) -> Origin:
        """See `Stage`."""
        assert self.faulty is not None, "this store speaks no HTTP"
        return self.faulty

    @property
    def source(self) -> str:
        """What is mounted."""
        return self._led_here(self.shop.source)

    @property
    def environment(self) -> dict[str, str]:
        """What the mount is told."""
        return {name: self._led_here(text) for name, text in self.shop.environment.items()}

    def weather(self, weather: Weather) -> int:
        """See `Stage`."""
        return self.link.set(weather)

    def lose_name(self) -> None:
        """See `Stage`."""
        assert self.resolver is not None
        self.resolver.fails = True
        self.link.set(Weather(refused=True))  # who is connected needs no names
        self.link.set(FAIR)

    def find_name(self) -> int:
        """See `Stage`."""
        assert self.resolver is not None
        self.resolver.fails = False
        return self.resolver.failures

    def restore(self) -> None:
        """See `Stage`."""
        assert self.shop.bucket is not None
        self.shop.bucket.put(lambda data: data)

    def overwrite(self) -> None:
        """See `Stage`."""
        assert self.shop.bucket is not None
        self.shop.bucket.put(changed)

    def delete(self) -> None:
        """See `Stage`."""
        assert self.shop.bucket is not None
        self.shop.bucket.delete()

    def renew(self) -> None:
        """See `Stage`."""
        write_credentials(self.shop.credentials, SECOND_ACCESS_KEY)

    def _led_here(self, text: str) -> str:
        host = NAME if self.resolver else "127.0.0.1"
        return text.replace(f"127.0.0.1:{self.shop.port}", f"{host}:{self.link.port}")


def open_bucket(weed: Weed, name: str, model: Model, folder: Path) -> Shop:
    """A new bucket with the model in it; the credentials of its mount are in a file."""
    client = weed.client()
    client.create_bucket(Bucket=name)
    client.close()
    bucket = Bucket(weed, name, model)
    bucket.put(lambda data: data)
    credentials = folder / "credentials"
    write_credentials(credentials, weed.environment["AWS_ACCESS_KEY_ID"])
    environment = {
        **weed.environment,
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
    }
    port = urlsplit(weed.endpoint).port or 0
    return Shop(port, f"s3://{name}", environment, bucket=bucket, credentials=credentials)


def write_credentials(path: Path, access_key: str) -> None:
    """Credentials as a login writes them: all at once."""
    fresh = path.with_suffix(".new")
    fresh.write_text(
        f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    fresh.rename(path)


@contextmanager
def open_chain(shop: Shop, folder: Path, resolver: Resolver | None) -> Iterator[Chain]:
    """A link and, for HTTP, a faulty server in front of a shop."""
    with ExitStack() as stack:
        port, faulty = shop.port, None
        if shop.speaks_http:
            server = f"http://127.0.0.1:{shop.port}"
            faulty = stack.enter_context(open_origin(server, folder))
            port = urlsplit(faulty.endpoint).port or 0
        link = stack.enter_context(open_link(port))
        yield Chain(shop, link, faulty, resolver)
