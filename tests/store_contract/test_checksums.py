"""The checksums that stores keep: right of the version they are asked about, or none."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator

import pytest

from fusefs.config import S3Config
from fusefs.errors import ChecksumMismatch, FusefsError, StoreUnavailable, Unsupported
from fusefs.objects import Extent, ObjectId
from fusefs.policy.crc import CRC32, CRC32C, CRC64NVME, find_crc
from fusefs.store.azure import SUMMED_BYTES_MAX, AzureStore
from fusefs.store.checksums import Finder, KnowsChecksums
from fusefs.store.gcs import GcsStore
from fusefs.store.s3 import S3Store
from tests.harness.azurite import VARIABLES, Azurite
from tests.store_contract.azure_wire import error as azure_error
from tests.store_contract.azure_wire import make_store
from tests.store_contract.subjects import AzureSubject, S3Subject, Subject
from tests.store_contract.wire import Answer, WireServer, answer, error

KEEPERS = {"S3Subject": {CRC32, CRC64NVME}, "GcsSubject": {CRC32C}}
"""Who keeps checksums of what anybody uploads: others keep none of whole objects, or no CRC."""

SIZE = 300_000
DATA = random.Random(5).randbytes(SIZE)
MIB = 1 << 20


def check_kept(store: KnowsChecksums, id: ObjectId, data: bytes) -> str:
    """All pieces together are the object, each with its CRC; returns the kind."""
    sums = store.checksums(id)
    assert sums is not None
    assert sums.stops[-1] == len(data)
    compute = find_crc(sums.crc).compute
    for piece, value in sums.pieces(Extent(0, len(data))):
        assert compute(memoryview(data)[piece.start : piece.stop]) == value
    return sums.crc


def test_what_a_store_keeps_is_right(subject: Subject) -> None:
    """Its checksums are those of the bytes; of a version that is gone there are none."""
    subject.put("a/b.bin", DATA)
    first = subject.store.head("a/b.bin").id
    kinds = KEEPERS.get(type(subject).__name__)
    if kinds is None:
        assert not isinstance(subject.store, KnowsChecksums)
        assert Finder(subject.store, "").find(first) is None
        return
    assert isinstance(subject.store, KnowsChecksums)
    assert check_kept(subject.store, first, DATA) in kinds
    subject.put("a/b.bin", DATA[::-1])
    assert subject.store.checksums(first) is None
    second = subject.store.head("a/b.bin").id
    assert check_kept(subject.store, second, DATA[::-1]) in kinds
    subject.put("empty", b"")
    assert subject.store.checksums(subject.store.head("empty").id) is None
    subject.delete("a/b.bin")
    assert subject.store.checksums(second) is None
    assert subject.store.checksums(ObjectId("a/none", "1")) is None


def test_what_may_not_be_asked_is_not_there(subject: Subject) -> None:
    """Whoever may not ask for checksums has none; that is no failure."""
    subject.put("a", DATA)
    id = subject.store.head("a").id
    if isinstance(subject.store, KnowsChecksums):

        def ask(store: object) -> None:
            assert isinstance(store, KnowsChecksums)
            assert store.checksums(id) is None

        subject.refused(ask)
    else:
        assert Finder(subject.store, "").find(id) is None


@pytest.mark.parametrize("kind", [CRC32, CRC32C, CRC64NVME, "sha256"])
def test_kinds_of_s3(subject: Subject, kind: str) -> None:
    """Of the kinds an uploader may choose, CRCs are known; a hash is of no use, and left."""
    if not isinstance(subject, S3Subject):
        assert kind not in KEEPERS.get(type(subject).__name__, ()) or kind == CRC32C
        return
    subject._client.put_object(
        Bucket=subject._bucket, Key="k", Body=DATA, ChecksumAlgorithm=kind.upper()
    )
    assert isinstance(subject.store, KnowsChecksums)
    id = subject.store.head("k").id
    if kind == "sha256":
        assert subject.store.checksums(id) is None
    else:
        assert check_kept(subject.store, id, DATA) == kind


# -- S3's parts -----------------------------------------------------------------------------------

PARTS = [(100_000, CRC32C), (100_000, CRC32C), (100_000, CRC32C)]


@pytest.fixture
def s3(server: WireServer) -> Iterator[S3Store]:
    """A store on the wire server."""
    made = S3Store("bucket", S3Config(endpoint_url=f"http://127.0.0.1:{server.port}"), 1, 5.0, 0.5)
    yield made
    made.close()


def coded(data: bytes, kind: str = CRC32C) -> str:
    """A CRC as S3 writes it."""
    crc = find_crc(kind)
    return base64.b64encode(crc.compute(memoryview(data)).to_bytes(crc.size_bytes)).decode()


def head_of_parts(etag: str = "abc-3", size: int = SIZE) -> Answer:
    """HEAD of an object that was uploaded in three parts."""
    return answer(
        "200 OK",
        {
            "ETag": f'"{etag}"',
            "Content-Length": str(size),
            "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT",
            "x-amz-checksum-crc32c": "AAAAAA==-3",
            "x-amz-checksum-type": "COMPOSITE",
        },
    )


def attributes(
    first: int, count: int, more: bool, etag: str = "abc-3", sums: bool = True
) -> Answer:
    """A page of GetObjectAttributes: parts from `first` (1 is the first) on."""
    parts = "".join(
        f"<Part><PartNumber>{n}</PartNumber><Size>100000</Size>"
        + (
            f"<ChecksumCRC32C>{coded(DATA[(n - 1) * 100_000 : n * 100_000])}</ChecksumCRC32C>"
            if sums
            else ""
        )
        + "</Part>"
        for n in range(first, first + count)
    )
    body = (
        f"<GetObjectAttributesOutput><ETag>{etag}</ETag><ObjectParts>"
        f"<NextPartNumberMarker>{first + count - 1}</NextPartNumberMarker>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{parts}</ObjectParts>"
        "</GetObjectAttributesOutput>"
    ).encode()
    return answer("200 OK", {"Content-Length": str(len(body))}, body)


ID = ObjectId("dir/model.safetensors", "abc-3")


def test_an_upload_in_parts(server: WireServer, s3: S3Store) -> None:
    """Each part has its CRC, however many pages it takes to hear of them."""
    server.answers += [head_of_parts(), attributes(1, 2, True), attributes(3, 1, False)]
    assert check_kept(s3, ID, DATA) == CRC32C
    asked = [head.split("\r\n")[0] for head in server.requests]
    assert asked[0].startswith("HEAD /bucket/dir/model.safetensors")
    assert [line.split("?")[1].split(" ")[0] for line in asked[1:]] == ["attributes"] * 2
    assert "x-amz-checksum-mode: enabled" in server.requests[0].lower()
    assert "x-amz-part-number-marker: 2" in server.requests[2].lower()


@pytest.mark.parametrize(
    "answers",
    [
        [head_of_parts(etag="other")],
        [head_of_parts(), attributes(1, 3, False, etag="other")],
        [head_of_parts(), attributes(1, 3, False, sums=False)],
        [head_of_parts(), attributes(1, 2, False)],
        [head_of_parts(), error("403 Forbidden", "AccessDenied")],
        [head_of_parts(), error("501 Not Implemented", "NotImplemented")],
        [error("404 Not Found", "NoSuchKey")],
    ],
    ids=["version", "version of parts", "no sums", "parts missing", "denied", "unknown", "gone"],
)
def test_an_upload_in_parts_that_is_not_told(
    server: WireServer, s3: S3Store, answers: list[Answer]
) -> None:
    """Whatever is missing, of another version or refused: there are no checksums."""
    server.answers += answers
    assert s3.checksums(ID) is None


def test_a_store_that_is_away(server: WireServer, s3: S3Store) -> None:
    """That it cannot be told now is an error: it is asked again."""
    server.answers.append(error("503 Slow Down", "SlowDown"))
    with pytest.raises(StoreUnavailable):
        s3.checksums(ID)


# -- Azure's ranges -------------------------------------------------------------------------------

BLOB = random.Random(6).randbytes(SUMMED_BYTES_MAX + MIB)
BLOB_ID = ObjectId("dir/model.safetensors", "abc")


@pytest.fixture
def azure(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureStore]:
    """A store on the wire server."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_STORAGE_KEY", "aHVudGVyMg==")
    made = make_store(f"http://127.0.0.1:{server.port}")
    yield made
    made.close()


def ranged(start: int, stop: int, wrong: bool = False, summed: bool = True) -> Answer:
    """Azure's answer to a range with its CRC64; `wrong` flips a bit behind the sum's back."""
    data = bytearray(BLOB[start:stop])
    crc = find_crc(CRC64NVME).compute(memoryview(data)).to_bytes(8, "little")
    data[len(data) // 2] ^= 0x20 * wrong
    return answer(
        "206 Partial Content",
        {
            "ETag": '"abc"',
            "Content-Range": f"bytes {start}-{stop - 1}/{len(BLOB)}",
            "Content-Length": str(stop - start),
            "x-ms-content-crc64": base64.b64encode(crc).decode() if summed else None,
        },
        bytes(data),
    )


def read_summed(store: AzureStore) -> tuple[bytes, list[int]]:
    """Read the blob: its bytes, and what landed."""
    buffer, landed = bytearray(len(BLOB)), list[int]()
    store.read_summed_into(BLOB_ID, Extent(0, len(BLOB)), memoryview(buffer), landed.append)
    return bytes(buffer), landed


def test_azure_sums_ranges(server: WireServer, azure: AzureStore) -> None:
    """No request is for more than the 4 MiB that Azure sums, and nothing lands before its sum."""
    server.answers += [ranged(0, SUMMED_BYTES_MAX), ranged(SUMMED_BYTES_MAX, len(BLOB))]
    assert read_summed(azure) == (BLOB, [SUMMED_BYTES_MAX, len(BLOB)])
    assert all("x-ms-range-get-content-crc64: true" in head.lower() for head in server.requests)
    assert server.connections == 1


def test_azure_with_a_wrong_byte(server: WireServer, azure: AzureStore) -> None:
    """A range that is not what its CRC64 is of fails, and its connection is not used again."""
    server.answers += [ranged(0, SUMMED_BYTES_MAX, wrong=True)]
    with pytest.raises(ChecksumMismatch, match=r"model\.safetensors.*wrong bytes"):
        read_summed(azure)
    server.answers += [ranged(0, SUMMED_BYTES_MAX), ranged(SUMMED_BYTES_MAX, len(BLOB))]
    assert read_summed(azure)[0] == BLOB
    assert server.connections == 2


@pytest.mark.parametrize("answers", [[ranged(0, SUMMED_BYTES_MAX, summed=False)], []])
def test_a_server_without_sums(
    server: WireServer, azure: AzureStore, answers: list[Answer]
) -> None:
    """One that does not send them, or refuses to, is told from one that is away."""
    server.answers += answers or [azure_error("500 Internal", "FeatureNotSupported")]
    with pytest.raises(Unsupported, match="without checksums"):
        read_summed(azure)


def test_azurite_is_such_a_server(azurite_environment: Azurite, container: str) -> None:
    """The real answer of a server that computes no CRC64 is understood."""
    subject = AzureSubject(azurite_environment, container)
    subject.put("a", DATA)
    store = subject.store
    assert isinstance(store, AzureStore)
    with pytest.raises(FusefsError) as failed:
        store.read_summed_into(
            store.head("a").id, Extent(0, SIZE), memoryview(bytearray(SIZE)), None
        )
    subject.close()
    assert type(failed.value) is Unsupported


# -- Google's resources ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'{"size": "10"}', b'{"size": null, "crc32c": "AAAAAA=="}'],
    ids=["nothing", "a list", "no sum", "no size"],
)
def test_a_resource_without_a_sum(
    google_wire: WireServer, google_store: GcsStore, body: bytes
) -> None:
    """An answer that holds none means that there is none."""
    google_wire.answers.append(answer("200 OK", {"Content-Length": str(len(body))}, body))
    assert google_store.checksums(ObjectId("a", "1")) is None
