"""Which measured rows speak for an operation of a step, and the curve that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hw.device import Device
from hw.profile import Column
from hw.transformer import BYTES, Transformer, Work
from models.curves import (
    LAUNCH_S,
    Curve,
    chosen,
    nearest,
    smooth_floor,
    through,
)
from models.kriging import (
    EXPERTS,
    PRODUCTS,
    expert_axes,
    kriged,
    product_axes,
    residuals_over_floor,
)
from models.measured import Measured, Table, per_call, where

# Dtypes in which a profile may have measured what a shape calls by the other name, best first.
_LIKE: Mapping[str, tuple[str, ...]] = {
    "fp8": ("fp8", "fp8_block"),
    "fp8_block": ("fp8_block", "fp8"),
    "mxfp4": ("mxfp4", "w4a16_mxfp4", "int4_wo"),
    "float16": ("float16", "bfloat16"),
}
_LEAST_MATRICES = 8  # fewer are no evidence for a size that was not measured
# Light operations beyond those of linear_work that a profile may hold, with their calls a layer (0: one a step).
EXTRA: Mapping[str, int] = {"activation": 1, "rotary": 1, "final_norm": 0, "add": 2}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a step: its work, and its curves on whole tiles (padded) and on ragged rows.

    Without curves (nobody measured anything like it) it takes its floor.
    """

    work: Work
    device: Device
    padded: Curve | None = None
    ragged: Curve | None = None

    def seconds(self, rows: float, *, whole_tiles: bool = True) -> float:
        """Seconds of all its calls at `rows` rows."""
        curve = self.padded if whole_tiles else self.ragged
        return self.work.floor_s(self.device, rows) if curve is None else curve.seconds(rows)

    def inside(self, rows: float) -> bool:
        """Whether the rows lie between measured points of this very operation."""
        return self.padded is not None and self.padded.exact and self.padded.inside(rows)


@dataclass(frozen=True, slots=True)
class _Floor:
    """The smooth floor of a linear operation: fixed bytes, and bytes and FLOP for each row."""

    fixed: float
    moved: float
    flop: float
    bandwidth: float
    rate: float
    calls: int

    def __call__(self, rows: float) -> float:
        moved = self.fixed + self.moved * rows
        return smooth_floor(moved, self.flop * rows, self.bandwidth, self.rate, self.calls)


@dataclass(frozen=True, slots=True)
class _ExpertFloor:
    """The smooth floor of a mixture: the weights of the distinct experts that the rows choose."""

    work: Work
    bandwidth: float
    rate: float
    layers: int

    def __call__(self, rows: float) -> float:
        moved, flop = self.work.weight_bytes(rows), self.work.flops_per_row * rows
        return smooth_floor(moved, flop, self.bandwidth, self.rate, self.layers)


def operation(
    measured: Measured, device: Device, work: Work, shape: Transformer, split: int
) -> Operation:
    """The operation with what was measured of it; `device` holds the profile's own ceilings."""
    kind = _experts if work.experts else _all_reduce if work.link else _matrix if work.n else _light
    curves = [kind(measured, device, work, shape, split, tiles) for tiles in (True, False)]
    return Operation(work, device, *curves)


def extras(
    measured: Measured, device: Device, shape: Transformer, split: int
) -> tuple[Operation, ...]:
    """Light operations that were measured and linear_work does not list."""
    found = []
    for name, calls in EXTRA.items():
        rows = measured.rows(name)
        if len(rows["m"]):
            width = float(np.median(rows["bytes_floor"] / np.maximum(rows["m"], 1)))
            times = calls * shape.layers or 1
            work = Work(name, times, bytes_per_row=times * width)
            found.append(operation(measured, device, work, shape, split))
    return tuple(found)


def _of_dtype(rows: Table, dtype: str) -> Table:
    """The rows of the dtype, or of the nearest one that was measured; all where none is near."""
    for name in _LIKE.get(dtype, (dtype,)):
        keep = rows["dtype"] == name
        if keep.any():
            return where(rows, keep)
    return rows


def _matrix(
    measured: Measured, device: Device, work: Work, shape: Transformer, split: int, tiles: bool
) -> Curve | None:
    del shape, split
    rate = device.gemm_flops_fp8 if work.dtype.startswith("fp8") else device.gemm_flops_bf16
    floor = _Floor(
        work.fixed_bytes, 0.0, work.flops_per_row, device.copy_bytes_per_s, rate, work.calls
    )
    rows = _of_dtype(measured.products, work.dtype)
    own = (rows["n"] == work.n) & (rows["k"] == work.k)
    named = (rows["op"] == work.name) | (rows["op"] == "gemm")
    if (own & (rows["op"] == work.name)).any():
        own &= rows["op"] == work.name
    found = matrix_residuals(
        (float(work.n), float(work.k)), rows, own & named, device, tiles, work.calls
    )
    if found is None and named.any():
        akin = where(rows, named)
        akin = where(akin, chosen(akin["m"], whole_tiles=tiles))
        found = nearest((float(work.n), float(work.k)), *residuals(akin, device, work.calls))
    if found is None:
        return None
    points, logs = found
    times = np.array([floor(m) for m in points]) * np.exp(logs)
    exact = bool((own & named).any())
    return through(
        floor, points, times, exact=exact, source="measured" if exact else "nearby sizes"
    )


def matrix_residuals(
    size: tuple[float, float], rows: Table, own: Column, device: Device, tiles: bool, calls: int = 1
) -> tuple[Column, Column] | None:
    """Rows m and log residuals of a matrix of `size` (n, k) from measured ones of its dtype.

    `own` marks its own rows: they count as they are. At other m (within its own), and without rows of its
    own, all measured ones near in m, n and k say it (models.kriging). The size is held inside theirs. None
    without own rows where fewer than eight matrices were measured.
    """
    kind = chosen(rows["m"], whole_tiles=tiles)
    mine = where(rows, own)
    mine = where(mine, chosen(mine["m"], whole_tiles=tiles))
    _, m, logs = residuals(mine, device, calls)
    points = np.unique(m)
    known = np.array([np.median(logs[m == point]) for point in points])
    sizes, every_m, every = residuals(rows, device, calls)
    if len(np.unique(sizes, axis=0)) < _LEAST_MATRICES:
        return (points.astype(float), known) if len(points) else None
    lent = np.setdiff1d(rows["m"][kind], points)
    if len(points):
        lent = lent[(lent >= points[0]) & (lent <= points[-1])]
    if len(lent):
        held = np.clip(size, sizes.min(axis=0), sizes.max(axis=0))
        asked = product_axes(lent, *np.broadcast_to(held[:, None], (2, len(lent))))
        said = kriged(PRODUCTS, product_axes(every_m, *sizes.T), every, asked)
        points, known = np.concatenate([points, lent]), np.concatenate([known, said])
    order = np.argsort(points)
    return points[order].astype(float), known[order]


def residuals(rows: Table, device: Device, calls: int = 1) -> tuple[Column, Column, Column]:
    """Sizes (n, k), rows m and log(time / smooth floor) of measured matrix products."""
    sizes = np.column_stack([rows["n"], rows["k"]]).astype(float)
    return sizes, rows["m"], np.log(per_call(rows, calls) / smooth_floors(rows, device))


def smooth_floors(rows: Table, device: Device) -> Column:
    """Smooth floors of one call of measured matrix products, from their sizes and dtypes, s."""
    size = rows["n"].astype(float) * rows["k"]
    names, index = np.unique(rows["dtype"], return_inverse=True)
    width = np.array([BYTES.get(str(name), 2.0) for name in names])[index]
    found: Column = LAUNCH_S + np.hypot(
        width * size / device.copy_bytes_per_s,
        2.0 * rows["m"] * size / _rates(device, rows["dtype"]),
    )
    return found


def _rates(device: Device, dtypes: Column) -> Column:
    fp8 = np.char.startswith(dtypes.astype(str), "fp8")
    return np.where(fp8, device.gemm_flops_fp8, device.gemm_flops_bf16)


def _light(
    measured: Measured, device: Device, work: Work, shape: Transformer, split: int, tiles: bool
) -> Curve | None:
    del shape, split, tiles
    rows = measured.rows(work.name)
    rows = where(rows, rows["m"] > 0)
    if not len(rows["m"]):
        return None
    floor = _Floor(
        work.fixed_bytes, work.bytes_per_row, work.flops_per_row, device.copy_bytes_per_s,
        device.gemm_flops_bf16, work.calls,
    )  # fmt: skip
    return through(floor, rows["m"], work.calls * per_call(rows, work.calls), source=work.name)


def _all_reduce(
    measured: Measured, device: Device, work: Work, shape: Transformer, split: int, tiles: bool
) -> Curve | None:
    """Measured by message; a row of ours is one token's hidden state in bf16."""
    del tiles
    rows = measured.rows("all_reduce")
    rows = where(rows, rows["splits"] == split)
    if not len(rows["m"]):
        return None
    floor = _Floor(0.0, work.bytes_per_row, 0.0, device.link_bytes_per_s, math.inf, work.calls)
    points = rows["m"] / (2.0 * shape.hidden)
    return through(floor, points, work.calls * per_call(rows), source="all_reduce")


def _experts(
    measured: Measured, device: Device, work: Work, shape: Transformer, split: int, tiles: bool
) -> Curve | None:
    """A whole mixture layer; another mixture lends its utilisation.

    Of `tensor_parallel` devices, `work.whole_ways` hold other experts, the rest share each expert's matrices.
    """
    del split, tiles
    rows = _of_dtype(measured.rows("experts"), work.dtype)
    ways = work.whole_ways
    if not len(rows["m"]):
        return None
    if (alike := np.maximum(rows["splits"], 1) == ways).any():
        rows = where(rows, alike)
    layers = shape.layers - shape.dense_layers
    rate = device.gemm_flops_fp8 if work.dtype.startswith("fp8") else device.gemm_flops_bf16
    floor = _ExpertFloor(work, device.copy_bytes_per_s, rate, layers)
    width = work.n * ways
    same = (rows["n"] == width) & (rows["k"] == work.k)
    same &= (rows["P"] == work.top_k) & (rows["S"] == work.experts)
    if same.any():
        rows = with_lent_tokens(where(rows, same), rows, device)
        return through(floor, rows["m"], layers * per_call(rows), source="experts")
    one = LAUNCH_S + np.hypot(
        rows["bytes_floor"] / device.copy_bytes_per_s, rows["flop"] / _rates(device, rows["dtype"])
    )
    sizes = np.column_stack(
        [rows["n"] * 1.0, rows["k"] * 1.0, rows["S"] / np.maximum(rows["P"], 1)]
    )
    target = (float(width), float(work.k), work.experts / work.top_k)
    points, residual = nearest(target, sizes, rows["m"], np.log(per_call(rows) / one))
    times = np.array([floor(m) for m in points]) * np.exp(residual)
    return through(floor, points, times, exact=False, source="experts of another mixture")


def with_lent_tokens(own: Table, rows: Table, device: Device) -> Table:
    """A mixture's rows and, at token counts that only others were measured at, what those lend it.

    Counts from half its own least to twice its own most; `rows` are those of all mixtures of its dtype.
    """
    m = own["m"]
    near = (rows["m"] >= m.min() / 2) & (rows["m"] <= 2 * m.max())
    lent = np.setdiff1d(rows["m"][near], m)
    if not len(lent):
        return own
    filled = where(own, np.zeros(len(lent), int)) | {"m": lent}
    missed = 1.0 - filled["P"] / filled["S"]  # the chance that a token does not choose an expert
    filled["bytes_floor"] = filled["bytes_floor"] * (1 - missed**lent) / (1 - missed ** m[0])
    filled["flop"] = filled["flop"] * lent / m[0]
    filled["t_us_median"] = np.full(len(lent), 1e6)
    said = kriged(
        EXPERTS, expert_axes(rows), residuals_over_floor(rows, device), expert_axes(filled)
    )
    filled["t_us_median"] = 1e6 * np.exp(said - residuals_over_floor(filled, device))
    return {name: np.concatenate([own[name], filled[name]]) for name in own}
