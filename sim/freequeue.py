"""vLLM's queue of blocks that nobody has pinned: free or cached, the one freed longest ago is taken first.

Cached nodes stand in it with all their pages, of which the last goes first; pages whose content nobody can
ask for any more are free, and keep the place they had.
Source: vLLM 0.19, v1/core/block_pool.py and kv_cache_utils.py (`FreeKVCacheBlockQueue`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.kv import KvNode


class Place:
    """A node's cached pages, or free ones; neither once the node is pinned again."""

    __slots__ = ("free", "node")

    def __init__(self, node: KvNode | None, free: int) -> None:
        self.node = node
        self.free = free


class FreeQueue:
    """The places of all unpinned pages, the next to be taken first."""

    __slots__ = ("_of", "_places")

    def __init__(self, pages: int) -> None:
        self._places: deque[Place] = deque([Place(None, pages)])
        self._of: dict[KvNode, Place] = {}

    def append(self, node: KvNode) -> None:
        """Put the pages of a node at the end."""
        place = self._of[node] = Place(node, 0)
        self._places.append(place)

    def append_free(self, pages: int) -> None:
        """Put free pages at the end."""
        self._places.append(Place(None, pages))

    def remove(self, node: KvNode) -> None:
        """Take a node out that is pinned again."""
        place = self._of.pop(node, None)
        if place is not None:
            place.node = None

    def forget(self, node: KvNode) -> None:
        """Let a node's pages be free where they stand."""
        place = self._of.pop(node, None)
        if place is not None:
            place.node = None
            place.free = node.pages

    def first(self) -> Place:
        """The place that pages are taken from next."""
        places = self._places
        while True:
            place = places[0]
            if place.free or (place.node is not None and place.node.pages):
                return place
            places.popleft()
            if place.node is not None:
                del self._of[place.node]
