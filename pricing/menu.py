"""The best prices of a menu: logit demand, a limit on capacity with its shadow price, screening in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import lambertw

from pricing.demand import Offer, Segment, choice, surplus, worth

Floats = npt.NDArray[np.float64]

STARTS = 8  # of the search for prices: mixed segments have several local optima


@dataclass(frozen=True, slots=True)
class Menu:
    """Prices and what they bring, USD per query that arrives.

    `prices` is in the unit of the offers (`Offer.units`). `shares` has a row a segment and a column a
    tier; what is missing to 1 buys nothing. `shadow_usd` is what one more GPU-second per arriving query
    would earn, 0 where the capacity does not bind.
    """

    prices: tuple[float, ...]
    shares: tuple[tuple[float, ...], ...]
    margin_usd: float
    surplus_usd: float
    gpu_s: float
    shadow_usd: float

    @property
    def welfare_usd(self) -> float:
        """What clients and provider gain together, per query that arrives."""
        return self.margin_usd + self.surplus_usd

    def bought(self, segments: Sequence[Segment]) -> Floats:
        """Share of all arriving queries that each tier gets, shape (K,)."""
        weights = np.array([segment.share for segment in segments])
        return np.asarray(weights / weights.sum() @ np.array(self.shares))


def best_prices(
    segments: Sequence[Segment],
    offers: Sequence[Sequence[Offer]],
    capacity: float | None = None,
    welfare: float = 0.0,
    starts: int = STARTS,
) -> Menu:
    """The prices that earn most: margin + `welfare` x clients' surplus, in USD per query that arrives.

    `offers` has a row a segment, a column a tier. `capacity` limits the GPU-seconds per arriving query.
    Searched by SLSQP from several starts, because with several segments the profit is not concave.
    Raises ValueError without offers, or where a price would bring nothing at all.
    Source: Li and Huh, Manufacturing & Service Operations Management 13 (2011), 549-563; Li, Webster,
    Mason and Kempf, the same journal 21 (2019) on mixed logit.
    """
    market = _market(segments, offers)
    unit, cost = market.unit, market.mean_cost / market.mean_units
    top = np.where(np.isfinite(market.worth), market.worth, 0.0).max(axis=0) / market.mean_units
    rng = np.random.default_rng(0)
    tries = [cost + unit, np.maximum(top, cost + unit), cost + 3 * unit, (cost + top) / 2 + unit]
    reach = np.maximum(top - cost, 2 * unit)
    tries += [cost + rng.uniform(0, 1, len(unit)) * reach for _ in range(starts - len(tries))]
    found = [_climb(market, start, capacity, welfare) for start in tries[:starts]]
    allowed = [item for item in found if _fits(market, item, capacity)] or found
    best = max(allowed, key=lambda at: market.objective(at, welfare))
    return _menu(market, best, capacity, welfare)


def at_prices(
    segments: Sequence[Segment], offers: Sequence[Sequence[Offer]], prices: Sequence[float]
) -> Menu:
    """What given prices bring, as `best_prices` reports it."""
    return _menu(_market(segments, offers), np.array(prices, dtype=np.float64), None, 0.0)


def equal_markup(
    value: Sequence[float], cost: Sequence[float], sensitivity: float
) -> tuple[float, float, Floats]:
    """Markup, profit and shares of one segment's best menu: utilities a - b p, costs c, outside option 0.

    Every tier carries the same markup (1 + W(sum exp(a - b c - 1))) / b, and the profit is W / b, with
    Lambert's W. Source: Li and Huh, M&SOM 13 (2011); a note of Zhang, Rusmevichientong and Topaloglu (2018).
    """
    a, c = np.asarray(value, dtype=np.float64), np.asarray(cost, dtype=np.float64)
    w = float(lambertw(np.exp(a - sensitivity * c - 1).sum()).real)
    markup = (1 + w) / sensitivity
    return markup, w / sensitivity, choice((a - sensitivity * (c + markup))[None, :])[0]


def screening(tastes: Sequence[float], weights: Sequence[float]) -> tuple[Floats, Floats, float]:
    """Qualities, prices and profit of the best menu for clients whose tastes are hidden.

    Tastes theta rise and have the given weights; a quality q is worth theta q and costs q^2 / 2. The
    virtual tastes are ironed, so that no two types would swap; a quality of 0 is not served. Raises
    ValueError unless tastes rise and weights are positive.
    Source: Mussa and Rosen, J. Econ. Theory 18 (1978), 301-317.
    """
    theta, f = np.asarray(tastes, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if theta.ndim != 1 or theta.shape != f.shape or (np.diff(theta) <= 0).any() or (f <= 0).any():
        raise ValueError("tastes must rise, and each needs a positive weight")
    from scipy.optimize import isotonic_regression

    f = f / f.sum()
    above = np.concatenate([np.cumsum(f[::-1])[::-1][1:], [0.0]])
    gaps = np.concatenate([np.diff(theta), [0.0]])
    virtual = theta - gaps * above / f
    quality = np.maximum(0.0, isotonic_regression(virtual, weights=f).x)
    rents = np.concatenate([[0.0], np.cumsum(gaps[:-1] * quality[:-1])])
    price = theta * quality - rents
    return quality, price, float(f @ (price - quality**2 / 2))


# -- the optimisation -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Market:
    """Arrays of one market, of shape (S, K) but for the segments' weight and scale (S,)."""

    worth: Floats
    cost: Floats
    gpu_s: Floats
    units: Floats
    weight: Floats
    scale: Floats

    @property
    def mean_units(self) -> Floats:
        return np.asarray(self.weight @ self.units)

    @property
    def mean_cost(self) -> Floats:
        return np.asarray(self.weight @ self.cost)

    @property
    def unit(self) -> Floats:
        """The price change of each tier that moves a typical client's odds by e, shape (K,)."""
        return float(self.weight @ self.scale) / self.mean_units

    def shares(self, prices: Floats) -> Floats:
        return choice((self.worth - self.units * prices) / self.scale[:, None])

    def objective(self, prices: Floats, welfare: float) -> float:
        paid = self.units * prices
        margin = self.weight @ (self.shares(prices) * (paid - self.cost)).sum(axis=1)
        return float(margin) + (welfare * self.surplus(prices) if welfare else 0.0)

    def surplus(self, prices: Floats) -> float:
        utility = (self.worth - self.units * prices) / self.scale[:, None]
        return float(self.weight @ surplus(utility, self.scale))

    def gradient(self, prices: Floats, welfare: float) -> Floats:
        """Of `objective` by each price, shape (K,)."""
        gain = self.units * prices - self.cost
        direct = (1 - welfare) * self.weight @ (self.units * self.shares(prices))
        return np.asarray(direct + self._moved(prices, gain))

    def usage(self, prices: Floats) -> float:
        return float(self.weight @ (self.shares(prices) * self.gpu_s).sum(axis=1))

    def usage_gradient(self, prices: Floats) -> Floats:
        return self._moved(prices, self.gpu_s)

    def _moved(self, prices: Floats, each: Floats) -> Floats:
        """How the mean of `each` (S, K) over what is chosen moves with each price, shape (K,)."""
        share = self.shares(prices)
        typical = (share * each).sum(axis=1, keepdims=True)
        moved = self.units * share * (typical - each)
        return np.asarray((self.weight / self.scale) @ moved)


def _market(segments: Sequence[Segment], offers: Sequence[Sequence[Offer]]) -> _Market:
    if not segments or not offers or not offers[0]:
        raise ValueError("a menu needs at least one segment and one offer")
    weight = np.array([segment.share for segment in segments])
    value = worth(segments, offers)

    def of(name: str) -> Floats:
        found = np.array([[getattr(offer, name) for offer in row] for row in offers])
        return np.where(np.isfinite(value), found, 0.0)

    market = _Market(
        value,
        of("cost_usd"),
        of("gpu_s"),
        of("units"),
        weight / weight.sum(),
        np.array([segment.scale for segment in segments]),
    )
    if (market.mean_units <= 0).any():
        raise ValueError("an offer brings nothing at any price: refunds and credits eat it up")
    return market


def _climb(market: _Market, start: Floats, capacity: float | None, welfare: float) -> Floats:
    """SLSQP from one start, in units of the spread of tastes so that steps are of order one."""
    from scipy.optimize import minimize

    unit, money = market.unit, float(market.weight @ market.scale)
    limits: list[dict[str, Any]] = []
    if capacity is not None:
        limit = max(capacity, 1e-12)
        limits = [
            {
                "type": "ineq",
                "fun": lambda x: 1 - market.usage(x * unit) / limit,
                "jac": lambda x: -unit * market.usage_gradient(x * unit) / limit,
            }
        ]
    done = minimize(
        lambda x: -market.objective(x * unit, welfare) / money,
        start / unit,
        jac=lambda x: -unit * market.gradient(x * unit, welfare) / money,
        method="SLSQP",
        bounds=[(0.0, None)] * len(unit),
        constraints=limits,
        options={"maxiter": 300, "ftol": 1e-12},
    )
    return np.asarray(done.x * unit)


def _fits(market: _Market, prices: Floats, capacity: float | None) -> bool:
    return capacity is None or market.usage(prices) <= capacity * (1 + 1e-6)


def _menu(market: _Market, prices: Floats, capacity: float | None, welfare: float) -> Menu:
    used = market.usage(prices)
    shadow = 0.0
    if capacity is not None and used > capacity * (1 - 1e-6):
        slope = market.usage_gradient(prices)
        steep = float(slope @ slope)
        shadow = float(market.gradient(prices, welfare) @ slope) / steep if steep > 0 else 0.0
    return Menu(
        tuple(prices.tolist()),
        tuple(tuple(row) for row in market.shares(prices).tolist()),
        market.objective(prices, 0.0),
        market.surplus(prices),
        used,
        max(0.0, shadow),
    )
