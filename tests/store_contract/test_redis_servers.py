"""Redis servers as they are set up: least rights, passwords, TLS, slots that move, full memory."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from fusefs.config import Config, RedisConfig
from fusefs.errors import AccessDenied, ConfigError, FusefsError, StoreTimeout, StoreUnavailable
from fusefs.objects import Extent, ObjectMeta
from fusefs.store.redis import RedisStore
from fusefs.store.redis_layout import CHUNK_BYTES, ModelKeys
from fusefs.store.redis_link import Address, Link
from tests.harness.redis_server import (
    PASSWORD,
    RedisServer,
    open_redis,
    open_redis_cluster,
    open_redis_tls,
)
from tests.store_contract.redis_place import BIG, MODEL, Opened, push
from tests.store_contract.sglang_writer import save_remote_model
from tests.store_contract.test_contract import noise, read_all

READER = "%R~fusefs:* resetchannels -@all +get +getrange +hget +hgetall +smembers +exists"
READER_OF_CLUSTER = f"{READER} +cluster|slots +command"
READER_OF_SGLANG = f"{READER} %R~sglang/* +scan +strlen"
WRITER = (
    "~fusefs:* resetchannels -@all +get +getrange +set +strlen +exists +unlink +del +hget +hgetall"
    " +hset +hsetnx +hdel +hexists +hincrby +hkeys +hvals +sadd +srem +smembers +sismember +eval"
    " +time"
)
"""The rights in docs/stores/redis.md; a test compares."""


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


def test_a_node_that_dies(tmp_path: Path) -> None:
    """What lies on a dead node of a cluster is unavailable, which may be tried again."""
    with open_redis_cluster(tmp_path) as server, server.client() as client:
        opened = Opened(server)
        writer, store = opened.writer(), opened.store()
        push(writer, f"{MODEL}/big", BIG)
        writer.publish(f"{MODEL}/")
        meta = store.head(f"{MODEL}/big")
        assert read_all(store, meta) == BIG
        node = client.get_node_from_key(min(opened.keys("fusefs:chunk:*")))
        pid = client.info("server", target_nodes=node)["process_id"]
        assert pid in server.pids
        os.kill(pid, signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                read_all(store, meta)
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


def test_least_rights_beside_ours(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the docs add for SGLang's models, and for a database other than 0, is what it takes."""
    config = _with_user(redis_server, "test-sglang", READER_OF_SGLANG)
    other = _with_user(redis_server, "test-db", f"{READER} +select")
    with redis_server.client() as client:
        save_remote_model(client, "sglang/model", tmp_path, {0: {"weight": torch.ones(5)}})
    monkeypatch.setenv("REDISCLI_AUTH", "user-password")
    opened = Opened(redis_server, config)
    store = opened.store("sglang/model")
    meta = store.head("sglang/model/model-rank-0-part-0.safetensors")
    assert torch.equal(load(read_all(store, meta))["weight"], torch.ones(5))
    address = Address("127.0.0.1", redis_server.port, 1, tls=False)
    for user, may in ((config, False), (other, True)):
        in_db = RedisStore(Link(address, user.redis, 1), "")
        if may:
            in_db.check("")
        else:
            with pytest.raises(AccessDenied):
                in_db.check("")
        in_db.close()
    opened.close()


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
