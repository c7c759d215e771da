"""What this process has open of an embedded folder: its lock and its shards.

All engines on one folder share it. The last one that closes, or is dropped, closes the folder. A
process that is forked while a folder is open has no part in it: Edge's threads are not there, and
two processes must not write to one folder.
"""

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import qdrant_edge as edge

from two_tower.retriever.engine.edge_folder import LOCK, EdgeFolder

FolderKey = tuple[int, int]


class EdgeStore:
    """One open folder; `share_store` gives it.

    Attributes:
        folder: that it has the lock of.
        shards: of the collections that were asked for, by their names.
        is_changed: whether anything was written, which a shard that closes then flushes.
        opening: held by whoever opens or closes a shard.
        describing: held by whoever changes a description; taken before `opening`.
        pid: of the process that opened the folder.
        users: engines that share it.
    """

    def __init__(self, folder: EdgeFolder) -> None:
        self.folder = folder
        self.shards: dict[str, edge.EdgeShard] = {}
        self.is_changed = False
        self.opening = threading.Lock()
        self.describing = threading.Lock()
        self.pid = os.getpid()
        self.users = 0

    def close_shard(self, name: str) -> None:
        """Flush and close the shard of a collection where it is open."""
        shard = self.shards.pop(name, None)
        if shard is not None:
            if self.is_changed:
                shard.flush()
            shard.close()


_stores: dict[FolderKey, EdgeStore] = {}
# An engine may be dropped, and so closed, wherever the collector runs: in this lock as well.
_sharing = threading.RLock()


def share_store(
    path: Path, *, create: bool, user: object
) -> tuple[EdgeStore, Callable[[], object]]:
    """Return the folder's store and what `user` calls when it is done with it.

    It is called by itself when `user` is collected, or the process ends.

    Raises:
        EngineLocked: another process has the folder open.
        EngineUnavailable: it cannot be opened.
    """
    with _sharing:
        store = _stores.get(_key(path) or (0, 0))
        if store is None:
            store = EdgeStore(EdgeFolder(path, create=create))
            if key := _key(path):
                _stores[key] = store
        store.users += 1
        return store, weakref.finalize(user, _leave, store)


def _leave(store: EdgeStore) -> None:
    if os.getpid() != store.pid:
        return
    with _sharing:
        store.users -= 1
        if store.users:
            return
        for key in [key for key, known in _stores.items() if known is store]:
            del _stores[key]
        try:
            for name in list(store.shards):
                store.close_shard(name)
        finally:
            store.folder.close()


def _key(path: Path) -> FolderKey | None:
    """Return what stays the same for a folder that is open, whatever it is called."""
    try:
        status = os.stat(path / LOCK)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _begin_child() -> None:
    """Leave the folders to the process that this one was forked from."""
    global _sharing
    _sharing = threading.RLock()
    for store in _stores.values():
        store.folder.close()  # the lock stays the parent's, and outlives this process there alone
    _stores.clear()


os.register_at_fork(after_in_child=_begin_child)
