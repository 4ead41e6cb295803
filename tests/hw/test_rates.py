"""Rates beside the catalogue's: each has a source and a date, and a missing one says the way out."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml

import hw.rates
from hw.device import CatalogError, device, devices
from hw.rates import TERMS, hourly, rates, watts


@pytest.mark.parametrize("name", sorted(devices()))
def test_every_rate_has_a_source_and_a_date_and_committing_is_cheaper(name: str) -> None:
    for figure, rate in rates(name).items():
        assert len(rate.source.text) > 10, figure
        assert datetime.date.fromisoformat(rate.source.as_of).year >= 2025
        if figure in TERMS:
            assert 0 < rate.value < device(name).usd_per_hour
    if "watts" in rates(name):
        assert 100 < watts(device(name)).value < 2000


def test_the_file_knows_no_device_that_the_catalogue_does_not_and_no_unused_source() -> None:
    data = yaml.safe_load(Path(hw.rates.__file__).with_name("rates.yaml").read_text())
    assert set(data["rates"]) <= set(devices())
    used = {source for row in data["rates"].values() for _, source in row.values()}
    assert used == set(data["sources"])


def test_on_demand_is_the_catalogues_rate_and_an_unknown_one_says_the_way_out() -> None:
    assert hourly(device("h200-sxm-141gb")).value == 3.99
    with pytest.raises(CatalogError, match="no committed rate is known for l40s-48gb: add pricing"):
        hourly(device("l40s-48gb"), "committed")
