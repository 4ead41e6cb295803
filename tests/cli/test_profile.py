"""`treeline profile` as a person meets it: measuring, showing, a scenario on it, and everything it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import treeline
from hw import bench

SCENARIO = """\
question: What does a laptop answer in a minute?
replications: 1
horizon: {warmup: 0s, measure: 60s}
fleet:
  laptop:
    model: qwen2.5-1.5b
    device: cpu
    latency: {kind: profile, profile: PROFILE}
workload:
  arrivals: {rate: 0.05/s}
  classes: {chat: {preset: chat}}
tiers:
  one: {search: {algorithm: direct}, slo: {e2e_p95: 600s}}
"""


def treeline_(*words: str) -> Result:
    result = CliRunner().invoke(treeline.app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hw.backend.ARENA_LIMIT", {"cpu": 6e7})
    monkeypatch.chdir(tmp_path)


def test_a_profile_is_measured_shown_and_a_scenario_runs_on_it(tmp_path: Path) -> None:
    words = ["profile", "--device", "cpu", "--quick"]
    for op in ("qkv", "o", "suffix_attention", "prefix_attention", "norm", "fork_copy"):
        words += ["--only", op]
    made = treeline_(*words, "--json")
    assert made.exit_code == 0
    document = json.loads(made.stdout)
    assert document["complete"]
    assert document["measured"] > 40
    assert document["points"] == document["measured"] + sum(document["not_measured"].values())
    assert all("needs" in reason for reason in document["not_measured"])
    assert Path("profiles/cpu.parquet").exists()
    assert not Path("profiles/cpu.part.jsonl").exists()

    shown = treeline_("profile", "show", "profiles/cpu")
    assert shown.exit_code == 0
    for word in (
        "measured on",
        "roofs (of the profile): copy",
        "suffix_attention",
        "FLOP a byte",
        "roofline: reached",
    ):
        assert word in shown.stdout
    assert (
        json.loads(treeline_("profile", "show", "profiles/cpu", "--json").stdout)["device"] == "cpu"
    )

    Path("laptop.yaml").write_text(SCENARIO.replace("PROFILE", "profiles/cpu.parquet"))
    ran = treeline_("run", "laptop.yaml", "--json", "--quiet")
    assert ran.exit_code == 0, ran.output
    assert "measured" in Path("runs/laptop/report.txt").read_text()

    again = treeline_(*words)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "Usage:"),
        (("--quick",), 2, "Say what to measure"),
        (("--device", "h200"), 2, "this machine's `cpu` or its NVIDIA GPU (`cuda`)"),
        (("--device", "cpu", "--only", "qvk"), 2, "there is no operation 'qvk'"),
        (("--device", "cpu", "--model", "llama-3.1"), 2, "Did you mean `llama-3.1-8b`"),
        (("--device", "cpu", "--model", "deepseek-r1"), 2, "import a profile"),
        (("show", "nowhere"), 2, "A profile is two files"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_way_out(words, code, message) -> None:
    result = treeline_("profile", *words)
    assert result.exit_code == code
    assert message in result.output


def test_without_a_gpu_or_cupy_the_exit_code_is_4_and_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    result = treeline_("profile", "--device", "cuda", "--json")
    assert result.exit_code == 4
    assert "pip install" in result.stderr
    assert "pip install" in json.loads(result.stdout)["error"]


def test_a_dry_run_measures_nothing_and_says_how_long_it_would_take() -> None:
    result = treeline_("profile", "--device", "cuda", "--dry-run")
    assert result.exit_code == 0
    assert "points on h200-sxm-141gb" in result.stdout
    assert not Path("profiles").exists()
    document = json.loads(
        treeline_("profile", "--device", "cpu", "--quick", "--dry-run", "--json").stdout
    )
    assert 10 < document["estimate_s"] < 90


def test_ctrl_c_keeps_what_was_measured_and_resume_measures_the_rest(monkeypatch) -> None:
    words = ["profile", "--device", "cpu", "--quick", "--only", "norm", "--quiet"]
    calls = []

    def interrupted(case: object) -> str:
        calls.append(case)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return bench.checked(case)

    with monkeypatch.context() as patched:
        patched.setattr("hw.profiler.checked", interrupted)
        stopped = treeline_(*words)
    assert stopped.exit_code == 130
    assert "Measured 2 of 5 points" in stopped.stdout
    assert "--resume" in stopped.stdout
    assert "INCOMPLETE" in treeline_("profile", "show", "profiles/cpu").stdout
    assert "go on with --resume" in treeline_(*words).stderr
    done = treeline_(*words, "--resume")
    assert done.exit_code == 0
    assert "Measured 5 of 5 points" in done.stdout
    assert not Path("profiles/cpu.part.jsonl").exists()


def test_an_imported_profile_is_shown_under_the_catalogues_roofs() -> None:
    shipped = Path(treeline.__file__).parent / "hw" / "profiles" / "h200-sxm-141gb-aiconfigurator"
    shown = treeline_("profile", "show", str(shipped)).stdout
    assert "roofs (of the catalogue): copy 4,300.0 GB/s" in shown
    assert "and 28 others" in shown
    assert "(imported) (imported)" not in shown
    (gemm,) = (line for line in shown.splitlines() if line.startswith("gemm"))
    assert gemm.split()[6] == "-"
