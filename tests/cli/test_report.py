"""A run becomes one HTML file that needs nothing else and holds nothing that could act."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("altair", reason="the extra `dashboard` is not installed")
pytest.importorskip("vl_convert", reason="the extra `dashboard` is not installed")

from typer.testing import CliRunner

import treeline
from tests.dashboards.test_app import make


def test_a_report_is_one_file_with_pictures_and_no_script(tmp_path: Path) -> None:
    found = make(tmp_path)
    out = tmp_path / "report.html"
    done = CliRunner().invoke(treeline.app, ["report", str(tmp_path / "first"), "--html", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text(encoding="utf-8")
    assert text.count("<svg") >= 7
    assert not re.search(r"<script|<link|src=|https?://(?!www\.w3\.org)", text)
    for line in found["verdict"]["text"]:
        assert line.split(":")[0] in text
    assert found["binding"]["sentence"].split(":")[0] in text


def test_an_existing_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    make(tmp_path)
    out = tmp_path / "report.html"
    out.write_text("mine")
    words = ["report", str(tmp_path / "first"), "--html", str(out)]
    refused = CliRunner().invoke(treeline.app, [*words, "--json"])
    assert refused.exit_code == 2
    assert out.read_text() == "mine"
    done = CliRunner().invoke(treeline.app, [*words, "--json", "--force"])
    assert json.loads(done.stdout) == {"written": str(out)}
