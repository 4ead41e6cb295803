"""Accuracy against compute: power laws with intervals, the best plan per band, training against inference.

Error falls as c C^-gamma with the tokens C of a search. What a query volume and a quality target make
cheapest, a bigger model or more thinking, follows from the loss of a model of N parameters trained on D
tokens and from how much inference is worth how much training.

Source: Hoffmann et al. (Chinchilla), arXiv 2203.15556: loss E + A N^-alpha + B D^-beta; Sardana et al.,
"Beyond Chinchilla-optimal", arXiv 2401.00448: 6 N D_train + 2 N D_inf FLOPs; the exchange of inference for
training: Villalobos and Atkinson, "Trading off compute in training and inference", Epoch 2023; Snell et al.,
arXiv 2408.03314, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.crowd import Floats

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28  # Hoffmann et al., approach 3
TRAIN_FLOPS, INFER_FLOPS = 6.0, 2.0  # per parameter and token
RESAMPLES: Final = 200
WORTH: Final = {"any": 1 / 1.5, "cheap verification": 3.5 / 5.5}
"""Orders of magnitude of training that one of inference is worth. Source: Epoch, as above: 1 to 2 of inference
for about 1 of training; with cheap verification 5 to 6 for 3 to 4."""
LIMIT: Final = {"any": 1.5, "cheap verification": 5.5}  # orders of inference beyond which it stops


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Error = c tokens^-gamma, with the exponent's 95 % interval over questions."""

    gamma: float
    low: float
    high: float
    c: float

    def error(self, tokens: float) -> float:
        """The error at so many tokens a question."""
        return float(self.c * tokens**-self.gamma)


def fit_power_law(tokens: Floats, correct: Floats, seed: int = 0) -> PowerLaw:
    """Fit log error on log tokens; both (points, questions), the interval by resampling questions.

    Raises ValueError for fewer than two points or where every answer is right.
    """
    if len(correct) < 2:
        raise ValueError("A power law needs two points or more.")
    if (correct.mean(axis=1) >= 1).any():
        raise ValueError("Every answer is right at some point: its error has no logarithm.")
    logs = np.log(tokens.mean(axis=1))
    rng = np.random.default_rng(seed)
    error = 1 - correct
    slope, level = np.polyfit(logs, np.log(error.mean(axis=1)), 1)
    slopes = []
    for _ in range(RESAMPLES):
        drawn = error[:, rng.integers(0, error.shape[1], error.shape[1])].mean(axis=1)
        slopes.append(float(np.polyfit(logs, np.log(np.maximum(drawn, 1e-9)), 1)[0]))
    low, high = np.quantile(slopes, [0.025, 0.975])
    return PowerLaw(-float(slope), -float(high), -float(low), math.exp(float(level)))


def compute_optimal(
    accuracy: Mapping[str, float], tokens: Mapping[str, float]
) -> list[tuple[str, float, float]]:
    """The plans that no other beats at fewer tokens: (name, tokens, accuracy), cheapest first."""
    best, frontier = -1.0, []
    for name in sorted(accuracy, key=lambda n: (tokens[n], -accuracy[n])):
        if accuracy[name] > best:
            best = accuracy[name]
            frontier.append((name, tokens[name], accuracy[name]))
    return frontier


# -- training against inference ----------------------------------------------------------------------------


def loss(parameters: float, train_tokens: float) -> float:
    """The loss of a model, nats a token."""
    return float(E + A * parameters**-ALPHA + B * train_tokens**-BETA)


def train_tokens_for(parameters: float, target: float) -> float:
    """The tokens on which a model of this size reaches a loss; infinite when it never does."""
    left = target - E - A * parameters**-ALPHA
    return math.inf if left <= 0 else (left / B) ** (-1 / BETA)


@dataclass(frozen=True, slots=True)
class Choice:
    """A model and how it is used: parameters, training tokens, times of thinking, FLOPs in all."""

    parameters: float
    train_tokens: float
    thinking: float  # tokens a query over one plain answer's
    train_flops: float
    infer_flops: float

    @property
    def flops(self) -> float:
        """Training and inference together."""
        return self.train_flops + self.infer_flops


def frontier(
    target: float,
    queries: float,
    tokens_per_query: float,
    verification: str = "any",
    sizes: Sequence[float] = tuple(np.geomspace(1e8, 1e13, 160)),
    thinking: Sequence[float] = tuple(np.geomspace(1, 10**5.5, 45)),
) -> list[Choice]:
    """All ways to be as good as a Chinchilla-optimal model of loss `target`, cheapest first.

    Thinking x times longer is worth x^WORTH times the training compute, up to LIMIT orders: a model that
    thinks may have the loss of one trained with that much less. `queries` of `tokens_per_query` generated
    tokens each are served in its life. Raises ValueError for a target no model reaches, KeyError for
    another kind of verification.
    """
    if target <= E:
        raise ValueError(f"No model reaches a loss of {target:g}: what is irreducible is {E:g}.")
    worth, limit = WORTH[verification], LIMIT[verification]
    needed = chinchilla_flops(target)
    choices = []
    for x in thinking:
        if math.log10(x) > limit + 1e-9:
            continue
        weaker = chinchilla_loss(needed / x**worth)
        for size in sizes:
            tokens = train_tokens_for(size, weaker)
            if math.isfinite(tokens):
                spent = INFER_FLOPS * size * queries * tokens_per_query * x
                choices.append(Choice(size, tokens, x, TRAIN_FLOPS * size * tokens, spent))
    return sorted(choices, key=lambda choice: choice.flops)


def optimal_model(flops: float) -> tuple[float, float]:
    """Parameters and tokens of the least loss for so many training FLOPs (Hoffmann et al., equation 4)."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    scale = flops / TRAIN_FLOPS
    return g * scale ** (BETA / (ALPHA + BETA)), scale ** (ALPHA / (ALPHA + BETA)) / g


def chinchilla_loss(flops: float) -> float:
    """The least loss that so many training FLOPs buy."""
    return loss(*optimal_model(flops))


def chinchilla_flops(target: float) -> float:
    """The training FLOPs of the cheapest model of this loss (bisection in their logarithm)."""
    low, high = 10.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        if chinchilla_loss(10**middle) > target:
            low = middle
        else:
            high = middle
    return float(10**high)


def to_match(times_larger: float, pretraining_tokens: float, inference_tokens: float) -> float:
    """How many times the inference tokens a model needs to spend what one M times larger costs in all.

    M + 3 (D_pre / D_inf) (M - 1). Source: Snell et al., arXiv 2408.03314, section 7.
    """
    return times_larger + 3 * pretraining_tokens / inference_tokens * (times_larger - 1)
