"""Questions played to the end, stage by stage: what is seen at each, what leads, what it cost, and where a beam would end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evidence import SEEN, seen
from models.learned import STAGES
from models.mix import Drawn
from models.switch import found_rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Prices:
    """GPU-seconds of the work of a search, and where they come from: generated, scored, read tokens."""

    generated_s: float
    scored_s: float
    prompt_s: float
    label: str
    digest: str
    source_kind: str  # measured | imported | roofline, as of the step costs behind them

    def trajectories(self, tokens: npt.NDArray[Any], scored: bool = True) -> Floats:
        """GPU-seconds of whole trajectories of so many tokens, each of them scored or not."""
        each = self.generated_s + (self.scored_s if scored else 0.0)
        found: Floats = tokens * each
        return found


@dataclass(frozen=True, slots=True)
class Staged:
    """Questions seen stage by stage; a stage is a place in `STAGES`, and every array has a row a question."""

    drawn: Drawn
    prices: Prices
    known: int  # how many numbers of a row are known before the search
    rows: list[Floats]  # of each stage, (questions, features)
    lead: list[Ints]  # the leading answer, 0: right; -1 where nothing is grown yet
    spent: list[Floats]  # GPU-seconds added by the stage
    beam_s: Floats  # GPU-seconds of each beam, (questions, len(BEAMS))

    def right(self, stage: int) -> Bools:
        """Whether the leading answer of a stage is right."""
        return np.equal(self.lead[stage], 0)

    def found(self, stage: int, beam: int, places: Ints) -> tuple[Floats, Bools]:
        """What is seen once `beam`, left for at `stage`, has ended, and whether its answer is right."""
        drawn, n = self.drawn, STAGES[stage]
        end = drawn.beam_wrong[places, beam]
        votes = drawn.wrong[places, :n], drawn.score[places, :n]
        numbers = found_rows(*votes, self.lead[stage][places], end, drawn.beam_score[places, beam])
        return numbers, np.equal(end, 0)


def staged(
    drawn: Drawn, mean_tokens: tuple[float, ...], prices: Prices, told_steps: bool = False
) -> Staged:
    """Play the vote of every question to its last stage and note what is seen at each.

    `mean_tokens` of a trajectory, by class, stand for the lengths before there are any. With `told_steps` the
    number of steps is known too, as to an oracle.
    """
    columns = [*(drawn.klass == k for k in range(len(mean_tokens))), drawn.hint]
    known = np.column_stack([*columns, *([drawn.steps] if told_steps else [])]).astype(float)
    rows, lead, spent = [], [], []
    nothing = np.zeros((len(drawn), len(SEEN)))
    nothing[:, -1] = np.log(mean_tokens)[drawn.klass]
    before = 0
    for n in STAGES:
        table, leads = nothing, np.full(len(drawn), -1)
        if n:
            found = seen(drawn.wrong[:, :n], drawn.score[:, :n], drawn.tokens[:, :n])
            table, leads = found.table, found.wrong
        rows.append(np.concatenate([known, table], axis=1))
        lead.append(leads)
        spent.append(prices.trajectories(drawn.tokens[:, before:n].sum(axis=1)))
        before = n
    return Staged(
        drawn, prices, known.shape[1], rows, lead, spent, prices.trajectories(drawn.beam_tokens)
    )


def mean_tokens(drawn: Drawn, classes: int) -> tuple[float, ...]:
    """Mean tokens of a trajectory of each class; of all where a class has none."""
    whole = float(drawn.tokens.mean())
    of = (drawn.tokens[drawn.klass == k] for k in range(classes))
    return tuple(float(tokens.mean()) if len(tokens) else whole for tokens in of)
