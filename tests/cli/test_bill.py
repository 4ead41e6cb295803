"""`treeline bill` as a person and a script meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_price import SMALL
from tests.test_cli import treeline_


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run directory."""
    place = tmp_path_factory.mktemp("bill")
    (place / "small.yaml").write_text(SMALL)
    words = ("run", str(place / "small.yaml"), "--workers", "1", "--quiet", "--out")
    assert treeline_(*words, str(place / "run")).exit_code == 0
    return str(place / "run")


def test_the_bill_says_what_a_month_costs_and_on_which_nodes(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = treeline_("bill", run).stdout
    assert "a month, $" in shown
    assert "committed around the clock" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100
    found = json.loads(treeline_("bill", run, "--json").stdout)
    assert found["year_usd"] == pytest.approx(12 * found["total_usd"])
    assert found["per_query"] == pytest.approx(found["total_usd"] / found["queries"])
    assert sum(node["total_usd"] for node in found["nodes"]) == pytest.approx(found["total_usd"])
    assert found["elsewhere"] == []


def test_other_assumptions_need_no_other_run(run: str) -> None:
    nodes = [
        json.loads(treeline_("bill", run, "--json", "--set", f"pricing.month.busy={busy}").stdout)
        for busy in ("70%", "1%")
    ]
    assert max(nodes[1]["nodes"][0]["needed"]) > max(nodes[0]["nodes"][0]["needed"])


def test_an_api_is_compared_on_the_day_that_is_asked_for(run: str) -> None:
    pytest.importorskip("genai_prices", reason="the extra `prices` is not installed")
    words = ("bill", run, "--against", "o3", "--as-of", "2026-11-01")
    (row,) = json.loads(treeline_(*words, "--json").stdout)["elsewhere"]
    assert (row["model"], row["as_of"]) == ("o3", "2026-11-01")
    assert "standard prices of 2026-11-01" in treeline_(*words).stdout
    refused = treeline_("bill", run, "--against", "gpt-nonsense")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_without_the_extra_the_command_that_installs_it_is_named(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "genai_prices", None)
    refused = treeline_("bill", run, "--against", "o3")
    assert refused.exit_code == 4
    assert "install genai-prices" in refused.stderr


def test_a_scenario_is_run_first(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    shown = treeline_("bill", str(tmp_path / "small.yaml"), "--quiet", "--workers", "1")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == [tmp_path / "small.yaml"]
