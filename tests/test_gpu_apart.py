"""The GPU tests' runner, on tests that crash, hang and lose the device: each costs itself alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.gpu.apart import main, outcomes, run

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import os, time, pytest, conftest
def test_first(): pass
def test_crashes(): os.abort()
def test_between(): pass
def test_loses_the_device():
    conftest.answers = lambda: False
    assert 1 == 2, "an illegal memory access"
def test_hangs(): time.sleep(60)
def test_fails(): assert 3 == 4
def test_skips(): pytest.skip("no such card")
def test_last(): pass
"""
EXPECTED = {
    "first": "passed", "crashes": "crashed", "between": "passed", "loses_the_device": "failed",
    "hangs": "hung", "fails": "failed", "skips": "skipped", "last": "passed",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of tests beside the real conftest of tests/gpu."""
    shutil.copy(ROOT / "tests" / "gpu" / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def words(folder: Path) -> list[str]:
    return [str(folder), "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(folder)]


def test_a_crash_a_hang_and_a_lost_device_cost_one_test_each(folder: Path) -> None:
    found = run(folder, words(folder), limit_s=200.0, hangs_s=4.0)
    short = {name.partition("::test_")[2]: what["outcome"] for name, what in found.items()}
    assert short == EXPECTED
    assert "an illegal memory access" in found["test_it.py::test_loses_the_device"]["text"]
    assert outcomes(folder / "tests.jsonl") == found


@pytest.mark.slow
def test_the_command_says_in_short_what_happened_and_fails_where_something_did(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    assert main(["--out", str(out), "--", *words(folder), "-k", "first or skips"]) == 0
    assert (out / "tests.txt").read_text() == "1 passed, 1 skipped\n"
    assert main(["--out", str(out), "--", *words(folder), "-k", "fails or crashes"]) == 1
    text = (out / "tests.txt").read_text()
    assert text.startswith("1 crashed, 1 failed\n")
    assert "failed: test_it.py::test_fails\n" in text
    assert "assert 3 == 4" in text
    assert "crashed: test_it.py::test_crashes" in capfd.readouterr().out
    assert main(["--out", str(out), "--", *words(folder), "-k", "nothing_like_it"]) == 1
    assert main(["--out", str(out), "--", *words(folder), "-k", "skips"]) == 1
