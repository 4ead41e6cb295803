"""The commands of the controller: train one, judge it, learn from logs; errors that say the way out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import treeline


def invoke(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(treeline.app, list(words))
    return done.exit_code, done.output if done.exit_code else done.stdout


def test_a_controller_is_trained_and_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    words = ("fit", "controller", "--out", str(out), "--questions", "1200", "--quiet")
    code, text = invoke(*words, "--json")
    assert code == 0, text
    assert json.loads(text)["provenance"]["questions"] == 1200
    assert "gsm8k" in json.loads(text)["falls_back"]  # 180 questions are too few
    code, text = invoke(*words)
    assert code == 2
    assert "--force" in text


@pytest.mark.slow
def test_judging_shows_cost_at_equal_accuracy_oracles_promises_and_a_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dashboards.commands.controller.CALIBRATION", 1_000)
    monkeypatch.setattr("dashboards.commands.controller.POOL", 3_000)
    code, text = invoke("controller", "--questions", "3000", "--quiet", "--json")
    assert code == 0, text
    found = json.loads(text)
    assert [row["target"] for row in found["equal"]] == ["best_of_n 64", "weighted_vote 64"]
    assert found["equal"][0]["of_it"] < 0.10
    assert found["equal"][1]["of_it"] < 0.30
    assert found["areas"]["O2"] > found["areas"]["learned"] > found["areas"]["best fixed"]
    assert all(row["broken"] <= 0.12 * row["redraws"] for row in found["promises"])
    assert found["hard"]["cheaper_by_a_beam"] > 5
    gains = {row["variant"]: row["gain"] for row in found["variants"]}
    assert gains["as it is"] > gains["no stopping (a plan by class and hint)"]
    cells = found["map"]["trajectories"]
    assert all(low[0] < low[-1] for low in cells[:4])
    assert all(a[2] > b[2] for a, b in itertools.pairwise(cells))


def test_logs_that_are_not_there_or_have_no_price_are_a_usage_error(tmp_path: Path) -> None:
    code, text = invoke("fit", "controller", "--from-logs", str(tmp_path / "none.csv"))
    assert code == 2
    assert "cannot be read" in text
    (tmp_path / "a.csv").write_text("x,a_correct,b_correct,a_tokens,b_tokens\n1,1,0,3,4\n")
    code, text = invoke("fit", "controller", "--from-logs", str(tmp_path / "a.csv"))
    assert code == 2
    assert "--price a=" in text
