"""Runs as the page sees them: whole directories below one folder, read once, and never anything beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scenarios import document
from scenarios.errors import UserError
from sim.store import GIVEN, MANIFEST, RESOLVED, Stored, load

_NEEDED: Final = (
    "scenario", "seed", "verdict", "binding", "bounds", "tiers", "pools", "money", "warnings",
)  # fmt: skip
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,99}")


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory: its tables, its summary (the report's figures) and its scenario as given."""

    name: str
    stored: Stored
    summary: dict[str, Any]
    given: dict[str, Any]
    report: str


def names(folder: Path) -> list[str]:
    """Names of the run directories in `folder`, the newest first; none where there is no folder."""
    if not folder.is_dir():
        return []
    found = [
        (p.stat().st_mtime, p.name)
        for p in folder.iterdir()
        if not p.name.startswith(".") and (p / MANIFEST).is_file() and _inside(p, folder)
    ]
    return [name for _, name in sorted(found, key=lambda item: (-item[0], item[1]))]


def read(folder: Path, name: str) -> Run:
    """Read one run of `folder`. Raises UserError where it is not one, or broken."""
    place = _place(folder, name)
    summary = _summary(place, name)
    stored = load(place)
    try:
        text = (place / GIVEN).read_text(encoding="utf-8")
        given = document.read(text, GIVEN).plain()
    except (OSError, ValueError, UserError):
        given = {}  # the tables and the summary say everything else
    try:
        report = (place / "report.txt").read_text(encoding="utf-8")
    except (OSError, ValueError):
        report = ""
    return Run(name, stored, summary, given if isinstance(given, dict) else {}, report)


def head(folder: Path, name: str) -> dict[str, Any]:
    """The summary of one run without its tables, and `made`, the time it was written (s, epoch).

    Raises UserError where it is not a run, or broken.
    """
    place = _place(folder, name)
    return {**_summary(place, name), "made": (place / MANIFEST).stat().st_mtime}


def resolved(folder: Path, name: str) -> dict[str, Any]:
    """The resolved scenario of one run, as data. Raises UserError, OSError."""
    text = (_place(folder, name) / RESOLVED).read_text(encoding="utf-8")
    found = document.read(text, RESOLVED).plain()
    return dict(found)


def essence(scenario: Mapping[str, Any], load: bool = True) -> str:
    """What decides a run: its scenario without name and question, and without its load if not `load`.

    Runs of one scenario at several loads have the same essence but for the load.
    """
    found = json.loads(json.dumps(scenario))
    arrivals = found.get("workload", {}).get("arrivals", {})
    for key in ("rate", "speed") if not load else ():
        arrivals.pop(key, None)
    return json.dumps(
        {k: v for k, v in found.items() if k not in ("name", "question")}, sort_keys=True
    )


def rename(folder: Path, name: str, new: str) -> None:
    """Give a run another name. Raises UserError for one that is taken or no plain name."""
    place = _place(folder, name)
    if not _NAME.fullmatch(new) or ".." in new:
        raise UserError(
            "A name has letters, digits and _ . = - only, and begins with one of the first."
        )
    if (folder / new).exists():
        raise UserError(f"There is a {new!r} already. Choose another name.")
    place.rename(folder / new)


def delete(folder: Path, name: str) -> None:
    """Remove a run. Raises UserError where there is none of this name."""
    place = _place(folder, name)
    aside = folder / f".{name}.deleted"
    place.rename(aside)  # gone at once, however long the removal takes
    shutil.rmtree(aside, ignore_errors=True)


def _place(folder: Path, name: str) -> Path:
    if name not in names(folder):
        raise UserError(f"There is no run {name!r} here. Choose one from the list.")
    return folder / name


def _summary(place: Path, name: str) -> dict[str, Any]:
    try:
        summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        lacks = [key for key in _NEEDED if key not in summary]
    except (OSError, ValueError, TypeError, RecursionError):
        lacks = list(_NEEDED)
    if lacks:
        raise UserError(
            f"Run {name!r} has no readable summary.json (it lacks {', '.join(lacks)}). Make it "
            f"again: treeline run SCENARIO --out runs/{name} --force"
        )
    return dict(summary)


def _inside(place: Path, folder: Path) -> bool:
    return place.is_dir() and not place.is_symlink() and place.resolve().parent == folder.resolve()
