"""Who buys what at which price: logit choice over tiers and an outside option, and what average-cost pricing does to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Segment:
    """Clients of one kind: their share of the queries and what an answer is worth to them, in USD.

    `value` of a right answer, `harm` of a wrong one that was sold as right, `wait` of a second of
    waiting; `scale` is the spread of tastes: a price change of one scale moves the odds by e.
    """

    name: str
    share: float
    value: float
    harm: float = 0.0
    wait: float = 0.0
    scale: float = 0.01


@dataclass(frozen=True, slots=True)
class Offer:
    """A tier as one segment's clients and the provider see it, per query offered to it.

    `coverage` is the share that is answered and sold, `precision` the share right of those,
    `latency_s` the mean time to wait, `cost_usd` and `gpu_s` what a query takes. A price of p brings
    p x `units` after refunds and credits; one more wrong answer in a hundred sold takes 0.01 x p x
    `at_risk` of it.
    """

    name: str
    coverage: float
    precision: float
    latency_s: float
    cost_usd: float
    gpu_s: float = 0.0
    units: float = 1.0
    at_risk: float = 0.0


def worth(segments: Sequence[Segment], offers: Sequence[Sequence[Offer]]) -> Floats:
    """What a query offered to each tier is worth to each segment before it pays, USD, shape (S, K).

    `offers` has a row a segment. -inf where a segment's queries cannot have a tier (coverage NaN).
    """
    return np.array(
        [
            [_worth(segment, offer) for offer in row]
            for segment, row in zip(segments, offers, strict=True)
        ]
    )


def _worth(segment: Segment, offer: Offer) -> float:
    if math.isnan(offer.coverage):
        return -math.inf
    each = segment.value * offer.precision - segment.harm * (1 - offer.precision)
    return offer.coverage * each - segment.wait * offer.latency_s


def choice(utility: Floats) -> Floats:
    """The share of each option, shape as `utility` (S, K); what is missing to 1 buys nothing (utility 0).

    Source: McFadden, Conditional logit analysis of qualitative choice behavior (1974).
    """
    top = np.maximum(utility.max(axis=1, keepdims=True, initial=0.0), 0.0)
    odds = np.exp(utility - top)
    return np.asarray(odds / (odds.sum(axis=1, keepdims=True) + np.exp(-top)))


def surplus(utility: Floats, scale: Floats) -> Floats:
    """Expected surplus of each segment in USD over buying nothing, shape (S,).

    Source: Small and Rosen, Econometrica 49 (1981), 105-130.
    """
    top = np.maximum(utility.max(axis=1, initial=0.0), 0.0)
    odds = np.exp(utility - top[:, None]).sum(axis=1) + np.exp(-top)
    return np.asarray(scale * (top + np.log(odds)))


def unravelling(
    spread: float = 1.2,
    premium: float = 1.2,
    elasticity: float = 0.6,
    tastes: float = 0.3,
    rounds: int = 8,
) -> list[float]:
    """Share of clients who buy at a flat price, round by round, when it follows their average cost.

    Costs are x = exp(spread z); a query is worth premium x^elasticity exp(tastes e) to its client (z, e
    standard normal): cheap queries leave, the price rises, until nobody is served, although a trade
    would pay for most. Closed form for lognormals. Source: Akerlof, Q. J. Econ. 84 (1970), 488-500;
    Treeline's facts on pricing, section 4.5 (2026-11-23) print 24.5 % -> 2.5 % -> 0 for these values.
    """
    width = math.hypot(elasticity * spread, tastes)
    price, served = math.exp(spread**2 / 2), []
    for _ in range(rounds):
        cut = math.log(price / premium) / width
        share = float(ndtr(-cut))
        served.append(share)
        if share < 1e-12:
            break
        tilt = elasticity * spread**2 / width
        price = math.exp(spread**2 / 2) * float(ndtr(tilt - cut)) / share
    return served


def elasticities(utility: Floats, scale: Floats, price: Floats) -> Floats:
    """Own-price elasticity of each segment's demand for each tier, shape (S, K)."""
    share: Any = choice(utility)
    return np.asarray(-(price[None, :] / scale[:, None]) * (1 - share))
