"""Runs as the page sees them: whole directories below one folder, read once, and never anything beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios.errors import UserError
from sim.store import Stored, load


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory: its tables, its summary (the report's figures) and its scenario as YAML."""

    name: str
    stored: Stored
    summary: dict[str, Any]


def names(folder: Path) -> list[str]:
    """Names of the run directories in `folder`, the newest first; none where there is no folder."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if (p / "manifest.json").is_file() and _inside(p, folder)]
    return [p.name for p in sorted(found, key=lambda p: -p.stat().st_mtime)]


def read(folder: Path, name: str) -> Run:
    """Read one run of `folder`. Raises UserError where it is not one, or broken."""
    if name not in names(folder):
        raise UserError(f"There is no run {name!r} here. Choose one from the list.")
    place = folder / name
    stored = load(place)
    try:
        summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        summary["tiers"], summary["verdict"]["text"], summary["money"]["tiers"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"Run {name!r} has no readable summary.json. Make it again: treeline run SCENARIO "
            f"--out {name} --force"
        ) from None
    return Run(name, stored, summary)


def _inside(place: Path, folder: Path) -> bool:
    return place.is_dir() and place.resolve().parent == folder.resolve()
