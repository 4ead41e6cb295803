"""The catalogue of questions and verifiers: presets.yaml, read once, with the origin of every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml


class PresetError(ValueError):
    """A preset or parameter that does not exist; the message says which do."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One catalogue figure: its value, where it comes from ("assumed" when nobody measured it) and when."""

    value: Any
    source: str
    as_of: str | None


@lru_cache(maxsize=1)
def catalogue() -> Mapping[str, Mapping[str, Mapping[str, Figure]]]:
    """Section ("questions" or "verifiers") -> preset name -> parameter -> Figure, read-only."""
    text = Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    return MappingProxyType(
        {
            section: MappingProxyType(
                {
                    name: MappingProxyType({key: _figure(f) for key, f in figures.items()})
                    for name, figures in presets.items()
                }
            )
            for section, presets in document.items()
        }
    )


def _figure(entry: Mapping[str, Any]) -> Figure:
    as_of = entry.get("as_of")
    return Figure(entry["value"], str(entry["source"]), None if as_of is None else str(as_of))


def values(section: str, name: str) -> dict[str, Any]:
    """The parameters of one preset without their origin. Raises PresetError for an unknown name."""
    presets = catalogue()[section]
    if name not in presets:
        raise PresetError(unknown(section[:-1] + " preset", name, presets))
    return {key: figure.value for key, figure in presets[name].items()}


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {what} {name!r}.{hint} Known: {', '.join(names)}."
