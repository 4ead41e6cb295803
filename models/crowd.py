"""Many questions at once: `models.world.World` in columns, draw for draw.

A `Crowd` is up to a few thousand questions of one class that take the same number of steps; `Nodes` are
as many nodes of each, in arrays of shape (questions, nodes), all of one depth. Whatever is grown here has the key, the
wrong answer, the tokens and (to rounding) the score of the node that `World.grow` makes of the same path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtr, ndtri

from models import world as w
from models.keyed import GOLDEN, NORMALS, Keys, mix_array, normals, uniform_array
from models.lengths import Quantile
from models.verifier import VerifierModel
from models.world import QuestionModel

CHUNK: Final = 16_384  # nodes of one layer that are grown together: they stay in the cache
ROWS: Final = 2_000  # questions of a crowd, at most: ROWS * (ONE + 1) fits 64 bits
STICKS: Final = 32  # wrong answers whose shares are worked out at first
ONE: Final = 2**52  # a uniform draw is (a whole number + 1/2) / ONE

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes of a crowd that have finished the same number of steps; every array is (questions, nodes)."""

    row: Ints  # the question, by its place in the crowd
    key: Keys
    wrong: Ints  # the wrong answer so far, 0 while alive
    shift: Floats  # the class error of that wrong answer, in logits; 0 while alive
    extra: Ints  # steps that it takes beyond those of the question
    error: Floats  # the step error before it is scaled
    total: Ints  # tokens of the whole trajectory; 0 where they are drawn step by step
    path: Ints  # tokens since the prompt
    tokens: Ints  # of the last step (or steps) grown

    def take(self, columns: Ints) -> Nodes:
        """The nodes in these columns, (questions, chosen), of each question."""
        return Nodes(*(np.take_along_axis(getattr(self, f), columns, 1) for f in self.__slots__))

    def beside(self, more: Nodes) -> Nodes:
        """These nodes and then `more`, of the same questions."""
        both = ((getattr(self, f), getattr(more, f)) for f in self.__slots__)
        return Nodes(*(np.concatenate(columns, axis=1) for columns in both))

    def of(self, rows: Ints | Bools) -> Nodes:
        """The nodes of these questions alone."""
        return Nodes(*(getattr(self, f)[rows] for f in self.__slots__))


class Crowd:
    """Questions with these keys, all of `steps` steps; made by `crowds`."""

    __slots__ = (
        "_class_keys", "_left", "_lengths", "_limits", "_model", "_normals", "_ramble", "_shared", "survival", "_table",
        "_verifier", "difficulty", "keys", "steps",
    )  # fmt: skip

    def __init__(
        self,
        model: QuestionModel,
        verifier: VerifierModel | None,
        keys: Keys,
        steps: int,
        lengths: Quantile | None,
    ) -> None:
        self.keys = keys
        self.steps = steps
        self._model = model
        self._verifier = verifier
        self._lengths = lengths
        self._normals = _normals()
        self._table = None if lengths is not None else np.array(model.step_tokens, dtype=np.int64)
        self.difficulty, self.survival = _survival(model, keys, steps)
        rates = self.difficulty.tolist()
        own = self._table is not None
        self._ramble = np.array([w.ramble(model, r) * own for r in rates], dtype=np.uint64)
        self._class_keys = mix_array(keys ^ np.uint64(w.CLASS))
        self._shared = np.zeros(len(keys))
        if verifier is not None and verifier.question_sigma:
            self._shared = verifier.question_sigma * ndtri(uniform_array(keys, w.ERROR))
        self._limits = np.empty((len(keys), 0), dtype=np.int64)  # where each stick ends, x ONE
        self._left = np.ones(len(keys))  # of the stick, after those

    def root(self) -> Nodes:
        """The prompts, of shape (questions, 1)."""
        shape = (len(self.keys), 1)
        row = np.arange(len(self.keys))[:, None]
        none = np.zeros(shape, dtype=np.int64)
        zero = np.zeros(shape)
        return Nodes(row, self.keys[:, None], none, zero, none, zero, none, none, none)

    def grow(self, parents: Nodes, k: int, n: int, first: int = 0) -> Nodes:
        """Step k + 1: n children, from number `first` on, of parents that have finished k steps, parent by parent."""
        model = self._model
        rows, old = parents.key.shape
        ordinals = np.arange(first + 1, first + n + 1, dtype=np.uint64) * np.uint64(GOLDEN)
        key = mix_array(parents.key[:, :, None] + ordinals).reshape(rows, old * n)
        row, path = _each(parents.row, n), _each(parents.path, n)
        wrong, total = _each(parents.wrong, n), _each(parents.total, n)
        shift, error = _each(parents.shift, n), _each(parents.error, n)
        extra = _each(parents.extra, n)
        luck = key >> np.uint64(32)
        dead = wrong > 0
        if model.ramble:
            lost = dead & (wrong != w.LOST) & (luck < self._ramble[row])
            wrong[lost] = w.LOST
            shift[lost] = self._class(row[lost], wrong[lost])[0]
        lost = wrong == w.LOST
        if model.recovery:
            back = dead & ~lost & (uniform_array(key, w.RECOVER) < model.recovery)
            wrong[back], shift[back], extra[back] = w.RIGHT, 0.0, 0
        if k < self.steps:
            lives = self.survival[:, k][row]
            if model.diversity and k and n > 1:
                further = np.tile(np.arange(n) + first > 0, old)
                odds = (self.survival[:, k] / w.HALF) ** (1.0 - model.diversity) * w.HALF
                lives = np.where(further, odds.astype(np.uint64)[row], lives)
            dies = ~dead & (luck >= lives)
            if dies.any():
                wrong[dies] = self._wrong_answers(row[dies], key[dies])
                shift[dies], extra[dies] = self._class(row[dies], wrong[dies])
        if self._verifier is not None:
            error = self._errors(key, error, k)
        if self._table is not None:
            tokens = self._table[key & np.uint64(w.TABLE - 1)]
        else:
            if not k:
                total = self._totals(row, key, wrong)
            tokens = total * (k + 1) // self.steps - total * k // self.steps
        if model.ramble:
            assert model.max_output is not None
            room = np.maximum(model.max_output - path, 1)
            tokens = np.where(lost, np.minimum(tokens, room), tokens)
        return Nodes(row, key, wrong, shift, extra, error, total, path + tokens, tokens)

    def done(self, nodes: Nodes, k: int) -> Bools:
        """Which of `nodes`, all of which have finished k steps, are whole answers."""
        if k < self.steps:
            return np.zeros(nodes.wrong.shape, dtype=np.bool_)
        ended: Bools = nodes.extra + self.steps <= k
        if self._model.ramble:
            assert self._model.max_output is not None
            ended = np.where(nodes.wrong == w.LOST, nodes.path >= self._model.max_output, ended)
        return ended

    def finish(self, parents: Nodes, k: int, n: int, first: int = 0) -> Nodes:
        """`grow` of parents that have finished k steps, each child grown to its answer."""
        nodes = self.grow(parents, k, n, first)
        tokens = nodes.tokens
        for step in range(k + 1, self.steps):
            nodes = self.grow(nodes, step, 1)
            tokens = tokens + nodes.tokens
        nodes = replace(nodes, tokens=tokens)
        return self._finish_wrong(nodes, max(k + 1, self.steps))

    def _finish_wrong(self, nodes: Nodes, k: int) -> Nodes:
        """Grow those of `nodes`, which have finished k >= K steps, that are not done yet."""
        row, column = np.nonzero(~self.done(nodes, k))
        some = Nodes(*(getattr(nodes, f)[row, column, None] for f in Nodes.__slots__))
        while len(row):
            tokens = some.tokens
            some = self.grow(some, k, 1)
            some = replace(some, tokens=tokens + some.tokens)
            k += 1
            for f in Nodes.__slots__:
                getattr(nodes, f)[row, column] = getattr(some, f)[:, 0]
            left: Bools = ~self.done(some, k)[:, 0]
            row, column, some = row[left], column[left], some.of(left)
        return nodes

    def score(self, nodes: Nodes, k: int) -> Floats:
        """The verifier's scores of nodes that have finished k steps, in (0, 1).

        Raises ValueError when the crowd has no verifier.
        """
        verifier = self._verifier
        if verifier is None:
            raise ValueError("These questions have no verifier: pass one.")
        right, wrong, sigma = w.levels(verifier, self.steps)
        k = min(k, self.steps)
        logit = np.where(nodes.wrong > 0, wrong[k], right[k])
        logit = logit + (self._shared[nodes.row] + nodes.shift) + sigma[k] * nodes.error
        return 1.0 / (1.0 + np.exp(-np.clip(logit, -30.0, 30.0)))

    def labels(self, wrong: Ints) -> Ints:
        """The answers' labels, for one wrong answer (0: right) a question."""
        ordinals = (wrong + 1).astype(np.uint64) * np.uint64(GOLDEN)
        key = mix_array(self._class_keys + ordinals)
        return (mix_array(key ^ np.uint64(w.LABEL)) >> np.uint64(1)).astype(np.int64)

    def _errors(self, key: Keys, error: Floats, k: int) -> Floats:
        assert self._verifier is not None
        version, rho = self._verifier.version, self._verifier.rho
        bits = mix_array(key ^ np.uint64(w.NOISE + version)) if version else key
        fresh: Floats = self._normals[bits >> np.uint64(w.ERROR_SHIFT) & np.uint64(NORMALS - 1)]
        return rho * error + math.sqrt(1.0 - rho**2) * fresh if k else fresh

    def _wrong_answers(self, row: Ints, keys: Keys) -> Ints:
        """The wrong answers 1, 2, ... that these nodes die of, by breaking sticks as far as needed."""
        u = (mix_array(keys ^ np.uint64(w.WRONG)) >> np.uint64(12)).astype(np.int64)
        while np.any((u >= self._reached()[row]) & (self._left[row] > 1e-12)):
            self._break_sticks()
        width = self._limits.shape[1]
        offset = np.arange(len(self.keys), dtype=np.int64)[:, None] * (ONE + 1)
        ends = (self._limits + offset).ravel()
        place = np.searchsorted(ends, u + row * (ONE + 1), side="right")
        found: Ints = np.minimum(place - row * width, width - 1) + 1
        return found

    def _reached(self) -> Ints:
        """Where the last of the broken sticks ends, x ONE, by question."""
        if not self._limits.shape[1]:
            return np.zeros(len(self.keys), dtype=np.int64)
        return self._limits[:, -1]

    def _break_sticks(self) -> None:
        """Work out the shares of as many wrong answers more as are known, at least STICKS."""
        known = self._limits.shape[1]
        more = np.arange(known + 2, known + 2 + max(STICKS, known), dtype=np.uint64)
        ordinals = more * np.uint64(GOLDEN)
        keys = mix_array(self._class_keys[:, None] + ordinals)
        kept = uniform_array(keys, w.STICK) ** (1.0 / self._model.theta)  # 1 - Beta(1, theta)
        left = np.cumprod(np.concatenate([self._left[:, None], kept], axis=1), axis=1)[:, 1:]
        limits = np.ceil((1.0 - left) * ONE - 0.5).astype(np.int64)
        self._left = left[:, -1]
        self._limits = np.concatenate([self._limits, limits], axis=1)

    def _class(self, row: Ints, wrong: Ints) -> tuple[Floats, Ints]:
        """The verifier's error on these wrong answers, in logits, and the steps that they add."""
        verifier = self._verifier
        mean = self._model.wrong_steps if self._table is not None else 0.0
        ordinals = (wrong + 1).astype(np.uint64) * np.uint64(GOLDEN)
        keys = mix_array(self._class_keys[row] + ordinals)
        extra, error = np.zeros(len(row), dtype=np.int64), np.zeros(len(row))
        if mean:
            draws = np.log(uniform_array(keys, w.EXTRA)) / math.log(mean / (1.0 + mean))
            extra = np.minimum(draws.astype(np.int64), w.MOST)
        if verifier is not None:
            error, blind = ndtri(uniform_array(keys, w.ERROR)), uniform_array(keys, w.BLIND)
            if verifier.common < 1.0:
                own, c = w.OWN + verifier.version, verifier.common
                error = math.sqrt(c) * error + math.sqrt(1.0 - c) * ndtri(uniform_array(keys, own))
                apart = uniform_array(keys, w.COMMON) >= c
                blind = np.where(apart, uniform_array(keys, own + w.OWN), blind)
            error = verifier.class_sigma * error
            error = error + np.where(blind < verifier.blind_share, verifier.blind_boost, 0.0)
        return error, extra

    def _totals(self, row: Ints, key: Keys, wrong: Ints) -> Ints:
        """Tokens of the trajectories whose first steps are `key`."""
        model, lengths = self._model, self._lengths
        assert lengths is not None
        shared = model.length_correlation
        score = math.sqrt(1.0 - shared) * ndtri(uniform_array(key, w.LENGTH))
        score += math.sqrt(shared) * ndtri(uniform_array(self.keys, w.LENGTH))[row]
        u = np.clip(ndtr(score), 1e-16, 1.0 - 1e-16)
        tokens = np.array([lengths(x) for x in u.ravel().tolist()], dtype=np.float64)
        tokens = tokens.reshape(u.shape)
        if lengths is model.output_tokens:
            if model.wrong_longer != 1.0:
                rate = np.ones(u.shape) if model.solved_lengths else self.difficulty[row]
                power = np.where(wrong > 0, rate, rate - 1.0)
                tokens *= model.wrong_longer**power
            if model.max_output is not None:
                tokens = np.minimum(tokens, model.max_output)
        return np.maximum(np.rint(tokens).astype(np.int64), self.steps)


def crowds(
    model: QuestionModel,
    verifier: VerifierModel | None,
    keys: Keys,
    nodes: int,
    lengths: Quantile | None = None,
) -> Iterator[tuple[Ints, Crowd]]:
    """Split questions into crowds of one number of steps, of about CHUNK nodes when each has `nodes`.

    Yields the places of a crowd's questions in `keys`, uint64 of shape (n,), and the crowd. `lengths`
    replaces the length of a trajectory, as in `QuestionModel.world`.
    """
    edges = np.array(model.steps_edges)
    extra = np.zeros(len(keys), dtype=np.int64)
    if len(edges) > 1:
        extra = np.searchsorted(edges, uniform_array(keys, w.STEPS), side="right")
        extra = np.minimum(extra, len(edges) - 1)
    size = min(ROWS, max(1, CHUNK // nodes))
    own = model.output_tokens if lengths is None else lengths
    for more in np.unique(extra):
        places = np.flatnonzero(extra == more)
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            yield chosen, Crowd(model, verifier, keys[chosen], model.steps_min + int(more), own)


@lru_cache(maxsize=1)
def _normals() -> Floats:
    return np.array(normals())


def _each(column: npt.NDArray[Number], n: int) -> npt.NDArray[Number]:
    """A copy of `column` for children, each parent's entry n times."""
    return np.repeat(column, n, axis=1) if n > 1 else column.copy()


def _survival(model: QuestionModel, keys: Keys, steps: int) -> tuple[Floats, Keys]:
    """The pass rates, (n,), and the chance of surviving each step out of HALF, (n, steps)."""
    u, share = uniform_array(keys, w.DIFFICULTY), model.bottleneck
    easy = u >= share
    rate = np.empty(len(keys))
    rate[easy] = betaincinv(*model.pass_rate, (u[easy] - share) / (1.0 - share))
    whole = np.full((len(keys), steps), w.HALF, dtype=np.uint64)
    hard = np.flatnonzero(~easy)
    if len(hard):
        low, high = model.bottleneck_range
        rate[hard] = low * (high / low) ** (u[hard] / share)
        fatal = (uniform_array(keys[hard], w.BOTTLENECK) * steps).astype(np.int64)
        whole[hard, fatal] = (rate[hard] * w.HALF).astype(np.uint64)
    weights = _weights(model, keys[easy], steps)
    whole[easy] = (rate[easy, None] ** weights * w.HALF).astype(np.uint64)
    return rate, whole


def _weights(model: QuestionModel, keys: Keys, steps: int) -> Floats:
    """Dirichlet weights of the steps, (n, steps)."""
    if steps == 1:
        return np.ones((len(keys), 1))
    ordinals = np.arange(1, steps + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    draws = mix_array(mix_array(keys ^ np.uint64(w.WEIGHT))[:, None] + ordinals)
    places = (draws & np.uint64(w.TABLE - 1)).astype(np.int64)
    tables = [np.array(table) for table in w.weight_tables(model, steps)]
    gammas = np.stack([table[places[:, k]] for k, table in enumerate(tables)], axis=1)
    whole = gammas.sum(axis=1, keepdims=True)
    return np.where(whole > 0, gammas / np.where(whole > 0, whole, 1.0), 1.0 / steps)
