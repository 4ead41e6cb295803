"""`treeline fit questions`: a newcomer's file, a published one, and files that cannot be fitted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from treeline import app

DATA = Path(os.environ.get("TREELINE_DATA", "../shared/data"))


def fit(*words: str) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["fit", "questions", *words])
    return result.exit_code, result.stdout, result.stderr


def test_a_file_of_graded_answers_gives_parameters_and_lines_to_paste(tmp_path: Path) -> None:
    rows = ["question,correct,answer,tokens"]
    for question in range(12):
        for sample in range(8):
            right = (question * 7 + sample * 3) % 12 < question
            answer = "42" if right else str((question + sample) % 3)
            rows.append(f"{question},{int(right)},{answer},{100 + 10 * sample}")
    file = tmp_path / "mine.csv"
    file.write_text("\n".join(rows))
    code, out, _ = fit(str(file))
    assert code == 0
    assert "pass@8" in out
    assert "For a class of a scenario:" in out
    assert "    question:" in out
    code, out, _ = fit(str(file), "--json")
    (one,) = json.loads(out)["fits"]
    assert one["questions"] == 12
    assert one["preset"]["kind"] == "single_step"
    assert {check["name"] for check in one["checks"]} > {"pass@1", "questions never solved"}
    assert one["parameters"]["theta"]["value"] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "none of the files that can be fitted"),
        ("question,correct\n1,maybe\n", 'row 1: "correct" must be 0 or 1'),
        ("question,correct\n", "holds no rows"),
        ("question,correct\n1,1\n2,1\n", "nothing can be fitted"),
        ("method,N,accuracy\nmystery,4,0.5\n", "No row is of a method"),
        ("question,correct,tokens\n1,1,many\n", '"tokens" must be a number'),
    ],
)
def test_a_file_that_cannot_be_fitted_is_refused_with_the_way_out(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    code, _, err = fit(str(file))
    assert code == 2
    assert message in " ".join(err.split())


def test_a_file_that_is_not_there_is_named() -> None:
    code, _, err = fit("nowhere.csv")
    assert code == 2
    assert "nowhere.csv cannot be read" in err


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the public data are not at hand in {DATA}")
def test_the_published_samples_of_game_24_give_the_published_beta() -> None:
    """SEARCH facts: Beta(.2155, 5.128) on all puzzles; this is one half of them."""
    code, out, _ = fit(str(DATA / "game24_gpt4" / "samples.csv"), "--json")
    assert code == 0
    cot = next(f for f in json.loads(out)["fits"] if f["name"] == "cot")
    a, b = cot["parameters"]["a"], cot["parameters"]["b"]
    assert a["low"] < 0.2155 < a["high"]
    assert b["low"] < 5.128 < b["high"]
    assert all(check["fits"] for check in cot["checks"])
