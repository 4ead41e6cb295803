"""The best prices of a menu: logit demand, a limit on capacity with its shadow price, screening in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Prices and what they bring, per query that arrives.

    `payments` is what a client pays for a query offered to each tier, in expectation and after refunds
    and credits, USD; `prices` the price per sold answer that comes to it. `shares` has a row a segment
    and a column a tier. `shadow_usd` is what one more GPU-second per arriving query would earn.
    """

    offers: tuple[Offer, ...]
    payments: tuple[float, ...]
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
        return np.asarray(weights @ np.array(self.shares))


def best_prices(
    segments: Sequence[Segment],
    offers: Sequence[Offer],
    capacity: float | None = None,
    welfare: float = 0.0,
    starts: int = STARTS,
) -> Menu:
    """The prices that earn most: margin + `welfare` x clients' surplus, in USD per query that arrives.

    `capacity` limits the GPU-seconds per arriving query. Searched by SLSQP from several starts, because
    with several segments the profit is not concave. Raises ValueError without offers or segments.
    Source: Li and Huh, Manufacturing & Service Operations Management 13 (2011), 549-563; Li, Webster,
    Mason and Kempf, the same journal 21 (2019) on mixed logit.
    """
    if not segments or not offers:
        raise ValueError("a menu needs at least one segment and one offer")
    market = _market(segments, offers)
    scale = float(np.mean(market.scale))
    equal = market.cost + max(1.0, float(np.max(market.worth - market.cost)) / scale / 2) * scale
    rng = np.random.default_rng(0)
    tries = [equal, market.cost + scale, np.maximum(market.worth.max(axis=0), market.cost)]
    spread = max(scale, float(np.ptp(market.worth)))
    tries += [market.cost + rng.uniform(0, 2, len(offers)) * spread for _ in range(starts - 3)]
    found = [_climb(market, start, capacity, welfare) for start in tries[:starts]]
    allowed = [item for item in found if _fits(market, item, capacity)] or found
    best = max(allowed, key=lambda at: market.objective(at, welfare))
    return _menu(market, segments, offers, best, capacity, welfare)


def at_prices(
    segments: Sequence[Segment], offers: Sequence[Offer], prices: Sequence[float]
) -> Menu:
    """What given prices per sold answer bring, as `best_prices` reports it."""
    market = _market(segments, offers)
    payments = np.array([p * o.coverage * o.kept for p, o in zip(prices, offers, strict=True)])
    return _menu(market, segments, offers, payments, None, 0.0)


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
    """Arrays of one market: worth (S, K), weights and scale (S,), cost, GPU-seconds (K,)."""

    worth: Floats
    weight: Floats
    scale: Floats
    cost: Floats
    gpu_s: Floats

    def utility(self, payments: Floats) -> Floats:
        return np.asarray((self.worth - payments[None, :]) / self.scale[:, None])

    def objective(self, payments: Floats, welfare: float) -> float:
        utility = self.utility(payments)
        margin = self.weight @ (choice(utility) @ (payments - self.cost))
        return float(margin + welfare * (self.weight @ surplus(utility, self.scale)))

    def gradient(self, payments: Floats, welfare: float) -> Floats:
        """Of `objective` by each payment, shape (K,)."""
        share = choice(self.utility(payments))
        gain = payments - self.cost
        per_scale = self.weight / self.scale
        mean = share @ gain
        moved = share * (mean[:, None] - gain[None, :])
        return np.asarray((1 - welfare) * (self.weight @ share) + per_scale @ moved)

    def usage(self, payments: Floats) -> float:
        return float(self.weight @ (choice(self.utility(payments)) @ self.gpu_s))

    def usage_gradient(self, payments: Floats) -> Floats:
        share = choice(self.utility(payments))
        mean = share @ self.gpu_s
        moved = share * (mean[:, None] - self.gpu_s[None, :])
        return np.asarray((self.weight / self.scale) @ moved)


def _market(segments: Sequence[Segment], offers: Sequence[Offer]) -> _Market:
    weight = np.array([segment.share for segment in segments])
    return _Market(
        worth(segments, offers),
        weight / weight.sum(),
        np.array([segment.scale for segment in segments]),
        np.array([offer.cost_usd for offer in offers]),
        np.array([offer.gpu_s for offer in offers]),
    )


def _climb(market: _Market, start: Floats, capacity: float | None, welfare: float) -> Floats:
    """SLSQP from one start, in units of the spread of tastes so that steps are of order one."""
    from scipy.optimize import minimize

    unit = float(np.mean(market.scale))
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
    value: Callable[[Floats], float] = lambda x: -market.objective(x * unit, welfare) / unit  # noqa: E731
    slope: Callable[[Floats], Floats] = lambda x: -market.gradient(x * unit, welfare)  # noqa: E731
    done = minimize(
        value,
        start / unit,
        jac=slope,
        method="SLSQP",
        constraints=limits,
        options={"maxiter": 500, "ftol": 1e-13},
    )
    return np.asarray(done.x * unit)


def _fits(market: _Market, payments: Floats, capacity: float | None) -> bool:
    return capacity is None or market.usage(payments) <= capacity * (1 + 1e-6)


def _menu(
    market: _Market,
    segments: Sequence[Segment],
    offers: Sequence[Offer],
    payments: Floats,
    capacity: float | None,
    welfare: float,
) -> Menu:
    utility = market.utility(payments)
    kept = np.array([offer.coverage * offer.kept for offer in offers])
    prices = np.divide(payments, kept, out=np.full_like(payments, np.inf), where=kept > 0)
    used = market.usage(payments)
    shadow = 0.0
    if capacity is not None and used > capacity * (1 - 1e-6):
        slope = market.usage_gradient(payments)
        shadow = max(0.0, float(market.gradient(payments, welfare) @ slope / (slope @ slope)))
    return Menu(
        tuple(offers),
        tuple(payments.tolist()),
        tuple(prices.tolist()),
        tuple(tuple(row) for row in choice(utility).tolist()),
        market.objective(payments, 0.0),
        float(market.weight @ surplus(utility, market.scale)),
        used,
        shadow,
    )
