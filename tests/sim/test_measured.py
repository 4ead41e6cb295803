"""Measured runs: both formats become the same columns, and what is wrong with a file is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenarios.errors import UserError
from sim.measured import read_measured
from tests.data import DATA, needs

META = {
    "model": "meta-llama/Llama-3.1-8B",
    "vllm_version": "0.19.0",
    "engine_kwargs": {"max_num_seqs": 128, "tensor_parallel_size": 1},
    "kv_cache": {"num_gpu_blocks": 500, "block_size": 32, "enable_prefix_caching": False},
    "hardware": {"device_name": "NVIDIA GeForce RTX 4090"},
    "resolved_config": {
        "scheduler_config": {"max_num_batched_tokens": 4096, "async_scheduling": True}
    },
}


def bundle(folder: Path, rows: list[dict], meta: dict = META) -> Path:
    """Write a bundle; times of a row are given on the engine's clock, arrivals on the wall's."""
    folder.mkdir(exist_ok=True)
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def row(arrival: float, queued: float, first: float, last: float, out: int = 5) -> dict:
    return {
        "input_toks": 100, "output_toks": out, "arrival_time": 1e9 + arrival,
        "queued_ts": 50 + queued, "first_token_ts": 50 + first, "last_token_ts": 50 + last,
    }  # fmt: skip


def test_a_bundle_becomes_columns_from_the_first_arrival_with_the_smallest_delay_as_zero(tmp_path):
    rows = [row(2.0, 2.5, 3.0, 5.0), row(0.0, 0.1, 1.0, 2.0, out=1)]
    run = read_measured(bundle(tmp_path, rows))
    found = run.requests
    assert found.arrival_s.tolist() == pytest.approx([0.0, 2.0], abs=1e-6)
    assert found.latencies["TTFT"].tolist() == pytest.approx([0.9, 0.9], abs=1e-6)
    assert found.latencies["E2E"].tolist() == pytest.approx([1.9, 2.9], abs=1e-6)
    assert found.latencies["TPOT"].tolist() == pytest.approx([0.5], abs=1e-6)  # one token has none


def test_the_engine_is_read_from_what_it_resolved_then_from_what_it_was_given(tmp_path):
    engine = read_measured(bundle(tmp_path, [row(0, 0, 1, 2)])).engine
    assert engine is not None
    assert (engine.num_gpu_blocks, engine.block_size) == (500, 32)
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (128, 4096)
    assert engine.async_scheduling
    assert not engine.enable_prefix_caching


@pytest.mark.parametrize(("version", "on"), [("0.19.0", True), ("0.13.1", False), ("", False)])
def test_what_a_run_does_not_record_is_the_default_of_its_version(tmp_path, version, on):
    meta = META | {"vllm_version": version, "resolved_config": {}}
    engine = read_measured(bundle(tmp_path, [row(0, 0, 1, 2)], meta)).engine
    assert engine is not None
    assert (engine.async_scheduling, engine.scheduler_reserve_full_isl) == (on, on)


def test_requests_that_never_finished_are_left_out_and_counted(tmp_path):
    unfinished = row(0, 0, 1, 2) | {"last_token_ts": None}
    run = read_measured(bundle(tmp_path, [row(0, 0, 1, 2), unfinished]))
    assert (len(run.requests), run.left_out) == (1, 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kv_cache": {}}, "num_gpu_blocks"),
        ({"engine_kwargs": {"max_num_seqs": "many"}}, "max_num_seqs is 'many'"),
        ({"resolved_config": {"speculative_config": {"method": "ngram"}}}, "speculative"),
    ],
)
def test_a_bundle_that_cannot_be_played_says_why(tmp_path, change, word):
    with pytest.raises(UserError, match=word):
        read_measured(bundle(tmp_path, [row(0, 0, 1, 2)], META | change))


def test_a_first_token_before_its_queueing_is_refused_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"requests.jsonl:2"):
        read_measured(bundle(tmp_path, [row(0, 0, 1, 2), row(0, 3, 1, 4)]))


BENCH = {
    "model_id": "m", "num_prompts": 2, "request_rate": "inf", "request_throughput": 1.0,
    "input_lens": [10, 20], "output_lens": [3, 2], "ttfts": [0.5, 0.7], "itls": [[0.1, 0.2], [0.3]],
}  # fmt: skip


def bench(path: Path, **change) -> Path:
    file = path / "result.json"
    file.write_text(json.dumps(BENCH | change))
    return file


def test_the_json_of_vllm_bench_serve_becomes_the_same_columns(tmp_path):
    found = read_measured(bench(tmp_path, start_times=[7.0, 6.0])).requests
    assert found.arrival_s.tolist() == [0.0, 1.0]
    assert found.input_tokens.tolist() == [20, 10]
    assert found.latencies["E2E"].tolist() == pytest.approx([1.0, 0.8])
    assert found.latencies["TPOT"].tolist() == pytest.approx([0.3, 0.15])


def test_a_burst_needs_no_start_times_and_a_rate_does(tmp_path):
    assert read_measured(bench(tmp_path)).requests.arrival_s.tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match="start_times"):
        read_measured(bench(tmp_path, request_rate=2.0))


def test_failed_requests_of_a_benchmark_are_left_out_and_counted(tmp_path):
    run = read_measured(bench(tmp_path, output_lens=[3, 0], ttfts=[0.5, 0.0]))
    assert (len(run.requests), run.left_out) == (1, 1)


def test_a_benchmark_without_details_tells_the_option_that_writes_them(tmp_path):
    with pytest.raises(UserError, match="--save-detailed"):
        read_measured(bench(tmp_path, ttfts=None))


def test_what_is_no_measured_run_is_told_the_formats(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"requests\.jsonl"):
        read_measured(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="nothing here"):
        read_measured(tmp_path / "absent")


@needs("vllm_rtx4090")
def test_the_real_bundle_gives_the_means_that_were_published_with_it():
    run = read_measured(DATA / "vllm_rtx4090")
    mean = {name: float(values.mean()) for name, values in run.requests.latencies.items()}
    # Source: summary.txt of the bundle, which counts from queueing and not from arrival.
    assert mean["TTFT"] == pytest.approx(65.4566, rel=1e-3)
    assert mean["TPOT"] == pytest.approx(32.4e-3, rel=2e-3)
    assert mean["E2E"] == pytest.approx(86.5783, rel=1e-3)
    assert run.timeline is not None
    assert run.timeline.kv_share.max() == pytest.approx(1.0)
