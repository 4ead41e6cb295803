"""`treeline fit profile` as a person and a script meet it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from typer.testing import CliRunner, Result

import treeline
from dashboards.commands.fit_profile import _whole
from hw.profile import load, save
from models.heldout import Error
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


def test_a_composed_expansion_is_judged_beside_the_spread_of_its_own_samples() -> None:
    real = np.array([1.0, 2.0, 4.0])
    off = Error(
        "expansion, composed", 3, 0.07, 0.09, -0.07, real, real * [0.93, 0.9, 1.02], True, 0.031
    )
    said = _whole(off)
    assert said.startswith(
        "HOLDS: a composed expansion is -7.0% off in the median (goal within 10%)"
    )
    assert said.endswith(
        "-10% to +2% over 3 points; its own samples spread over 3.1% (p10 to p90)."
    )
    assert _whole(replace(off, signed=-0.2, noise=math.nan)).startswith("MISSED")
