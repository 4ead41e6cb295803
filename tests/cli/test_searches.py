"""`treeline searches` and `treeline fit search`: what is printed, what is refused, and that it is the truth."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from models.search import ALGORITHMS
from treeline import app


def call(*words: str) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_every_search_is_compared_and_a_better_informed_one_is_ahead() -> None:
    code, out, _ = call("searches", "math-500", "-n", "8", "--count", "150", "--json")
    assert code == 0
    rows = {row["algorithm"]: row for row in json.loads(out)["rows"]}
    assert set(rows) == set(ALGORITHMS)
    assert rows["weighted_vote"]["accuracy"] > rows["direct"]["accuracy"] + 0.1
    assert rows["weighted_vote"]["covered"] == rows["self_consistency"]["covered"]
    assert rows["best_of_n"]["tokens"] == rows["self_consistency"]["tokens"]
    assert rows["first_finish"]["critical_path_tokens"] < rows["direct"]["critical_path_tokens"]
    assert rows["revision"]["critical_path_tokens"] == rows["revision"]["tokens"]
    assert all(row["covered"] >= row["accuracy"] for row in rows.values())


def test_the_table_names_the_questions_and_every_search() -> None:
    code, out, _ = call("searches", "gsm8k", "-n", "2", "--count", "20", "--quiet")
    assert code == 0
    assert "gsm8k, verifier math-prm: 20 questions" in out
    assert all(name in out for name in ALGORITHMS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("searches", "math-50"), "did you mean"),
        (("fit", "search", "beem"), "there is no search 'beem'; there are: direct, best_of_n"),
        (("fit", "search", "direct"), "direct has no parameter that can be trained"),
        (("fit", "search", "beam", "--only", "depth"), "beam has no parameter 'depth'"),
        (("fit", "search", "beam", "--only", "max_steps"), "no parameter that can be trained"),
        (("fit", "search", "beam", "--param", "width"), "--param takes NAME=VALUE"),
        (("fit", "search", "beam", "--param", "width=x"), "must be a whole number, not 'x'"),
        (("fit", "search", "beam", "--device", "abacus"), "abacus"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(words: tuple[str, ...], message: str) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert message.lower() in err.lower()


def test_training_prints_lines_to_paste() -> None:
    words = (
        "fit",
        "search",
        "adaptive_consistency",
        "--count",
        "100",
        "--candidates",
        "6",
        "--quiet",
    )
    code, out, _ = call(*words)
    assert code == 0
    assert "search: {algorithm: adaptive_consistency" in out
    assert "held-out questions" in out


@pytest.mark.slow
def test_what_training_found_is_one_json_document() -> None:
    words = ("fit", "search", "rebase", "--only", "temperature", "--count", "100", "--param", "n=4")
    code, out, _ = call(*words, "--candidates", "6", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["plan"]["algorithm"] == "rebase"
    assert found["plan"]["n"] == found["default"]["n"] == 4
    assert found["gain"]["low"] <= found["gain"]["value"] <= found["gain"]["high"]
