"""A controller from logs: which plan should a query get, learned from a table of what each plan made of it.

A table has a row a question; for each plan P a column P_correct (0 or 1) and one of P_cost, P_tokens or
P_resp_chars; every other column is a feature (names starting with "qid" or "id" are left out). A cost that was
not logged is taken as its plan's mean. Half of the
questions train, half judge.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CHARS_A_TOKEN: Final = 4.0  # of English text; assumed
LEAST: Final = 400  # questions to learn from
_COSTS: Final = ("_cost", "_tokens", "_resp_chars")


@dataclass(frozen=True, slots=True)
class Logs:
    """Outcomes of plans: `right` and `cost` are (questions, plans), `features` (questions, features)."""

    plans: tuple[str, ...]
    right: npt.NDArray[np.bool_]
    cost: Floats
    features: Floats
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True, slots=True)
class Routed:
    """A way to choose a plan, on the held-out half: cost and accuracy, and the share of each plan."""

    name: str
    cost: float
    accuracy: float
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FromLogs:
    """What was learned: the curve of the router beside the single plans, a random mix and the oracle.

    `gain` is the mean accuracy over a random mix of the plans at the same cost, with its 95 % interval by
    paired bootstrap; `worth` says whether the interval is above nought. Otherwise use the best plan.
    """

    trained: int
    held_out: int
    curve: tuple[Routed, ...]
    single: tuple[Routed, ...]
    oracle: Routed
    gain: float
    interval: tuple[float, float]

    @property
    def worth(self) -> bool:
        """Whether routing is better than chance, beyond doubt."""
        return self.interval[0] > 0.0


def read(columns: Mapping[str, Sequence[Any]], prices: Mapping[str, float]) -> Logs:
    """Logs from the columns of a table; `prices` are USD per million tokens (or a factor of P_cost) by plan.

    Raises ValueError that says which column is missing or not a number, or that a plan has no price.
    """
    plans = tuple(name.removesuffix("_correct") for name in columns if name.endswith("_correct"))
    if len(plans) < 2:
        raise ValueError("the table needs a column PLAN_correct for at least two plans")
    costs, used = [], set()
    for plan in plans:
        found = next((plan + end for end in _COSTS if plan + end in columns), None)
        if found is None:
            raise ValueError(
                f"plan {plan} needs one of the columns " + ", ".join(plan + e for e in _COSTS)
            )
        if plan not in prices:
            raise ValueError(f"plan {plan} has no price: --price {plan}=USD per million tokens")
        scale = {"_cost": 1.0, "_tokens": 1e-6, "_resp_chars": 1e-6 / CHARS_A_TOKEN}
        used |= {found, f"{plan}_correct"}
        end = next(e for e in _COSTS if found == plan + e)
        amounts = _numbers(columns[found], found, gaps=True) * scale[end] * prices[plan]
        costs.append(np.where(np.isnan(amounts), np.nanmean(amounts), amounts))
    right = np.stack([_numbers(columns[f"{p}_correct"], p) > 0 for p in plans], axis=1)
    kept = [n for n in columns if n not in used and not n.startswith(("qid", "id"))]
    table, names = _features(columns, kept)
    return Logs(plans, right, np.stack(costs, axis=1), table, names)


def learn(logs: Logs, seed: int = 0) -> FromLogs:
    """Fit P(right | features) of each plan on one half, choose by value less cost on the other.

    Raises ValueError where one half has fewer than `LEAST` questions.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    n = len(logs)
    if n < 2 * LEAST:
        raise ValueError(
            f"{n} questions are too few: {2 * LEAST} or more, half of them to judge by"
        )
    random = np.random.default_rng(seed)
    order = random.permutation(n)
    train, held = order[: n // 2], order[n // 2 :]
    chance = np.empty((len(held), len(logs.plans)))
    with threadpool_limits(1):
        for number in range(len(logs.plans)):
            model = HistGradientBoostingClassifier(
                max_iter=60, max_leaf_nodes=12, min_samples_leaf=40, learning_rate=0.06,
                l2_regularization=1.0, random_state=seed,
            )  # fmt: skip
            model.fit(logs.features[train], logs.right[train, number])
            chance[:, number] = model.predict_proba(logs.features[held])[:, -1]
    mean = logs.cost[train].mean(axis=0)  # what a plan will cost is not known before: its mean is
    right, cost = logs.right[held], logs.cost[held]
    prices = np.concatenate([[0.0], np.geomspace(1e-2, 1e2, 25) / mean.max()])
    curve, gains = [], []
    for price in prices:
        chosen = (chance - price * mean).argmax(axis=1)
        curve.append(_routed(f"learned at {price:.3g}", chosen, right, cost))
        gains.append(_against_chance(chosen, right, cost))
    gain = np.mean(gains, axis=0)
    draws = [gain[random.integers(0, len(held), len(held))].mean() for _ in range(500)]
    low, high = np.quantile(draws, (0.025, 0.975))
    single = tuple(
        _routed(plan, np.full(len(held), number), right, cost)
        for number, plan in enumerate(logs.plans)
    )
    cheapest = np.where(right, cost, np.inf).argmin(axis=1)
    nobody = ~right.any(axis=1)
    oracle = np.where(nobody, cost.mean(axis=0).argmin(), cheapest)
    return FromLogs(
        len(train), len(held), tuple(curve), single, _routed("oracle", oracle, right, cost),
        float(gain.mean()), (float(low), float(high)),
    )  # fmt: skip


def _against_chance(chosen: Any, right: Any, cost: Floats) -> Floats:
    """Right or not, less what a random mix of the same plans in the same shares gets, by question."""
    rows = np.arange(len(chosen))
    shares = np.bincount(chosen, minlength=right.shape[1]) / len(chosen)
    found: Floats = right[rows, chosen] - right @ shares
    return found


def _routed(name: str, chosen: Any, right: Any, cost: Floats) -> Routed:
    rows = np.arange(len(chosen))
    shares = np.bincount(chosen, minlength=right.shape[1]) / len(chosen)
    return Routed(
        name,
        float(cost[rows, chosen].mean()),
        float(right[rows, chosen].mean()),
        tuple(shares.tolist()),
    )


def _features(
    columns: Mapping[str, Sequence[Any]], names: Sequence[str]
) -> tuple[Floats, tuple[str, ...]]:
    """Numbers as they are; words as one column each while they are few, else as a stable number."""
    table, kept = [], []
    for name in names:
        values = columns[name]
        if all(isinstance(v, int | float) for v in values):
            table.append(np.asarray(values, dtype=np.float64))
            kept.append(name)
            continue
        words = sorted({str(v) for v in values})
        if len(words) <= 80:
            for word in words:
                table.append(np.array([float(str(v) == word) for v in values]))
                kept.append(f"{name}={word}")
        else:
            table.append(np.array([zlib.crc32(str(v).encode()) % 4096 for v in values], float))
            kept.append(name)
    if not table:
        raise ValueError("the table has no feature: no column but outcomes and costs")
    return np.stack(table, axis=1), tuple(kept)


def _numbers(values: Sequence[Any], name: str, gaps: bool = False) -> Floats:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"column {name} holds something that is no number") from None
    if np.isinf(found).any() or (np.isnan(found).any() and not (gaps and (found == found).any())):
        raise ValueError(f"column {name} has gaps or infinite values")
    return found
