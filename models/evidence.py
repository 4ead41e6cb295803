"""What a search has seen of a query so far, in a few numbers: the votes, the verifier's scores, how they agree.

The same numbers are computed for many questions at once, from columns, and for one running search, from
its finished trajectories; a controller that learned on the first decides on the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SHARPNESS: Final = 3.0  # a vote weighs score ** SHARPNESS; chosen on training questions, 2026-11-25
SEEN: Final = (
    "share_weighted",  # of the leading answer among all weights
    "second_weighted",  # of the next one
    "share_votes",  # of the leading answer among all trajectories
    "second_votes",  # the most votes of any other answer, as a share
    "distinct",  # different answers, as a share of the trajectories
    "entropy",  # of the votes, in nats
    "lead_max",  # highest score of the leading answer
    "lead_mean",  # mean score of the leading answer
    "score_max",  # highest score of all
    "score_mean",
    "score_spread",  # standard deviation
    "log_tokens",  # log of the mean length of a trajectory
)


@dataclass(frozen=True, slots=True)
class Seen:
    """The evidence after n trajectories of each question, and the answer that leads.

    `table` is (questions, len(SEEN)); `wrong` is the leading answer (0: right, as in `Samples`).
    """

    table: Floats
    wrong: Ints


def seen(wrong: Ints, score: Floats, tokens: Ints) -> Seen:
    """The evidence of the first n answers to each question; every argument is (questions, n).

    `wrong` are equal for equal answers; without a verifier `score` is NaN and counts as one half.
    """
    rows, n = wrong.shape
    score = np.where(np.isnan(score), 0.5, score)
    weight = score**SHARPNESS
    order: Ints = np.argsort(wrong, axis=1, kind="stable")
    sorted_wrong = np.take_along_axis(wrong, order, 1)
    starts = np.ones((rows, n), dtype=bool)
    starts[:, 1:] = sorted_wrong[:, 1:] != sorted_wrong[:, :-1]
    group = np.cumsum(starts.ravel()) - 1  # runs never cross rows: column 0 always starts one
    count = group[-1] + 1

    def summed(values: npt.NDArray[Any]) -> Floats:
        ranged = np.take_along_axis(values, order, 1).ravel()
        return np.asarray(np.bincount(group, ranged, count), dtype=np.float64)

    votes, weights, scores = summed(np.ones((rows, n))), summed(weight), summed(score)
    earliest = np.full(count, n)
    np.minimum.at(earliest, group, order.ravel())
    best = np.full(count, -np.inf)
    np.maximum.at(best, group, np.take_along_axis(score, order, 1).ravel())
    row = np.flatnonzero(starts.ravel()) // n
    first = np.searchsorted(row, np.arange(rows))
    ranked = np.lexsort((earliest, -best, -weights, row))  # never by the label: it tells the truth
    lead = ranked[first]
    number = np.bincount(row, minlength=rows)
    runner = ranked[np.minimum(first + 1, count - 1)]
    has_second = number > 1
    others = votes.copy()
    others[lead] = 0.0
    total = weights_total = weight.sum(axis=1)
    total = np.maximum(weights_total, 1e-12)
    share = votes / n
    entropy = np.bincount(row, -share * np.log(share), rows)
    table = np.stack(
        [
            weights[lead] / total,
            np.where(has_second, weights[runner], 0.0) / total,
            votes[lead] / n,
            np.maximum.reduceat(others, first) / n,
            number / n,
            entropy,
            best[lead],
            scores[lead] / votes[lead],
            score.max(axis=1),
            score.mean(axis=1),
            score.std(axis=1),
            np.log(tokens.mean(axis=1)),
        ],
        axis=1,
    )
    return Seen(table, sorted_wrong.ravel()[np.flatnonzero(starts.ravel())[lead]])


def seen_one(
    answers: Sequence[object], score: Sequence[float], tokens: Sequence[int]
) -> tuple[list[float], object]:
    """`seen` of one question in plain Python: the numbers of `SEEN`, and the leading answer.

    `answers` are equal for equal answers; None (a trajectory without one) is an answer like any other.
    """
    n = len(answers)
    votes: dict[object, int] = {}
    weights: dict[object, float] = {}
    sums: dict[object, float] = {}
    best: dict[object, float] = {}
    scores = [0.5 if s != s else s for s in score]
    for answer, s in zip(answers, scores, strict=True):
        votes[answer] = votes.get(answer, 0) + 1
        weights[answer] = weights.get(answer, 0.0) + s**SHARPNESS
        sums[answer] = sums.get(answer, 0.0) + s
        if s > best.get(answer, -1.0):
            best[answer] = s
    ranked = sorted(votes, key=lambda answer: (-weights[answer], -best[answer]))
    lead = ranked[0]
    total = max(sum(weights.values()), 1e-12)
    mean = sum(scores) / n
    others = max((count for answer, count in votes.items() if answer != lead), default=0)
    found = [
        weights[lead] / total,
        weights[ranked[1]] / total if len(ranked) > 1 else 0.0,
        votes[lead] / n,
        others / n,
        len(votes) / n,
        -sum(count / n * math.log(count / n) for count in votes.values()),
        best[lead],
        sums[lead] / votes[lead],
        max(scores),
        mean,
        math.sqrt(sum((s - mean) ** 2 for s in scores) / n),
        math.log(sum(tokens) / n),
    ]
    return found, lead
