"""A router learned from logs finds what the features tell, and says so where they tell nothing."""

from __future__ import annotations

import numpy as np
import pytest

from models.from_logs import learn, read

PRICES = {"weak": 1.0, "strong": 10.0}


def logs(told: bool, n: int = 3_000) -> dict[str, list[object]]:
    """Questions on which the weak plan fails when `hard`, which the features tell or not."""
    random = np.random.default_rng(1)
    hard = random.random(n) < 0.5
    seen = hard if told else random.random(n) < 0.5
    return {
        "qid": list(range(n)),
        "kind": ["hard" if h else "easy" for h in seen],
        "length": random.normal(size=n).tolist(),
        "weak_correct": (random.random(n) < np.where(hard, 0.2, 0.9)).astype(int).tolist(),
        "strong_correct": (random.random(n) < 0.9).astype(int).tolist(),
        "weak_tokens": [100.0] * n,
        "strong_tokens": [100.0 if i % 2 else None for i in range(n)],
    }


def test_what_the_features_tell_is_worth_routing_by() -> None:
    found = learn(read(logs(True), PRICES))
    assert found.worth
    assert found.gain > 0.05
    strong = next(row for row in found.single if row.name == "strong")
    as_good = [row for row in found.curve if row.accuracy >= strong.accuracy - 0.03]
    assert min(row.cost for row in as_good) < 0.7 * strong.cost
    assert found.oracle.accuracy > strong.accuracy


def test_where_the_features_tell_nothing_it_says_that_it_is_not_worth_it() -> None:
    found = learn(read(logs(False), PRICES))
    assert not found.worth
    assert abs(found.gain) < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strong_correct": None}, "at least two plans"),
        ({"strong_tokens": None}, "plan strong needs one of"),
        ({"weak_tokens": ["x"] * 3_000}, "no number"),
        ({"weak_correct": [None] * 3_000}, "gaps"),
    ],
)
def test_a_table_that_will_not_do_is_refused_by_its_column(
    change: dict[str, object], message: str
) -> None:
    table = {**logs(True), **change}
    with pytest.raises(ValueError, match=message):
        read({k: v for k, v in table.items() if v is not None}, PRICES)


def test_few_questions_and_plans_without_a_price_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        learn(read(logs(True, 300), PRICES))
    with pytest.raises(ValueError, match="no price"):
        read(logs(True), {"weak": 1.0})
