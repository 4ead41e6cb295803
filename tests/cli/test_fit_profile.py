"""`treeline fit profile` as a person and a script meet it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

import treeline
from hw.profile import load, save
from tests.models.test_heldout import profile


def treeline_(*words: str) -> Result:
    result = CliRunner().invoke(treeline.app, ["fit", "profile", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_fit_shows_its_error_by_operation_and_notes_it_where_asked(tmp_path: Path) -> None:
    save(profile(), tmp_path / "mine")
    said = treeline_(str(tmp_path / "mine"))
    assert said.exit_code == 0
    assert "HOLDS: median" in said.stdout
    assert "suffix_attention" in said.stdout
    assert "fitted" in said.stdout
    assert load(tmp_path / "mine").error is None
    document = json.loads(treeline_(str(tmp_path / "mine"), "--record", "--json").stdout)
    assert document["operations"]["gemm"]["points"] > 20
    noted = load(tmp_path / "mine").error
    assert noted is not None
    assert noted.startswith("median")


def test_what_cannot_be_fitted_is_refused_with_what_there_is(tmp_path: Path) -> None:
    said = treeline_("h300")
    assert said.exit_code == 2
    assert "shipped are h100-sxm-80gb-aiconfigurator" in said.stderr
