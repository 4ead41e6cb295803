"""Leaving a vote for a beam: which beams, what is seen when one ends, and which of the two answers to believe.

A vote rarely finds the answer to a question that is seldom solved: wrong answers agree more often. A beam
lets the verifier choose after every step and gets there with a tenth of the tokens. The answer that
leads the vote and the beam's are then weighed against each other, by what is seen of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.evidence import SHARPNESS
from models.forest import Forest, from_dict

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BEAMS: Final = ((1, 3), (2, 3), (2, 8), (4, 8))  # width and children of each kept path
MAX_STEPS: Final = 40  # of a beam; the last runs on to the answer
ASKED: Final = ("log_grown", "log_width", "log_expand")  # beside a row, before a beam
FOUND: Final = (  # beside those, after it
    "beam_score",
    "beam_votes",  # share of the vote's trajectories that gave the beam's answer
    "beam_weighted",  # share of their weights
    "agrees",  # 1 where the beam's answer leads the vote
)


@dataclass(frozen=True, slots=True)
class Switch:
    """Three forests: is the answer right `after` a beam, and once it has ended, is the vote's `lead` or the `beam`'s?"""

    after: Forest
    lead: Forest
    beam: Forest

    def as_dict(self) -> dict[str, Any]:
        """The forests as JSON values."""
        return {name: getattr(self, name).as_dict() for name in self.__slots__}


def from_json(found: Mapping[str, Any]) -> Switch:
    """A switch from JSON values; raises ValueError where it is none."""
    return Switch(*(from_dict(found[name]) for name in Switch.__slots__))


def size(beam: int) -> int:
    """Whole trajectories that a beam takes the work of: width x expand."""
    width, expand = BEAMS[beam]
    return width * expand


def asked(grown: int, beam: int) -> list[float]:
    """The numbers of `ASKED`: how many trajectories the vote has grown, and the beam in question."""
    width, expand = BEAMS[beam]
    return [math.log1p(grown), math.log(width), math.log(expand)]


def asked_rows(rows: Floats, grown: int, beam: int) -> Floats:
    """Rows of a stage and beside each the numbers of `ASKED`."""
    return np.column_stack([rows, np.tile(asked(grown, beam), (len(rows), 1))])


def found_rows(wrong: Ints, score: Floats, lead: Ints, end: Ints, end_score: Floats) -> Floats:
    """The numbers of `FOUND` of many questions, (questions, len(FOUND)).

    `wrong` and `score` are the vote's, (questions, grown), `lead` its leading answer; `end` is the beam's
    answer and `end_score` its score, (questions,). Nothing grown counts as no vote for it.
    """
    same = wrong == end[:, None]
    weight = score**SHARPNESS
    votes = same.sum(axis=1) / max(1, wrong.shape[1])
    weighted = (same * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-12)
    return np.column_stack([end_score, votes, weighted, (lead == end) & (votes > 0)])


def found_one(
    answers: Sequence[object], score: Sequence[float], lead: object, end: object, end_score: float
) -> list[float]:
    """`found_rows` of one question in plain Python; answers are equal for equal answers."""
    weights = [s**SHARPNESS for s in score]
    same = [answer == end for answer in answers]
    votes = sum(same) / max(1, len(same))
    weighted = sum(w for w, s in zip(weights, same, strict=True) if s) / max(sum(weights), 1e-12)
    return [end_score, votes, weighted, float(lead == end and votes > 0)]
