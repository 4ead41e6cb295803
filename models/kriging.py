"""What was not measured, from what was measured nearby: ordinary kriging over scaled axes, of the nearest points alone.

A residual (log of time over floor) is taken as a constant plus a smooth random field, whose correlation falls
with distance along axes that say how alike two measurements are: a load, a size, and what both do together.
A matrix, an attention shape or a mixture that lacks a point thus borrows it from those that have it, as far as
they are alike. Source: Matérn covariance of order 3/2 (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, equation 4.17); ordinary kriging (Cressie, Statistics for Spatial Data, 1993, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hw.device import Device
from hw.profile import Column
from models.curves import LAUNCH_S, TILE, ragged
from models.measured import Table, per_call, where

_NEAREST = 40
_EIGHTHS = 256  # rows up to which it counts how full the last block of eight tiles is


@dataclass(frozen=True, slots=True)
class Field:
    """How fast two measurements grow unlike: distance for each unit of an axis, and noise (of the field's variance).

    Source of the shipped ones: least median / 3 % + p90 / 10 % on points and whole grid lines drawn from the
    H200 and H100 tables of aiconfigurator, the frozen holdout apart (docs/cost-model.md).
    """

    scales: tuple[float, ...]
    noise: float


DECODE = Field((0.09, 2.2, 0.13, 0.41, 1.2, 0.55), 0.008)
CHUNKS = Field((0.18, 0.80, 0.14, 2.0, 1.8, 0.70), 0.04)
PRODUCTS = Field((0.36, 0.39, 0.41, 0.03, 0.60, 0.50, 1.9), 0.12)
EXPERTS = Field((0.19, 0.34, 0.43, 0.92, 4.5, 0.50, 0.45), 0.004)


def kriged(field: Field, known: Column, values: Column, asked: Column) -> Column:
    """The field at `asked` [points, axes] from its `values` at `known` [measured, axes] (at least one)."""
    from scipy.spatial import cKDTree

    places, at = known * field.scales, asked * field.scales
    count = min(_NEAREST, len(places))
    near = cKDTree(places).query(at, count)[1].reshape(len(at), count)
    around, found = places[near], values[near]
    matrix = np.ones((len(at), count + 1, count + 1))
    matrix[:, count, count] = 0.0
    matrix[:, :count, :count] = _alike(around, around) + field.noise * np.eye(count)
    right = np.ones((len(at), count + 1, 1))
    right[:, :count] = _alike(around, at[:, None])
    weights = np.linalg.solve(matrix, right)[:, :count, 0]
    answer: Column = (weights * found).sum(axis=1)
    return answer


def _alike(a: Column, b: Column) -> Column:
    """Correlations [..., i, j] of places a [..., i, axes] and b [..., j, axes]."""
    squares = (a**2).sum(-1)[..., :, None] + (b**2).sum(-1)[..., None, :]
    away = np.sqrt(3.0 * np.maximum(squares - 2 * a @ b.swapaxes(-1, -2), 0.0))
    found: Column = (1 + away) * np.exp(-away)
    return found


def product_axes(m: Column, n: Column, k: Column) -> Column:
    """Axes of matrix products [rows, 7]: sizes in octaves, and how m fills tiles."""
    m, n, k = (np.asarray(a, float) for a in (m, n, k))
    eighths = np.where(m < _EIGHTHS, np.ceil(m / TILE) % 8 / 8, 0.0)
    within = np.where(m <= TILE, m / TILE, 0.0)
    octaves = (_octaves(a) for a in (m, n, k, m * n))
    return np.column_stack([*octaves, ragged(m), within, eighths])


def expert_axes(rows: Table) -> Column:
    """Axes of mixture layers [rows, 7]: tokens, widths, ways, chosen, experts, tokens an expert; octaves."""
    columns = [_octaves(rows[name]) for name in ("m", "n", "k", "splits", "P", "S")]
    return np.column_stack([*columns, columns[0] + columns[4] - columns[5]])


def attention_axes(rows: Table, *, causal: bool) -> Column:
    """Axes of attention [rows, 6]: sequences, their length, widths, head size, and all that is read; octaves."""
    n, k = attention_widths_of(rows, causal=causal)
    length, heads = rows["m" if causal else "S"], n if causal else k
    sizes = [str(name).rpartition("/")[2] for name in rows["model_shape"].tolist()]
    size = np.array([float(text) if text.isdigit() else 128.0 for text in sizes])
    work = rows["B"] * length * heads
    return np.column_stack([_octaves(a) for a in (rows["B"], length, heads, n / k, size, work)])


def attention_widths_of(rows: Table, *, causal: bool) -> tuple[Column, Column]:
    """n and k of attention rows, from their FLOP and bytes."""
    calls = np.maximum(rows["calls"], 1)
    if not causal:
        read = 4.0 * np.maximum(rows["sum_s"], 1) * calls
        return rows["flop"] / read, rows["bytes_floor"] / read
    tokens = rows["B"] * rows["m"] * calls
    n = rows["flop"] / (2.0 * tokens * (rows["m"] + 1.0))
    return n, np.maximum(rows["bytes_floor"] / (4.0 * tokens) - n, 1.0)


def residuals_over_floor(rows: Table, device: Device) -> Column:
    """log(time / smooth floor) of one call, from the bytes and FLOP that rows name."""
    calls = np.maximum(rows["calls"], 1)
    fp8 = np.char.startswith(rows["dtype"].astype(str), "fp8")
    rate = np.where(fp8, device.gemm_flops_fp8, device.gemm_flops_bf16)
    work = np.hypot(rows["bytes_floor"] / device.copy_bytes_per_s, rows["flop"] / rate) / calls
    found: Column = np.log(per_call(rows) / (LAUNCH_S + work))
    return found


def with_lent_attention(own: Table, rows: Table, device: Device, *, causal: bool) -> Table:
    """A shape's rows and, where a sequence count lacks a length that lies within its own, one lent by the others.

    `rows` are those of all shapes, `own` among them; decoders, or chunks without context (`causal`).
    """
    length = "m" if causal else "S"
    pairs = set(zip(own["B"].tolist(), own[length].tolist(), strict=True))
    most = {b: max(s for c, s in pairs if c == b) for b, _ in pairs}
    lengths = sorted({s for _, s in pairs})
    missing = [(b, s) for b in most for s in lengths if s < most[b] and (b, s) not in pairs]
    if not missing or len(own["B"]) == len(rows["B"]):
        return own
    holes = where(own, np.zeros(len(missing), int))
    widths = attention_widths_of(holes, causal=causal)
    b, s = np.array(missing).T
    holes |= {"B": b, length: s, "calls": np.ones(len(b), int)}
    if causal:
        pairs_of, tokens = b * s * (s + 1) / 2, b * s
        moved = 4.0 * (widths[0] + widths[1]) * tokens
    else:
        holes["sum_s"] = pairs_of = b * s
        moved = 4.0 * widths[1] * pairs_of
    holes |= {"flop": 4.0 * widths[0] * pairs_of, "bytes_floor": moved}
    holes["t_us_median"] = np.full(len(b), 1e6)
    known, asked = (attention_axes(table, causal=causal) for table in (rows, holes))
    field = CHUNKS if causal else DECODE
    lent = kriged(field, known, residuals_over_floor(rows, device), asked)
    holes["t_us_median"] = 1e6 * np.exp(lent - residuals_over_floor(holes, device))
    return {name: np.concatenate([own[name], holes[name]]) for name in own}


def _octaves(values: Column) -> Column:
    found: Column = np.log2(np.maximum(np.asarray(values, float), 1e-9))
    return found
