"""`treeline science`: published comparisons run again, as a table, a page of the docs, or JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from dashboards.terminal import near, plain
from models.science import Row, experiments, run
from scenarios.errors import UserError

BOUND = {"within": "", "at_least": "at least ", "at_most": "at most ", "shown": ""}


def run_science(
    names: Sequence[str], scale: float, tell: Callable[[float, str], None] | None
) -> list[Row]:
    """Run the named experiments. Raises: UserError for a name that is none."""
    known = experiments()
    for name in names:
        if name not in known:
            hint = near(name, known)
            raise UserError(
                f"There is no experiment {plain(name)!r}.{hint} There are {', '.join(known)}."
            )
    return run(names, scale, tell)


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows and how many hold, as one JSON document; a figure that is none is null."""
    listed = []
    for row in rows:
        entry = asdict(row) | {"verdict": row.verdict}
        listed.append({k: None if v != v else v for k, v in entry.items()})
    return {"rows": listed, "verdicts": _counted(rows)}


def table(rows: Sequence[Row]) -> Group:
    """The rows for people."""
    found = Table(show_edge=False, pad_edge=False)
    for heading in ("experiment", "claim", "target", "ours", "SE", "n", "verdict"):
        found.add_column(heading, justify="left" if heading in ("experiment", "claim") else "right")
    before = ""
    for row in rows:
        name = row.experiment if row.experiment != before else ""
        before = row.experiment
        verdict = row.verdict.upper() if row.verdict == "missed" else row.verdict
        found.add_row(name, row.claim, *_figures(row), verdict)
    return Group(found, "", _sentence(rows))


def _figures(row: Row) -> tuple[str, str, str, str]:
    target = "" if row.rule == "shown" else f"{BOUND[row.rule]}{row.target:.3f}"
    if row.rule == "within":
        target += f" ± {row.tolerance:.3f}"
    return (
        target,
        f"{row.ours:.3f}",
        "" if math.isnan(row.se) else f"{row.se:.3f}",
        f"{row.n:,}" if row.n else "",
    )


def _counted(rows: Sequence[Row]) -> dict[str, int]:
    return {word: sum(row.verdict == word for row in rows) for word in ("holds", "open", "missed")}


def _sentence(rows: Sequence[Row]) -> str:
    counted = _counted(rows)
    return (
        f"{counted['holds']} comparisons hold, {counted['open']} are open (their bound is closer than "
        f"two standard errors), {counted['missed']} are missed."
    )


PAGE = """# What Treeline's questions, verifiers and searches reproduce

Made by `{command}`. Every row is computed by the generative model of [models/world.py](../models/world.py)
with the presets of [models/presets.yaml](../models/presets.yaml): one question model and one verifier per
preset, nothing set per row. *Target* is what was published (or a bound that follows from it), *ours* what the
model gives on n simulated questions, SE the standard error of ours. A row *holds* inside its tolerance, is
*open* where a bound is closer than two standard errors, and is *missed* otherwise.

{sentence}
"""


def write_page(
    file: str, rows: Sequence[Row], names: Sequence[str], scale: float, *, force: bool
) -> None:
    """Write the rows as a page of Markdown. Raises: UserError where it exists or cannot be written."""
    words = ["treeline science", *names, *([f"--scale {scale:g}"] if scale != 1 else [])]
    text = PAGE.format(
        command=" ".join([*words, "--markdown docs/science.md"]), sentence=_sentence(rows)
    )
    sections: dict[str, list[Row]] = {}
    for row in rows:
        sections.setdefault(row.experiment, []).append(row)
    for name, part in sections.items():
        docstring = (experiments()[name].__doc__ or "").strip().splitlines()[0]
        text += f"\n## {name}\n\n{docstring}\n\n"
        text += "| claim | target | ours | SE | n | verdict |\n|---|---|---|---|---|---|\n"
        for row in part:
            cells = (row.claim, *_figures(row), row.verdict)
            text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
        sources = dict.fromkeys(row.source for row in part if row.source)
        if sources:
            text += "\nSource: " + "; ".join(sources) + ".\n"
    try:
        with Path(file).open("w" if force else "x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{plain(file)} exists already. Name another, or add --force.") from None
    except OSError as error:
        raise UserError(f"{plain(file)} cannot be written: {error}. Name another file.") from None
