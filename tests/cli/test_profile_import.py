"""`treeline profile import` as a person meets it: what it says, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import treeline
from hw.device import device
from hw.profile import load
from tests.hw.test_importers import vidur


def treeline_(*words: str) -> Result:
    result = CliRunner().invoke(treeline.app, ["profile", "import", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_an_import_says_what_it_read_and_how_to_use_it(tmp_path: Path) -> None:
    out = tmp_path / "mine" / "a100"
    said = treeline_(str(vidur(tmp_path)), "-d", "a100-sxm-80gb", "-o", str(out), "--json")
    assert said.exit_code == 0
    document = json.loads(said.stdout)
    assert (document["format"], document["licence"]) == ("vidur", "MIT")
    assert load(out).device == device("a100-sxm-80gb").name
    again = treeline_(str(tmp_path), "-d", "a100-sxm-80gb", "-o", str(out))
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    forced = treeline_(str(tmp_path), "-d", "a100-sxm-80gb", "-o", str(out), "--force")
    assert f"profile: {out}" in forced.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere", "-d", "a100-sxm-80gb"), 2, "there is nothing at nowhere"),
        ((".", "-d", "a100"), 2, "a100-sxm-80gb"),
        ((".", "-d", "a100-sxm-80gb"), 2, "holds none of the formats"),
        ((".", "-d", "a100-sxm-80gb", "--model", "llama"), 2, "unknown model `llama`"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = treeline_(*words, "-o", "out/x")
    assert said.exit_code == code
    assert message in said.stderr


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = treeline_("aiconfigurator", "-d", "h200-sxm-141gb", "-o", "x")
    assert said.exit_code == treeline.MISSING
    assert "install aiconfigurator-core" in said.stderr
