"""`treeline searches`: every algorithm of the catalogue on the same questions, at about the same number of branches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from models.controller import Plan, plan
from models.presets import PresetError
from models.question import question_model
from models.search import ALGORITHMS
from models.tuning import Bench
from models.verifier import verifier_model
from scenarios.errors import UserError


@dataclass(frozen=True, slots=True)
class Row:
    """What one algorithm came to, in means per question."""

    algorithm: str
    parameters: dict[str, Any]
    accuracy: float
    standard_error: float
    covered: float  # share of questions of which some finished trajectory was right
    tokens: float  # generated
    critical_path_tokens: float  # those that had to follow one another
    expansions: float
    scores: float


def bench(preset: str, verifier: str | None, seed: int) -> Bench:
    """The questions of a preset, and the verifier that belongs to it unless another is named.

    Raises UserError for a preset that does not exist.
    """
    try:
        questions = question_model(preset)
        return Bench(questions, verifier_model(verifier or questions.verifier), seed)
    except (PresetError, ValueError) as error:
        raise UserError(str(error)) from None


def sized(algorithm: str, n: int) -> Plan:
    """The algorithm with about `n` branches side by side or in all, the rest as its defaults are.

    A search in steps keeps n / 4 paths of four children each; `mcts` grows, two at a time, as many
    children as a beam of that size would in eight steps.
    """
    paths = max(1, round(n / 4))
    sizes = {"n": n, "width": paths, "subtrees": paths, "simulations": 4 * n}
    known = ALGORITHMS[algorithm].parameters
    return plan(algorithm, **{name: size for name, size in sizes.items() if name in known})


def compare(
    where: Bench, n: int, questions: int, tell: Callable[[float, str], None] | None = None
) -> list[Row]:
    """Play every algorithm at size `n` on the same questions, the most accurate first."""
    rows = []
    for number, name in enumerate(ALGORITHMS):
        if tell is not None:
            tell(number / len(ALGORITHMS), name)
        chosen = sized(name, n)
        found = where.play(chosen, questions, "test")
        accuracy = float(found.correct.mean())
        rows.append(
            Row(
                name,
                dict(chosen.params),
                accuracy,
                math.sqrt(accuracy * (1 - accuracy) / questions),
                float(found.covered.mean()),
                float(found.tokens.mean()),
                float(found.makespan_tokens.mean()),
                float(found.expansions.mean()),
                float(found.scores.mean()),
            )
        )
    return sorted(rows, key=lambda row: -row.accuracy)


def document(where: Bench, rows: list[Row], questions: int) -> dict[str, Any]:
    """The comparison as JSON values."""
    assert where.verifier is not None
    return {
        "questions": where.questions.name,
        "verifier": where.verifier.name,
        "count": questions,
        "seed": where.seed,
        "rows": [asdict(row) for row in rows],
    }


def table(where: Bench, rows: list[Row], questions: int) -> Group:
    """The comparison for people."""
    assert where.verifier is not None
    shown = Table(
        "search", "accuracy", "some end right", "tokens", "critical path", "scores", "parameters",
        box=None, pad_edge=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for row in rows:
        defaults = ALGORITHMS[row.algorithm].parameters
        parameters = ", ".join(
            f"{key} {value}"
            for key, value in row.parameters.items()
            if value != defaults[key].default or key in ("n", "width", "subtrees", "simulations")
        )
        shown.add_row(
            row.algorithm,
            f"{row.accuracy:.1%} ±{1.96 * row.standard_error:.1%}",
            f"{row.covered:.1%}",
            f"{row.tokens:,.0f}",
            f"{row.critical_path_tokens:,.0f}",
            f"{row.scores:,.0f}",
            parameters or "-",
        )
    shown.columns[0].no_wrap = shown.columns[1].no_wrap = True
    head = (
        f"{where.questions.name}, verifier {where.verifier.name}: {questions:,} questions, the same for "
        "every search; means per question"
    )
    return Group(head, "", shown)
