"""What the attention of a prefill chunk costs: a start, and a price for each token of context before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hw.device import Device
from hw.imported import attention_widths
from hw.profile import Column
from hw.transformer import Transformer
from models.curves import Curve, through
from models.kriging import with_lent_attention
from models.measured import Measured, Table, per_call, where

# Chunks from here on keep a device busy: how fast they attend is how fast any chunk reads a long context.
_BUSY_CHUNK = 2048
_LEAST_SHARE = 0.02  # of a chunk's time that is work whatever the noise


@dataclass(frozen=True, slots=True)
class Prefill:
    """Seconds of all layers' attention of a prefill.

    A chunk of c tokens costs `fixed_s(c)` + context_s(c) (context + c / 2): without context that is the time
    measured at c (where it is monotone), with context each further token costs what a busy device takes.
    """

    chunks: tuple[float, ...]
    fixed: tuple[float, ...]  # s at chunks, non-decreasing
    curve: Curve  # of c: seconds beyond the fixed ones of a chunk without context
    most: float = math.inf  # tokens beyond which the fixed seconds grow in proportion

    def fixed_s(self, chunk: float) -> float:
        """Seconds of `chunk` tokens of prefill that no context changes."""
        if chunk <= 0:
            return 0.0
        return float(np.interp(chunk, self.chunks, self.fixed)) * max(1.0, chunk / self.most)

    def context_s(self, chunk: int) -> float:
        """Seconds per context token of a chunk."""
        return self.curve.seconds(chunk) / (chunk / 2) if chunk > 0 else 0.0


def prefill(measured: Measured, device: Device, shape: Transformer, split: int) -> Prefill | None:
    """The measured prefill attention of a shape, or of the nearest measured one.

    None without any, and where fewer than two sizes of a chunk without context were measured of it.
    """
    rows = measured.rows("prefill_attention")
    rows = where(rows, (rows["m"] > 0) & (rows["B"] == 1))
    if not len(rows["m"]):
        rows = measured.rows("mixed_attention")
        rows = where(rows, (rows["m"] > 0) & (rows["B"] == 0))
    if not len(rows["m"]):
        return None
    n, k = attention_widths(shape, split)
    rows, own = _nearest(rows, n, k, shape.head_dim)
    if len(np.unique(rows["m"][rows["P"] == 0])) < 2:
        return None
    everyone = measured.rows("prefill_attention")
    everyone = where(everyone, (everyone["m"] > 0) & (everyone["B"] > 0) & (everyone["P"] == 0))
    if not (rows["P"] > 0).any() and len(everyone["m"]):
        rows = with_lent_attention(rows, everyone, device, causal=True)
    one = prefill_of(rows, device)
    layers = shape.layers - shape.windowed_layers
    scale = layers * n / own  # another width computes in proportion
    curve = Curve(
        _ChunkFloor(scale * 2.0 * own / device.gemm_flops_bf16),
        one.curve.rows,
        tuple(scale * t for t in one.curve.times),
        one.curve.shift,
    )
    return Prefill(one.chunks, tuple(layers * t for t in one.fixed), curve, one.most)


def prefill_of(rows: Table, device: Device) -> Prefill:
    """What rows of single chunks, of one shape, measured: one layer.

    Where chunks behind a context were measured, the price of context is theirs; elsewhere that of a busy
    device.
    """
    calls = np.maximum(rows["calls"], 1)
    fresh = rows["P"] == 0
    work = rows["flop"] / (2.0 * calls * rows["m"] * (rows["m"] + 2.0 * rows["P"] + 1.0))
    floor = _ChunkFloor(2.0 * float(np.median(work)) / device.gemm_flops_bf16)
    seconds = per_call(rows)
    points = np.unique(rows["m"][fresh])
    times = np.array([np.median(seconds[fresh & (rows["m"] == m)]) for m in points])
    sloped = {
        int(m): slope
        for m in points
        if (slope := _slope(rows["P"][rows["m"] == m], seconds[rows["m"] == m])) is not None
    }
    if len(sloped) >= 2:
        chunks = np.array(sorted(sloped), float)
        price = np.array([sloped[int(m)] for m in chunks]) * chunks / 2
        own = np.array([times[points == m][0] for m in chunks])
        fixed = np.maximum.accumulate(np.maximum(own - price, _LEAST_SHARE * own))
        return Prefill(tuple(chunks.tolist()), tuple(fixed.tolist()),
                       through(floor, chunks, price), float(chunks[-1]))  # fmt: skip
    busy = points >= min(_BUSY_CHUNK, points[-2])
    first = int(np.argmax(busy))
    rate = max(times[first] - times.min(), _LEAST_SHARE * times[first]) / floor(points[first])
    beside = times - rate * np.array([floor(m) for m in points])
    fixed = np.maximum.accumulate(np.maximum(beside[: first + 1], times.min()))
    rest = np.maximum(times[busy] - fixed[-1], _LEAST_SHARE * times[busy])
    return Prefill(
        tuple(points[: first + 1].astype(float).tolist()),
        tuple(fixed.tolist()),
        through(floor, points[busy], rest),
    )


def _slope(context: Column, seconds: Column) -> float | None:
    """Seconds per context token between a chunk's context-free time and its longest context."""
    far, near = context == context.max(), context == 0
    if context.max() == 0 or not near.any():
        return None
    rise = float(np.median(seconds[far]) - np.median(seconds[near]))
    return max(rise, 0.0) / float(context.max())


def _nearest(rows: Table, n: float, k: float, head_size: int) -> tuple[Table, float]:
    """The rows of these widths, or the nearest, preferring our head size; and their own n."""
    calls = np.maximum(rows["calls"], 1)
    own_n = rows["flop"] / (2.0 * calls * rows["m"] * (rows["m"] + 2.0 * rows["P"] + 1.0))
    own_k = rows["bytes_floor"] / (4.0 * calls) - own_n * rows["m"]
    own_k = own_k / (rows["m"] + rows["P"])
    away = np.log(own_n / n) ** 2 + np.log(np.maximum(own_k, 1.0) / k) ** 2
    sizes = np.array([str(name).rpartition("/")[2] for name in rows["model_shape"]])
    away = away + np.where(sizes == str(head_size), 0.0, 1e-6)
    near = away <= away.min() + 1e-9
    return where(rows, near), float(np.median(own_n[near]))


@dataclass(frozen=True, slots=True)
class _ChunkFloor:
    pair_s: float

    def __call__(self, chunk: float) -> float:
        return self.pair_s * chunk * (chunk + 1)
