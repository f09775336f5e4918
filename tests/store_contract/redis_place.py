"""A Redis under test: what opens stores and writers of its models, and closes them all."""

from __future__ import annotations

from fusefs.config import Config
from fusefs.store.base import Store, Writer
from fusefs.store.redis_layout import CHUNK_BYTES
from fusefs.store.source import open_store, open_writer, parse_source
from tests.harness.redis_server import RedisServer
from tests.store_contract.test_contract import noise

MODEL = "org/llama"
BIG = noise(2 * CHUNK_BYTES + 1000, 7)


class Opened:
    """Opens, and closes all at once."""

    def __init__(self, server: RedisServer, config: Config | None = None) -> None:
        self.server = server
        self.config = config or Config()
        self._all: list[Store | Writer] = []

    def store(self, model: str = MODEL) -> Store:
        """A store of the model."""
        query = f"?model={model}" if model else ""
        store = open_store(parse_source(self.server.source + query), self.config)
        self._all.append(store)
        return store

    def writer(self, model: str = MODEL) -> Writer:
        """A writer of the model."""
        writer = open_writer(parse_source(f"{self.server.source}?model={model}"), self.config)
        self._all.append(writer)
        return writer

    def keys(self, pattern: str = "*") -> set[str]:
        """The keys that are there."""
        with self.server.client() as client:
            return {raw.decode() for raw in client.scan_iter(match=pattern)}

    def close(self) -> None:
        """Close all."""
        for one in self._all:
            one.close()


def push(writer: Writer, key: str, data: bytes) -> list[bool]:
    """Upload in parts; tells which were not there yet."""
    upload = writer.begin(key, len(data))
    size = upload.part_bytes
    fresh = [
        upload.put_part(index, memoryview(data)[start : start + size])
        for index, start in enumerate(range(0, len(data), size))
    ]
    assert upload.commit().size == len(data)
    return fresh
