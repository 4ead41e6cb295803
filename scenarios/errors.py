"""Errors that a person reads: what is wrong, where, which rule, and the way out.

UserError                the whole message is str(error); exit code 2, never a traceback
 ├── ScenarioError       every problem of one scenario at once, each with its place and source line
 └── MissingError        a GPU, or a package that only some commands need, is not here; exit code 4
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

_SHOWN_COLUMNS = 96  # of a source line; a longer one is cropped around the caret


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a scenario: `name` is the file as the user wrote it, `line` and `column` count from 1.

    `line` 0 means that the place has no lines: an option of the command line, or a file as a whole.
    """

    name: str
    line: int = 0
    column: int = 0
    source: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else printable(self.name)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to fix: where it is, what is wrong, and the fix (empty when the message holds it)."""

    where: Mark
    message: str
    hint: str = ""

    def __str__(self) -> str:
        lines = [f"{printable(str(self.where))}: {printable(self.message)}"]
        if self.where.line and self.where.source.strip():
            lines += _caret(self.where.source, self.where.column)
        if self.hint:
            lines.append(f"    {printable(self.hint)}")
        return "\n".join(lines)


class UserError(Exception):
    """Something that the user can put right; `str(error)` is the whole message."""


class MissingError(UserError):
    """A GPU or an optional package that a command needs is not here; the message holds the way to it."""


class ScenarioError(UserError):
    """A scenario that cannot be run, with all of its problems in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        assert problems, "a ScenarioError without a problem says nothing"
        self.problems = problems
        super().__init__(problems)

    def __str__(self) -> str:
        body = "\n\n".join(str(problem) for problem in self.problems)
        count = len(self.problems)
        return body if count == 1 else f"{body}\n\n{count} problems"


def printable(text: str) -> str:
    """The text with every control, format and lone surrogate character escaped, safe for a terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def _caret(source: str, column: int) -> list[str]:
    line = source.rstrip("\r\n").replace("\t", " ")
    at = min(max(column - 1, 0), len(line))
    start = max(0, at - _SHOWN_COLUMNS // 2) if len(line) > _SHOWN_COLUMNS else 0
    before, after = printable(line[start:at]), printable(line[at : start + _SHOWN_COLUMNS])
    width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in before)
    return [f"    {before}{after}", f"    {' ' * width}^"]
