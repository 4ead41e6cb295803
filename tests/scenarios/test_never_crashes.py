"""Whatever the text, loading ends in a Scenario or in a ScenarioError that says where and what."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarios.errors import ScenarioError
from scenarios.loader import loads
from tests.scenarios.test_bad_input import GOOD

PIECES = st.sampled_from(
    [
        "a", "fleet", "workload", "tiers", ":", ": ", "\n", "\n  ", "\n\t", "- ", "{", "}", "[", "]",
        ",", "&x ", "*x", "!!int ", "! ", "'", '"', "\\", "\\U", "#", "|", ">", "%", "---", "...", "?",
        "? ", "<<", "~", "null", ".nan", ".inf", "-1", "1e999", "9" * 30, "0x", "0o8", "3/s", "20s",
        "30%", "é", "\x00", "\x85", "\u2028", "\ufeff", "\U0001f333", "@", "`", "extends: x",
    ]
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))
ODD = ["null", "", "[]", "{}", "-1", "0", "1e999", ".nan", "'x'", "x", "3/s", "20s", "130%", "[[1]]",
       "{kind: gamma}", "{a: {b: 1}}", "9999999999", "true", "!!str 3", "*a", "&a [*a]"]  # fmt: skip
PATHS = [
    "seed", "name", "fleet", "fleet.thinker", "fleet.thinker.kv", "fleet.thinker.kv.sharing",
    "fleet.thinker.device", "fleet.thinker.model", "fleet.thinker.engine.block_size", "workload",
    "workload.arrivals", "workload.arrivals.kind", "workload.arrivals.hourly", "workload.classes",
    "workload.classes.chat", "workload.classes.chat.question", "workload.classes.chat.tiers",
    "workload.classes.chat.prompt_tokens", "tiers", "tiers.fast", "tiers.fast.search",
    "tiers.fast.search.n", "tiers.fast.slo", "tiers.fast.slo.e2e_p95", "tiers.fast.price.refund",
    "tiers.fast.promise", "tiers.fast.promise.budget", "pricing.device_rates", "pricing", "sweep",
    "sweep.grid", "controller", "horizon", "horizon.measure", "schema", "x.y", "a..b", "",
]  # fmt: skip


def loads_or_explains(text: str, overrides: tuple[str, ...] = ()) -> bool:
    """Whether it loaded; anything but a ScenarioError with a whole message escapes and fails."""
    try:
        loads(text, "s.yaml", overrides)
    except ScenarioError as caught:
        error = caught
    else:
        return True
    assert error.problems
    for problem in error.problems:
        assert problem.message
        assert str(problem.where)
    shown = str(error)
    shown.encode("utf-8")
    assert all(c == "\n" or c.isprintable() for c in shown)
    return False


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_arbitrary_text_is_explained(text: str) -> None:
    loads_or_explains(text)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_mutated_scenario_loads_or_is_explained(seed: int) -> None:
    rng = random.Random(seed)
    text = GOOD
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(text))
        end = min(len(text), start + rng.choice((0, 0, 1, 1, 3, 12)))
        piece = rng.choice(("", " ", "\n", "}", "{", ":", ",", "x", "0", "-", *ODD))
        text = text[:start] + piece + text[end:]
    loads_or_explains(text)


@given(st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(ODD)), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_at_any_place_loads_or_is_explained(changes: list[tuple[str, str]]) -> None:
    loads_or_explains(GOOD, tuple(f"{path}={value}" for path, value in changes))


@given(st.lists(st.text(max_size=30), max_size=3))
@settings(max_examples=100, deadline=None)
def test_any_override_loads_or_is_explained(overrides: list[str]) -> None:
    loads_or_explains(GOOD, tuple(overrides))


def test_the_scenario_that_is_mutated_loads() -> None:
    assert loads_or_explains(GOOD)
