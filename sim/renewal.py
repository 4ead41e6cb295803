"""Stationary point processes whose every gap is keyed, so that changing the rate only stretches them.

A process of unit rate is drawn gap by gap from (key, gap number). It starts in equilibrium, so that
the expected count in any window is exactly its length, however bursty the gaps.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv

from models.keyed import GOLDEN, Keys, mix_array, uniform_array

Floats = npt.NDArray[np.float64]
Family = Literal["gamma", "weibull"]

# purposes of the draws of one gap
_GAP: Final = 1
_RESIDUAL: Final = 2


def child_keys(key: int, n: int) -> Keys:
    """`models.keyed.child_key` of the ordinals 0 to n - 1, as uint64 of shape (n,)."""
    return mix_array(np.uint64(key) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GOLDEN))


def renewal(key: int, span: float, family: Family = "gamma", shape: float = 1.0) -> Floats:
    """Points in [0, span) of the stationary renewal process of rate 1, ascending.

    `shape` is that of the gap's distribution: 1 is Poisson in both families; a gamma gap has the
    coefficient of variation shape ** -0.5. A longer span only adds points.
    Source: equilibrium renewal process, D. R. Cox, Renewal Theory (1962), section 5: the first point
    is a uniform fraction of a length-biased gap.
    """
    if span <= 0:
        return np.empty(0)
    count = int(span + 6.0 * math.sqrt(span * max(1.0, 1.0 / shape)) + 16.0)
    while True:
        points = np.cumsum(_gaps(child_keys(key, count), family, shape))
        if points[-1] >= span:
            return points[: int(np.searchsorted(points, span, side="left"))]
        count *= 2


def _gaps(keys: Keys, family: Family, shape: float) -> Floats:
    """Gaps of mean 1; the first is the equilibrium residual."""
    u = uniform_array(keys, _GAP)
    fraction = uniform_array(keys[:1], _RESIDUAL)[0]
    if family == "gamma":
        gaps = -np.log1p(-u) if shape == 1.0 else _gamma_quantile(shape, u) / shape
        biased = float(_gamma_quantile(shape + 1.0, u[:1])[0]) / shape
    else:
        mean = math.gamma(1.0 + 1.0 / shape)
        gaps = (-np.log1p(-u)) ** (1.0 / shape) / mean
        biased = float(_gamma_quantile(1.0 + 1.0 / shape, u[:1])[0]) ** (1.0 / shape) / mean
    gaps[0] = fraction * biased
    return gaps


def _gamma_quantile(shape: float, u: Floats) -> Floats:
    quantile: Floats = np.asarray(gammaincinv(shape, u), dtype=np.float64)
    return quantile
