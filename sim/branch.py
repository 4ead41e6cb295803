"""What a batch is made of: its settings, its branches, a partial prefill, a stretch of ticks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, Literal, Protocol

from sim.kv import Fork, KvNode, Query, Sharing


class Cost(Protocol):
    """What an iteration costs; `models.latency.StepCost` is one."""

    @property
    def kv_s(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def copy_s(self) -> float: ...
    def base_s(self, b: int, c: int) -> float: ...
    def context_s(self, c: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """An engine's limits, in vLLM's words, and how its KV is shared."""

    num_gpu_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_active_searches: int | None = None
    sharing: Sharing = "tree"
    fork: Fork = "copy_tail"
    attention: Literal["shared", "naive"] = "shared"


WAITING, FILLING, DECODING, DONE, GONE = range(5)


class Branch:
    """`ticks` tokens to decode at `node` (0: only bring its path in), and how far that is."""

    __slots__ = (
        "query", "number", "node", "parent", "ticks", "state", "written", "joined", "finish_tick",
        "phase", "read", "fresh", "first_tick", "mark", "mark_tick", "num_preemptions", "owner",
    )  # fmt: skip

    def __init__(self, query: Query, number: int, node: KvNode, ticks: int, owner: Any) -> None:
        self.query = query
        self.number = number
        self.node = node
        self.parent = node.parent
        self.ticks = ticks
        self.state = WAITING
        self.written = 0  # tokens decoded when it joined the batch last
        self.joined = 0  # tick at which it did
        self.finish_tick = -1
        self.phase = 0  # (write position - tick) mod page size, constant while it decodes
        self.read = 0  # naive attention: KV tokens it read at `joined`
        self.fresh = ticks > 0  # nothing decoded yet
        self.first_tick = -1  # tick with which its first token was there
        self.mark = (
            0  # report when this many tokens are decoded (a visible answer begins); 0: never
        )
        self.mark_tick = -1
        self.num_preemptions = 0
        self.owner = owner


class Fill:
    """The partial prefill: which nodes still miss tokens, in order, and how many in all."""

    __slots__ = ("branch", "missing", "left", "context")

    def __init__(self, branch: Branch, missing: list[KvNode], left: int, context: int) -> None:
        self.branch = branch
        self.missing = missing
        self.left = left  # tokens still to compute, the path's last one included
        self.context = context  # path tokens resident


@dataclass(slots=True)
class Stretch:
    """`ticks` ticks; tick j (from 0) takes `first_s + j * slope_s` seconds."""

    ticks: int
    first_s: float
    slope_s: float

    def seconds(self, k: int) -> float:
        """Return how long the first `k` ticks take."""
        return k * self.first_s + self.slope_s * (k * (k - 1) / 2)

    def ticks_until(self, seconds: float) -> int:
        """Return the fewest ticks (at least 1, at most all) whose end is not before `seconds`."""
        if self.slope_s <= 0.0:
            k = ceil(seconds / self.first_s) if self.first_s > 0 else self.ticks
        else:
            a, h = self.first_s, self.slope_s / 2
            k = ceil((h - a + sqrt((a - h) ** 2 + 4 * h * seconds)) / (2 * h))
        k = min(max(k, 1), self.ticks)
        while k > 1 and self.seconds(k - 1) >= seconds:
            k -= 1
        while k < self.ticks and self.seconds(k) < seconds:
            k += 1
        return k
