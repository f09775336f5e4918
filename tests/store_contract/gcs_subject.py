"""Google Cloud Storage as a subject of the contract suite: see `subjects.py`."""

from __future__ import annotations

from collections.abc import Callable

from fusefs.config import GcsConfig
from fusefs.store.base import Store, Writer
from fusefs.store.gcs import GcsStore
from fusefs.store.gcs_write import GcsWriter
from tests.harness.fake_gcs import FakeGcsFailed
from tests.harness.google_manners import GoogleManners
from tests.store_contract.subjects import CONNECTIONS, Unholdable

PART_BYTES = 100_000
"""No megabytes are needed to see many parts."""


class GcsSubject:
    """A bucket on a server with Google's API and manners."""

    pages = True

    def __init__(self, google: GoogleManners, bucket: str) -> None:
        self.google = google
        self.bucket = bucket
        self.config = GcsConfig(endpoint_url=google.endpoint, anonymous=True)
        self.store: Store = GcsStore(bucket, self.config, CONNECTIONS)
        self._writers: list[Writer] = []

    def put(self, key: str, data: bytes) -> None:
        """See `Subject`."""
        try:
            self.google.server.put(self.bucket, key, data)
        except FakeGcsFailed as error:
            raise Unholdable(key) from error

    def delete(self, key: str) -> None:
        """See `Subject`."""
        self.google.server.delete(self.bucket, key)

    def missing(self) -> Store:
        """See `Subject`."""
        return GcsStore("no-such-bucket", self.config, CONNECTIONS)

    def refused(self, action: Callable[[Store], object]) -> None:
        """See `Subject`."""
        self.google.forbidden = True
        try:
            action(self.store)
        finally:
            self.google.forbidden = False

    def writer(self, part_bytes: int | None = None) -> Writer:
        """See `Subject`."""
        made = GcsWriter(self.bucket, "", self.config, CONNECTIONS, part_bytes or PART_BYTES)
        self._writers.append(made)
        return made

    def close(self) -> None:
        """Let go of all connections."""
        self.store.close()
        for made in self._writers:
            made.close()
