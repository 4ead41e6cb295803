"""The page shows a real run, says how to make the first one, and survives a broken one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the extra `dashboard` is not installed")
pytest.importorskip("altair", reason="the extra `dashboard` is not installed")

from streamlit.testing.v1 import AppTest

from dashboards import charts, data
from dashboards.report import summary, to_text
from pricing.contract import price
from scenarios.errors import UserError
from sim.store import save
from tests.sim import fixtures

APP = str(Path(__file__).resolve().parents[2] / "dashboards" / "app.py")


def make(folder: Path, name: str = "first", n: int = 60) -> dict[str, Any]:
    """Save a small run below `folder`; return its summary."""
    loaded = fixtures.loaded()
    priced = price(fixtures.result(n=n), loaded.scenario)
    found = summary(priced.result, loaded, priced)
    texts = {
        "summary.json": json.dumps(found),
        "report.txt": to_text(priced.result, loaded, priced),
    }
    save(priced.result, loaded, folder / name, reports=texts)
    return found


def page(monkeypatch: pytest.MonkeyPatch, folder: Path) -> AppTest:
    monkeypatch.setattr(sys, "argv", [APP, str(folder)])
    return AppTest.from_file(APP, default_timeout=60).run()


def test_a_first_start_without_any_run_says_how_to_make_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = page(monkeypatch, tmp_path / "runs")
    assert not shown.exception
    assert "treeline run scenarios/quickstart.yaml" in shown.code[0].value


def test_a_run_shows_its_verdict_first_and_every_tier(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = make(tmp_path)
    shown = page(monkeypatch, tmp_path)
    assert not shown.exception
    assert shown.title[0].value == "first"
    assert len(shown.success) + len(shown.error) == len(found["verdict"]["text"])
    table = shown.dataframe[0].value
    assert list(table.index) == [tier["tier"] for tier in found["tiers"]]
    assert set(table["objectives"]) <= {"holds", "MISSED", "no objective"}
    assert [row.value for row in shown.subheader][:2] == ["Tiers", "Latency"]


def test_a_broken_run_is_an_error_on_the_page_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make(tmp_path)
    (tmp_path / "first" / "queries.parquet").write_bytes(b"not parquet")
    shown = page(monkeypatch, tmp_path)
    assert not shown.exception
    assert shown.error


def test_nothing_beside_the_folder_of_runs_can_be_read(tmp_path: Path) -> None:
    make(tmp_path, "outside")
    runs = tmp_path / "runs"
    make(runs)
    (runs / "link").symlink_to(tmp_path / "outside")
    assert data.names(runs) == ["first"]
    for name in ("../outside", "link", "nothing", str(tmp_path / "outside")):
        with pytest.raises(UserError):
            data.read(runs, name)


def test_a_run_without_its_summary_says_how_to_make_it_again(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "first" / "summary.json").write_text("{}")
    with pytest.raises(UserError):
        data.read(tmp_path, "first")


def test_charts_have_units_few_marks_and_a_description() -> None:
    result = fixtures.result(n=3000)
    loaded = fixtures.loaded()
    priced = price(result, loaded.scenario)
    found = summary(result, loaded, priced)
    tiers = found["tiers"]
    drawn = {
        "cdf": charts.latency_cdf(result.queries, tiers),
        "kv": charts.kv_over_time(result.timeline, "thinker"),
        "reliability": charts.reliability(tiers),
        "joint": charts.joint(result.queries, [tier["tier"] for tier in tiers]),
        "money": charts.money(found["money"]["tiers"]),
    }
    for name, chart in drawn.items():
        spec = chart.to_dict()
        assert spec["description"], name
        assert sum(len(v) for v in marks(spec)) <= 5000, name
    assert "(s)" in json.dumps(drawn["cdf"].to_dict())
    assert "USD" in json.dumps(drawn["money"].to_dict())


def marks(spec: Any) -> list[list[Any]]:
    """All inline data of a specification."""
    if isinstance(spec, dict):
        own = [spec["values"]] if isinstance(spec.get("values"), list) else []
        return own + [found for value in spec.values() for found in marks(value)]
    if isinstance(spec, list):
        return [found for value in spec for found in marks(value)]
    return []


def test_the_latency_curve_of_a_tier_stops_at_the_share_that_was_answered() -> None:
    result = fixtures.result(n=200)
    queries = {name: column.copy() for name, column in result.queries.items()}
    fast = np_where(queries, "fast")
    half = fast[: len(fast) // 2]
    queries["status"] = queries["status"].astype("U12")
    queries["status"][half] = "unfinished"
    queries["finish_s"][half] = float("nan")
    loaded = fixtures.loaded()
    other = replace(result, queries=queries)
    tiers = summary(other, loaded, price(other, loaded.scenario))["tiers"]
    points = [
        row
        for rows in marks(charts.latency_cdf(queries, tiers).to_dict())
        for row in rows
        if row["tier"] == "fast" and "objective" not in row
    ]
    assert max(row["share"] for row in points) == pytest.approx(1 - len(half) / len(fast), abs=0.02)


def np_where(queries: Any, tier: str) -> Any:
    """Rows of the measured queries of one tier."""
    return ((queries["tier"] == tier) & queries["measured"]).nonzero()[0]
