"""A run started by the page goes on without it, says how far it is, and leaves all or nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dashboards import worker

ROOT = Path(__file__).resolve().parents[2]
QUICK = (ROOT / "scenarios" / "quickstart.yaml").read_text(encoding="utf-8")


def wait(runs: Path, job: str, until_s: float = 90.0) -> worker.Job:
    """The job when it is over, or after `until_s`."""
    end = time.monotonic() + until_s
    while (found := worker.watch(runs, job)).state == "running" and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_a_run_ends_as_a_run_directory(tmp_path: Path) -> None:
    options = ["--replications", "1", "--set", "horizon.measure=10s"]
    job = worker.start(tmp_path, "short", {"quickstart.yaml": QUICK}, "quickstart.yaml", options)
    found = wait(tmp_path, job)
    assert (found.state, found.share, found.name) == ("done", 1.0, "short"), found.error
    assert (tmp_path / "short" / "manifest.json").is_file()
    assert [item.id for item in worker.listed(tmp_path)] == [job]
    worker.forget(tmp_path, job)
    assert worker.listed(tmp_path) == []
    with pytest.raises(KeyError):
        worker.watch(tmp_path, job)


def test_a_bad_scenario_fails_with_its_problems_at_their_lines(tmp_path: Path) -> None:
    text = QUICK.replace("replicas: 2", "replcas: 2")
    found = wait(tmp_path, worker.start(tmp_path, "bad", {"bad.yaml": text}, "bad.yaml"))
    assert found.state == "failed"
    assert any("bad.yaml:8:53" in problem["where"] for problem in found.problems)
    assert "replicas" in found.error
    assert not (tmp_path / "bad").exists()


def test_cancelling_leaves_nothing_half_written(tmp_path: Path) -> None:
    options = ["--replications", "1", "--set", "horizon.measure=2h"]
    job = worker.start(tmp_path, "long", {"quickstart.yaml": QUICK}, "quickstart.yaml", options)
    end = time.monotonic() + 60
    while worker.watch(tmp_path, job).share <= 0.0 and time.monotonic() < end:
        time.sleep(0.05)
    assert worker.watch(tmp_path, job).share > 0.0, "it says how far it is"
    worker.cancel(tmp_path, job)
    assert worker.watch(tmp_path, job).state == "cancelled"
    assert [path.name for path in tmp_path.iterdir()] == [worker.JOBS]


def test_a_process_that_was_killed_is_lost_and_not_running(tmp_path: Path) -> None:
    import os
    import signal

    options = ["--replications", "1", "--set", "horizon.measure=2h"]
    job = worker.start(tmp_path, "long", {"quickstart.yaml": QUICK}, "quickstart.yaml", options)
    pid = int((tmp_path / worker.JOBS / job / worker.PID).read_text())
    os.killpg(pid, signal.SIGKILL)
    assert wait(tmp_path, job, 10).state == "lost"


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden"])
def test_a_run_goes_nowhere_but_into_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        worker.start(tmp_path, name, {"a.yaml": QUICK}, "a.yaml")
    with pytest.raises(KeyError):
        worker.watch(tmp_path, name)
