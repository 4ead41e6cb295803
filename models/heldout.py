"""How well the cost model knows a profile: every operation predicted at points that its fit has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hw.device import Device
from hw.profile import Column, Profile
from models.attention import grid_of
from models.composed import WHOLE, composed
from models.curves import LAUNCH_S, chosen, ragged, through
from models.kriging import with_lent_attention
from models.measured import Table, per_call, where
from models.operations import matrix_residuals, smooth_floors, with_lent_tokens

_FIFTH = 0.2
_MATRICES = 60  # of a dtype, drawn at random, are enough to tell
_AXES = ("m", "P", "B", "S")  # of chunks beside decoders
_DECODE, _PREFILL, _MIXED = "suffix_attention", "prefill_attention", "mixed_attention"
Predict = Callable[[Table, Table, Table, Device], Column]
"""predict(rows of one curve or grid, points asked for, rows of the whole operation that were fitted, device)."""


@dataclass(frozen=True, slots=True)
class Error:
    """Errors of one operation at points left out: relative, (fitted - measured) / measured."""

    op: str
    points: int
    median: float  # of the absolute error
    p90: float
    signed: float  # median of the signed error
    measured_s: Column
    fitted_s: Column
    composed: bool = False  # a whole that was put together from parts, which the fit has seen
    noise: float = math.nan  # of a whole: (p90 - p10) / median of its own samples, in the median


@dataclass(frozen=True, slots=True)
class Heldout:
    """The errors by operation, what was left out, and what monotony cost at measured points.

    Raises nothing; where too few points were measured to leave any out, `errors` is empty.
    """

    errors: tuple[Error, ...]
    left_out: str
    shift: float  # median relative change of the isotonic projection at measured points

    @property
    def median(self) -> float:
        """Median absolute error over all points left out."""
        return float(np.median(self._all()))

    @property
    def p90(self) -> float:
        """90th percentile of the absolute error over all points left out."""
        return float(np.quantile(self._all(), 0.9))

    def words(self) -> str:
        """One line for reports."""
        return f"median {100 * self.median:.1f} %, p90 {100 * self.p90:.1f} % on {self.left_out}"

    def _all(self) -> Column:
        parts = [error for error in self.errors if not error.composed] or list(self.errors)
        found: Column = np.concatenate([np.abs(e.fitted_s / e.measured_s - 1) for e in parts])
        return found


def heldout(profile: Profile, device: Device, seed: int = 0) -> Heldout:
    """Errors on the profile's frozen holdout; where it has none, on a random fifth of its points.

    Each operation is fitted to its other points. Matrix products also as `unseen sizes`: all points of a
    fifth of the matrices left out. Units: s.
    """
    ceilings: Mapping[str, Any] = profile.ceilings
    roofs = replace(device, **ceilings)
    table = dict(profile.columns)
    ok = table["status"] == "ok"
    table = where(table, ok)
    frozen = table["is_holdout"] == 1
    rng = np.random.default_rng(seed)
    out = frozen if frozen.any() else rng.random(len(frozen)) < _FIFTH
    errors, shifts = [], []
    product = (table["n"] > 0) & (table["k"] > 0) & (table["S"] == 0) & (table["m"] > 0)
    product &= ~np.char.endswith(table["op"].astype(str), "attention") & (table["B"] == 0)
    whole = np.isin(table["op"], WHOLE)
    for op in np.unique(table["op"][~product & ~whole]).tolist():
        here = (table["op"] == op) & ~product
        kind = _KINDS.get(op) or (_CURVE if not table["B"][here].any() else _NEARBY)
        every = where(table, here)
        groups = list(_groups(every, out[here], kind.key))
        known = where(every, ~out[here])
        if (found := _error(op, groups, known, kind.predict, roofs)) is not None:
            errors.append(found)
    if product.any():
        products = where(table, product)
        errors += _products(products, out[product], roofs, rng, frozen=bool(frozen.any()))
        groups = list(_groups(products, out[product], ("dtype", "n", "k")))
        shifts = [_shift(group, roofs) for group, _ in groups]
    for op in np.unique(table["op"][whole]).tolist():
        rows = where(table, table["op"] == op)
        fitted = composed(profile, device, rows)
        use = np.isfinite(fitted)
        real = 1e-6 * rows["t_us_median"][use]
        if (found := _summary(f"{op}, composed", [real], [fitted[use]])) is not None:
            spread = (rows["t_us_p90"] - rows["t_us_p10"])[use] / rows["t_us_median"][use]
            errors.append(replace(found, composed=True, noise=float(np.median(spread))))
    words = (
        "its frozen holdout"
        if frozen.any()
        else "a random fifth of its points, left out of the fit"
    )
    return Heldout(tuple(errors), words, float(np.median(shifts)) if shifts else 0.0)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How an operation's rows fall into curves, and how a curve predicts its points left out."""

    key: tuple[str, ...]
    predict: Predict


def _groups(rows: Table, out: Column, key: tuple[str, ...]) -> Iterator[tuple[Table, Table]]:
    """(kept, left out) of each group of rows alike in `key` that has both."""
    names = np.array(
        ["\0".join(map(str, values)) for values in zip(*(rows[k] for k in key), strict=True)]
    )
    order = np.argsort(names, kind="stable")
    starts = np.flatnonzero(np.r_[True, names[order][1:] != names[order][:-1]])
    for group in np.split(order, starts[1:]):
        kept, left = group[~out[group]], group[out[group]]
        if len(kept) >= 2 and len(left):
            yield where(rows, kept), where(rows, left)


def _error(
    op: str, groups: list[tuple[Table, Table]], fitted: Table, predict: Predict, device: Device
) -> Error | None:
    measured, said = [], []
    for kept, left in groups:
        found = predict(kept, left, fitted, device)
        use = np.isfinite(found)
        measured.append(per_call(left)[use])
        said.append(found[use])
    return _summary(op, measured, said)


def _floor(rows: Table, device: Device) -> Callable[[float], float]:
    """The smooth floor of a group of rows alike but for m: through their own floors."""
    m = rows["m"].astype(float)
    calls = np.maximum(rows["calls"], 1)
    at = np.argsort(m, kind="stable")
    work = 1e-6 * rows["floor_us"][at] / calls[at]
    m = m[at]

    def floor(rows_: float) -> float:
        inside = float(np.interp(rows_, m, work))
        if rows_ > m[-1]:
            inside *= rows_ / m[-1]
        return LAUNCH_S + inside

    del device
    return floor


def _curve(kept: Table, left: Table, fitted: Table, device: Device) -> Column:
    if kept["op"][0] == "experts":
        same = fitted["dtype"] == kept["dtype"][0]
        kept = with_lent_tokens(kept, where(fitted, same), device)
    floor = _floor(kept, device)
    found = np.full(len(left["m"]), np.nan)
    for tiles in (True, False):
        rows = where(kept, chosen(kept["m"], whole_tiles=tiles))
        curve = through(floor, rows["m"], per_call(rows))
        at = ragged(left["m"]) != tiles
        found[at] = [curve.seconds(float(m)) for m in left["m"][at]]
    return found


def _shift(kept: Table, device: Device) -> float:
    rows = where(kept, chosen(kept["m"], whole_tiles=True))
    return through(_floor(kept, device), rows["m"], per_call(rows)).shift


def _grid(kept: Table, left: Table, fitted: Table, device: Device) -> Column:
    if len(np.unique(kept["B"])) < 2 or len(np.unique(kept["S"])) < 2:
        return np.full(len(left["B"]), np.nan)
    grid = grid_of(with_lent_attention(kept, fitted, device, causal=False), device)
    return grid.seconds(left["B"], left["B"] * left["S"])


def _chunks(kept: Table, left: Table, fitted: Table, device: Device) -> Column:
    found = np.full(len(left["m"]), np.nan)
    kept, fresh = where(kept, kept["P"] == 0), left["P"] == 0
    if len(np.unique(kept["m"])) > 1 and len(np.unique(kept["B"])) > 1:
        others = where(fitted, fitted["P"] == 0)
        grid = grid_of(with_lent_attention(kept, others, device, causal=True), device, causal=True)
        found[fresh] = grid.seconds(left["B"][fresh], (left["B"] * left["m"])[fresh])
    return found


def _nearby(kept: Table, left: Table, fitted: Table, device: Device) -> Column:
    """What is told by several loads: the residual over the floor at the nearest measured loads, in log scale."""
    from sklearn.neighbors import KNeighborsRegressor

    del fitted, device

    def axes(rows: Table) -> Column:
        found: Column = np.log1p(np.column_stack([rows[a] for a in ("B", "P", "S", "m")]))
        return found

    logs = np.log(kept["t_us_median"] / kept["floor_us"])
    model = KNeighborsRegressor(min(3, len(logs)), weights="distance").fit(axes(kept), logs)
    floor = 1e-6 * left["floor_us"] / np.maximum(left["calls"], 1)
    found: Column = floor * np.exp(model.predict(axes(left)))
    return found


def _lines(kept: Table, left: Table, fitted: Table, device: Device) -> Column:
    """Chunks beside decoders: the geometric mean of what the neighbours along each of four axes say."""
    del fitted, device
    points = list(zip(*(kept[axis].tolist() for axis in _AXES), strict=True))
    times = dict(zip(points, per_call(kept).tolist(), strict=True))
    marks = [np.unique(np.concatenate([kept[axis], left[axis]])).tolist() for axis in _AXES]
    return np.array([
        _between_neighbours(point, times, marks)
        for point in zip(*(left[axis].tolist() for axis in _AXES), strict=True)
    ])  # fmt: skip


def _between_neighbours(
    point: tuple[int, ...], times: Mapping[tuple[int, ...], float], marks: list[list[int]]
) -> float:
    said = []
    for i, values in enumerate(marks):
        at = values.index(point[i])
        sides = []
        for way in (values[at - 1 :: -1] if at else [], values[at + 1 :]):
            beside = ((v, times.get((*point[:i], v, *point[i + 1 :]))) for v in way)
            sides += [next(((v, t) for v, t in beside if t is not None), None)]
        low, high = sides
        if low is not None and high is not None:
            u = (point[i] - low[0]) / (high[0] - low[0])
            said.append(math.log((1 - u) * low[1] + u * high[1]))
    return math.exp(sum(said) / len(said)) if said else math.nan


_CURVE = _Kind(("dtype", "n", "k", "splits", "P", "S"), _curve)
_GRID = _Kind(("model_shape", "n", "k"), _grid)
_CHUNKS = _Kind(("model_shape", "n", "k"), _chunks)
_NEARBY = _Kind(("model_shape", "dtype", "variant"), _nearby)
_LINES = _Kind(("model_shape",), _lines)
_KINDS = {_DECODE: _GRID, _PREFILL: _CHUNKS, _MIXED: _LINES}


def _products(
    products: Table, out: Column, device: Device, rng: np.random.Generator, *, frozen: bool
) -> list[Error]:
    """Matrix products: rows left out of matrices that were measured, and matrices left out whole."""
    unseen: tuple[list[Column], list[Column]] = ([], [])
    by_op: dict[str, tuple[list[Column], list[Column]]] = {}
    for dtype in np.unique(products["dtype"]).tolist():
        same = products["dtype"] == dtype
        rows, left_out = where(products, same), out[same]
        kept = where(rows, ~left_out)
        asked_for = left_out if frozen else np.ones(len(left_out), bool)
        sizes = np.unique(np.column_stack([rows["n"], rows["k"]])[asked_for], axis=0)
        for n, k in sizes[rng.permutation(len(sizes))[:_MATRICES]].tolist():
            own = (rows["n"] == n) & (rows["k"] == k)
            known = bool((own & ~left_out).any())
            for tiles in (True, False):
                asked = own & (ragged(rows["m"]) != tiles)
                for op in np.unique(rows["op"][own]).tolist() if known else ():
                    mine = own & (rows["op"] == op)
                    seen = by_op.setdefault(op, ([], []))
                    left = where(rows, mine & asked & left_out)
                    _predict(left, kept, mine[~left_out], device, tiles, seen)
                if not known or not frozen:
                    left = where(rows, asked & left_out if frozen else asked)
                    others = kept if frozen else where(rows, ~own)
                    nobody = np.zeros(len(others["m"]), bool)
                    _predict(left, others, nobody, device, tiles, unseen)
    named = [_summary(op, *seen) for op, seen in by_op.items()]
    found = [*named, _summary("matrices of unseen sizes", *unseen)]
    return [error for error in found if error is not None]


def _predict(
    left: Table, kept: Table, own: Column, device: Device, tiles: bool,
    into: tuple[list[Column], list[Column]],
) -> None:  # fmt: skip
    if not len(left["m"]) or not len(kept["m"]):
        return
    size = (float(left["n"][0]), float(left["k"][0]))
    found = matrix_residuals(size, kept, own, device, tiles)
    if found is None:
        return
    points, logs = found
    into[0].append(per_call(left))
    into[1].append(
        smooth_floors(left, device) * np.exp(np.interp(np.log(left["m"]), np.log(points), logs))
    )


def _summary(op: str, measured: list[Column], fitted: list[Column]) -> Error | None:
    if not measured or not sum(map(len, measured)):
        return None
    real, fit = np.concatenate(measured), np.concatenate(fitted)
    relative = fit / real - 1
    return Error(op, len(real), float(np.median(np.abs(relative))),
                 float(np.quantile(np.abs(relative), 0.9)), float(np.median(relative)), real, fit)  # fmt: skip
