"""`treeline validate` as a person meets it: a run of a known engine is met, a wrong engine is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import treeline
from scenarios.loader import load
from sim.measured import read_measured
from sim.mirror import device_named, play
from sim.resolve import resolve
from tests.data import DATA, needs

ENGINE = """\
question: Which engine was measured?
fleet:
  served:
    model: llama-3.1-8b
    device: l40s-48gb
    engine: {num_gpu_blocks: 300, max_num_seqs: 64, max_num_batched_tokens: 2048}
    kv: {attention: naive, reclaim: lru}
workload: {arrivals: {rate: 1/s}, classes: {chat: {preset: chat}}}
tiers: {all: {search: {algorithm: direct}}}
"""


def treeline_(*words: str) -> Result:
    result = CliRunner().invoke(treeline.app, ["validate", *words, "--quiet"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What ENGINE itself would have been measured to do, as vllm bench serve writes it, and ENGINE."""
    folder = tmp_path_factory.mktemp("measured")
    engine = folder / "engine.yaml"
    engine.write_text(ENGINE)
    count = 40
    blank = {
        "model_id": "llama", "request_throughput": 1.0, "num_prompts": count,
        "input_lens": [100 + 37 * i % 900 for i in range(count)],
        "output_lens": [20 + 53 * i % 200 for i in range(count)],
        "ttfts": [1.0] * count, "itls": [[0.01]] * count,
        "start_times": [0.3 * i for i in range(count)],
    }  # fmt: skip
    file = folder / "result.json"
    file.write_text(json.dumps(blank))
    scenario = folder / "mirror.yaml"
    treeline_(str(file), "--engine", str(engine), "--no-diagnosis", "--scenario", str(scenario))
    requests = play(resolve(load(scenario))).requests
    decode = requests.last_s - requests.first_s
    times = {
        "ttfts": requests.latencies["TTFT"].tolist(),
        "itls": [[total] for total in decode.tolist()],
    }
    file.write_text(json.dumps(blank | times))
    return file, engine


def test_an_engine_that_is_the_model_itself_is_met_exactly(measured: tuple[Path, Path]) -> None:
    file, engine = measured
    result = treeline_(str(file), "--engine", str(engine), "--no-diagnosis", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["holds"]
    for metric in found["metrics"].values():
        assert all(abs(error) < 1e-6 for error in metric["error"].values())
        assert metric["ks"] < 1.5 / 40  # rounding may swap two requests


@pytest.mark.parametrize(
    ("there", "instead", "term", "low", "high"),
    [
        ("num_gpu_blocks: 300", "num_gpu_blocks: 285", "KV blocks", -1.5, -0.6),
        # hides a gap of 0.5 ms; of all terms only a dearer decode answers alike
        ("max_num_seqs: 64", "max_num_seqs: 64, async_scheduling: true", "CPU gap", 0.15, 0.7),
    ],
)
def test_what_was_set_otherwise_is_among_the_causes_and_by_how_much(
    measured: tuple[Path, Path], tmp_path: Path,
    there: str, instead: str, term: str, low: float, high: float,
) -> None:  # fmt: skip
    file, _ = measured
    other = tmp_path / "other.yaml"
    other.write_text(ENGINE.replace(there, instead))
    found = json.loads(treeline_(str(file), "--engine", str(other), "--json").stdout)
    terms = {entry["term"]: entry for entry in found["diagnosis"]}
    assert low < terms[term]["needed"] < high
    assert terms[term]["explains"] > found["diagnosis"][0]["explains"] - 0.05
    assert terms[term]["explains"] > 0.7


def test_the_report_shows_errors_pictures_and_a_verdict(measured: tuple[Path, Path]) -> None:
    file, engine = measured
    text = treeline_(str(file), "--engine", str(engine)).stdout
    for word in ("HOLDS", "TTFT", "TPOT", "E2E", "KS", "100 %", "KV blocks", "roofline"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "there is nothing here"),
        (("RESULT",), "--engine FILE"),
        (("RESULT", "--engine", "absent.yaml"), "absent.yaml"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_way_out(
    measured: tuple[Path, Path], words: tuple[str, ...], message: str
) -> None:
    result = treeline_(*(str(measured[0]) if word == "RESULT" else word for word in words))
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_a_scenario_is_not_written_over(measured: tuple[Path, Path], tmp_path: Path) -> None:
    file, engine = measured
    there = tmp_path / "mirror.yaml"
    there.write_text("mine")
    result = treeline_(str(file), "--engine", str(engine), "--scenario", str(there))
    assert (result.exit_code, "exists already" in result.stderr) == (2, True)
    assert there.read_text() == "mine"


def test_a_gpu_is_found_in_the_catalogue_by_its_own_name() -> None:
    assert device_named("NVIDIA GeForce RTX 4090") == "rtx-4090-24gb"
    assert device_named("NVIDIA H200") == "h200-sxm-141gb"
    assert device_named("NVIDIA A100-SXM4-80GB").startswith("a100")


@needs("vllm_rtx4090")
def test_a_real_saturated_engine_is_met_within_two_percent_and_p99_within_five() -> None:
    result = treeline_(str(DATA / "vllm_rtx4090"), "--no-diagnosis", "--json", "--fail-on-error")
    found = json.loads(result.stdout)
    assert result.exit_code == 0, found["metrics"]
    assert found["holds"]
    assert found["over_time"]["kv_share"]["simulated"] == pytest.approx(
        found["over_time"]["kv_share"]["measured"], abs=0.02
    )
    assert read_measured(DATA / "vllm_rtx4090").left_out == found["left_out"] == 0
