"""Step cost from layers that were timed one by one: each layer by tokens, attention on its grid, the head by sequences.

A step takes the sum of its layers; what differs between timing a layer alone and serving a model is
named here: padding to CUDA-graph sizes, what a replayed graph saves, unequal contexts, the CPU's gap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from hw.profile import Profile
from hw.transformer import Transformer
from models.attention_grid import AttentionGrid, Floats, Lines
from models.latency import CAPTURE_SIZES

# Operations of a step: in every layer, once on every token, once on every sequence.
_LAYER: Final = frozenset(
    {"norm", "qkv", "qk_norm", "rotary", "kv_append", "o", "gate_up", "activation", "down"}
)
_ONCE: Final = frozenset({"embedding", "final_norm"})
_HEAD: Final = frozenset({"lm_head", "sample"})

# Kernels that a step launches: 10 in each layer and 4 beside (324 in 32 layers, 644 in 64), and what each
# saves in a replayed CUDA graph against being timed alone in eager mode: 1.66 to 1.81 us where the
# whole step is one graph, 1.5 where attention stays outside. Measured on an RTX PRO 6000.
# Source: LLMServingSim 2.0, profiler README, "Step sweep", read 2026-11-25.
_KERNELS_A_LAYER: Final = 10
_KERNELS_BESIDE: Final = 4
_FULL_GRAPH_SAVED_S: Final = 1.7e-6
_PIECEWISE_SAVED_S: Final = 1.5e-6


class LayerTimes:
    """Every timed layer of a model in one step: body over tokens, head over sequences, attention over its grid.

    `graph` tells whether the engine replays CUDA graphs, `gap_s` the CPU's time between two steps that
    nothing hides, `reduce_s(tokens)` the all-reduces of a tensor-parallel step.
    """

    def __init__(
        self,
        profile: Profile,
        shape: Transformer,
        *,
        graph: bool = True,
        gap_s: float = 0.0,
        reduce_s: Callable[[int], float] | None = None,
    ) -> None:
        self.layers = shape.layers
        body: list[_Polyline] = []
        head: list[_Polyline] = []
        for op in sorted(set(profile.columns["op"].tolist()) & (_LAYER | _ONCE | _HEAD)):
            rows = profile.rows(op)
            calls = shape.layers * (2 if op == "norm" else 1) if op in _LAYER else 1
            line = _polyline(rows["m"], rows["t_us_median"] * 1e-6 * calls)
            (head if op in _HEAD else body).append(line)
        self._body, self._head = _sum(body), _sum(head)
        rows = profile.rows("mixed_attention")
        points = zip(
            rows["m"].tolist(),
            rows["P"].tolist(),
            rows["B"].tolist(),
            rows["S"].tolist(),
            strict=True,
        )
        self.grid = AttentionGrid(
            dict(zip(points, (rows["t_us_median"] * 1e-6).tolist(), strict=True))
        )
        self.graph = graph
        self.gap_s = gap_s
        self.reduce_s = reduce_s
        self.kernels = _KERNELS_A_LAYER * shape.layers + _KERNELS_BESIDE
        self._lines: dict[tuple[int, int], Lines] = {}

    def step(self, b: int, c: int) -> float:
        """Seconds of a step with b decode and c prefill tokens, without what decoders and chunks read."""
        tokens = b + c
        saved = 0.0
        padded = tokens
        if self.graph and tokens <= CAPTURE_SIZES[-1]:
            padded = CAPTURE_SIZES[bisect_left(CAPTURE_SIZES, tokens)]
            saved = self.kernels * (_PIECEWISE_SAVED_S if c else _FULL_GRAPH_SAVED_S)
        seconds = _at(self._body, padded) + _at(self._head, b + (1 if c else 0)) + self.gap_s
        if self.reduce_s is not None:
            seconds += self.reduce_s(padded)
        if c:
            own = self.grid.seconds(c, 0, 0, 0) - self.grid.context_s(c) * c / 2
            seconds += self.layers * max(own, 0.0)
        return max(seconds - saved, 0.0)

    def lines(self, b: int, c: int) -> Lines:
        """What b decoders beside a chunk of c tokens add, over the KV tokens that they read."""
        found = self._lines.get((b, c))
        if found is None:
            found = self._lines[b, c] = self.grid.decode_lines(b, c, self.layers)
        return found

    def context_s(self, c: int) -> float:
        """Seconds for each context token of a chunk of c tokens."""
        return self.layers * self.grid.context_s(c)


@dataclass(frozen=True, slots=True)
class _Polyline:
    """Seconds over rows, straight between points; beyond the last as it rose last."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]


def _polyline(rows: Floats, seconds: Floats) -> _Polyline:
    points = np.unique(rows)
    middle = [float(np.median(seconds[rows == point])) for point in points]
    return _Polyline(tuple(int(point) for point in points), tuple(middle))


def _sum(lines: list[_Polyline]) -> _Polyline:
    rows = sorted({row for line in lines for row in line.rows})
    return _Polyline(tuple(rows), tuple(sum(_at(line, row) for line in lines) for row in rows))


def _at(line: _Polyline, rows: int) -> float:
    at, seconds = line.rows, line.seconds
    if rows <= at[0] or len(at) == 1:
        return seconds[0]
    i = min(bisect_left(at, rows), len(at) - 1)
    share = (rows - at[i - 1]) / (at[i] - at[i - 1])
    return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])
