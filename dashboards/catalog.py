"""What a scenario can name: devices, models, presets and algorithms, as tables and as data with sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Final

from rich.table import Table

from dashboards.terminal import program
from hw.device import FIGURES, devices
from hw.transformer import transformers
from models.presets import catalogue
from models.search import ALGORITHMS, Parameter
from scenarios.units import show


def _devices() -> dict[str, Any]:
    found = {}
    for name, device in devices().items():
        found[name] = {
            figure: {
                "value": getattr(device, figure),
                "source": device.source(figure).text,
                "as_of": device.source(figure).as_of,
            }
            for figure in FIGURES
        }
    return found


def _device_table() -> Table:
    table = _table(
        "devices", "memory", "bandwidth", "bf16, dense", "rate of one GPU", "seen from", "to"
    )
    for name, device in devices().items():
        table.add_row(
            name,
            show(float(f"{device.memory_bytes:.3g}"), "bytes"),
            show(device.hbm_bytes_per_s, "bandwidth"),
            show(device.flops_bf16, "flops"),
            show(device.usd_per_hour, "money_rate"),
            show(device.usd_per_hour_low, "money_rate"),
            show(device.usd_per_hour_high, "money_rate"),
        )
    return table


def _models() -> dict[str, Any]:
    return {
        name: asdict(shape)
        | {
            "weight_bytes": shape.weight_bytes(),
            "kv_bytes_per_token": shape.kv_bytes_per_token(),
        }
        for name, shape in transformers().items()
    }


def _model_table() -> Table:
    table = _table("models", "layers", "hidden", "KV heads", "weights", "KV of a token")
    for name, shape in transformers().items():
        table.add_row(
            name,
            str(shape.layers),
            str(shape.hidden),
            "latent" if shape.kv_lora else str(shape.kv_heads),
            show(float(f"{shape.weight_bytes():.3g}"), "bytes"),
            show(float(f"{shape.kv_bytes_per_token():.3g}"), "bytes"),
        )
    return table


def _presets() -> dict[str, Any]:
    return {
        section: {
            name: {key: asdict(figure) for key, figure in figures.items()}
            for name, figures in presets.items()
        }
        for section, presets in catalogue().items()
    }


def _preset_table() -> Table:
    table = _table("presets", "of", "parameters")
    for section, presets in catalogue().items():
        for name, figures in presets.items():
            shown = ", ".join(f"{key} {_short(figure.value)}" for key, figure in figures.items())
            table.add_row(name, section, shown)
    return table


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        kind = str(value.get("kind", ""))
        numbers = (f"{k}={v:g}" for k, v in value.items() if isinstance(v, int | float))
        return f"{kind}({', '.join(numbers)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]" if len(value) <= 3 else f"[{len(value)} values]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _algorithms() -> dict[str, Any]:
    return {
        name: {
            "description": algorithm.description,
            "needs_verifier": algorithm.needs_verifier,
            "parameters": {key: _parameter(p) for key, p in algorithm.parameters.items()},
            "signal": algorithm.signal,
            "source": algorithm.source,
        }
        for name, algorithm in ALGORITHMS.items()
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    """What holds of a parameter: the range of a number, or its choices."""
    found = asdict(parameter)
    for key in ("low", "high") if parameter.choices else ("choices",):
        del found[key]
    return found


def _algorithm_table() -> Table:
    table = _table("algorithms", "parameters", "verifier", "what it does")
    for name, algorithm in ALGORITHMS.items():
        parameters = ", ".join(f"{key} ({p.default})" for key, p in algorithm.parameters.items())
        needs = "yes" if algorithm.needs_verifier else "no"
        table.add_row(name, parameters or "-", needs, algorithm.description)
    return table


def _table(name: str, *columns: str) -> Table:
    table = Table(
        name, *columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left"
    )
    table.columns[0].no_wrap = True
    return table


_DATA: Final[Mapping[str, Callable[[], dict[str, Any]]]] = MappingProxyType(
    {"devices": _devices, "models": _models, "presets": _presets, "algorithms": _algorithms}
)
_TABLES: Final[Mapping[str, Callable[[], Table]]] = MappingProxyType(
    {
        "devices": _device_table,
        "models": _model_table,
        "presets": _preset_table,
        "algorithms": _algorithm_table,
    }
)
KINDS: Final = tuple(_DATA)


def data(kind: str) -> dict[str, Any]:
    """One catalogue as JSON values in SI units, each figure with its source; raises KeyError."""
    return _DATA[kind]()


def table(kind: str) -> Table:
    """One catalogue as a table for people, in human units; raises KeyError."""
    found = _TABLES[kind]()
    found.caption = f"The source of every figure: {program()} catalog {kind} --json\n"
    return found
