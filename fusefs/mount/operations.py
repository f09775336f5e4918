"""pyfuse3's Operations: pure translation between the kernel's requests and tree, reader, status.

The only place that raises FUSEError, and the choke point for everything else: pyfuse3 answers for
FUSEError alone, any other exception would leave the caller blocked and end the mount. Handles carry
nothing but a flag: a file's handle is its inode, which is one version of one object.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FUSEError,
    InodeT,
    RequestContext,
    StatvfsData,
)

from fusefs.config import Config
from fusefs.engine.blocks import File, FileTable
from fusefs.engine.prefetcher import Prefetcher
from fusefs.engine.reader import Reader
from fusefs.errors import FusefsError, InternalError, ObjectChanged, ObjectNotFound
from fusefs.hints.verbs import BadExtent
from fusefs.mount.control import Control
from fusefs.mount.folder import FOLDER_BIT, Node
from fusefs.mount.requests import Requests, describe_names, describe_read
from fusefs.policy.kinds import Kind
from fusefs.tree.inodes import Entry
from fusefs.tree.names import NAME_BYTES_MAX
from fusefs.tree.streams import FIRST_COOKIE, DirectoryStreams
from fusefs.tree.tree import Tree, TreeStatistics

log = logging.getLogger("fusefs.operations")

BLOCK_BYTES = 1 << 17
"""st_blksize: what cp and Python's open() read at once; 128 KiB is coreutils' own choice."""

STATFS_BLOCK_BYTES = 4096

ENTRY_TIMEOUT_S = 1.0
"""How long the kernel keeps a name without asking us: the tree answers from memory in microseconds
(and no store is asked before its own TTL ends), so the two beliefs must not add up."""

DIRECT_HANDLE = 1 << 63
"""Set in the handle of a file opened with O_DIRECT; inode numbers leave this bit free."""

ATTRIBUTE_TIMEOUT_S = 3600.0
"""An inode is one version: its attributes cannot change. An hour is as good as for ever."""

P = ParamSpec("P")
R = TypeVar("R")


def answering(
    handler: Callable[Concatenate[Operations, P], Awaitable[R]],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, R]]:
    """The choke point: whatever a handler raises becomes an errno, and each request is noted."""
    name = handler.__name__

    @functools.wraps(handler)
    async def answer(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        number = self.requests.began(name, args)
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except FusefsError as error:
            if not isinstance(error, (ObjectNotFound, BadExtent)):  # the caller is told
                log.warning("%s: %s", handler.__name__, error)
            raise FUSEError(error.errno) from error
        except Exception as error:
            log.exception("%s failed in an unforeseen way", handler.__name__)
            raise FUSEError(errno.EIO) from error
        finally:
            self.requests.ended(number)

    return answer


@dataclass(frozen=True, slots=True)
class Hooks:
    """What else happens in a request: in every OPEN of a kind of file, and in all."""

    opening: Callable[[Kind], None]
    requests: Requests


class Operations(pyfuse3.Operations):
    """One mount's requests.

    The mutable state of Operations is the open files by inode, the directory streams, and the
    requests under way. `on_init` is set before the first.
    INVARIANT: `_opens[inode]` > 0 exactly while `_files` has the inode.

    A handle of the daemon before us is opened anew by the READ that uses it: it is an inode, and
    what the kernel has open it also knows. So our count of opens may be below the kernel's, never
    above: a plan may end early and begin again.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        tree: Tree,
        files: FileTable,
        reader: Reader,
        prefetcher: Prefetcher,
        control: Control,
        config: Config,
        hooks: Hooks,
    ) -> None:
        super().__init__()
        self._tree = tree
        self._file_table = files
        self._reader = reader
        self._prefetcher = prefetcher
        self._control = control
        self._folder = control.folder
        self._mount_config, self._tree_config = config.mount, config.tree
        self._hooks = hooks
        self.requests = hooks.requests
        self._uid = os.geteuid() if config.mount.uid is None else config.mount.uid
        self._gid = os.getegid() if config.mount.gid is None else config.mount.gid
        self._files: dict[int, File] = {}
        self._opens: dict[int, int] = {}
        self._streams = DirectoryStreams(tree)
        self._seen: TreeStatistics | None = None
        self.on_init: Callable[[], None] = _nothing

    def init(self) -> None:
        """FUSE_INIT: see `fusefs.mount.session`."""
        self.on_init()

    def gauges(self) -> dict[str, Any]:
        """What is open and under way; each of them returns to zero, entries to what is known."""
        return {
            "requests": self.requests.statistics(self.describe),
            "open": {
                "files": len(self._files),
                "handles": sum(self._opens.values()),
                "directories": len(self._streams),
                "entries": self._tree.entries_live,
            },
        }

    def describe(self, handler: str, arguments: tuple[Any, ...]) -> str:
        """What a request under way is about, and what it waits for."""
        if handler == "read":
            return describe_read(self._files[arguments[0] & ~DIRECT_HANDLE], *arguments[1:])
        return describe_names(handler, arguments, self._tree)

    # -- names ------------------------------------------------------------------------------------

    @answering
    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """LOOKUP; an absent name is answered with a negative entry, which the kernel keeps."""
        if len(name) > NAME_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        node = self._folder.lookup(parent_inode, name)
        if node is not None:
            return self._node_attributes(node)
        if parent_inode & FOLDER_BIT:
            return self._absent()
        try:
            entry = await self._tree.lookup(parent_inode, name)
        except ObjectNotFound:
            return self._absent()
        self._tree.remember(entry)
        return self._attributes(entry)

    @answering
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """FORGET and BATCH_FORGET."""
        for inode, count in inode_list:
            self._tree.forget(inode, count)

    @answering
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """GETATTR: an inode is one version, so this never asks the store."""
        node = self._folder.find(inode)
        if node is not None:
            return self._node_attributes(node)
        return self._attributes(self._tree.get(inode))

    @answering
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """OPENDIR takes the listing that READDIR walks; the socket's folder shows nothing."""
        if inode & FOLDER_BIT:
            return FileHandleT(0)
        await self._streams.open(inode)
        return FileHandleT(inode)

    @answering
    async def readdir(self, fh: FileHandleT, start_id: int, token: Any) -> None:
        """READDIRPLUS from after the cookie `start_id`; "." and ".." count no look-up."""
        if fh == 0:
            return
        for cookie, name, entry in await self._streams.walk(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._attributes(entry), cookie):
                return
            if cookie >= FIRST_COOKIE:
                self._tree.remember(entry)

    @answering
    async def releasedir(self, fh: FileHandleT) -> None:
        """RELEASEDIR lets go of the listing."""
        if fh != 0:
            self._streams.release(fh)

    @answering
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """STATFS: the size is what the names seen so far hold; nothing is free."""
        known = self._tree.statistics()
        if not known.files_known and self._seen is not None:
            known = self._seen  # nothing is cached just now: the bucket did not shrink
        self._seen = known
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = STATFS_BLOCK_BYTES
        answer.f_blocks = max(1, -(-known.bytes_known // STATFS_BLOCK_BYTES))
        answer.f_bfree = answer.f_bavail = 0
        answer.f_files = max(1, known.files_known)
        answer.f_ffree = answer.f_favail = 0
        answer.f_namemax = NAME_BYTES_MAX
        return answer

    # -- bytes ------------------------------------------------------------------------------------

    @answering
    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        """OPEN; a version known to be gone is ESTALE, and the kernel looks the name up again."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_CREAT):
            raise FUSEError(errno.EROFS)
        entry = self._tree.get(inode)
        if entry.meta is None:
            raise FUSEError(errno.EISDIR)
        if entry.stale:
            raise ObjectChanged(f"{entry.key} was replaced in the store")
        handle = FileHandleT(inode | (DIRECT_HANDLE if flags & os.O_DIRECT else 0))
        file = self._opened(handle)
        if not file.is_wrong:
            file.changed = None  # if it was: the store has named this version anew since
        self._hooks.opening(file.plan.kind)
        return FileInfo(fh=handle, keep_cache=file.may_keep_pages())

    @answering
    async def read(self, fh: FileHandleT, off: int, size: int) -> Any:
        """READ: exactly min(size, rest of file) bytes; shorter would shrink the file for all."""
        file = self._files.get(fh & ~DIRECT_HANDLE)
        if file is None:
            file = self._opened(fh)
        return await self._reader.read(file, off, size)

    def _opened(self, fh: FileHandleT) -> File:
        """The file of a handle, one open more."""
        inode = fh & ~DIRECT_HANDLE
        meta = self._tree.get(inode).meta
        if meta is None:
            raise InternalError(f"the directory {inode} is read as a file")
        self._tree.acquire(inode)
        file = self._file_table.opened(meta)
        file.inode = inode
        self._files[inode] = file
        self._opens[inode] = self._opens.get(inode, 0) + 1
        file.direct_opens += fh != inode
        return file

    @answering
    async def release(self, fh: FileHandleT) -> None:
        """RELEASE: one handle less. Of the daemon before us, and unused since: nothing."""
        inode = fh & ~DIRECT_HANDLE
        file = self._files.get(inode)
        if file is None:
            return
        file.direct_opens = max(0, file.direct_opens - (fh != inode))
        self._opens[inode] -= 1
        if not self._opens[inode]:
            file.direct_opens = 0
            del self._opens[inode], self._files[inode]
        self._file_table.closed(file)
        self._prefetcher.closed(file)
        self._tree.release(inode)

    # -- attributes -------------------------------------------------------------------------------

    @answering
    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        """GETXATTR: the verbs of `control`; anything else is ENODATA."""
        value = await self._control.answer(inode, name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @answering
    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """MKNOD: the hints' socket, while it is bound; the mount is read-only otherwise."""
        node = self._folder.make(parent_inode, name, mode)
        if node is None:
            raise FUSEError(errno.EROFS)
        return self._node_attributes(node)

    @answering
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[bytes]:
        """LISTXATTR: the verbs are not listed, so that cp -a and rsync -X copy none."""
        return []

    @answering
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        """READLINK: there are no links."""
        raise FUSEError(errno.EINVAL)

    def _absent(self) -> EntryAttributes:
        result = EntryAttributes()
        result.st_ino = InodeT(0)
        result.entry_timeout = min(ENTRY_TIMEOUT_S, self._tree_config.negative_ttl_s)
        return result

    def _attributes(self, entry: Entry) -> EntryAttributes:
        """What stat(2) shows.

        Files are one name of one object; a directory has no link count worth
        counting, so it shows 2, for its name and its ".".
        """
        config = self._mount_config
        result = EntryAttributes()
        result.st_ino = InodeT(entry.inode)
        result.entry_timeout = min(ENTRY_TIMEOUT_S, self._tree_config.ttl_s)
        result.attr_timeout = ATTRIBUTE_TIMEOUT_S
        result.st_uid, result.st_gid = self._uid, self._gid
        result.st_blksize = BLOCK_BYTES
        if entry.meta is None:
            result.st_mode = pyfuse3.ModeT(stat.S_IFDIR | (0o555 & ~config.umask))
            result.st_nlink = 2
            mtime_ns = self._control.started_ns
        else:
            result.st_mode = pyfuse3.ModeT(stat.S_IFREG | (0o444 & ~config.umask))
            result.st_nlink = 1
            result.st_size = entry.meta.size
            result.st_blocks = -(-entry.meta.size // 512)
            mtime_ns = entry.meta.mtime_ns
        result.st_mtime_ns = result.st_ctime_ns = result.st_atime_ns = mtime_ns
        return result

    def _node_attributes(self, node: Node) -> EntryAttributes:
        """What stat(2) shows of the socket and its folders."""
        result = EntryAttributes()
        result.st_ino = InodeT(node.inode)
        result.st_mode = pyfuse3.ModeT(node.mode)
        result.st_nlink = 2 if node.inode & FOLDER_BIT else 1
        result.st_uid, result.st_gid = self._uid, self._gid
        result.st_mtime_ns = result.st_ctime_ns = result.st_atime_ns = self._control.started_ns
        result.entry_timeout = ENTRY_TIMEOUT_S
        result.attr_timeout = ATTRIBUTE_TIMEOUT_S
        return result


def _nothing() -> None:
    """What is done in FUSE_INIT until it is known."""


def _refuses(name: str) -> Callable[..., Awaitable[None]]:
    async def refuse(self: Operations, *args: Any) -> None:
        raise FUSEError(errno.EROFS)

    refuse.__name__ = name
    refuse.__doc__ = f"{name.upper()}: the mount is read-only."
    return refuse


for _name in (
    "create", "link", "mkdir", "removexattr", "rename", "rmdir", "setattr", "setxattr",
    "symlink", "unlink", "write",
):  # fmt: skip
    setattr(Operations, _name, _refuses(_name))
