"""The device catalogue: every figure has a source, ceilings stay under peaks, inline devices are checked."""

from __future__ import annotations

import datetime

import pytest

from hw.device import (
    COPY_FRACTION,
    FIGURES,
    GEMM_FRACTION,
    CatalogError,
    catalog,
    device,
    device_from,
    devices,
)


@pytest.mark.parametrize("name", sorted(devices()))
def test_every_figure_of_a_device_carries_a_source_and_a_date(name: str) -> None:
    found = device(name)
    for figure in FIGURES:
        source = found.source(figure)
        assert len(source.text) > 10, f"{name}.{figure} has no source"
        assert datetime.date.fromisoformat(source.as_of).year >= 2025


def test_every_figure_in_the_file_names_one_of_its_sources_and_every_source_is_used() -> None:
    data = catalog()
    named = {pair[1] for row in data["devices"].values() for pair in row.values()}
    assert named == set(data["sources"])
    assert all(set(row) == set(FIGURES) for row in data["devices"].values())


def test_a_figure_without_a_source_is_refused() -> None:
    with pytest.raises(CatalogError, match="no source for `colour`"):
        device("h200-sxm-141gb").source("colour")


@pytest.mark.parametrize("name", sorted(devices()))
def test_a_ceiling_lies_between_half_and_all_of_its_peak(name: str) -> None:
    d = device(name)
    for ceiling, peak in (
        (d.copy_bytes_per_s, d.hbm_bytes_per_s),
        (d.read_bytes_per_s, d.hbm_bytes_per_s),
        (d.gemm_flops_bf16, d.flops_bf16),
        (d.gemm_flops_fp8, d.flops_fp8),
    ):
        assert 0.5 * peak < ceiling <= peak
    assert d.copy_bytes_per_s < d.read_bytes_per_s
    assert d.usd_per_hour_low <= d.usd_per_hour <= d.usd_per_hour_high


def test_the_h200_has_the_published_ceilings() -> None:
    d = device("h200-sxm-141gb")
    ceilings = (d.copy_bytes_per_s, d.read_bytes_per_s, d.gemm_flops_bf16)
    assert ceilings == (4.3e12, 4.44e12, 790e12)
    assert d.memory_bytes == pytest.approx(139.80 * 2**30, rel=1e-3)


@pytest.mark.parametrize("name", ["h100-sxm-80gb", "b200-sxm-180gb", "a100-sxm-80gb", "l40s-48gb"])
def test_an_assumed_ceiling_is_the_h200_fraction_of_the_data_sheet(name: str) -> None:
    d = device(name)
    assert d.copy_bytes_per_s == pytest.approx(COPY_FRACTION * d.hbm_bytes_per_s, rel=0.005)
    assert d.gemm_flops_bf16 == pytest.approx(GEMM_FRACTION * d.flops_bf16, rel=0.005)
    assert d.source("copy_bytes_per_s").text.startswith("assumed")


def test_a_misspelt_device_gets_the_nearest_name() -> None:
    with pytest.raises(CatalogError, match=r"unknown device `h200`.*Did you mean `h200-sxm-141gb`"):
        device("h200")


def test_an_inline_device_fills_its_ceilings_from_public_fractions() -> None:
    given = {
        "name": "x", "memory_bytes": 96e9, "hbm_bytes_per_s": 4e12, "flops_bf16": 1e15,
        "usd_per_hour": 2,
    }  # fmt: skip
    d = device_from(given)
    assert d.copy_bytes_per_s == pytest.approx(COPY_FRACTION * 4e12)
    assert d.usd_per_hour == d.usd_per_hour_low == 2.0
    assert d.source("memory_bytes").text == "given in the scenario"
    assert d.source("copy_bytes_per_s").text != "given in the scenario"


def test_an_inline_device_takes_over_the_rest_of_another() -> None:
    d = device_from({"like": "h200-sxm-141gb", "usd_per_hour": 20.0})
    base = device("h200-sxm-141gb")
    assert (d.copy_bytes_per_s, d.memory_bytes) == (base.copy_bytes_per_s, base.memory_bytes)
    assert (d.usd_per_hour, d.usd_per_hour_high) == (20.0, 20.0)
    assert d.source("copy_bytes_per_s") == base.source("copy_bytes_per_s")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"memory_bytes": 1e9}, "lacks hbm_bytes_per_s, flops_bf16, usd_per_hour"),
        ({"like": "h200-sxm-141gb", "memory": 1e9}, "Did you mean `memory_bytes`"),
        ({"like": "h200-sxm-141gb", "memory_bytes": -1.0}, "must be positive and finite"),
        ({"like": "h200-sxm-141gb", "memory_bytes": float("nan")}, "must be positive and finite"),
        ({"like": "h200-sxm-141gb", "memory_bytes": "141GB"}, "must be a number in SI units"),
        ({"like": "h200-sxm-141gb", "memory_bytes": True}, "must be a number in SI units"),
        ({"like": "tpu"}, "unknown device `tpu`"),
    ],
)
def test_a_wrong_inline_device_says_what_to_do(given: dict[str, object], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        device_from(given)
