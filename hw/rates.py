"""What a GPU-hour costs: on demand, committed or spot, and the power it draws, each figure with source and date."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from hw.device import CatalogError, Device, Source

Terms = Literal["on_demand", "committed", "spot"]
TERMS: Final[tuple[Terms, ...]] = ("on_demand", "committed", "spot")


@dataclass(frozen=True, slots=True)
class Rate:
    """One figure of a device, in USD per GPU and hour or in W, and where it comes from."""

    value: float
    source: Source


def hourly(device: Device, terms: Terms = "on_demand") -> Rate:
    """The rate of one GPU under the given terms. Raises CatalogError where none is known."""
    if terms == "on_demand":
        return Rate(device.usd_per_hour, device.source("usd_per_hour"))
    found = rates(device.name).get(terms)
    if found is None:
        raise CatalogError(
            f"no {terms} rate is known for {device.name}: add pricing: {{device_rates: "
            f"{{{device.name}: 3.50 USD/h}}}} with yours, or write terms: on_demand."
        )
    return found


def watts(device: Device) -> Rate:
    """The most power that one GPU draws, W. Raises CatalogError where it is not known."""
    found = rates(device.name).get("watts")
    if found is None:
        raise CatalogError(f"the power of {device.name} is not known: remove pricing.power.")
    return found


def rates(name: str) -> dict[str, Rate]:
    """What hw/rates.yaml holds of a device, by figure; empty for a device that it does not know."""
    return dict(_read().get(name, {}))


@cache
def _read() -> dict[str, dict[str, Rate]]:
    data: Any = yaml.safe_load(Path(__file__).with_name("rates.yaml").read_text(encoding="utf-8"))
    sources = {key: Source(row["text"], str(row["as_of"])) for key, row in data["sources"].items()}
    return {
        name: {key: Rate(float(value), sources[source]) for key, (value, source) in row.items()}
        for name, row in data["rates"].items()
    }
