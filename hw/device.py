"""Devices: peaks, measured ceilings and hourly rates, each figure with its source and date."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

# What public H200 measurements reach of the data sheet: copy 4.3 of 4.8 TB/s, read 4.44 of 4.8 TB/s,
# bf16 GEMM 790 of 989.5 TFLOP/s. Source: NVIDIA aiconfigurator measured H200 tables, 2026-11-23.
COPY_FRACTION = 0.896
READ_FRACTION = 0.925
GEMM_FRACTION = 0.80


class CatalogError(ValueError):
    """A device or model that the catalogue does not hold, or a figure that cannot be one."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one figure comes from: a title and an ISO date."""

    text: str
    as_of: str


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator: data-sheet peaks, the ceilings that programs reach, constants of launching, a rate.

    Units: bytes, bytes/s, FLOP/s (dense), s, USD/h for one device. `copy_bytes_per_s`,
    `read_bytes_per_s` and `gemm_flops_*` are ceilings, the roofs that floors are computed from;
    `hbm_bytes_per_s` and `flops_*` are the data sheet's. `link_bytes_per_s` is one direction.
    """

    name: str
    memory_bytes: float
    hbm_bytes_per_s: float
    copy_bytes_per_s: float
    read_bytes_per_s: float
    flops_bf16: float
    flops_fp8: float
    gemm_flops_bf16: float
    gemm_flops_fp8: float
    link_bytes_per_s: float
    link_latency_s: float
    pcie_bytes_per_s: float
    launch_s: float
    eager_launch_s: float
    step_gap_s: float
    usd_per_hour: float
    usd_per_hour_low: float
    usd_per_hour_high: float
    sources: tuple[tuple[str, Source], ...] = field(default=(), repr=False, compare=False)

    def source(self, figure: str) -> Source:
        """The source of one figure; raises CatalogError for a figure without one."""
        for name, source in self.sources:
            if name == figure:
                return source
        raise CatalogError(f"{self.name}: no source for `{figure}`.")


FIGURES = tuple(f.name for f in fields(Device) if f.name not in ("name", "sources"))
_REQUIRED = ("memory_bytes", "hbm_bytes_per_s", "flops_bf16", "usd_per_hour")


def device(name: str) -> Device:
    """The catalogue's device of that name; raises CatalogError with the nearest name."""
    known = devices()
    if name not in known:
        raise CatalogError(unknown("device", name, known))
    return known[name]


def devices() -> dict[str, Device]:
    """Every device of the catalogue, by name."""
    return dict(_devices())


def device_from(given: Mapping[str, Any]) -> Device:
    """A device given inline: its own figures, the rest from `like`, or from public H200 fractions.

    Keys are Device's fields and `like` (a catalogue name). Without `like`, memory_bytes,
    hbm_bytes_per_s, flops_bf16 and usd_per_hour are required. Raises CatalogError.
    """
    name = str(given.get("name", "inline device"))
    for key in given:
        if key not in (*FIGURES, "name", "like"):
            raise CatalogError(unknown(f"key of device `{name}`", str(key), (*FIGURES, "like")))
    own = {key: _figure(name, key, given[key]) for key in FIGURES if key in given}
    if "like" in given:
        base = device(str(given["like"]))
        values = {key: getattr(base, key) for key in FIGURES}
        known = dict(base.sources)
    else:
        missing = [key for key in _REQUIRED if key not in own]
        if missing:
            raise CatalogError(
                f"device `{name}` lacks {', '.join(missing)}: a device given inline needs "
                f"{', '.join(_REQUIRED)}, or `like: h200-sxm-141gb` to take over the rest."
            )
        values = _defaults(own)
        known = dict.fromkeys(values, Source("derived from the figures given", "scenario"))
    values.update(own)
    if "usd_per_hour" in own:
        values["usd_per_hour_low"] = min(values["usd_per_hour_low"], own["usd_per_hour"])
        values["usd_per_hour_high"] = max(values["usd_per_hour_high"], own["usd_per_hour"])
    known.update(dict.fromkeys(own, Source("given in the scenario", "scenario")))
    return Device(name=name, sources=tuple(known.items()), **values)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not in a catalogue: what, the nearest, what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"unknown {kind} `{name}`.{hint} Known: {', '.join(names)}."


@cache
def catalog() -> Any:
    """The parsed hw/catalog.yaml; callers do not change it."""
    text = (Path(__file__).parent / "catalog.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


@cache
def _devices() -> Mapping[str, Device]:
    data = catalog()
    sources = {key: Source(row["text"], str(row["as_of"])) for key, row in data["sources"].items()}
    found = {}
    for name, figures in data["devices"].items():
        values = {key: _figure(name, key, pair[0]) for key, pair in figures.items()}
        known = tuple((key, sources[pair[1]]) for key, pair in figures.items())
        found[name] = Device(name=name, sources=known, **values)
    return found


def _defaults(own: Mapping[str, float]) -> dict[str, float]:
    base = device("h200-sxm-141gb")
    hbm, bf16, rate = own["hbm_bytes_per_s"], own["flops_bf16"], own["usd_per_hour"]
    fp8 = own.get("flops_fp8", bf16)
    values = {key: getattr(base, key) for key in FIGURES}
    values.update(
        copy_bytes_per_s=COPY_FRACTION * hbm,
        read_bytes_per_s=READ_FRACTION * hbm,
        flops_fp8=fp8,
        gemm_flops_bf16=GEMM_FRACTION * bf16,
        gemm_flops_fp8=GEMM_FRACTION * fp8,
        usd_per_hour_low=rate,
        usd_per_hour_high=rate,
    )
    return values


def _figure(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CatalogError(f"device `{name}`: {key} must be a number in SI units, not {value!r}.")
    if not math.isfinite(value) or value <= 0:
        raise CatalogError(f"device `{name}`: {key} must be positive and finite, not {value!r}.")
    return float(value)
