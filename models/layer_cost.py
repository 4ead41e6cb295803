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

from hw.device import Device
from hw.profile import Profile
from hw.transformer import Transformer, linear_work
from models.attention_grid import AttentionGrid, Floats, GridError, Lines, Skew
from models.latency import CAPTURE_SIZES, LatencyError, StepCost

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


def is_layered(profile: Profile | None) -> bool:
    """Whether a profile timed attention of chunks beside decoders, as this file needs."""
    return profile is not None and bool((profile.columns["op"] == "mixed_attention").any())


def layer_cost(
    profile: Profile,
    shape: Transformer,
    device: Device,
    tensor_parallel: int = 1,
    *,
    enforce_eager: bool = False,
) -> StepCost:
    """The step cost of a model whose layers were timed one by one in a running engine.

    The gap between two steps is the device's; all-reduces were not timed and take their floor. Raises LatencyError for a model or a profile of another kind.
    """
    if shape.experts or shape.kv_lora:
        raise LatencyError(
            f"{shape.name}: experts and latent attention are not in this kind of profile"
        )
    reduces = [w for w in linear_work(shape, tensor_parallel) if w.link]
    try:
        times = LayerTimes(
            profile,
            shape,
            graph=not enforce_eager,
            gap_s=device.step_gap_s,
            reduce_s=(lambda tokens: sum(w.floor_s(device, tokens) for w in reduces))
            if reduces
            else None,
        )
    except GridError as error:
        raise LatencyError(f"{profile.label}: {error}") from None
    pair_s = shape.layers * shape.attention_flops(tensor_parallel) / device.gemm_flops_bf16
    kv_s = times.lines(64, 0).at(64 * 2048.0)[1]
    copied = 2.0 * shape.kv_bytes_per_token(tensor_parallel) / device.copy_bytes_per_s
    return StepCost(
        step=times.step,
        kv_s=kv_s,
        saturation=max(1.0, kv_s / pair_s),
        copy_s=copied,
        gpus=tensor_parallel,
        label=profile.label,
        source_kind=profile.source_kind,
        error=profile.error,
        lines=times.lines,
        chunk_s=times.context_s,
        skew=_skew(profile),
    )


def _skew(profile: Profile) -> Skew | None:
    found: dict[bool, list[tuple[int, float]]] = {}
    for row in profile.meta.get("skew") or ():
        upto = (int(row["decoders_up_to"]), float(row["alpha"]))
        found.setdefault(bool(row["prefill"]), []).append(upto)
    return Skew({mixed: tuple(sorted(table)) for mixed, table in found.items()}) if found else None


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
        kernels = _KERNELS_A_LAYER * shape.layers + _KERNELS_BESIDE
        self._saved = {
            True: _saved(profile, "piecewise") or _Polyline((1,), (kernels * _PIECEWISE_SAVED_S,)),
            False: _saved(profile, "full") or _Polyline((1,), (kernels * _FULL_GRAPH_SAVED_S,)),
        }
        self._lines: dict[tuple[int, int], Lines] = {}

    def step(self, b: int, c: int) -> float:
        """Seconds of a step with b decode and c prefill tokens, without what decoders and chunks read."""
        tokens = b + c
        saved = 0.0
        padded = tokens
        if self.graph and tokens <= CAPTURE_SIZES[-1]:
            padded = CAPTURE_SIZES[bisect_left(CAPTURE_SIZES, tokens)]
            saved = _at(self._saved[c > 0], padded)
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


def _saved(profile: Profile, branch: str) -> _Polyline | None:
    """What a step saves in a graph, where the profile timed it (held beyond the last size)."""
    rows = [row for row in profile.meta.get("graph") or () if row["branch"] == branch]
    if not rows:
        return None
    tokens = [int(row["tokens"]) for row in rows] + [CAPTURE_SIZES[-1]]
    seconds = [1e-6 * float(row["saved_us"]) for row in rows] + [1e-6 * float(rows[-1]["saved_us"])]
    return _Polyline(tuple(tokens), tuple(seconds)) if tokens[-2] < tokens[-1] else None


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
