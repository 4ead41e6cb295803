"""Serving points: what is read, what is refused, and the accuracy that we state of the public ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from models.latency import StepCost
from scenarios.errors import UserError
from sim.points import REPEATED, TOGETHER, VARIED, Point, is_points, read_points
from sim.points_accuracy import (
    calibrated,
    errors,
    expected,
    key,
    load_of,
    other_half,
    playable,
    played_errors,
    predicted,
    shipped,
    summary,
    terms_of,
    to_yaml,
)
from sim.points_bands import AIM, NOMINAL, bands, survey
from sim.points_modelled import Modelled, Unmodelled, modelled
from sim.steady import Load, Terms, parts, tpot, ttft
from tests.data import DATA, needs

HEAD = (
    "silicon_data_source,backend,backend_version,model_path,system,precision,mode,isl,osl,gemm_quant_mode,"
    "moe_quant_mode,batch_size,tp_size,pp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,"
    "silicon_tpot_ms\n"
)
# Two rows of the public file (NVIDIA aiconfigurator, Apache-2.0), the source shortened.
ROWS = (
    "source_file=x/aic-auto-gap-analysis/a.csv,trtllm,1.0.0rc3,meta-llama/Meta-Llama-3.1-8B,h100_sxm,,agg,"
    "1024,256,,,32,1,1,,1,1,159.9,10.92\n"
    "source_file=2026-04-06.csv,vllm,,meta-llama/Meta-Llama-3.1-70B,h200_sxm,fp8,agg,1024,1024,fp8,fp8,16,4,"
    "1,1,4,1,126.2,10.94\n"
)


@cache
def public() -> tuple[list[Modelled], list[Unmodelled]]:
    return modelled(read_points(DATA / "serving_points"))


def test_a_file_of_points_is_read_in_seconds_with_its_load_test(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(HEAD + ROWS)
    assert is_points(tmp_path)
    first, second = read_points(tmp_path)
    assert (first.harness, second.harness) == (TOGETHER, VARIED)
    assert (first.ttft_s, first.tpot_s) == pytest.approx((0.1599, 0.01092))
    assert (second.clients, second.tensor_parallel, second.precision) == (16, 4, "fp8")
    found, left = modelled([first, second])
    assert not left
    rates, _ = errors(found, expected)
    assert np.all(np.abs(rates) < 0.25)


def test_devices_that_are_counted_for_tensors_and_again_for_experts_count_once(
    tmp_path: Path,
) -> None:
    twice = ROWS.replace(",16,4,1,1,4,1,", ",16,64,1,1,8,8,").replace(
        ",32,1,1,,1,1,", ",32,4,1,,2,2,"
    )
    (tmp_path / "points.csv").write_text(HEAD + twice)
    mixed, counted = read_points(tmp_path)
    assert (counted.tensor_parallel, counted.expert_parallel, counted.moe_ways) == (8, 8, 8)
    assert (mixed.tensor_parallel, mixed.expert_parallel, mixed.moe_ways) == (4, 2, 4)


def test_lengths_in_thousands_of_a_gap_analysis_are_prompts_that_come_again(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(HEAD + ROWS.replace(",1024,256,", ",1000,256,"))
    first, second = read_points(tmp_path)
    assert (first.harness, second.harness) == (REPEATED, VARIED)
    again = modelled([first])[0][0]
    fresh = replace(again, point=replace(first, harness=TOGETHER))
    assert expected(again).prefill < expected(fresh).prefill


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",32,1,1,", ",many,1,1,", r"points.csv:2: invalid literal"),
        ("159.9", "-1", r"points.csv:2: silicon_ttft_ms is '-1', it must be a positive number"),
        (",1024,256,", ",0,256,", r"points.csv:2: isl is '0', it must be a count"),
    ],
)
def test_a_broken_row_is_refused_with_its_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tmp_path / "points.csv").write_text(HEAD + ROWS.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read_points(tmp_path / "points.csv")


def test_what_holds_no_points_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert not is_points(tmp_path)
    with pytest.raises(UserError, match="holds no serving points"):
        read_points(tmp_path)
    (tmp_path / "points.csv").write_text(HEAD)
    with pytest.raises(UserError, match="no points below its header"):
        read_points(tmp_path)


def test_a_point_that_is_not_covered_is_kept_with_the_reason(tmp_path: Path) -> None:
    strange = ROWS.replace("Meta-Llama-3.1-8B", "Llama-9-9B").replace(
        ",16,4,1,1,4,1,", ",16,4,1,8,4,1,"
    )
    (tmp_path / "points.csv").write_text(HEAD + strange)
    found, left = modelled(read_points(tmp_path))
    assert not found
    assert [item.reason.partition(".")[0][:25] for item in left] == [
        "unknown model `llama-9-9b", "attention data parallel, ",
    ]  # fmt: skip


def test_the_constants_that_ship_survive_their_file() -> None:
    import yaml

    text = to_yaml(shipped(), "somewhere", 1)
    assert len(yaml.safe_load(text)["constants"]) == len(shipped()) >= 10
    for terms in shipped().values():
        assert 0 < terms.gap_s < 10e-3
        assert 0.4 < terms.decode < 2.5  # what the device does takes about its time


@pytest.mark.slow
@needs("serving_points")
def test_dense_models_are_predicted_no_worse_than_aiconfigurator_predicts_them() -> None:
    found = [item for item in public()[0] if not item.experts]
    rates, firsts = errors(found, lambda item: terms_of(item, shipped()))
    assert summary(rates).median < 0.035  # its: 10.2 %
    assert summary(rates).mean < 0.055  # its: 14.9 %
    assert summary(firsts).median < 0.11
    assert summary(firsts).mean < 0.23  # its: 53 %
    # Expected constants, and constants that never saw the model, still are no worse.
    for others in (errors(found, expected), other_half(found)):
        assert summary(others[0]).median < 0.08
        assert summary(others[1]).mean < 0.30


@pytest.mark.slow
@needs("serving_points")
def test_dense_loads_of_vllm_are_met_by_the_batch_itself_without_constants_of_ttft() -> None:
    found = playable([item for item in public()[0] if not item.experts])
    assert len(found) > 40
    rates, firsts = played_errors(found)
    assert summary(rates).median < 0.06
    assert summary(firsts).median < 0.12


@pytest.mark.slow
@needs("serving_points")
def test_constants_from_half_of_the_rows_predict_the_other_half_as_well() -> None:
    found = [item for item in public()[0] if not item.experts]
    rates, firsts = other_half(found, load_of)
    assert summary(rates).median < 0.04
    assert summary(firsts).mean < 0.25


@pytest.mark.slow
@needs("serving_points")
def test_bands_hold_on_models_that_they_have_not_seen() -> None:
    for half in bands(public()[0]):
        assert AIM[0] <= half.coverage <= AIM[1]
        assert half.width <= 0.25
    dense = survey([item for item in public()[0] if not item.experts])
    assert dense is not None
    assert dense.coverage == pytest.approx(NOMINAL, abs=0.03)
    assert dense.width < 0.17
    every = survey(public()[0])
    assert every is not None
    assert every.splits == 252
    assert every.coverage == pytest.approx(NOMINAL, abs=0.03)
    assert every.deviation < 0.06
    assert every.width <= 0.25


def made_up(models: int, each: int, spread: float) -> list[Modelled]:
    """Points of made-up models: measured = predicted, off by a normal error in log scale."""
    rng = np.random.default_rng(7)
    cost = StepCost.linear(8e-3, per_decode=1e-5, per_prefill=2e-5, kv=1e-8)
    made = parts(cost, Load(16, 1000, 500), kv_tokens=1e9)
    point = Point("", "vllm", "", "h100_sxm", "bf16", VARIED, 16, 1000, 500, 1, 1, 1, 1, 1.0, 1.0)
    return [
        Modelled(
            replace(point, model=f"model-{m}", tpot_s=tpot(made, Terms()) * float(np.exp(spread * rng.normal()))),
            made, False, "made up",
        )
        for m in range(models)
        for _ in range(each)
    ]  # fmt: skip


def test_bands_of_exchangeable_models_cover_what_they_promise() -> None:
    every = survey(made_up(models=6, each=80, spread=0.1))
    assert every is not None
    assert every.splits == 20
    assert every.coverage == pytest.approx(NOMINAL, abs=0.02)
    assert every.width == pytest.approx(1.645 * 0.1, rel=0.1)  # the normal quantile
    assert survey(made_up(models=1, each=5, spread=0.1)) is None
    many = survey(made_up(models=14, each=5, spread=0.1))
    assert many is not None
    assert many.splits == 500  # drawn: there are 3,432


def test_where_memory_is_short_of_vllms_requests_the_batch_says_what_the_clients_see(
    tmp_path: Path,
) -> None:
    tight = (
        ROWS.splitlines()[1]
        .replace("h200_sxm", "h100_sxm")
        .replace("1024,1024,fp8,fp8,16,4,1,1,4,1,", "1024,8192,fp8,fp8,64,2,1,1,2,1,")
    )
    (tmp_path / "points.csv").write_text(f"{HEAD}{tight}\n")
    (item,), _ = modelled(read_points(tmp_path))
    assert item.parts.waiting > 0.5
    assert item.seen is not None
    assert item.seen.preemptions > 100
    # Requests begin, are preempted and wait again: less of the wait comes before the first token than the form says.
    rate, first = predicted(item, Terms())
    assert first < 0.5 * ttft(item.parts, Terms())
    assert rate > 1.2 * tpot(item.parts, Terms())
    assert calibrated([item]) == {
        key(item, ""): expected(item)
    }  # it teaches the closed form nothing


def test_one_model_alone_is_judged_with_the_expected_constants() -> None:
    alone = made_up(models=1, each=4, spread=0.1)
    for ours, theirs in zip(other_half(alone), errors(alone, expected), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_a_model_has_constants_of_its_own_only_beside_others() -> None:
    alone, pair = (calibrated(made_up(models=n, each=4, spread=0.01)) for n in (1, 2))
    assert [name[3] for name in alone] == [""]
    assert [name[3] for name in pair] == ["", "model-0", "model-1"]
    strange = replace(made_up(1, 1, 0.0)[0].point, model="unseen")
    item = replace(made_up(1, 1, 0.0)[0], point=strange)
    assert terms_of(item, pair) == pair[key(item, "")]
    assert terms_of(item, {}) == expected(item)


@pytest.mark.slow
@needs("serving_points")
def test_the_constants_that_ship_are_those_of_the_public_points() -> None:
    fresh = calibrated(public()[0])
    assert set(fresh) == set(shipped()) >= {key(item, "") for item in public()[0]}
    for name, terms in fresh.items():
        ours = shipped()[name]
        assert ours.decode == pytest.approx(terms.decode, rel=0.02), name
        assert ours.gap_s == pytest.approx(terms.gap_s, rel=0.05), name
