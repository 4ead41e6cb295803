"""`treeline price` as a person and a script meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scenarios.loader import load
from tests.test_cli import treeline_

SMALL = """\
question: What does an answer cost?
replications: 2
horizon: {warmup: 5s, measure: 30s}
fleet:
  thinker: {model: llama-3.1-8b, device: h200-sxm-141gb, latency: {kind: roofline}}
  judge: {role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb, latency: {kind: roofline}}
workload:
  arrivals: {rate: 3/s}
  classes: {easy: {preset: gsm8k, share: 50%}, hard: {preset: math-500, share: 50%}}
tiers:
  fast: {share: 50%, search: {algorithm: direct}, price: {per_mtok_out: 2.40 USD}}
  sure:
    share: 50%
    search: {algorithm: weighted_vote, n: 4}
    promise: {confidence: 97%}
    price: {per_answer: 0.02 USD, refund: 100%}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scenario and a run of it."""
    place = tmp_path_factory.mktemp("price")
    (place / "small.yaml").write_text(SMALL)
    words = ("run", str(place / "small.yaml"), "--workers", "1", "--quiet", "--out")
    assert treeline_(*words, str(place / "run")).exit_code == 0
    return place


def priced(home: Path, *words: str) -> Any:
    result = treeline_("price", str(home / "run"), "--json", "--quiet", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_the_list_of_a_run_holds_prices_promises_reserve_and_subsidies(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = treeline_("price", str(home / "run"), "--quiet").stdout
    for title in (
        "Prices, per answer sold",
        "Promises, class by class",
        "Reserve",
        "Who subsidises",
    ):
        assert title in shown
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert "pricing.error_correlation, assumed" in " ".join(shown.split())


def test_a_run_and_its_scenario_have_the_same_list(home: Path) -> None:
    again = treeline_("price", str(home / "small.yaml"), "--json", "--quiet", "--workers", "1")
    first, second = priced(home), json.loads(again.stdout)
    for key in ("bill", "promises", "breakdowns"):
        assert first[key] == second[key]


def test_a_finished_run_can_be_priced_anew(home: Path) -> None:
    before = priced(home)
    after = priced(home, "--set", "tiers.sure.price.per_answer=0.04 USD", "--set",
                   "pricing.terms=committed")  # fmt: skip
    assert after["lines"][1]["price"] == pytest.approx(2 * before["lines"][1]["price"])
    ratio = after["bill"]["total_usd"] / before["bill"]["total_usd"]
    assert ratio == pytest.approx(2.52 / 3.99)


def test_refused_promises_are_named_with_the_reason_and_the_way_out(home: Path) -> None:
    words = ("price", str(home / "run"), "--set", "pricing.calibration_queries=90", "--quiet")
    refused = treeline_(*words, "--fail-on-promise")
    assert refused.exit_code == 3
    text = " ".join(refused.stdout.split())
    assert "sure, hard: 97.0 % is refused: 90 calibration queries are too few." in text
    assert "calibration queries." in text
    assert treeline_(*words).exit_code == 0
    found = priced(home, "--set", "pricing.calibration_queries=90")["promises"]
    assert [row["kept"] for row in found] == [False, False]
    assert all(row["at_least"] == 99 for row in found)


def test_what_would_need_another_run_is_refused(home: Path) -> None:
    refused = treeline_("price", str(home / "run"), "--set", "tiers.fast.share=10%")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "tiers.fast.share would need another run" in refused.stderr


def test_what_is_neither_a_run_nor_a_scenario_is_refused(home: Path) -> None:
    refused = treeline_("price", str(home / "rum"))
    assert refused.exit_code == 2
    assert "is neither a run directory nor a scenario file. Did you mean 'run'?" in refused.stderr
    assert treeline_("price", str(home)).exit_code == 2


def test_a_drift_adds_what_it_costs_until_it_is_seen(home: Path) -> None:
    drift = ("--set", "pricing.drift.bias=1.5", "--set", "pricing.drift.strength=0.7")
    found = priced(home, *drift)
    (row,) = found["drift"]
    assert row["tier"] == "sure"
    assert not any(item["kept"] for item in found["promises"])
    shown = treeline_("price", str(home / "run"), "--quiet", *drift).stdout
    assert "What the drift of the verifier costs" in shown


SEGMENTS = (
    "pricing.segments={all: {value: 0.05 USD, harm: 0.05 USD, wait: 0.1 USD/h, scale: 0.01 USD}}"
)


def test_several_runs_are_ways_to_play_the_best_menu(home: Path) -> None:
    wider = treeline_("run", str(home / "small.yaml"), "--set", "tiers.sure.search.n=8", "--workers",
                      "1", "--quiet", "--out", str(home / "wider"))  # fmt: skip
    assert wider.exit_code == 0
    words = ("price", str(home / "run"), str(home / "wider"), "--optimise", "--quiet")
    found = json.loads(treeline_(*words, "--json", "--set", SEGMENTS).stdout)
    assert [regime["name"][:5] for regime in found["regimes"]] == ["today", "best "]
    assert {item["label"] for item in found["regimes"][-1]["sold"]} <= {
        str(home / "run"), str(home / "wider"),
    }  # fmt: skip
    shown = treeline_(*words, "--set", SEGMENTS).stdout
    assert "Margin against what clients gain" in shown


def test_the_best_menu_needs_to_know_who_buys(home: Path) -> None:
    refused = treeline_("price", str(home / "run"), "--optimise", "--quiet")
    assert refused.exit_code == 2
    assert "add pricing: {segments: {all: {value: 0.05 USD" in refused.stderr


def test_two_runs_without_optimise_are_refused(home: Path) -> None:
    refused = treeline_("price", str(home / "run"), str(home / "run"))
    assert refused.exit_code == 2
    assert "several runs only with --optimise" in refused.stderr


def test_the_best_menu_can_be_written_as_a_what_if_and_run(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        SMALL + f"{SEGMENTS.replace('pricing.segments=', 'pricing: {segments: ')}}}\n"
    )
    place = tmp_path / "best.yaml"
    words = ("price", str(tmp_path / "small.yaml"), "--optimise", "--quiet", "--workers", "1")
    found = json.loads(treeline_(*words, "--json", "--write", str(place)).stdout)
    best = found["regimes"][-1]
    scenario = load(place).scenario
    assert load(place).base is not None
    assert scenario.workload.arrivals.rate == pytest.approx(3 * best["served"], rel=1e-6)
    for item in best["sold"]:
        tier = scenario.tiers[item["tier"]]
        assert tier.share == pytest.approx(item["bought"] / best["served"], abs=1e-6)
        if item["promise"] is not None:
            assert tier.promise is not None
            assert tier.promise.confidence == item["promise"]
    assert scenario.tiers["sure"].price is not None
    assert scenario.tiers["sure"].price.refund == 1.0
    factor = next(item["factor"] for item in best["sold"] if item["tier"] == "sure")
    assert scenario.tiers["sure"].price.per_answer == pytest.approx(0.02 * factor, rel=1e-4)
    refused = treeline_(*words, "--write", str(place))
    assert refused.exit_code == 2
    assert "exists already" in refused.stderr


def test_what_cannot_be_written_as_a_what_if_is_refused_before_anything_runs(home: Path) -> None:
    for words, text in (
        ((str(home / "run"), "--optimise"), "needs one scenario file as it stands"),
        ((str(home / "small.yaml"),), "add --optimise"),
    ):
        refused = treeline_("price", *words, "--write", str(home / "best.yaml"))
        assert refused.exit_code == 2
        assert text in refused.stderr
