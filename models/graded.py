"""Graded samples, whoever wrote them: CSV or JSON Lines with one row a sample -> columns.

A file is recognised by its columns:
    graded answers   a question and `correct`; also answer, method, tokens or chars, n_good_steps, scores
    paired models    a question and two or more columns `NAME_correct`, one sample of each model
    judged steps     `depth`, whether the step keeps the question solvable, and the verifier's value
    a table          `method`, `N` and an accuracy, one row a search
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scenarios.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

QUESTION: Final = (
    "question",
    "unique_id",
    "idx",
    "qid",
    "problem_id",
    "question_id",
    "task_id",
    "id",
)
GROUP: Final = ("method", "model", "policy", "bench")
ALIVE: Final = ("solvable_exact", "alive", "solvable")
VALUE: Final = ("value_3votes", "value", "score")
ACCURACY: Final = ("accuracy", "accuracy_softlabel")
CHARACTERS_A_TOKEN: Final = 4.0  # assumed where a file counts characters


@dataclass(frozen=True, slots=True)
class Graded:
    """Samples of one policy, columns of shape (n,)."""

    name: str
    question: Ints  # 0, 1, ...
    correct: Ints  # 0 or 1
    answer: tuple[str, ...] | None = None
    tokens: Floats | None = None
    good_steps: Ints | None = None  # steps that were right before the first wrong one
    scores: tuple[tuple[float, ...], ...] | None = None  # of a verifier, step by step, in (0, 1)
    tokens_assumed: bool = False  # counted from characters

    @property
    def questions(self) -> int:
        """How many questions there are."""
        return int(self.question.max()) + 1

    def counts(self) -> tuple[Ints, Ints]:
        """Right answers and samples of each question."""
        right = np.bincount(self.question, weights=self.correct).astype(np.int64)
        return right, np.bincount(self.question)


@dataclass(frozen=True, slots=True)
class Pairs:
    """One sample of each of several models on the same questions: (questions, models) of 0 or 1."""

    name: str
    models: tuple[str, ...]
    correct: Ints


@dataclass(frozen=True, slots=True)
class Judged:
    """Steps of a search: whether each keeps the question solvable, and what the verifier said of it."""

    depth: Ints  # from 1
    alive: Ints  # 0 or 1
    value: Floats


@dataclass(frozen=True, slots=True)
class Point:
    """One row of a published table: a search's accuracy on so many questions."""

    method: str
    n: int
    accuracy: float
    tokens: float  # a question; NaN where it is not told
    questions: int


Data = dict[str, Graded] | dict[str, Pairs] | Judged | tuple[Point, ...]


def read_graded(path: str) -> Data:
    """Read a file of any of the four kinds. Raises UserError where it is none or a value is none."""
    rows = _rows(path)
    columns = set().union(*(row.keys() for row in rows[:100]))
    question = _first(QUESTION, columns)
    paired = sorted(c for c in columns if c.endswith("_correct"))
    if "correct" in columns and question:
        return _by_group(path, rows, columns, question)
    if question and len(paired) > 1:
        return _pairs(path, rows, columns, paired)
    alive, value = _first(ALIVE, columns), _first(VALUE, columns)
    if "depth" in columns and alive and value:
        return _judged(path, rows, alive, value)
    accuracy = _first(ACCURACY, columns)
    if {"method", "N"} <= columns and accuracy:
        return _table(path, rows, accuracy)
    raise UserError(
        f"{path} is none of the files that can be fitted: its columns are {', '.join(sorted(columns))}. "
        'Give it a column "question" and one "correct" (0 or 1), a row for every sample; answer, method, '
        "tokens and scores are used where they are there."
    )


def _rows(path: str) -> list[dict[str, Any]]:
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            if path.endswith((".jsonl", ".ndjson")):
                rows = [json.loads(line) for line in stream if line.strip()]
            else:
                rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Name a CSV or JSON Lines file.") from None
    except (json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not what its name says: {error}.") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no rows: it needs a header (CSV) or one object a line.")
    return rows


def _first(names: Sequence[str], columns: set[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _number(path: str, line: int, column: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f'{path}, row {line}: "{column}" must be a number, got {value!r}.')
    return number


def _flag(path: str, line: int, column: str, value: Any) -> int:
    words = {"true": 1, "false": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0}
    flag = words.get(str(value).strip().lower())
    if flag is None:
        raise UserError(f'{path}, row {line}: "{column}" must be 0 or 1, got {value!r}.')
    return flag


def _by_group(
    path: str, rows: list[dict[str, Any]], columns: set[str], question: str
) -> dict[str, Graded]:
    group = _first(GROUP, columns)
    parts: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for line, row in enumerate(rows, start=1):
        parts.setdefault(str(row.get(group, "")) if group else "all", []).append((line, row))
    return {name: _graded(path, name, part, columns, question) for name, part in parts.items()}


def _graded(
    path: str, name: str, part: list[tuple[int, dict[str, Any]]], columns: set[str], question: str
) -> Graded:
    codes: dict[str, int] = {}
    places = [codes.setdefault(str(row.get(question)), len(codes)) for _, row in part]
    length = _first(("tokens", "output_tokens", "chars"), columns)
    tokens = None
    if length:
        unit = CHARACTERS_A_TOKEN if length == "chars" else 1.0
        tokens = (
            np.array([_number(path, line, length, row.get(length)) for line, row in part]) / unit
        )
    steps = None
    if "n_good_steps" in columns and all(
        row.get("n_good_steps") not in (None, "") for _, row in part
    ):
        counted = [_number(path, line, "n_good_steps", row["n_good_steps"]) for line, row in part]
        steps = np.array(counted, dtype=np.int64)
    scores = None
    if "scores" in columns and all(isinstance(row.get("scores"), list) for _, row in part):
        scores = tuple(
            tuple(_number(path, line, "scores", s) for s in row["scores"]) for line, row in part
        )
    return Graded(
        name,
        np.array(places, dtype=np.int64),
        np.array([_flag(path, line, "correct", row.get("correct")) for line, row in part]),
        tuple(str(row.get("answer", "")).strip() for _, row in part)
        if "answer" in columns
        else None,
        tokens,
        steps,
        scores,
        length == "chars",
    )


def _pairs(
    path: str, rows: list[dict[str, Any]], columns: set[str], names: list[str]
) -> dict[str, Pairs]:
    group = _first(GROUP, columns)
    parts: dict[str, list[list[int]]] = {}
    for line, row in enumerate(rows, start=1):
        flags = [_flag(path, line, name, row.get(name)) for name in names]
        parts.setdefault(str(row.get(group, "")) if group else "all", []).append(flags)
    models = tuple(name.removesuffix("_correct") for name in names)
    return {name: Pairs(name, models, np.array(part)) for name, part in parts.items()}


def _judged(path: str, rows: list[dict[str, Any]], alive: str, value: str) -> Judged:
    depth = [_number(path, line, "depth", row.get("depth")) for line, row in enumerate(rows, 1)]
    found = np.array(depth, dtype=np.int64)
    return Judged(
        found + (1 - int(found.min())),
        np.array([_flag(path, line, alive, row.get(alive)) for line, row in enumerate(rows, 1)]),
        np.array([_number(path, line, value, row.get(value)) for line, row in enumerate(rows, 1)]),
    )


def _table(path: str, rows: Sequence[Mapping[str, Any]], accuracy: str) -> tuple[Point, ...]:
    points = []
    for line, row in enumerate(rows, start=1):
        tokens = row.get("tokens_per_question")
        points.append(
            Point(
                str(row["method"]),
                int(_number(path, line, "N", row["N"])),
                _number(path, line, accuracy, row[accuracy]),
                math.nan if tokens in (None, "") else _number(path, line, "tokens", tokens),
                int(_number(path, line, "n_questions", row.get("n_questions", 100))),
            )
        )
    return tuple(points)
