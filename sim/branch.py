"""What a batch is made of: its settings, its cohorts of branches, a partial prefill, a stretch of ticks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from operator import attrgetter
from typing import Literal, Protocol

from models.attention_grid import Lines
from sim.kv import Fork, KvNode, Query, Reclaim, Sharing


class Cost(Protocol):
    """What an iteration costs; `models.latency.StepCost` is one."""

    @property
    def kv_s(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def copy_s(self) -> float: ...
    def base_s(self, b: int, c: int) -> float: ...
    @property
    def timed(self) -> bool: ...
    def context_s(self, c: int) -> float: ...
    @property
    def lines(self) -> Callable[[int, int], Lines] | None: ...
    def reading(self, b: int, c: int, read: float) -> tuple[float, float, float]: ...
    def alpha(self, b: int, mixed: bool) -> float: ...


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
    reclaim: Reclaim = "youngest"
    enable_prefix_caching: bool = True
    scheduler_reserve_full_isl: bool = False
    async_scheduling: bool = False


_ticks = attrgetter("ticks")


class Cohort:
    """Siblings that joined the batch in the same tick: they read the same path and write in phase.

    A member that has left (`member.cohort is not cohort`) stays in the lists until it comes to their end.
    """

    __slots__ = (
        "query", "up", "nodes", "order", "count", "joined", "offset", "written", "phase", "context",
    )  # fmt: skip

    def __init__(
        self, query: Query, nodes: list[KvNode], tick: int, written: int, phase: int, context: int
    ) -> None:
        self.query = query
        self.up = nodes[0].up  # the path they read above themselves
        self.nodes = nodes  # in order of submission
        self.order = sorted(nodes, key=_ticks, reverse=True) if len(nodes) > 1 else nodes[:]
        self.count = len(nodes)  # that decode
        self.joined = tick
        self.written = written  # tokens each had decoded by then
        self.offset = tick - written  # plus a member's ticks: the tick with which it ends
        self.phase = phase  # they start a new page in the ticks equal to it modulo the page size
        self.context = context  # naive attention: KV tokens each reads besides its own


class Fill:
    """The partial prefill: which nodes still miss tokens, in order, and how many in all."""

    __slots__ = ("branch", "missing", "left", "context")

    def __init__(self, branch: KvNode, missing: list[KvNode], left: int, context: int) -> None:
        self.branch = branch
        self.missing = missing
        self.left = left  # tokens still to compute, the path's last one included
        self.context = context  # path tokens resident


class Stretch:
    """`ticks` ticks; tick j (from 0) takes `first_s + j * slope_s` seconds, the first `extra_s` more."""

    __slots__ = ("extra_s", "first_s", "slope_s", "ticks")

    def __init__(self, ticks: int, first_s: float, slope_s: float, extra_s: float = 0.0) -> None:
        self.ticks = ticks
        self.first_s = first_s
        self.slope_s = slope_s
        self.extra_s = extra_s

    def seconds(self, k: int) -> float:
        """Return how long the first `k` >= 1 ticks take."""
        return self.extra_s + k * self.first_s + self.slope_s * (k * (k - 1) / 2)

    def ticks_until(self, seconds: float) -> int:
        """Return the fewest ticks (at least 1, at most all) whose end is not before `seconds`."""
        rest = max(0.0, seconds - self.extra_s)
        if self.slope_s <= 0.0:
            k = ceil(rest / self.first_s) if self.first_s > 0 else self.ticks
        else:
            a, h = self.first_s, self.slope_s / 2
            k = ceil((h - a + sqrt((a - h) ** 2 + 4 * h * rest)) / (2 * h))
        k = min(max(k, 1), self.ticks)
        while k > 1 and self.seconds(k - 1) >= seconds:
            k -= 1
        while k < self.ticks and self.seconds(k) < seconds:
            k += 1
        return k
