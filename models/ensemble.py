"""Several verifiers on the same answers: combined, cautious, chosen by type, trained on noisy labels.

A member is a `VerifierModel` of another version: it has step errors of its own, and class errors and blind
spots of which `common` says how much the members share. What they share, no ensemble removes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from models.batch_rollout import Samples, samples
from models.crowd import Bools, Floats, Ints, crowds
from models.keyed import Keys
from models.verifier import VerifierModel
from models.world import HALF, RIGHT, QuestionModel


def members(verifier: VerifierModel, n: int, common: float = 0.5) -> list[VerifierModel]:
    """`n` verifiers like `verifier` whose class errors and blind spots are alike by the share `common`."""
    first = verifier.version
    return [replace(verifier, common=common, version=first + i) for i in range(n)]


def logits(
    model: QuestionModel, verifiers: Sequence[VerifierModel], keys: Keys, n: int
) -> tuple[Samples, Floats]:
    """`n` answers to each question and every verifier's logit of each: (verifiers, questions, n).

    The answers are the same whoever scores them; `score` of the samples is the first verifier's.
    """
    grown = [samples(model, verifier, keys, n) for verifier in verifiers]
    scores = np.stack([one.score for one in grown])
    return grown[0], np.log(scores) - np.log1p(-scores)


def combined(logit: Floats, caution: float = 0.0) -> Floats:
    """The members' mean logit less `caution` standard deviations of theirs: (questions, n).

    A blind spot of one member raises their spread, so that caution takes back what it adds to the mean.
    Source: Coste et al., "Reward model ensembles help mitigate overoptimization", arXiv 2310.02743.
    """
    mean: Floats = logit.mean(axis=0)
    return mean if caution == 0 else mean - caution * logit.std(axis=0)


# -- one verifier for each type of question ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Router:
    """Which verifier to ask for which type of question, and what is asked for a type never seen."""

    choice: Mapping[str, int]
    default: int

    def __call__(self, types: Sequence[str]) -> Ints:
        """The number of the verifier for each question."""
        return np.array([self.choice.get(t, self.default) for t in types], dtype=np.int64)


def learn_router(types: Sequence[str], logit: Floats, right: Bools) -> Router:
    """Route each type to the verifier whose best of n is right most often on these questions.

    `logit` is (verifiers, questions, n) and `right` (questions, n). Judge the router on other questions.
    """
    picked = logit.argmax(axis=2)  # (verifiers, questions)
    won = np.take_along_axis(right[None], picked[:, :, None], axis=2)[:, :, 0]
    kinds = np.array(types)
    choice = {str(t): int(won[:, kinds == t].mean(axis=1).argmax()) for t in np.unique(kinds)}
    return Router(choice, int(won.mean(axis=1).argmax()))


def routed(router: Router, types: Sequence[str], logit: Floats) -> Floats:
    """The logits of the verifier that the router asks, (questions, n)."""
    return logit[router(types), np.arange(logit.shape[1])]


# -- how a process verifier is trained ---------------------------------------------------------------------

LABELS: Final = ("hard", "soft")


@dataclass(frozen=True, slots=True)
class Labels:
    """How steps are labelled for training a process verifier.

    `rollouts` completions from each step; hard: good when any of them is right; soft: their share that is
    right. `consensus`: the share of wrongly labelled steps that a second judge filters out. `lucky`: the
    chance that a completion of a dead step is right all the same (by a wrong way).
    """

    rollouts: int = 8
    kind: Literal["hard", "soft"] = "hard"
    consensus: float = 0.0
    lucky: float = 0.002

    def __post_init__(self) -> None:
        if self.rollouts < 1 or self.kind not in LABELS:
            raise ValueError(f'"rollouts" must be >= 1 and "kind" one of {", ".join(LABELS)}.')
        if not (0 <= self.consensus <= 1 and 0 <= self.lucky <= 1):
            raise ValueError('"consensus" and "lucky" must lie in [0, 1].')


@dataclass(frozen=True, slots=True)
class Quality:
    """How well labels say whether a step is alive: the slope of label on alive, in [0, 1], early and late."""

    early: float  # after the first step
    late: float  # before the last


def label_quality(model: QuestionModel, labels: Labels, keys: Keys) -> Quality:
    """What labels are worth on the steps of these questions, from the chance to finish from each step.

    A living step of chance v to finish is missed by hard labels with (1 - v)^rollouts: steps of hard
    questions look dead. A soft label's slope is its mean at living less that at dead steps, times the
    square root of its reliability.
    """
    slopes: list[tuple[float, float, int]] = []
    for _, crowd in crowds(model, None, keys, 1):
        if crowd.steps > 1:
            chances = crowd.survival / HALF
            first, last = chances[:, 1:].prod(axis=1), chances[:, -1]
            count = len(chances)
            alive = chances[:, 0], chances[:, :-1].prod(axis=1)  # how often such a step is there
            slopes.append((_slope(first, alive[0], labels), _slope(last, alive[1], labels), count))
    if not slopes:
        return Quality(1.0, 1.0)
    weight = [count for *_, count in slopes]
    early = float(np.average([slope for slope, _, _ in slopes], weights=weight))
    late = float(np.average([slope for _, slope, _ in slopes], weights=weight))
    return Quality(early, late)


def _slope(finish: Floats, weight: Floats, labels: Labels) -> float:
    """Mean label of living steps less that of dead ones."""
    if weight.sum() <= 0:
        return 0.0
    value = finish + (1 - finish) * labels.lucky
    kept = 1.0 - labels.consensus
    if labels.kind == "hard":
        missed = float(np.average((1 - value) ** labels.rollouts, weights=weight)) * kept
        fooled = (1 - (1 - labels.lucky) ** labels.rollouts) * kept
        return max(0.0, 1.0 - missed - fooled)
    mean = float(np.average(value, weights=weight))
    noise = float(np.average(value * (1 - value), weights=weight)) / labels.rollouts * kept
    between = (
        float(np.average((value - mean) ** 2, weights=weight)) + (mean - labels.lucky) ** 2 / 4
    )
    return max(0.0, mean - labels.lucky) * math.sqrt(between / (between + noise))


def trained(verifier: VerifierModel, quality: Quality, reference: Quality) -> VerifierModel:
    """The verifier that labels of `quality` would train, where those of `reference` trained `verifier`.

    Its distance of right and wrong shrinks or grows with the slope of the labels, early and late.
    """
    late = quality.late / max(reference.late, 1e-9)
    early = quality.early / max(reference.early, 1e-9)
    strength = verifier.strength * late
    share = verifier.early * early / late if late > 0 else 0.0
    return replace(verifier, strength=strength, early=min(share, 1.0))


def best_right(score: Floats, right: Bools) -> Floats:
    """Whether the answer with the highest score of each question is right: 0 or 1, (questions,)."""
    picked = score.argmax(axis=1)[:, None]
    return np.take_along_axis(right, picked, 1)[:, 0].astype(np.float64)


def is_right(grown: Samples) -> Bools:
    """Which answers are right, (questions, n)."""
    found: Bools = np.equal(grown.wrong, RIGHT)
    return found
