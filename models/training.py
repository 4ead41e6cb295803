"""Fits a controller: how likely is the leading answer right, and what is another stage of the vote worth?

Backward over the stages (fitted value iteration, as Longstaff and Schwartz price an option that may be
exercised early): the value of going on is regressed on what is seen now, at many prices of GPU time at
once, so that one fit serves a whole day of prices.

Source: Longstaff and Schwartz, Rev. Financial Studies 14 (2001), 113-147, for the recursion.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.evidence import seen
from models.forest import Forest, compiled
from models.learned import RATES, STAGES, Learned
from models.mix import Drawn, Mix

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PRICES_A_QUESTION: Final = 4  # at which each training question is priced
TREES: Final[Mapping[str, Any]] = {
    "max_iter": 40, "max_leaf_nodes": 15, "learning_rate": 0.15, "early_stopping": False,
}  # fmt: skip
Told = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Prices:
    """GPU-seconds of the work of a search, and where they come from: generated, scored, read tokens."""

    generated_s: float
    scored_s: float
    prompt_s: float
    label: str
    digest: str
    source_kind: str  # measured | imported | roofline, as of the step costs behind them

    def trajectories(self, tokens: npt.NDArray[Any], scored: bool = True) -> Floats:
        """GPU-seconds of whole trajectories of so many tokens, each of them scored or not."""
        each = self.generated_s + (self.scored_s if scored else 0.0)
        found: Floats = tokens * each
        return found


@dataclass(frozen=True, slots=True)
class Staged:
    """Questions seen stage by stage: tables of rows, whether the leading answer is right, GPU-seconds added."""

    rows: list[Floats]  # of each stage, (questions, features)
    right: list[Bools]
    spent: list[Floats]


def staged(drawn: Drawn, classes: int, prices: Prices) -> Staged:
    """Play the vote of every question to its last stage and note what is seen at each."""
    known = np.column_stack([*(drawn.klass == k for k in range(classes)), drawn.hint]).astype(float)
    rows, right, spent = [], [], []
    before = 0
    for n in STAGES:
        found = seen(drawn.wrong[:, :n], drawn.score[:, :n], drawn.tokens[:, :n])
        rows.append(np.concatenate([known, found.table], axis=1))
        right.append(found.wrong == 0)
        spent.append(prices.trajectories(drawn.tokens[:, before:n].sum(axis=1)))
        before = n
    return Staged(rows, right, spent)


def fit(mix: Mix, drawn: Drawn, prices: Prices, seed: int = 0, told: Told | None = None) -> Learned:
    """Fit the trees of every stage on the questions drawn.

    `told` hears the finished share and a word on it. Raises ValueError for fewer than 1,000 questions.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    n, stages = len(drawn), len(STAGES)
    if n < 1000:
        raise ValueError(f"{n} questions are too few to learn from: take 1,000 or more.")
    say = told or (lambda share, word: None)
    with threadpool_limits(1):  # many threads on few rows wait for each other
        say(0.0, "what is seen at each stage")
        table = staged(drawn, len(mix.classes), prices)
        unit = float(table.spent[0].mean())
        right: list[Forest] = []
        for stage in range(stages):
            say(0.05 + 0.25 * stage / stages, f"is the answer right after {STAGES[stage]}?")
            model = HistGradientBoostingClassifier(min_samples_leaf=60, random_state=seed, **TREES)
            right.append(compiled(model.fit(table.rows[stage], table.right[stage])))
        chance = [forest.many(rows) for forest, rows in zip(right, table.rows, strict=True)]
        random = np.random.default_rng(seed)
        low, high = np.log(RATES)
        price = random.uniform(low, high, (n, PRICES_A_QUESTION))
        value = np.repeat(chance[-1][:, None], PRICES_A_QUESTION, axis=1)
        gain: list[Forest] = []
        for stage in range(stages - 2, -1, -1):
            say(
                0.3 + 0.7 * (stages - 2 - stage) / stages, f"is more than {STAGES[stage]} worth it?"
            )
            paid = np.exp(price) * (table.spent[stage + 1] / unit)[:, None]
            rows = np.concatenate(
                [
                    np.column_stack([table.rows[stage], price[:, k]])
                    for k in range(PRICES_A_QUESTION)
                ]
            )
            more = (value - paid - chance[stage][:, None]).T.ravel()
            falling = [0] * (rows.shape[1] - 1) + [-1]  # dearer time is never worth more
            regressor = HistGradientBoostingRegressor(
                min_samples_leaf=150, monotonic_cst=falling, random_state=seed, **TREES
            )
            gain.append(compiled(regressor.fit(rows, more)))
            goes = (gain[-1].many(rows) > 0).reshape(PRICES_A_QUESTION, n).T
            value = np.where(goes, value - paid, chance[stage][:, None])
    say(1.0, "done")
    return Learned(
        mix.classes,
        STAGES,
        tuple(right),
        tuple(reversed(gain)),
        unit,
        _provenance(mix, drawn, prices, seed),
    )


def _provenance(mix: Mix, drawn: Drawn, prices: Prices, seed: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name in Drawn.__slots__:
        digest.update(np.ascontiguousarray(getattr(drawn, name)).tobytes())
    return {
        "questions": len(drawn),
        "mix": dict(mix.shares),
        "informativeness": mix.informativeness,
        "data_sha256": digest.hexdigest(),
        "prices": prices.label,
        "prices_sha256": prices.digest,
        "prices_source_kind": prices.source_kind,
        "gpu_s_per_generated_token": prices.generated_s,
        "gpu_s_per_scored_token": prices.scored_s,
        "seed": seed,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scikit-learn")},
    }
