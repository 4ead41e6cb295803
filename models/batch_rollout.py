"""Many rollouts at once: what `models.rollout.rollout` finds for one plan on thousands of questions.

    found = batch_rollout(question_model("math-500"), verifier, keys, plan("best_of_n", n=16))
    found.correct.mean(), found.tokens.mean()

The searches of whole answers and the beam are played in columns (models/crowd.py), about fifty times
faster than their generators and with the same draws; any other plan is played by its generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Final

import numpy as np

from models.controller import Plan, search_for
from models.crowd import Bools, Crowd, Floats, Ints, Nodes, crowds
from models.keyed import Keys
from models.lengths import Quantile
from models.rollout import rollout
from models.search import UNOBSERVED
from models.search_parts import steps
from models.session import RESERVE_DIVISOR, World
from models.tree import Tree
from models.verifier import VerifierModel
from models.world import LOST, RIGHT, QuestionModel


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One search per question, all arrays of shape (n,) in the order of the keys.

    `covered` says that some finished trajectory was right, whatever was answered: Pass@n.
    """

    answered: Bools
    answer: Ints  # the label; -1 without an answer
    correct: Bools
    covered: Bools
    signal: Floats
    tokens: Ints  # generated, all branches together
    makespan_tokens: Ints  # those that had to follow one another
    expansions: Ints
    scores: Ints
    trajectories: Ints
    difficulty: Floats  # the latent pass rate

    def __len__(self) -> int:
        return len(self.answer)


@dataclass(frozen=True, slots=True)
class Samples:
    """`n` whole answers to each question, arrays of shape (questions, n) unless said otherwise.

    Columns are in the order in which a search asks for them: the first m columns are what a search with
    n = m sees.
    """

    wrong: Ints  # 0: right; 1, 2, ...: the question's wrong answers; models.world.LOST: no answer
    score: Floats  # of the verifier; NaN without one
    tokens: Ints
    steps: Ints  # (questions,)
    difficulty: Floats  # (questions,): the latent pass rate

    @property
    def right(self) -> Bools:
        """Which answers are right."""
        return np.equal(self.wrong, RIGHT)


def samples(
    model: QuestionModel,
    verifier: VerifierModel | None,
    keys: Keys,
    n: int,
    lengths: Quantile | None = None,
) -> Samples:
    """Grow `n` >= 1 whole answers to each question of `keys`, and score them if there is a verifier."""
    shape = (len(keys), n)
    wrong, tokens = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
    score = np.full(shape, np.nan)
    steps, difficulty = np.empty(len(keys), dtype=np.int64), np.empty(len(keys))
    for places, crowd in crowds(model, verifier, keys, n, lengths):
        nodes = crowd.finish(crowd.root(), 0, n)
        wrong[places], tokens[places] = nodes.wrong, nodes.tokens
        if verifier is not None:
            score[places] = crowd.score(nodes, crowd.steps)
        steps[places], difficulty[places] = crowd.steps, crowd.difficulty
    return Samples(wrong, score, tokens, steps, difficulty)


def covers(chosen: Plan) -> bool:
    """Say whether a plan is played in columns, and not by its generator."""
    if chosen.algorithm not in _PLAYERS or chosen.max_expansions is not None:
        return False
    params = {key: value for key, value in chosen.params.items() if (key, value) != _PLAIN}
    return set(params) == _PLAYERS[chosen.algorithm][1]


def batch_rollout(
    model: QuestionModel,
    verifier: VerifierModel | None,
    keys: Keys,
    chosen: Plan,
    lengths: Quantile | None = None,
    prompt_tokens: int = 1,
) -> Outcomes:
    """Play one search of `chosen` on every question of `keys`, uint64 of shape (n,).

    `lengths` replaces the length of a trajectory. A question on which the plan's `max_tokens` could bind
    is played by the generator. Raises ValueError when the plan needs a verifier and there is none.
    """
    found = _empty(len(keys))
    rest = np.arange(len(keys))
    if covers(chosen):
        play, _, width = _PLAYERS[chosen.algorithm]
        for places, crowd in crowds(model, verifier, keys, width(chosen.params), lengths):
            _store(found, places, play(crowd, chosen.params))
        limit = chosen.max_tokens
        if limit is None:
            return found
        rest = np.flatnonzero(found.tokens > limit - limit // RESERVE_DIVISOR)
    for place in rest.tolist():
        world = model.world(int(keys[place]), prompt_tokens, verifier, lengths)
        search = search_for(chosen, Tree(world.root))
        end = rollout(search, world, chosen.max_tokens, chosen.max_expansions)
        row = (
            end.answer is not None, -1 if end.answer is None else end.answer, end.correct,
            _covered(world, end.tree), end.signal, end.tokens,
            end.makespan_tokens, end.expansions, end.scores, end.trajectories, world.difficulty,
        )  # fmt: skip
        for field, value in zip(fields(Outcomes), row, strict=True):
            getattr(found, field.name)[place] = value
    return found


def _covered(world: World, tree: Tree) -> bool:
    """Whether a trajectory, or a try that was revised later, was right."""
    ends = (node for leaf in tree.leaves for node in steps(leaf) if node.done)
    return any(world.is_correct(node.answer) for node in ends)


def _empty(n: int) -> Outcomes:
    kinds = {"Bools": np.bool_, "Ints": np.int64, "Floats": np.float64}
    return Outcomes(*(np.zeros(n, dtype=kinds[str(field.type)]) for field in fields(Outcomes)))


def _store(found: Outcomes, places: Ints, part: Outcomes) -> None:
    for field in fields(Outcomes):
        getattr(found, field.name)[places] = getattr(part, field.name)


# -- one plan on one crowd ----------------------------------------------------------------------------


def _direct(crowd: Crowd, _: Mapping[str, int]) -> Outcomes:
    nodes = crowd.finish(crowd.root(), 0, 1)
    return _whole_answers(crowd, nodes, nodes.wrong[:, 0], np.full(len(nodes.wrong), UNOBSERVED), 0)


def _best_of_n(crowd: Crowd, params: Mapping[str, int]) -> Outcomes:
    nodes = crowd.finish(crowd.root(), 0, params["n"])
    chosen, score = best(nodes.wrong, crowd.score(nodes, crowd.steps))
    return _whole_answers(crowd, nodes, chosen, score, params["n"])


def _self_consistency(crowd: Crowd, params: Mapping[str, int]) -> Outcomes:
    nodes = crowd.finish(crowd.root(), 0, params["n"])
    chosen, share = vote(nodes.wrong, np.ones(nodes.wrong.shape))
    return _whole_answers(crowd, nodes, chosen, share, 0)


def _weighted_vote(crowd: Crowd, params: Mapping[str, int]) -> Outcomes:
    nodes = crowd.finish(crowd.root(), 0, params["n"])
    chosen, share = vote(nodes.wrong, crowd.score(nodes, crowd.steps))
    return _whole_answers(crowd, nodes, chosen, share, params["n"])


def best(wrong: Ints, score: Floats) -> tuple[Ints, Floats]:
    """The answer with the highest score in each row, (questions, n), and that score.

    A row in which nothing has an answer gives LOST. Ties go to the first.
    """
    ranked = np.where(wrong == LOST, -1.0, score)
    place = ranked.argmax(axis=1)[:, None]
    return np.take_along_axis(wrong, place, 1)[:, 0], ranked.max(axis=1)


def vote(wrong: Ints, weight: Floats) -> tuple[Ints, Floats]:
    """The answer with the largest sum of weights > 0 in each row, and its share of the row's sum.

    Both arguments are (questions, n); ties go to the answer that comes first. A row in which nothing has
    an answer gives LOST.
    """
    rows = np.arange(len(wrong), dtype=np.int64)
    named = (rows[:, None] << 32) + wrong
    groups, first, place = np.unique(named.ravel(), return_index=True, return_inverse=True)
    sums = np.bincount(place.ravel(), weights=weight.ravel())
    row, answer = groups >> 32, groups & LOST
    order = np.lexsort((first, -sums, answer == LOST, row))
    top = order[np.searchsorted(row[order], rows)]
    return answer[top], np.minimum(1.0, sums[top] / weight.sum(axis=1))


def _whole_answers(
    crowd: Crowd, nodes: Nodes, chosen: Ints, signal: Floats, scores: int
) -> Outcomes:
    rows, n = nodes.wrong.shape
    whole = np.full(rows, n)
    return _outcomes(
        crowd,
        chosen,
        signal,
        covered=(nodes.wrong == RIGHT).any(axis=1),
        tokens=nodes.tokens.sum(axis=1),
        makespan_tokens=nodes.tokens.max(axis=1),
        expansions=whole,
        scores=np.full(rows, scores),
        trajectories=whole,
    )


def _beam(crowd: Crowd, params: Mapping[str, int]) -> Outcomes:
    return beam(crowd, params)[0]


def beam(crowd: Crowd, params: Mapping[str, int], first: int = 0) -> tuple[Outcomes, Ints]:
    """A beam on every question, and which wrong answer it gives (0: right).

    The children of the prompt are numbered from `first` on: those before belong to another search. A
    question leaves when all that it keeps is done; until its last step nothing is.
    """
    width, expand, last = params["width"], params["expand"], params["max_steps"]
    rows = np.arange(len(crowd.keys))
    found = _empty(len(rows))
    chosen = np.zeros(len(rows), dtype=np.int64)
    nodes, n, k = crowd.root(), width * expand, 0
    score, done = np.full((len(rows), 1), -1.0), np.zeros((len(rows), 1), dtype=np.bool_)
    while len(rows):
        final = k + 1 >= last
        fresh = (crowd.finish if final else crowd.grow)(nodes, k, n, 0 if k else first)
        k += 1
        grown = np.repeat(~done, n, axis=1)
        fresh_done = np.full(grown.shape, True) if final else crowd.done(fresh, k)
        fresh_score = crowd.score(fresh, crowd.steps if final else k)
        found.tokens[rows] += (fresh.tokens * grown).sum(axis=1)
        found.makespan_tokens[rows] += (fresh.tokens * grown).max(axis=1)
        found.expansions[rows] += grown.sum(axis=1)
        found.covered[rows] |= (grown & fresh_done & (fresh.wrong == RIGHT)).any(axis=1)
        score = np.concatenate([np.where(done, score, -1.0), np.where(grown, fresh_score, -1.0)], 1)
        kept = np.argsort(-score, axis=1, kind="stable")[:, :width]
        score = np.take_along_axis(score, kept, 1)
        done = np.take_along_axis(np.concatenate([done, fresh_done], axis=1), kept, 1)
        nodes, n = nodes.beside(fresh).take(kept), expand
        chosen[rows], found.signal[rows] = best(nodes.wrong, score)
        found.trajectories[rows] = width
        on = np.flatnonzero(~done.all(axis=1))
        rows, nodes, score, done = rows[on], nodes.of(on), score[on], done[on]
    whole = _outcomes(
        crowd,
        chosen,
        found.signal,
        covered=found.covered,
        tokens=found.tokens,
        makespan_tokens=found.makespan_tokens,
        expansions=found.expansions,
        scores=found.expansions,
        trajectories=found.trajectories,
    )
    return whole, chosen


def _outcomes(
    crowd: Crowd, chosen: Ints, signal: Floats, trajectories: Ints, **columns: Bools | Ints
) -> Outcomes:
    answered = chosen != LOST
    return Outcomes(
        answered=answered,
        answer=np.where(answered, crowd.labels(chosen), -1),
        correct=chosen == RIGHT,
        signal=np.where(answered, signal, 0.0),
        trajectories=np.where(answered, trajectories, 0),
        difficulty=crowd.difficulty,
        **columns,  # type: ignore[arg-type]  # each is of the kind that its name asks for
    )


_PLAIN: Final = ("aggregate", "last")  # how a trajectory is scored where nothing else is asked for
_Player = Callable[[Crowd, Mapping[str, int]], Outcomes]


def _trajectories(params: Mapping[str, int]) -> int:
    return params.get("n", 1)


def _layer(params: Mapping[str, int]) -> int:
    return params["width"] * params["expand"]


_PLAYERS: Final[
    Mapping[str, tuple[_Player, frozenset[str], Callable[[Mapping[str, int]], int]]]
] = MappingProxyType(
    {
        "direct": (_direct, frozenset(), _trajectories),
        "best_of_n": (_best_of_n, frozenset({"n"}), _trajectories),
        "self_consistency": (_self_consistency, frozenset({"n"}), _trajectories),
        "weighted_vote": (_weighted_vote, frozenset({"n"}), _trajectories),
        "beam": (_beam, frozenset({"width", "expand", "max_steps"}), _layer),
    }
)
