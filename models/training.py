"""Fits a controller: how likely is the leading answer right, what would a beam do, what is another stage worth?

Backward over the stages (fitted value iteration, as Longstaff and Schwartz price an option that may be
exercised early): the value of going on is regressed on what is seen now, at many prices of GPU time at
once, so that one fit serves a whole day of prices.

Source: Longstaff and Schwartz, Rev. Financial Studies 14 (2001), 113-147, for the recursion.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.forest import Forest, compiled
from models.learned import RATES, STAGES, Learned, beam_costs, fitting
from models.mix import Drawn, Mix
from models.staged import Prices, Staged, mean_tokens, staged
from models.switch import BEAMS, Switch, asked_rows

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FEWEST: Final = 400  # questions, below which nothing is fitted at all
PRICES_A_QUESTION: Final = 4  # at which each training question is priced
LEAVES_AT: Final = 2  # stages at which each training question leaves for each beam
NOTHING: Final = Forest((-1,), (0.0,), (0,), (0,), (0.0,), (), -30.0, True)  # no answer is right
TREES: Final[Mapping[str, Any]] = {
    "max_iter": 40, "max_leaf_nodes": 15, "learning_rate": 0.15, "early_stopping": False,
}  # fmt: skip
SWITCH_TREES: Final[Mapping[str, Any]] = {
    **TREES, "max_iter": 80, "min_samples_leaf": 100,
}  # fmt: skip
Told = Callable[[float, str], None]


def fit(
    mix: Mix,
    drawn: Drawn,
    prices: Prices,
    seed: int = 0,
    told: Told | None = None,
    told_steps: bool = False,
    beams: bool = True,
) -> Learned:
    """Fit the trees of every stage on the questions drawn.

    `told` hears the finished share and a word on it; with `told_steps` the number of steps is an input, as an
    oracle's. Raises ValueError for fewer than FEWEST questions.
    """
    import sklearn.ensemble  # noqa: F401  # threads are limited of what is loaded by then
    from threadpoolctl import threadpool_limits

    if len(drawn) < FEWEST:
        raise ValueError(
            f"{len(drawn)} questions are too few to learn from: take {FEWEST} or more."
        )
    say = told or (lambda share, word: None)
    with threadpool_limits(1):  # many threads on few rows wait for each other
        say(0.0, "what is seen at each stage")
        lengths = mean_tokens(drawn, len(mix.classes))
        table = staged(drawn, lengths, prices, told_steps)
        unit_tokens = float(drawn.tokens[:, 0].mean())
        right = _fit_right(table, seed, say)
        say(0.3, "what would a beam do?")
        switch = _fit_switch(table, seed) if beams else None
        gain = _fit_gain(table, right, switch, unit_tokens, seed, say)
    say(1.0, "done")
    unit_s = float(prices.trajectories(np.array(unit_tokens)))
    return Learned(
        mix.classes,
        STAGES,
        tuple(right),
        tuple(gain),
        switch,
        lengths,
        unit_s,
        unit_tokens,
        dict.fromkeys(mix.classes, ()),
        {},
        _provenance(mix, drawn, prices, seed),
    )


def _fit_right(table: Staged, seed: int, say: Told) -> list[Forest]:
    """Of each stage: is the leading answer right?"""
    found = [NOTHING]
    for stage in range(1, len(STAGES)):
        say(0.05 + 0.25 * stage / len(STAGES), f"is the answer right after {STAGES[stage]}?")
        found.append(_classified(table.rows[stage], table.right(stage), seed, min_samples_leaf=60))
    return found


def _fit_switch(table: Staged, seed: int) -> Switch:
    """One model for all stages and beams, from some stages of every question."""
    random = np.random.default_rng(seed)
    before, after, lead_right, beam_right = [], [], [], []
    for beam in range(len(BEAMS)):
        stages = [s for s, n in enumerate(STAGES) if beam in fitting(n, STAGES[-1])]
        left = random.random((len(table.drawn), len(stages))).argsort(axis=1)[:, :LEAVES_AT]
        for place, stage in enumerate(stages):
            places = np.flatnonzero((left == place).any(axis=1))
            rows = asked_rows(table.rows[stage][places], STAGES[stage], beam)
            numbers, ends_right = table.found(stage, beam, places)
            before.append(rows)
            after.append(np.concatenate([rows, numbers], axis=1))
            lead_right.append(table.right(stage)[places])
            beam_right.append(ends_right)
    ended, led = np.concatenate(after), np.concatenate(lead_right)
    came = np.concatenate(beam_right)
    lead = _classified(ended, led, seed, **SWITCH_TREES)
    beam_forest = _classified(ended, came, seed, **SWITCH_TREES)
    believed = np.where(beam_forest.many(ended) > lead.many(ended), came, led)
    return Switch(
        _classified(np.concatenate(before), believed, seed, **SWITCH_TREES), lead, beam_forest
    )


def _fit_gain(
    table: Staged,
    right: list[Forest],
    switch: Switch | None,
    unit_tokens: float,
    seed: int,
    say: Told,
) -> list[Forest]:
    """Of each stage but the last: what is going on worth, over the better of stopping and a beam?"""
    from sklearn.ensemble import HistGradientBoostingRegressor

    n, last = len(table.drawn), len(STAGES) - 1
    unit_s = float(table.spent[1].mean())
    random = np.random.default_rng(seed)
    price = random.uniform(math.log(RATES[0]), math.log(RATES[1]), (n, PRICES_A_QUESTION))
    value = np.repeat(right[last].many(table.rows[last])[:, None], PRICES_A_QUESTION, axis=1)
    gain: list[Forest] = []
    for stage in range(last - 1, -1, -1):
        say(0.4 + 0.6 * (last - stage) / last, f"is more than {STAGES[stage]} worth it?")
        rows = table.rows[stage]
        now = np.full_like(value, -np.inf)
        if STAGES[stage]:
            now[:] = right[stage].many(rows)[:, None]
        costs = beam_costs(rows, 1.0, unit_tokens)
        for beam in fitting(STAGES[stage], STAGES[-1]):
            if switch is None:
                break
            after = switch.after.many(asked_rows(rows, STAGES[stage], beam))
            now = np.maximum(now, after[:, None] - np.exp(price) * costs[:, [beam]])
        paid = np.exp(price) * (table.spent[stage + 1] / unit_s)[:, None]
        if not STAGES[stage] and switch is None:
            now[:] = 0.0  # it always begins
        priced = np.concatenate([np.column_stack([rows, column]) for column in price.T])
        falling = [0] * rows.shape[1] + [-1 if STAGES[stage] else 0]
        model = HistGradientBoostingRegressor(
            min_samples_leaf=150, monotonic_cst=falling, random_state=seed, **TREES
        )
        gain.append(compiled(model.fit(priced, (value - paid - now).T.ravel())))
        goes = (gain[-1].many(priced) > 0).reshape(PRICES_A_QUESTION, n).T
        value = np.where(goes, value - paid, now)
    return gain[::-1]


def _classified(rows: Floats, right: Bools, seed: int, **settings: Any) -> Forest:
    """The chance of `right` by boosted trees; a constant where all of it is the same."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    if right.all() or not right.any():
        return Forest((-1,), (0.0,), (0,), (0,), (0.0,), (), 30.0 if right.all() else -30.0, True)
    model = HistGradientBoostingClassifier(random_state=seed, **{**TREES, **settings})
    return compiled(model.fit(rows, right))


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
