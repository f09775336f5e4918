"""What the Redis store promises besides the contract: sources, publishing, rights, TLS."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fusefs.config import Config, RedisConfig
from fusefs.errors import (
    AccessDenied,
    ConfigError,
    CorruptData,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
    StoreTimeout,
)
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.base import Store, Writer
from fusefs.store.redis import RedisStore
from fusefs.store.redis_layout import CHUNK_BYTES, ModelKeys
from fusefs.store.redis_link import Address, Link
from fusefs.store.source import open_store, open_writer, parse_source
from tests.harness.redis_server import (
    PASSWORD,
    RedisServer,
    open_redis,
    open_redis_cluster,
    open_redis_tls,
)
from tests.store_contract.test_contract import noise, read_all

MODEL = "org/llama"
BIG = noise(2 * CHUNK_BYTES + 1000, 7)

READER = "%R~fusefs:* resetchannels -@all +get +getrange +hget +hgetall +smembers +exists"
READER_OF_CLUSTER = f"{READER} +cluster|slots +command"
READER_OF_SGLANG = f"{READER} %R~sglang/* +scan +strlen"
WRITER = (
    "~fusefs:* resetchannels -@all +get +getrange +set +strlen +exists +unlink +del +hget +hgetall"
    " +hset +hsetnx +hdel +hexists +hincrby +hkeys +hvals +sadd +srem +smembers +sismember +eval"
    " +time"
)
"""The rights in docs/stores/redis.md; a test compares."""


@pytest.fixture(params=["redis", "redis_cluster"])
def redis(request: pytest.FixtureRequest) -> RedisServer:
    """An empty server, then an empty cluster."""
    server: RedisServer = request.getfixturevalue(f"{request.param}_server")
    with server.client() as client:
        client.flushall()
    return server


@pytest.fixture
def opened(redis: RedisServer) -> Iterator[Opened]:
    """What opens stores and writers there."""
    one = Opened(redis)
    yield one
    one.close()


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


@pytest.mark.parametrize(
    ("text", "bucket", "prefix", "server", "normal"),
    [
        ("redis://host", "", "", "host:6379/0", "redis://host:6379/0"),
        ("redis://host/", "", "", "host:6379/0", "redis://host:6379/0"),
        ("rediss://h:1/3?model=m", "m", "m/", "h:1/3", "rediss://h:1/3?model=m"),
        ("redis://h?model=a/b c", "a/b c", "a/b c/", "h:6379/0", "redis://h:6379/0?model=a/b c"),
        ("redis://[::1]:7/2/?model=m", "m", "m/", "[::1]:7/2", "redis://[::1]:7/2?model=m"),
        ("redis://[::1]", "", "", "[::1]:6379/0", "redis://[::1]:6379/0"),
    ],
)
def test_sources(text: str, bucket: str, prefix: str, server: str, normal: str) -> None:
    """A SOURCE is parsed into server, database and model, and its own text parses the same."""
    source = parse_source(text)
    assert (source.bucket, source.prefix) == (bucket, prefix)
    assert (source.server, source.text) == (server, normal)
    assert parse_source(source.text) == source


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("redis://host/llama", r"redis://host\?model=llama"),
        ("redis://host:6379/org/llama", r"redis://host:6379\?model=org/llama"),
        ("redis://user:hunter2@host", "REDISCLI_AUTH"),
        ("redis://", "no host"),
        ("redis://?model=m", "no host"),
        ("redis://host:port", "65535"),
        ("redis://host:0", "65535"),
        ("redis://host?db=1", "model=NAME"),
        ("redis://host?model=", "model=NAME"),
        ("redis://host?model=/m", "segment"),
        ("redis://host?model=m/", "segment"),
        ("redis://host?model=a/../b", "segment"),
        ("redis://host?model={m}", "braces"),
        ("redis://host?model=bad\udcff", "UTF-8"),
    ],
)
def test_bad_sources(text: str, says: str) -> None:
    """A bad SOURCE is one sentence that says what to type and repeats no password."""
    with pytest.raises(ConfigError, match=says) as raised:
        parse_source(text)
    assert "hunter2" not in str(raised.value) and "\n" not in str(raised.value)


def test_nothing_is_seen_before_publish(opened: Opened) -> None:
    """A model appears whole, under its name and among all, and changes whole."""
    writer, store, everything = opened.writer(), opened.store(), opened.store("")
    push(writer, f"{MODEL}/big", BIG)
    writer.put(f"{MODEL}/config.json", b"{}")
    writer.put(f"{MODEL}/empty", b"")
    with pytest.raises(ObjectNotFound, match="push a model"):
        store.check(f"{MODEL}/")
    with pytest.raises(ObjectNotFound):
        store.head(f"{MODEL}/big")
    assert everything.list_page("", None).prefixes == ()
    writer.publish(f"{MODEL}/")
    assert everything.list_page("", None).prefixes == ("org/",)
    assert everything.list_page("org/", None).prefixes == (f"{MODEL}/",)
    before = {meta.id.key: meta for meta in everything.list_page(f"{MODEL}/", None).objects}
    assert {key: read_all(everything, meta) for key, meta in before.items()} == {
        f"{MODEL}/big": BIG,
        f"{MODEL}/config.json": b"{}",
        f"{MODEL}/empty": b"",
    }
    writer.put(f"{MODEL}/config.json", b'{"new": 1}')
    writer.delete(f"{MODEL}/empty")
    assert {meta.id.key: meta for meta in store.list_page(f"{MODEL}/", None).objects} == before
    writer.publish(f"{MODEL}/")
    assert store.head(f"{MODEL}/big") == before[f"{MODEL}/big"]
    assert read_all(store, store.head(f"{MODEL}/config.json")) == b'{"new": 1}'
    with pytest.raises(ObjectNotFound):
        store.head(f"{MODEL}/empty")


def test_a_push_that_was_cut_goes_on(opened: Opened) -> None:
    """The next attempt finds the chunks that are the same, and sends those that are not."""
    first = opened.writer()
    first.put(f"{MODEL}/of-the-first", b"x")
    upload = first.begin(f"{MODEL}/big", len(BIG))
    assert upload.put_part(0, memoryview(BIG)[:CHUNK_BYTES])
    second = opened.writer()
    changed = BIG[:CHUNK_BYTES] + b"!" + BIG[CHUNK_BYTES + 1 :]
    assert push(second, f"{MODEL}/big", changed) == [False, True, True]
    second.publish(f"{MODEL}/")
    store = opened.store()
    assert read_all(store, store.head(f"{MODEL}/big")) == changed
    # Only what the one who published has written.
    with pytest.raises(ObjectNotFound):
        store.head(f"{MODEL}/of-the-first")


def test_the_writer_that_began_last_wins(opened: Opened) -> None:
    """An earlier writer fails at its next step, whatever it is, and harms nothing."""
    first, second = opened.writer(), opened.writer()
    upload = first.begin(f"{MODEL}/file", 5)
    upload.put_part(0, memoryview(b"first"))
    push(second, f"{MODEL}/file", b"2nd")
    for step in (
        upload.commit,
        lambda: upload.put_part(0, memoryview(b"first")),
        lambda: first.put(f"{MODEL}/other", b"x"),
        lambda: first.delete(f"{MODEL}/file"),
        lambda: first.publish(f"{MODEL}/"),
    ):
        with pytest.raises(ObjectChanged, match="one at a time"):
            step()
    second.publish(f"{MODEL}/")
    second.publish(f"{MODEL}/")
    store = opened.store()
    assert [meta.id.key for meta in store.list_page(f"{MODEL}/", None).objects] == [f"{MODEL}/file"]
    assert read_all(store, store.head(f"{MODEL}/file")) == b"2nd"


def test_writers_at_the_same_time(opened: Opened) -> None:
    """Of pushes that run at once, whatever is published is one writer's, whole."""

    def work(number: int) -> str:
        writer = opened.writer()
        try:
            for name in ("a", "b", "c"):
                push(writer, f"{MODEL}/{name}", noise(100_000, number))
            writer.publish(f"{MODEL}/")
        except ObjectChanged:
            return "taken over"
        return "published"

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(work, range(8)))
    assert "published" in outcomes
    store = opened.store()
    found = {read_all(store, store.head(f"{MODEL}/{name}")) for name in ("a", "b", "c")}
    assert len(found) == 1
    assert found <= {noise(100_000, number) for number in range(8)}


def test_nothing_is_left_behind(opened: Opened) -> None:
    """What was replaced, discarded or deleted leaves no chunk and no name of itself."""
    writer = opened.writer()
    push(writer, f"{MODEL}/big", BIG)
    writer.publish(f"{MODEL}/")
    assert len(opened.keys("fusefs:chunk:*")) == 3
    push(writer, f"{MODEL}/big", noise(CHUNK_BYTES, 1))
    push(writer, f"{MODEL}/copy", noise(CHUNK_BYTES, 1))
    writer.publish(f"{MODEL}/")
    assert len(opened.keys("fusefs:chunk:*")) == 1
    writer.delete(f"{MODEL}/big")
    writer.publish(f"{MODEL}/")
    assert len(opened.keys("fusefs:chunk:*")) == 1
    store = opened.store()
    assert read_all(store, store.head(f"{MODEL}/copy")) == noise(CHUNK_BYTES, 1)
    push(writer, f"{MODEL}/more", BIG)
    writer.begin(f"{MODEL}/begun", 5)
    assert opened.writer().discard(f"{MODEL}/") == 2
    assert len(opened.keys("fusefs:chunk:*")) == 1
    with pytest.raises(ObjectChanged):
        writer.publish(f"{MODEL}/")
    cleaner = opened.writer()
    cleaner.delete(f"{MODEL}/copy")
    cleaner.publish(f"{MODEL}/")
    assert opened.keys() == {f"fusefs:{{/{MODEL}}}:manifest"}
    assert opened.store("").list_page("", None).prefixes == ()


def test_a_commit_without_all_parts(opened: Opened) -> None:
    """What is not whole is not committed."""
    upload = opened.writer().begin(f"{MODEL}/big", len(BIG))
    upload.put_part(1, memoryview(BIG)[CHUNK_BYTES : 2 * CHUNK_BYTES])
    with pytest.raises(FusefsError, match="1 of its 3 parts"):
        upload.commit()


def test_an_evicted_chunk(opened: Opened) -> None:
    """A current object of which the server has lost a chunk is CorruptData, and says what to do."""
    writer, store = opened.writer(), opened.store()
    push(writer, f"{MODEL}/big", BIG)
    chunk = min(opened.keys("fusefs:chunk:*"))
    with opened.server.client() as client:
        client.delete(chunk)
    upload = writer.begin(f"{MODEL}/big", len(BIG))
    for index in range(3):
        upload.put_part(index, memoryview(BIG)[index * CHUNK_BYTES :][:CHUNK_BYTES])
    upload.commit()
    writer.publish(f"{MODEL}/")
    meta = store.head(f"{MODEL}/big")
    assert read_all(store, meta) == BIG
    with opened.server.client() as client:
        client.delete(chunk)
    with pytest.raises(CorruptData, match="noeviction"):
        read_all(store, meta)


def test_models_in_models(opened: Opened) -> None:
    """Of models whose names are parts of another's, each has its own files."""
    for model in ("org", "org/llama", "other"):
        writer = opened.writer(model)
        writer.put(f"{model}/file", model.encode())
        writer.publish(f"{model}/")
    store = opened.store("")
    assert store.list_page("", None).prefixes == ("org/", "other/")
    page = store.list_page("org/", None)
    assert [meta.id.key for meta in page.objects] == ["org/file"]
    assert page.prefixes == ("org/llama/",)
    for model in ("org", "org/llama", "other"):
        assert read_all(store, store.head(f"{model}/file")) == model.encode()


def test_a_slot_that_moves(tmp_path: Path) -> None:
    """A store reads on while a chunk's slot moves to another node (ASK), and after it (MOVED)."""
    with open_redis_cluster(tmp_path) as server, server.client() as client:
        opened = Opened(server)
        writer, store = opened.writer(), opened.store()
        push(writer, f"{MODEL}/big", BIG)
        writer.publish(f"{MODEL}/")
        meta = store.head(f"{MODEL}/big")
        assert read_all(store, meta) == BIG
        for key in [*opened.keys("fusefs:chunk:*"), ModelKeys(MODEL).files]:
            slot = client.keyslot(key)
            old = client.get_node_from_key(key)
            new = next(node for node in client.get_primaries() if node != old)
            for node in (old, new):
                node.id = client.execute_command("CLUSTER MYID", target_nodes=node).decode()
            client.cluster_setslot(new, old.id, slot, "IMPORTING")
            client.cluster_setslot(old, new.id, slot, "MIGRATING")
            names = client.execute_command("CLUSTER GETKEYSINSLOT", slot, 100, target_nodes=old)
            to = ("127.0.0.1", new.port, "", 0, 5000, "KEYS", *names)
            client.execute_command("MIGRATE", *to, target_nodes=old)
            assert read_all(store, meta) == BIG
            assert store.head(f"{MODEL}/big") == meta
            for node in (new, old):
                client.cluster_setslot(node, new.id, slot, "NODE")
            assert read_all(store, meta) == BIG
            assert store.head(f"{MODEL}/big") == meta
            client.nodes_manager.initialize()
        opened.close()


def _with_user(server: RedisServer, name: str, rights: str) -> Config:
    """Make a user on every node."""
    with server.client() as client:
        options = {"target_nodes": "all"} if server.cluster else {}
        words = ["on", ">user-password", *rights.split()]
        client.execute_command("ACL SETUSER", name, "reset", *words, **options)
    config = Config()
    return replace(config, redis=replace(config.redis, username=name))


def test_least_rights(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The users of docs/stores/redis.md can do their work, and a reader cannot write."""
    owner = Opened(redis)
    writer_rights = WRITER + (" +cluster|slots +command" if redis.cluster else "")
    reader_rights = READER_OF_CLUSTER if redis.cluster else READER
    writing = Opened(redis, _with_user(redis, "test-writer", writer_rights))
    reading = Opened(redis, _with_user(redis, "test-reader", reader_rights))
    monkeypatch.setenv("REDISCLI_AUTH", "user-password")
    writer = writing.writer()
    push(writer, f"{MODEL}/big", BIG)
    writer.publish(f"{MODEL}/")
    store = reading.store()
    store.check(f"{MODEL}/")
    meta: ObjectMeta = store.head(f"{MODEL}/big")
    assert read_all(store, meta) == BIG
    assert reading.store("").list_page("", None).prefixes == ("org/",)
    push(writer, f"{MODEL}/big", b"new")
    writer.discard(f"{MODEL}/")
    with pytest.raises(AccessDenied, match="NOPERM"):
        reading.writer().put(f"{MODEL}/x", b"x")
    for one in (owner, writing, reading):
        one.close()


def test_the_rights_in_the_docs(repository: Path) -> None:
    """What the page tells to type is what was tried here."""
    text = (repository / "docs/stores/redis.md").read_text("utf-8")
    words = " ".join(text.split())
    for rights in (READER, WRITER):
        assert " ".join(rights.split()) in words


def test_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, or with a wrong one, the sentence names the variable; with it, all works."""
    with open_redis(tmp_path, password=PASSWORD) as server:
        for value in (None, "wrong-one"):
            if value:
                monkeypatch.setenv("REDISCLI_AUTH", value)
            opened = Opened(server)
            with pytest.raises(AccessDenied, match="REDISCLI_AUTH") as raised:
                opened.store().check(f"{MODEL}/")
            assert "wrong-one" not in str(raised.value)
            opened.close()
        monkeypatch.setenv("REDISCLI_AUTH", PASSWORD)
        opened = Opened(server)
        opened.writer().publish("")
        opened.store("").check("")
        opened.close()


def test_tls(tmp_path: Path) -> None:
    """The certificate is checked against redis.ca_file, and mistakes are named."""
    with open_redis_tls(tmp_path) as server:
        config = Config()
        trusting = replace(config, redis=replace(config.redis, ca_file=str(server.ca_file)))
        opened = Opened(server, trusting)
        writer, store = opened.writer(), opened.store()
        push(writer, f"{MODEL}/big", BIG)
        writer.publish(f"{MODEL}/")
        meta = store.head(f"{MODEL}/big")
        assert read_all(store, meta) == BIG
        store.read_into(meta.id, Extent(0, 1), memoryview(bytearray(1)))
        opened.close()
        wrong = replace(config, redis=replace(config.redis, ca_file=str(tmp_path / "nothing")))
        for settings, says in ((config, "redis.ca_file"), (wrong, "no readable file")):
            opened = Opened(server, settings)
            with pytest.raises(ConfigError, match=says):
                opened.store().check(f"{MODEL}/")
            opened.close()


def test_tls_where_there_is_none(redis_server: RedisServer) -> None:
    """rediss:// to a server without TLS says so."""
    address = Address("127.0.0.1", redis_server.port, 0, tls=True)
    store = RedisStore(Link(address, RedisConfig(), 1, connect_timeout_s=0.5), "")
    with pytest.raises(StoreTimeout, match="redis://"):
        store.check("")
    store.close()


def test_a_full_server(tmp_path: Path) -> None:
    """OOM is told as what it is, and what was published stays whole."""
    options = ["--maxmemory", "24mb", "--maxmemory-policy", "noeviction"]
    with open_redis(tmp_path, options=options) as server:
        opened = Opened(server)
        writer, store = opened.writer(), opened.store()
        push(writer, f"{MODEL}/small", noise(CHUNK_BYTES, 3))
        writer.publish(f"{MODEL}/")
        with pytest.raises(FusefsError, match="maxmemory"):
            push(writer, f"{MODEL}/large", noise(10 * CHUNK_BYTES, 4))
        assert read_all(store, store.head(f"{MODEL}/small")) == noise(CHUNK_BYTES, 3)
        assert writer.discard(f"{MODEL}/") == 1
        assert len(opened.keys("fusefs:chunk:*")) == 1
        opened.close()
