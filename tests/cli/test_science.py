"""`treeline science`: a table, a page, JSON, and names that are none."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from treeline import app


def science(*words: str) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["science", *words])
    return result.exit_code, result.stdout, result.stderr


def test_an_experiment_prints_target_ours_and_verdict_and_writes_its_page(tmp_path: Path) -> None:
    page = tmp_path / "science.md"
    code, out, _ = science("coverage-law", "--scale", "0.1", "--markdown", str(page))
    assert code == 0
    assert "exponent of the failures" in out
    assert "1 comparisons hold" in out
    text = page.read_text(encoding="utf-8")
    assert "## coverage-law" in text
    assert "arXiv 2502.17578" in text
    code, _, err = science("coverage-law", "--scale", "0.1", "--markdown", str(page))
    assert code == 2
    assert "exists already" in err


def test_json_holds_one_document_with_every_row() -> None:
    code, out, _ = science("game-24", "--scale", "0.05", "--json")
    found = json.loads(out)
    assert code == 0
    assert sum(found["verdicts"].values()) == len(found["rows"]) == 6
    assert found["rows"][0]["n"] == 1_000


def test_an_unknown_experiment_is_refused_with_those_that_exist() -> None:
    code, _, err = science("game24")
    assert code == 2
    assert "game-24" in err
