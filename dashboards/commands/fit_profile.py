"""`treeline fit profile`: what the cost model learns from a profile, and how far off it is where it has not looked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dashboards.terminal import plain
from hw.device import CatalogError, device
from hw.profile import Profile, ProfileError, load, save
from hw.shipped import find_profile
from models.heldout import Error, Heldout, heldout
from scenarios.errors import UserError

MEDIAN_GOAL, P90_GOAL, SHIFT_GOAL, COMPOSED_GOAL = 0.03, 0.10, 0.01, 0.10
_WIDTH, _HEIGHT = 64, 14  # of the picture, in characters
_SHADES = " .:+*#"


def fit_profile(name: str, *, record: bool) -> tuple[Profile, Heldout]:
    """Fit a profile, shipped or at a path, to all but its holdout, and judge the fit on that.

    With `record`, the error goes into the profile's sidecar, and from there into every report that uses it.
    Raises: UserError for a profile that cannot be read or fitted.
    """
    path = _path(name)
    try:
        profile = load(path)
        found = heldout(profile, device(profile.device))
    except (ProfileError, CatalogError) as error:
        raise UserError(str(error)) from None
    if not found.errors:
        raise UserError(f"{name} holds too few points to leave any out; measure a finer grid.")
    if record:
        noted = replace(profile, meta={**profile.meta, "error": found.words()})
        try:
            save(noted, path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    return profile, found


def document(profile: Profile, found: Heldout) -> dict[str, Any]:
    """Everything as JSON values."""
    return {
        "profile": profile.label,
        "device": profile.device,
        "source_kind": profile.source_kind,
        "left_out": found.left_out,
        "median": found.median,
        "p90": found.p90,
        "monotony_shift_median": found.shift,
        "goals": {"median": MEDIAN_GOAL, "p90": P90_GOAL, "monotony_shift_median": SHIFT_GOAL},
        "operations": {
            error.op: {"points": error.points, "median": error.median, "p90": error.p90,
                       "signed": error.signed, "composed": error.composed,
                       "noise": None if math.isnan(error.noise) else error.noise}
            for error in found.errors
        },
    }  # fmt: skip


def picture(profile: Profile, found: Heldout) -> RenderableType:
    """The report for a terminal of 100 columns."""
    holds = found.median <= MEDIAN_GOAL and found.p90 <= P90_GOAL
    return Group(
        Text(plain(profile.label), style="bold"),
        Text(f"Errors on {found.left_out}."),
        Text(""),
        Text(
            f"{'HOLDS' if holds else 'MISSED'}: median {found.median:.1%} (goal {MEDIAN_GOAL:.0%}), "
            f"p90 {found.p90:.1%} (goal {P90_GOAL:.0%}). Monotony moves measured points by "
            f"{found.shift:.2%} in the median (goal {SHIFT_GOAL:.0%}).",
            style="bold",
        ),
        Text(""),
        _table(found),
        Text(
            "Error: fitted / measured - 1. Composed: put together from parts that the fit has seen."
        ),
        *(Text(_whole(error)) for error in found.errors if error.op.startswith("expansion")),
        Text(""),
        Text(_scatter(found)),
    )


def _path(name: str) -> Path:
    try:
        return find_profile(name if "/" in name or not Path(name).exists() else f"./{name}")
    except ProfileError as error:
        raise UserError(str(error)) from None


def _whole(error: Error) -> str:
    """How a whole expansion compares with its parts, beside how far its own samples lie apart."""
    off = error.fitted_s / error.measured_s - 1
    verdict = "HOLDS" if abs(error.signed) <= COMPOSED_GOAL else "MISSED"
    noise = (
        ""
        if math.isnan(error.noise)
        else f"; its own samples spread over {error.noise:.1%} (p10 to p90)"
    )
    return (
        f"{verdict}: a composed expansion is {error.signed:+.1%} off in the median (goal within {COMPOSED_GOAL:.0%}), "
        f"{off.min():+.0%} to {off.max():+.0%} over {error.points} points{noise}."
    )


def _table(found: Heldout) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("operation", "points", "median", "p90", "signed"):
        table.add_column(head, justify="left" if head == "operation" else "right")
    for error in found.errors:
        table.add_row(plain(error.op), f"{error.points:,}", f"{error.median:.1%}",
                      f"{error.p90:.1%}", f"{error.signed:+.1%}")  # fmt: skip
    return table


def _scatter(found: Heldout) -> str:
    """Fitted over measured seconds, both in log scale, as shades of how many points lie in a cell."""
    real = np.concatenate([e.measured_s for e in found.errors])
    fit = np.concatenate([e.fitted_s for e in found.errors])
    low, high = float(min(real.min(), fit.min())), float(max(real.max(), fit.max()))
    span = max(np.log(high / low), 1e-9)
    x = np.minimum((np.log(real / low) / span * _WIDTH).astype(int), _WIDTH - 1)
    y = np.minimum((np.log(fit / low) / span * _HEIGHT).astype(int), _HEIGHT - 1)
    counts = np.zeros((_HEIGHT, _WIDTH))
    np.add.at(counts, (y, x), 1)
    shade = np.ceil(np.log1p(counts) / np.log1p(counts.max()) * (len(_SHADES) - 1)).astype(int)
    lines = []
    for row in range(_HEIGHT - 1, -1, -1):
        label = _time(high) if row == _HEIGHT - 1 else _time(low) if row == 0 else ""
        text = "".join(
            _SHADES[s] if s else ("/" if col * _HEIGHT // _WIDTH == row else " ")
            for col, s in enumerate(shade[row])
        )
        lines.append(f"{label:>10} |{text.rstrip()}")
    ends = _time(low) + _time(high).rjust(_WIDTH - len(_time(low)))
    return "\n".join(
        [
            "fitted",
            *lines,
            f"{'':>11}+{'-' * _WIDTH}",
            f"{'':>12}{ends}",
            f"{'measured':>{_WIDTH + 12}}",
        ]
    )


def _time(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
