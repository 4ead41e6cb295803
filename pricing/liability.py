"""What wrong answers cost beyond their mean: refunds expected, and the reserve for a month in which errors come together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr as binomial_cdf
from scipy.special import betaincinv, betaln, gammaln

LEVEL = 0.99  # of a month's wrong answers that the reserve pays for
_EXACT = 2_000_000  # up to this many answers the distribution is summed term by term


@dataclass(frozen=True, slots=True)
class Reserve:
    """Refunds of a month, USD: expected, at the 99th percentile, and what is to be put aside between.

    `wrong_mean` and `wrong_var` are the numbers of wrong answers sold behind them; `rho` is how
    strongly errors come together.
    """

    sold: int
    wrong_share: float
    rho: float
    wrong_mean: float
    wrong_var: int
    expected_usd: float
    at_risk_usd: float

    @property
    def reserve_usd(self) -> float:
        """What to hold beyond the expected refunds."""
        return self.at_risk_usd - self.expected_usd


def reserve(
    sold: int, wrong_share: float, rho: float, refund_usd: float, level: float = LEVEL
) -> Reserve:
    """The reserve for `sold` answers of which each pays back `refund_usd` when it is wrong."""
    wrong = value_at_risk(sold, wrong_share, rho, level)
    mean = sold * wrong_share
    return Reserve(sold, wrong_share, rho, mean, wrong, mean * refund_usd, wrong * refund_usd)


def value_at_risk(n: int, p: float, rho: float = 0.0, level: float = LEVEL) -> int:
    """The number of wrong answers among n that is not exceeded with probability `level`.

    Errors are beta-binomial: each wrong with probability p, any two of them correlated by rho in
    [0, 1) (drift, shared prompts), so that the variance is n p (1 - p) (1 + (n - 1) rho). rho = 0 is
    the binomial; beyond two million answers the share of wrong ones is taken as beta distributed.
    Raises ValueError outside these ranges. Source: Skellam, J. R. Stat. Soc. B 10 (1948), 257-261.
    """
    if n < 0 or not 0 <= p <= 1 or not 0 <= rho < 1 or not 0 < level < 1:
        raise ValueError(f"no reserve for n={n}, p={p}, rho={rho}, level={level}")
    if n == 0 or p in (0.0, 1.0):
        return round(n * p)
    if rho == 0:
        return _binomial(n, p, level)
    a, b = p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho
    if n > _EXACT:
        return math.ceil(n * float(betaincinv(a, b, level)))
    k = np.arange(n + 1, dtype=np.float64)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    mass = np.exp(ways + betaln(k + a, n - k + b) - betaln(a, b))
    return int(np.searchsorted(np.cumsum(mass) / mass.sum(), level))


def _binomial(n: int, p: float, level: float) -> int:
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(middle, n, p) < level:
            low = middle
        else:
            high = middle
    return high
