"""`treeline fit questions`: what graded samples say about a class of questions, and what the fit misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import yaml
from rich.console import Group
from rich.table import Table

from dashboards.terminal import plain
from models.fit_questions import Fit, fit_graded, fit_pairs
from models.fit_steps import fit_judged, fit_scores, fit_steps
from models.fit_table import fit_table
from models.graded import Data, Graded, Judged, Pairs, read_graded
from scenarios.errors import UserError


def fit_questions(
    path: str, report: Callable[[float, str], None] | None = None
) -> tuple[list[Fit], list[str]]:
    """Fit whatever `path` holds; returns the fits and what could not be fitted, in words.

    Raises: UserError where the file is none that can be fitted, or nothing in it can be.
    """
    data = read_graded(path)
    tell = report or (lambda share, text: None)
    fits: list[Fit] = []
    skipped: list[str] = []
    parts = _parts(data, lambda share: tell(share, "fitting the table"))
    for number, (name, work) in enumerate(parts):
        tell(number / len(parts), f"fitting {name}")
        try:
            fits += work()
        except ValueError as error:
            skipped.append(f"{name}: {error}")
    if not fits:
        raise UserError(f"{path}: nothing can be fitted. {' '.join(skipped)}")
    return fits, skipped


Part = tuple[str, Callable[[], list[Fit]]]


def _parts(data: Data, report: Callable[[float], None]) -> list[Part]:
    if isinstance(data, Judged):
        return [("judged steps", lambda: [fit_judged(data)])]
    if isinstance(data, tuple):
        return [("the table", lambda: [fit_table(data, report=report)])]
    parts: list[Part] = []
    for name, part in data.items():
        if isinstance(part, Pairs):
            parts.append((name, lambda part=part: fit_pairs(part)))  # type: ignore[misc]
        else:
            parts += _graded(name, part)
    return parts


def _graded(name: str, part: Graded) -> list[Part]:
    parts: list[Part] = [(name, lambda: [fit_graded(part)])]
    if part.good_steps is not None and part.good_steps.max() > 0:
        parts.append((f"{name}, steps", lambda: [fit_steps(part)]))
    if part.scores is not None and part.answer is not None:
        parts.append((f"{name}, verifier", lambda: [fit_scores(part)]))
    return parts


def document(path: str, fits: list[Fit], skipped: list[str]) -> dict[str, Any]:
    """The fits as one JSON document."""
    listed = []
    for fit in fits:
        entry = asdict(fit)
        for found in entry["parameters"].values():
            found |= {end: None if found[end] != found[end] else found[end] for end in found}
        for check, row in zip(fit.checks, entry["checks"], strict=True):
            row["fits"] = bool(check.fits)
        listed.append(entry)
    return {"file": path, "fits": listed, "skipped": skipped}


def _snippet(fit: Fit) -> list[str]:
    """The lines to put into a class of a scenario."""
    question = dict(fit.preset)
    if fit.verifier:
        question["verifier"] = dict(fit.verifier)
    if not question:
        return []
    text = yaml.safe_dump({"question": question}, sort_keys=False, default_flow_style=None)
    return ["", "For a class of a scenario:", *(f"    {line}" for line in text.splitlines())]


def tables(fits: list[Fit], skipped: list[str]) -> Group:
    """The fits for people: parameters, misfit, and the lines to put in a scenario."""
    blocks: list[Any] = []
    for fit in fits:
        size = f"{fit.questions:,} questions, " if fit.questions else ""
        title = f"{plain(fit.name)}: {size}{fit.samples:,} samples"
        rows = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
        for heading in ("parameter", "value", "95 % interval"):
            rows.add_column(heading, justify="left" if heading == "parameter" else "right")
        for name, e in fit.parameters.items():
            between = "" if e.low != e.low else f"{e.low:.3g} to {e.high:.3g}"
            rows.add_row(plain(name), f"{e.value:.4g}", between)
        misfit = Table(show_edge=False, pad_edge=False)
        for heading in ("misfit", "observed", "fitted", "SE", "verdict"):
            misfit.add_column(heading, justify="left" if heading == "misfit" else "right")
        for check in fit.checks:
            verdict = "within 2 SE" if check.fits else "MISFIT"
            figures = (f"{v:.3f}" for v in (check.observed, check.fitted, check.error))
            misfit.add_row(plain(check.name), *figures, verdict)
        blocks += [rows, "", misfit, *(plain(note) for note in fit.notes)]
        blocks += [plain(line) for line in _snippet(fit)] + [""]
    blocks += [plain(f"Not fitted: {line}") for line in skipped]
    return Group(*blocks)
