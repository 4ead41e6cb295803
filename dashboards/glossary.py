"""What the field's terms mean: glossary.yaml, found in any spelling; else the columns of a run's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.table import Table

from dashboards.terminal import near, plain, program
from scenarios.errors import UserError


@dataclass(frozen=True, slots=True)
class Term:
    """One term: other spellings, a sentence, and where they exist a formula, a unit and a source."""

    name: str
    sentence: str
    source: str
    also: tuple[str, ...] = ()
    formula: str = ""
    unit: str = ""


def terms() -> tuple[Term, ...]:
    """All terms of the glossary in its order."""
    text = Path(__file__).with_name("glossary.yaml").read_text(encoding="utf-8")
    entries: Mapping[str, Mapping[str, str]] = yaml.safe_load(text)
    return tuple(
        Term(name, **{**entry, "also": tuple(entry.get("also", ()))})  # type: ignore[arg-type]
        for name, entry in entries.items()
    )


def find(asked: str) -> Term:
    """The term of that name in any spelling, else the column; raises UserError for neither."""
    known = terms()
    spellings = _spellings(known)
    if (term := spellings.get(_bare(asked))) is not None:
        return term
    from sim.records import documented

    try:
        column = documented(asked)
    except KeyError:
        names = [name for term in known for name in (term.name, *term.also)]
        raise UserError(
            f"{plain(asked)!r} is not in the glossary.{near(asked, names)} "
            f"All terms: {program()} explain"
        ) from None
    return Term(
        column.name, f"In a run's tables, {column.meaning}.", "sim/records.py", unit=column.unit
    )


def table(listed: Iterable[Term]) -> Table:
    """Terms and their sentences for people."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    for term in listed:
        grid.add_row(term.name, term.sentence)
    return grid


def _spellings(known: Iterable[Term]) -> dict[str, Term]:
    return {_bare(name): term for term in known for name in (term.name, *term.also)}


def _bare(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
