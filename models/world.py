"""What a question is: a latent pass rate, steps that keep a solution alive or not, wrong answers, lengths.

A `QuestionModel` holds the parameters of a class of questions; a `World` is one question. A solution
takes K steps; step k keeps it alive with probability p^{w_k}, the product being the pass rate p. At the
fatal step the wrong answer is drawn, and every descendant inherits it; a wrong answer may take steps of
its own beyond K before it is there, and what is not alive may lose its thread at any step and then run
on to the limit of the output without an answer. Nothing here depends on the order
of calls: a node's luck is keyed by its path (models/keyed.py), so a whole answer grown at once equals the
same chain grown step by step, and a chain cut anywhere and resumed equals the chain left alone.

Source: form and constants after Treeline's design notes on search, "a generative model" (2026-11-23).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from scipy.special import betaincinv, gammaincinv

from models.keyed import GOLDEN, LANES, MASK, chains, child_key, mix, normal, normals, uniform
from models.lengths import Quantile, quantile
from models.tree import Node, Until
from models.verifier import VerifierModel

DIFFICULTY, STEPS, WEIGHT, BOTTLENECK, STICK, CLASS, LABEL, ERROR, BLIND, EXTRA = range(1, 11)
WRONG, RECOVER = 17, 18
LENGTH, SHARE, RESUME, REVISE, AFRESH, CONCLUDE, COMMON = range(21, 28)
OWN: Final = 1 << 18  # plus the verifier's version: what its versions do not have alike
NOISE: Final = 1 << 16  # plus the verifier's version
HALF: Final = 1 << 32  # a step's key holds three draws: 32 bits of survival above,
ERROR_SHIFT: Final = 12  # 16 bits of step error in the middle,
ALONE: Final = 2  # children of a node that are grown one by one; more are likely to be LANES more
TABLE: Final = 4096  # and 12 bits of step length below
UNBOUNDED: Final = 1 << 62
LOSES: Final = 32  # tries that all fail where solutions lose their thread
MOST: Final = 32  # steps beyond K that a wrong answer takes, at most
CONCLUSION: Final = 32  # tokens of a forced "the answer is ...". Source: assumed, 2026-11-25
RIGHT: Final = 0
LOST: Final = (1 << 32) - 1  # the "wrong answer" of what runs on without an answer
SQRT_HALF: Final = math.sqrt(0.5)
NAN: Final = math.nan


@dataclass(frozen=True, slots=True, eq=False)
class QuestionModel:
    """A class of questions: its parameters, lengths in tokens, shares in [0, 1].

    `models.question.question_model` builds one from a preset and checks the ranges.
    """

    name: str
    kind: str  # single_step | steps | thinking
    verifier: str | Mapping[str, Any]  # the verifier that fits it, as `verifier_model` takes it
    prompt_tokens: Quantile
    pass_rate: tuple[float, float]  # a, b of Beta(a, b), the shape of the latent pass rate
    bottleneck: float  # share of questions whose pass rate is carried by one step
    bottleneck_range: tuple[float, float]  # there the pass rate is log-uniform in it
    theta: float  # wrong answers are GEM(theta): larger is more scattered
    steps_edges: tuple[float, ...]  # cumulative probability of each number of steps
    steps_min: int
    kappa: float  # Dirichlet concentration of the steps' weights
    weights: tuple[float, ...] | None  # mean weights of the steps, all equal when None
    # where steps have lengths of their own (`step_tokens`), not where a trajectory has one:
    wrong_steps: float  # mean of the geometric number of steps that a wrong answer takes beyond K
    ramble: (
        float  # chance per step that what is not alive loses its thread, on the hardest questions
    )
    diversity: (
        float  # phi: a further child below the first step is unlike its siblings, and lives on
    )
    # with p^{w (1 - phi)}: a list of different steps holds good ones that repeated tries would not find
    recovery: float  # chance per step that a dead solution comes back
    step_tokens: tuple[int, ...] | None  # TABLE points of a step's length; None: by `output_tokens`
    output_tokens: Quantile | None  # length of a whole trajectory
    length_correlation: float  # of the (normal scores of the) lengths of two tries at one question
    wrong_longer: float  # wrong thinking is this many times longer on the same question
    solved_lengths: bool  # `output_tokens` describes right chains alone, else all chains
    reasoning_share: (
        Quantile | None
    )  # hidden thinking as a share of the output; None: all is visible
    share_correlation: float  # of the share with the length (normal scores)
    max_output: int | None  # no trajectory of the preset is longer; what lost its thread is as long
    revise_keep: float = 0.35  # chance that a revision repeats a right answer; else it tries afresh
    revise_stuck: float = 0.1  # chance that a revision repeats a wrong answer; else it tries afresh
    revise_length: float = 1.0  # tokens of a revision as a share of a first try's

    def world(
        self,
        key: int,
        prompt_tokens: int,
        verifier: VerifierModel | None = None,
        output_tokens: Quantile | Mapping[str, Any] | None = None,
        output_tokens_given: int | None = None,
    ) -> World:
        """The question named by `key` (64 bits), with a prompt of `prompt_tokens` >= 0.

        `output_tokens` replaces the length of a trajectory by a quantile function (or a distribution
        as `models.lengths.quantile` takes it); `output_tokens_given` makes every trajectory one step
        of exactly that many tokens. Raises ValueError when either is out of range.
        """
        if prompt_tokens < 0 or (output_tokens_given is not None and output_tokens_given < 1):
            raise ValueError(
                '"prompt_tokens" must be >= 0 and "output_tokens_given" >= 1, got '
                f"{prompt_tokens} and {output_tokens_given}."
            )
        lengths = self.output_tokens if output_tokens is None else output_tokens
        if lengths is not None and not callable(lengths):
            lengths = quantile(lengths)
        return World(self, key, prompt_tokens, verifier, lengths, output_tokens_given)


class World:
    """One question: grows nodes, scores them, knows the right answer."""

    __slots__ = (
        "model", "key", "root", "difficulty", "verifier",
        "_steps", "_survive", "_table", "_lengths", "_right", "_labels", "_sticks", "_left",
        "_apart", "_limit", "_noise", "_normals", "_ramble", "_rho", "_fresh", "_sigmas", "_gain_right",
        "_gain_wrong", "_errors", "_extras", "_classes", "_keys", "_plain", "_fertile", "_first",
        "_ahead",
    )  # fmt: skip

    def __init__(
        self,
        model: QuestionModel,
        key: int,
        prompt_tokens: int,
        verifier: VerifierModel | None,
        lengths: Quantile | None,
        given: int | None,
    ) -> None:
        self.model = model
        self.key = key
        self.verifier = verifier
        self._lengths = lengths
        self._table = None if given or lengths is not None else model.step_tokens
        self._steps = 1 if given else _number_of_steps(model, key)
        self.difficulty, self._survive = _survival(model, key, self._steps)
        self._ramble = ramble(model, self.difficulty) if self._table is not None else 0
        self._apart = apart(model, self._survive) if model.diversity else self._survive
        self._sticks: list[float] = []  # cumulative shares of the wrong answers 1, 2, ...
        self._left = 1.0
        self._classes = mix(key ^ CLASS)
        self._keys: dict[int, int] = {}
        self._labels: dict[int, int] = {}
        self._right = self._label(RIGHT)
        self._errors: dict[int, float] = {}
        self._extras = {RIGHT: 0}
        self._limit = UNBOUNDED if model.max_output is None else model.max_output
        self._noise = 0
        self._rho = self._fresh = 0.0
        # a solution in steps of their own, dead for good once it is, whose siblings repeat one another:
        self._plain = (
            self._table is not None
            and not (self._ramble or model.recovery or model.diversity or model.reasoning_share)
            and (verifier is None or not verifier.version)
        )
        self._fertile: Node | None = None  # of whose children, from this number on,
        self._first = 0
        self._ahead: list[tuple[int, ...]] = []  # these are the keys
        self._gain_right: tuple[float, ...] = ()
        self._gain_wrong: tuple[float, ...] = ()
        self._sigmas: tuple[float, ...] = ()
        if verifier is not None:
            self._noise = NOISE + verifier.version
            self._rho = verifier.rho
            self._fresh = math.sqrt(1.0 - verifier.rho**2)
            self._normals = normals()
            self._gain_right, self._gain_wrong, self._sigmas = levels(verifier, self._steps)
        self.root = Node(None, 0, 0, prompt_tokens, prompt_tokens, key=key)
        self.root.hidden = (0, RIGHT, 0.0, given or 0, None)

    def grow(
        self, parent: Node, ordinal: int, until: Until = "step", cap: int | None = None
    ) -> Node:
        """The complete child number `ordinal` of `parent`, to the end of a step or of the answer.

        A child longer than `cap` tokens is truncated: it is not done and has no answer, and its child
        0 resumes the remainder. The child of a parent that is done is a whole new try, made in sight of
        the old one. Raises ValueError when `cap` < 1.
        """
        if cap is None:
            cap = UNBOUNDED
        elif cap < 1:
            raise ValueError(f'"cap" must be >= 1 token, got {cap}.')
        if parent.done:
            return self._revised(parent, ordinal, cap)
        if until == "conclude":
            return self._concluded(parent, ordinal, cap)
        if self._plain and until == "answer" and cap == UNBOUNDED and parent.hidden[4] is None:
            return self._whole(parent, ordinal)
        # hidden: finished steps, wrong answer so far (0: alive), step error, total tokens of the
        # trajectory (0: drawn step by step), and of a truncated step what is left of it.
        k, wrong, error, total, pending = parent.hidden
        steps, noise, table, survive = self._steps, self._noise, self._table, self._survive
        rho, share_fresh = self._rho, self._fresh
        model = self.model
        diversity, share = model.diversity, model.reasoning_share
        moves = model.recovery > 0 or self._ramble > 0  # what is not alive may change
        before = parent.path_tokens - self.root.tokens
        number, key, next_error = ordinal, parent.key, 0.0
        tokens = visible = 0
        while True:
            if pending is None:
                # child_key and the verifier's normal draw, in line: this is the innermost loop
                key = (key + (ordinal + 1) * GOLDEN) & MASK
                key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & MASK
                key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & MASK
                key ^= key >> 31
                next_wrong = wrong
                if moves if wrong else (diversity or key >> 32 >= survive[k]):
                    next_wrong = self._fate(k, wrong, key, key >> 32, ordinal)
                if noise:
                    bits = mix(key ^ noise) if noise > NOISE else key
                    fresh = self._normals[bits >> 12 & 65535]
                    next_error = rho * error + share_fresh * fresh if k else fresh
                if table is not None:
                    length = table[key & 4095]
                else:
                    if not total:
                        total = self._total(key, next_wrong)
                    length = total * (k + 1) // steps - total * k // steps
                if next_wrong == LOST:
                    length = min(length, max(self._limit - before - tokens, 1))
                shown = length if share is None else self._shown(key, length, share)
            else:
                length, next_wrong, next_error, shown = pending
                pending = None
                if ordinal:
                    key = child_key(key ^ RESUME, ordinal)
            ordinal = 0
            tokens += length
            visible += shown
            if tokens > cap:
                left = tokens - cap
                still = min(shown, left)
                tokens, visible = cap, visible - still
                pending = (left, next_wrong, next_error, still)
                break
            k += 1
            wrong = next_wrong
            error = next_error
            if k >= steps and self._ends(k, wrong, total, before + tokens):
                break
            if until == "step" or tokens == cap:
                break
        done = pending is None and k >= steps and self._ends(k, wrong, total, before + tokens)
        return Node(
            parent,
            number,
            k if pending is None else k + 1,
            tokens,
            parent.path_tokens + tokens,
            done,
            self._label(wrong) if done and wrong != LOST else None,
            NAN,
            visible,
            0,
            key,
            (k, wrong, error, total, pending),
        )

    def _whole(self, parent: Node, number: int) -> Node:
        """What `grow` makes of a whole answer, where no step needs more than its own key.

        Nine in ten nodes of a vote are grown here: draw for draw what the loop of `grow` does.
        """
        k, wrong, error, _, _ = parent.hidden
        steps, table, survive = self._steps, self._table, self._survive
        assert table is not None
        noisy, rho, share_fresh = self._noise > 0, self._rho, self._fresh
        draws = self._normals if noisy else ()
        key, ordinal, tokens = parent.key, number, 0
        last = steps + self._extra(wrong)
        known = self._known(parent, number, k) if number >= ALONE and k < steps else ()
        while True:
            key = known[k] if known and k < steps else child_key(key, ordinal)
            ordinal = 0
            if not wrong and key >> 32 >= survive[k]:
                wrong = self._wrong_answer(uniform(key, WRONG))
                last = steps + self._extra(wrong)
            if noisy:
                fresh = draws[key >> 12 & 65535]
                error = rho * error + share_fresh * fresh if k else fresh
            tokens += table[key & 4095]
            k += 1
            if k >= last:
                break
        path = parent.path_tokens + tokens
        answer, hidden = self._label(wrong), (k, wrong, error, 0, None)
        return Node(parent, number, k, tokens, path, True, answer, NAN, tokens, 0, key, hidden)

    def _known(self, parent: Node, number: int, k: int) -> tuple[int, ...]:
        """The keys of child `number` and its only descendants: at place j that of step j + 1, from k on."""
        first = number - (number - ALONE) % LANES
        if parent is not self._fertile or first != self._first:
            self._fertile, self._first = parent, first
            self._ahead = [(0,) * k + chain for chain in chains(parent.key, first, self._steps - k)]
        return self._ahead[number - first]

    def _fate(self, k: int, wrong: int, key: int, luck: int, ordinal: int) -> int:
        """The wrong answer (or RIGHT) after step k + 1, for whose survival `luck` was drawn."""
        model = self.model
        if wrong:
            if wrong == LOST or luck < self._ramble:
                return LOST
            return RIGHT if uniform(key, RECOVER) < model.recovery else wrong
        lives = (self._apart if ordinal and k else self._survive)[k]
        return RIGHT if luck < lives else self._wrong_answer(uniform(key, WRONG))

    def _revised(self, parent: Node, ordinal: int, cap: int) -> Node:
        """Another try after `parent`: it repeats the answer that it sees, or starts afresh."""
        model = self.model
        key = child_key(parent.key ^ REVISE, ordinal)
        wrong, luck = parent.hidden[1], uniform(key, REVISE)
        if wrong != LOST and luck < (model.revise_stuck if wrong else model.revise_keep):
            fate = wrong
        elif uniform(key, AFRESH) < self.difficulty:
            fate = RIGHT
        else:
            fate = self._wrong_answer(uniform(key, WRONG))
        if self._table is not None:
            number = self._steps + self._extra(fate)
            bits = (mix(key + k * GOLDEN) for k in range(number))
            length = sum(self._table[b & (TABLE - 1)] for b in bits)
        else:
            length = self._total(key, fate)
        length = max(1, round(length * model.revise_length))
        share = model.reasoning_share
        shown = length if share is None else self._shown(key, length, share)
        return self._ended(parent, ordinal, key, length, shown, fate, cap)

    def _concluded(self, parent: Node, ordinal: int, cap: int) -> Node:
        """The answer of an unfinished trajectory, right if that would be and has come far enough.

        What would be right is found at a moment that is uniform over the trajectory's length.
        Source: assumed, 2026-11-25; that the answer is often there long before the end: Fu et al.,
        "Certaindex", arXiv 2412.20993.
        """
        k, wrong, _, _, pending = parent.hidden
        key = child_key(parent.key ^ CONCLUDE, ordinal)
        left, next_wrong = pending[:2] if pending is not None else (0, wrong)
        so_far = parent.path_tokens - self.root.tokens
        come = so_far / (so_far + left) if self._steps == 1 and so_far else k / self._steps
        rest = self._survive[k + (pending is not None) :]  # what it has to get right unthought
        chance = 0.0 if next_wrong else come * math.prod(s / HALF for s in rest)
        found = uniform(key, CONCLUDE) < chance
        fate = RIGHT if found else next_wrong
        if (not found and fate == RIGHT) or fate == LOST:
            fate = self._wrong_answer(uniform(key, WRONG))
        share = self.model.reasoning_share
        length = CONCLUSION if share is None else self._shown(key, so_far + left, share)
        return self._ended(parent, ordinal, key, length, length, fate, cap)

    def _ended(
        self, parent: Node, ordinal: int, key: int, length: int, shown: int, fate: int, cap: int
    ) -> Node:
        """A node that ends the trajectory with `fate`, or is truncated on the way there."""
        error = normal(key, self._noise) if self._noise else 0.0
        tokens, steps = min(length, cap), self._steps
        left = length - tokens
        still = min(shown, left)
        done = not left
        hidden: tuple[Any, ...] = (steps, fate, error, length, None)
        if left:
            hidden = (steps - 1, RIGHT, 0.0, length, (left, fate, error, still))
        return Node(
            parent,
            ordinal,
            parent.depth + 1,
            tokens,
            parent.path_tokens + tokens,
            done,
            self._label(fate) if done else None,
            answer_tokens=shown - still,
            key=key,
            hidden=hidden,
        )

    def score(self, node: Node) -> float:
        """The verifier's score of the steps that `node` has finished, in (0, 1); also set on the node.

        Raises ValueError when the world has no verifier.
        """
        if not self._noise:
            raise ValueError("This question has no verifier: pass one to QuestionModel.world.")
        k, wrong, error, _, _ = node.hidden
        shift = self._errors.get(wrong)
        if shift is None:
            shift = self._errors[wrong] = self._class_error(wrong)
        if k > self._steps:
            k = self._steps
        gain = self._gain_wrong if wrong else self._gain_right
        logit = gain[k] + shift + self._sigmas[k] * error
        score = node.score = 1.0 / (1.0 + math.exp(-min(max(logit, -30.0), 30.0)))
        return score

    def is_correct(self, answer: int | None) -> bool:
        """Whether the answer with this label is right; no answer is not."""
        return answer == self._right

    def _label(self, wrong: int) -> int:
        label = self._labels.get(wrong)
        if label is None:
            label = self._labels[wrong] = mix(self._class_key(wrong) ^ LABEL) >> 1
        return label

    def _class_key(self, wrong: int) -> int:
        key = self._keys.get(wrong)
        if key is None:
            key = self._keys[wrong] = child_key(self._classes, wrong)
        return key

    def _ends(self, k: int, wrong: int, total: int, tokens: int) -> bool:
        """Whether a trajectory of this many tokens is done after k >= K steps."""
        if wrong == LOST:
            return tokens >= self._limit
        return total > 0 or k >= self._steps + self._extra(wrong)

    def _extra(self, wrong: int) -> int:
        """Steps beyond K that this wrong answer takes."""
        extra = self._extras.get(wrong)
        if extra is None:
            mean = self.model.wrong_steps
            extra = geometric(uniform(self._class_key(wrong), EXTRA), mean) if mean else 0
            self._extras[wrong] = extra
        return extra

    def _class_error(self, wrong: int) -> float:
        verifier = self.verifier
        assert verifier is not None
        shared = verifier.question_sigma * normal(self.key, ERROR)
        if not wrong:
            return shared
        key = self._class_key(wrong)
        error, blind = normal(key, ERROR), uniform(key, BLIND)
        if verifier.common < 1.0:
            own = OWN + verifier.version
            error *= math.sqrt(verifier.common)
            error += math.sqrt(1.0 - verifier.common) * normal(key, own)
            if uniform(key, COMMON) >= verifier.common:
                blind = uniform(key, own + OWN)
        boost = verifier.blind_boost if blind < verifier.blind_share else 0.0
        return shared + (verifier.class_sigma * error + boost)

    def _wrong_answer(self, u: float) -> int:
        """Draw wrong answer 1, 2, ... by breaking the stick as far as `u` needs."""
        sticks = self._sticks
        while not sticks or sticks[-1] <= u:
            if self._left < 1e-12:
                return len(sticks)
            v = uniform(self._class_key(len(sticks) + 1), STICK)
            self._left *= v ** (1.0 / self.model.theta)  # 1 - Beta(1, theta)
            sticks.append(1.0 - self._left)
        return bisect_right(sticks, u) + 1

    def _length_score(self, key: int) -> float:
        shared = self.model.length_correlation
        return math.sqrt(shared) * normal(self.key, LENGTH) + math.sqrt(1.0 - shared) * normal(
            key, LENGTH
        )

    def _total(self, key: int, wrong: int) -> int:
        """Tokens of the trajectory whose first step is `key`; at least one a step."""
        model, lengths = self.model, self._lengths
        assert lengths is not None
        tokens = lengths(_phi(self._length_score(key)))
        if lengths is model.output_tokens:
            if model.wrong_longer != 1.0:
                rate = 1.0 if model.solved_lengths else self.difficulty
                tokens *= model.wrong_longer ** (rate if wrong else rate - 1.0)
            if model.max_output is not None:
                tokens = min(tokens, model.max_output)
        return max(round(tokens), self._steps)

    def _shown(self, key: int, length: int, share: Quantile) -> int:
        """How many of a chain's tokens are its visible answer: the rest of the reasoning share."""
        c = self.model.share_correlation
        score = c * self._length_score(key) + math.sqrt(1.0 - c * c) * normal(key, SHARE)
        return max(1, length - round(length * share(_phi(score))))


def ramble(model: QuestionModel, rate: float) -> int:
    """The chance out of HALF that a solution loses its thread at a step: high where few are right."""
    return int(model.ramble * (1.0 - rate) ** LOSES * HALF)


def apart(model: QuestionModel, survive: tuple[int, ...]) -> tuple[int, ...]:
    """The chance out of HALF that a further child, unlike its siblings, survives each step."""
    return tuple(int((s / HALF) ** (1.0 - model.diversity) * HALF) for s in survive)


def geometric(u: float, mean: float) -> int:
    """A geometric number 0, 1, ... of this mean > 0 from a uniform draw; at most MOST."""
    return min(int(math.log(u) / math.log(mean / (1.0 + mean))), MOST)


def _phi(z: float) -> float:
    return min(max(0.5 * math.erfc(-z * SQRT_HALF), 1e-16), 1.0 - 1e-16)


def _number_of_steps(model: QuestionModel, key: int) -> int:
    edges = model.steps_edges
    if len(edges) == 1:
        return model.steps_min
    return model.steps_min + min(bisect_right(edges, uniform(key, STEPS)), len(edges) - 1)


def _survival(model: QuestionModel, key: int, steps: int) -> tuple[float, tuple[int, ...]]:
    """The pass rate, and per step the chance of staying alive as an integer out of 2^32."""
    u, share = uniform(key, DIFFICULTY), model.bottleneck
    if u < share:
        low, high = model.bottleneck_range
        rate = low * (high / low) ** (u / share)
        fatal = int(uniform(key, BOTTLENECK) * steps)
        return rate, tuple(int(rate * HALF) if k == fatal else HALF for k in range(steps))
    rate = float(betaincinv(*model.pass_rate, (u - share) / (1.0 - share)))
    if steps == 1:
        return rate, (int(rate * HALF),)
    weights = _weights(model, key, steps)
    return rate, tuple(int(rate**w * HALF) for w in weights)


def _weights(model: QuestionModel, key: int, steps: int) -> list[float]:
    """Dirichlet weights of the steps, as gamma draws over their sum."""
    base = mix(key ^ WEIGHT)
    gammas = [
        table[mix(base + (k + 1) * GOLDEN) & (TABLE - 1)]
        for k, table in enumerate(weight_tables(model, steps))
    ]
    whole = sum(gammas)
    return [g / whole for g in gammas] if whole > 0 else [1.0 / steps] * steps


def weight_tables(model: QuestionModel, steps: int) -> list[tuple[float, ...]]:
    """Per step, TABLE points of the gamma distribution of its weight before they are normed."""
    if model.weights is None:
        return [_gammas(model.kappa)] * steps
    return [_gammas(model.kappa * steps * w) for w in model.weights]


@lru_cache(maxsize=64)
def _gammas(shape: float) -> tuple[float, ...]:
    draws: list[float] = gammaincinv(shape, (np.arange(TABLE) + 0.5) / TABLE).tolist()
    return tuple(draws)


@lru_cache(maxsize=256)
def levels(
    verifier: VerifierModel, steps: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """After 0 to `steps` steps: the mean logits of what is alive and of what is not, and the step error's sd."""
    halves = [verifier.gain(k, steps) / 2 for k in range(steps + 1)]
    return (
        tuple(verifier.bias + h for h in halves),
        tuple(verifier.bias - h for h in halves),
        tuple(verifier.sigma(k, steps) for k in range(steps + 1)),
    )
