"""What the Redis store promises besides the contract: sources, and publishing whole models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.errors import (
    ConfigError,
    CorruptData,
    FusefsError,
    ObjectChanged,
    ObjectNotFound,
)
from fusefs.store.redis_layout import CHUNK_BYTES
from fusefs.store.source import parse_source
from tests.store_contract.redis_place import BIG, MODEL, Opened, push
from tests.store_contract.test_contract import noise, read_all


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
