"""`make gpu` without a GPU: which commands its parts run, that one failing part costs no other, and what is said without one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("timeout") is None, reason="needs make and timeout"
)


def make(
    target: str, folder: Path, *, gpu: bool, fails: str = "NOTHING"
) -> tuple[int, list[str], str]:
    """Run a target with a stand-in for nvidia-smi and for Python, which writes down how it was called."""
    programs = folder / "bin"
    programs.mkdir()
    scripts = {
        "nvidia-smi": f"exit {0 if gpu else 9}",
        "python": f'echo "$PYTHONPATH $*" >> {folder}/calls\ncase "$*" in *{fails}*) exit 3;; esac',
    }
    for name, body in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    words = ["make", "-C", str(ROOT), target, f"PYTHON={programs}/python", f"GPU_OUT={folder}/out"]
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    calls = folder / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr


def test_every_part_runs_from_the_checkout_alone_and_writes_into_one_folder(tmp_path: Path) -> None:
    code, calls, _ = make("gpu", tmp_path, gpu=True)
    assert code == 0
    tests, profile, bench, replay, countdown = calls
    assert tests.startswith(f". -m tests.gpu.apart --out {tmp_path}/out -- tests/gpu -m gpu")
    assert (tmp_path / "out.tar.gz").exists()
    assert profile == f". -m hw.measure --device cuda --out {tmp_path}/out/profile --resume --force"
    assert bench == f". -m hw.contest --device cuda --out {tmp_path}/out"
    assert replay.startswith(". -m sim.replay --device cuda")
    assert countdown.startswith(". -m models.countdown.train --preset gpu")


def test_a_part_that_fails_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    code, calls, stderr = make("gpu", tmp_path, gpu=True, fails="hw.measure")
    assert code != 0
    assert any("hw.contest" in call for call in calls)
    assert "failed: gpu-profile" in stderr


@pytest.mark.parametrize("target", ["gpu", "gpu-tests", "gpu-profile", "gpu-bench"])
def test_without_a_gpu_nothing_runs_and_the_way_out_is_said(tmp_path: Path, target: str) -> None:
    code, calls, stderr = make(target, tmp_path, gpu=False)
    assert code != 0
    assert calls == []
    assert "make gpu-dry" in stderr
    assert "Error 4" in stderr
