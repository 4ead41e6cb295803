"""`treeline validate` on serving points: a report for people, a document for scripts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

import treeline
from tests.accuracy import section
from tests.readme import filled
from tests.sim.test_points import HEAD, ROWS


def treeline_(*words: str) -> Result:
    result = CliRunner().invoke(treeline.app, ["validate", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_points_are_reported_by_group_with_what_is_not_covered(tmp_path: Path) -> None:
    other = ROWS.splitlines()[0].replace("Meta-Llama-3.1-8B", "Llama-9-9B")
    (tmp_path / "points.csv").write_text(f"{HEAD}{ROWS}{other}\n")
    said = treeline_(str(tmp_path), "-q")
    assert said.exit_code == 0
    assert "2 of 3 points modelled" in said.stdout
    assert "Not modelled: 1 points: unknown model `llama-9-9b`" in said.stdout
    assert "By engine" in said.stdout
    document = json.loads(treeline_(str(tmp_path), "--json").stdout)
    assert (document["points"], document["modelled"]) == (3, 2)
    assert document["by"]["engine"]["vllm"]["tpot"]["points"] == 1
    assert document["errors"]["expected"]["dense"]["tpot"]["median"] < 0.25


def test_one_model_has_no_bands_and_none_that_is_known_is_refused(tmp_path: Path) -> None:
    head, first, _ = (HEAD + ROWS).splitlines()
    (tmp_path / "points.csv").write_text(f"{head}\n{first}\n")
    assert "one model has none" in treeline_(str(tmp_path), "-q").stdout
    (tmp_path / "points.csv").write_text(
        f"{head}\n{first.replace('Meta-Llama-3.1-8B', 'Nobody-1B')}\n"
    )
    said = treeline_(str(tmp_path), "-q")
    assert said.exit_code == 2
    assert "no point can be modelled: unknown model `nobody-1b`" in said.stderr.replace("\n", " ")


def test_options_of_runs_are_refused_for_points(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(HEAD + ROWS)
    said = treeline_(str(tmp_path), "--device", "h200-sxm-141gb")
    assert said.exit_code == 2
    assert "leave out --device" in said.stderr


def test_the_page_on_accuracy_is_written_from_the_commands_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(HEAD + ROWS)
    made = json.loads(treeline_(str(tmp_path), "--json").stdout)
    page = filled("<!-- x: begin -->\nold\n<!-- x: end -->\n", "x", section(made), fence=False)
    assert "old" not in page
    assert "2 of 2 points are modelled" in page
    played = made["played"]["dense"]["ttft"]["median"]
    assert (
        f"| played by the batch, dense | 1 | {made['played']['dense']['tpot']['median']:.1%} |"
        in page
    )
    assert f" {played:.1%} |" in page
    assert "| engine: trtllm | 1 |" in page
