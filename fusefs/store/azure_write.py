"""Writing to a container of Azure Blob, for `fusefs push`.

Large blobs are block blobs: blocks are put in any order, and one Put Block List makes the blob of
them, all or nothing. The one idea: a block's id holds its index and the MD5 of its content, so that
the store's own list of blocks says what is there already: nothing else is remembered to resume.
"""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote
from xml.etree.ElementTree import Element

from fusefs.errors import ObjectChanged, ObjectNotFound
from fusefs.objects import ObjectMeta
from fusefs.store.azure import head_of, listing, name_of, shown, subject
from fusefs.store.azure_client import AzureClient
from fusefs.store.base import LIST_PAGE_KEYS, Upload

PART_BYTES_MIN = 8 << 20
"""Above 4 MiB Azure takes blocks the fast way ("high-throughput block blobs"); 8 MiB is what one
request reads, too."""

BLOCKS_MAX = 50_000
"""Of one blob: https://learn.microsoft.com/azure/storage/blobs/scalability-targets"""


class AzureWriter:
    """Obeys `fusefs.store.base.Writer` for one container."""

    def __init__(self, client: AzureClient) -> None:
        self._client = client

    def put(self, key: str, data: bytes) -> ObjectMeta:
        """See `Writer`."""
        headers = {"x-ms-blob-type": "BlockBlob", "Content-MD5": _md5(data)}
        answer = self._client.ask("PUT", subject(self._client, key), key, "", headers, data)
        return written(self._client, key, answer.headers.get("ETag", ""))

    def begin(self, key: str, size: int) -> Upload:
        """See `Writer`. One request: what blocks there are, of this blob or of a cut attempt."""
        what = f"the list of blocks of {subject(self._client, key)}"
        try:
            root = self._client.ask_xml(what, key, "comp=blocklist&blocklisttype=all")
        except ObjectNotFound:
            # No such blob yet. That the container is missing, the first block will tell.
            return AzureUpload(self._client, key, size, frozenset())
        there = frozenset(_block(item) for item in root.iter("Block"))
        return AzureUpload(self._client, key, size, there)

    def delete(self, key: str) -> None:
        """See `Writer`. Its snapshots go with it: without that, Azure refuses."""
        what = subject(self._client, key)
        try:
            self._client.ask("DELETE", what, key, "", {"x-ms-delete-snapshots": "include"})
        except ObjectNotFound:
            return

    def discard(self, prefix: str) -> int:
        """See `Writer`. Blobs that were never committed; blocks beside a blob Azure drops itself.

        Azure has no request for it: an empty list of blocks is committed, and the blob deleted.
        Where a blob was committed before, that would replace it; its loose blocks cost no reader
        anything, and Azure drops them after a week.
        """
        count, marker = 0, ""
        while True:
            what = f"the listing of {shown(prefix)} in container {self._client.container!r}"
            query = listing(
                prefix, include="uncommittedblobs", maxresults=str(LIST_PAGE_KEYS), marker=marker
            )
            page = self._client.ask_xml(what, "", query)
            for item in page.iterfind("./Blobs/Blob"):
                if item.findtext("./Properties/Content-Length") in ("", "0", None):
                    count += self._discard(name_of(item))
            following = page.findtext("NextMarker") or ""
            if following in ("", marker):
                return count
            marker = following

    def publish(self, prefix: str) -> None:
        """See `Writer`: blobs appear one by one."""

    def close(self) -> None:
        """See `Writer`."""
        self._client.close()

    def _discard(self, key: str) -> bool:
        """Drop the blocks of a blob that was never committed; False if it was."""
        what = subject(self._client, key)
        # An empty blob that somebody committed stays.
        never = {"If-None-Match": "*", "Content-MD5": _md5(_block_list([]))}
        try:
            answer = self._client.ask("PUT", what, key, "comp=blocklist", never, _block_list([]))
            only = {"If-Match": answer.headers.get("ETag", "*")}
            self._client.ask("DELETE", what, key, "", only)
        except (ObjectChanged, ObjectNotFound):
            return False
        return True


class AzureUpload:
    """Obeys `fusefs.store.base.Upload` for one blob. `there` are ids and sizes of blocks."""

    def __init__(
        self, client: AzureClient, key: str, size: int, there: frozenset[tuple[str, int]]
    ) -> None:
        self._client = client
        self._key = key
        self._size = size
        self._there = there
        self.part_bytes = part_bytes(size)
        # The mutable state of AzureUpload is the ids of its parts. Threads set different keys.
        self._ids: dict[int, str] = {}

    def put_part(self, index: int, data: memoryview) -> bool:
        """See `Upload`."""
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        id = block_id(index, digest)
        fresh = (id, len(data)) not in self._there
        if fresh:
            what = f"part {index} of {subject(self._client, self._key)}"
            headers = {"Content-MD5": base64.b64encode(digest).decode()}
            query = f"comp=block&blockid={quote(id, safe='')}"
            self._client.ask("PUT", what, self._key, query, headers, data)
        self._ids[index] = id
        return fresh

    def commit(self) -> ObjectMeta:
        """See `Upload`. May be made again: blocks that are the blob's already count, too."""
        what = subject(self._client, self._key)
        body = _block_list([self._ids[index] for index in sorted(self._ids)])
        headers = {"Content-MD5": _md5(body), "x-ms-blob-content-type": "application/octet-stream"}
        answer = self._client.ask("PUT", what, self._key, "comp=blocklist", headers, body)
        return written(self._client, self._key, answer.headers.get("ETag", ""))


def part_bytes(size: int) -> int:
    """Size of the parts of a blob of `size` bytes: whole MiB, so that they are few enough."""
    least = -(-size // BLOCKS_MAX)
    return max(PART_BYTES_MIN, -(-least // (1 << 20)) * (1 << 20))


def block_id(index: int, digest: bytes) -> str:
    """The id of a block: Base64, and all of a blob equally long, as Azure wants them."""
    return base64.b64encode(f"{index:05}-{digest.hex()}".encode()).decode()


def written(client: AzureClient, key: str, etag: str) -> ObjectMeta:
    """What the store says of the version that it has just answered for."""
    meta = head_of(client, key)
    if meta.id.etag != etag.strip('"'):
        raise ObjectChanged(f"{subject(client, key)} was overwritten by somebody else")
    return meta


def _block_list(ids: list[str]) -> bytes:
    """The body of Put Block List: each block as it was put last, or as the blob has it."""
    blocks = "".join(f"<Latest>{id}</Latest>" for id in ids)
    return f'<?xml version="1.0" encoding="utf-8"?><BlockList>{blocks}</BlockList>'.encode()


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _block(item: Element) -> tuple[str, int]:
    size = item.findtext("Size") or "-1"
    return item.findtext("Name") or "", int(size) if size.isdecimal() else -1
