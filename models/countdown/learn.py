"""How the Countdown models learn: the policy from solutions, the reward model from the policy's own rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.countdown import net
from models.countdown.net import Size, Weights
from models.countdown.task import Bools, Ints, moved, over, puzzles, results

Floats = npt.NDArray[np.float64]
Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps and rows a step of gradient descent, and its highest learning rate (a cosine with a warm-up)."""

    steps: int
    batch: int = 512
    rate: float = 2e-3


def fit(
    w: Weights,
    schedule: Schedule,
    loss: Callable[[int], Any],
    progress: Progress | None = None,
) -> float:
    """Adam over the weights on `loss(step)`; return the mean loss of the last tenth."""
    import torch

    optimiser = torch.optim.AdamW(list(w.values()), lr=schedule.rate, weight_decay=1e-2)
    last: list[float] = []
    for step in range(schedule.steps):
        share = step / schedule.steps
        warm = min(1.0, (step + 1) / max(1, schedule.steps // 20))
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * warm * 0.5 * (1.0 + np.cos(np.pi * share))
        optimiser.zero_grad(set_to_none=True)
        value = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(list(w.values()), 1.0)
        optimiser.step()
        if share >= 0.9 or step == schedule.steps - 1:
            last.append(float(value.detach()))
        if progress is not None and step % 20 == 0:
            progress(share, f"loss {float(value.detach()):.3f}")
    return float(np.mean(last))


def fit_policy(
    w: Weights,
    size: Size,
    schedule: Schedule,
    rng: np.random.Generator,
    numbers: Sequence[int] = (3, 4, 5),
    progress: Progress | None = None,
) -> float:
    """Imitate random solutions of random puzzles; a fresh batch each step."""

    def loss(step: int) -> Any:
        k = numbers[step % len(numbers)]
        return _imitation(w, size, *_random_steps(rng, schedule.batch, k))

    return fit(w, schedule, loss, progress)


def imitate(
    w: Weights, size: Size, schedule: Schedule, rng: np.random.Generator,
    found: tuple[Ints, Ints, Ints], numbers: Sequence[int] = (3, 4, 5),
) -> float:  # fmt: skip
    """Imitate solutions that a search has found, (states, targets, moves), beside as many fresh random ones.

    Without those the policy forgets all but what it found, and sampling covers less.
    """
    states, targets, moves = found

    def loss(step: int) -> Any:
        rows = rng.integers(0, len(states), schedule.batch // 2)
        fresh, goals, chosen = _random_steps(rng, schedule.batch // 2, numbers[step % len(numbers)])
        return _imitation(
            w,
            size,
            np.concatenate([states[rows], fresh]),
            np.concatenate([targets[rows], goals]),
            np.concatenate([moves[rows], chosen]),
        )

    return fit(w, schedule, loss)


def _random_steps(rng: np.random.Generator, rows: int, numbers: int) -> tuple[Ints, Ints, Ints]:
    """About so many steps of random solutions: (states, targets, moves)."""
    _, targets, trace = puzzles(rng, max(1, rows // (numbers - 1)), numbers)
    states = np.concatenate([states for states, _ in trace])
    moves = np.concatenate([moves for _, moves in trace])
    return states, np.tile(targets, len(trace)), moves


def _imitation(w: Weights, size: Size, states: Ints, targets: Ints, moves: Ints) -> Any:
    from torch.nn import functional

    given, goals, gives, chosen = net.tensors(w, states, targets, results(states), moves)
    return functional.cross_entropy(net.move_logits(w, given, goals, gives, size.heads), chosen)


def play(
    w: Weights, size: Size, states: Ints, targets: Ints, rng: np.random.Generator
) -> tuple[Ints, list[Ints]]:
    """Sample moves until every puzzle is over: the ends, and all states on the way, the first included."""
    way = [states]
    live = np.flatnonzero(~over(states))
    while len(live):
        logs = net.log_policy(w, states[live], targets[live], size.heads)
        stuck = ~np.isfinite(logs).any(1)
        noise = -np.log(-np.log(rng.random(logs.shape)))
        moves = np.where(np.isfinite(logs), logs + noise, -np.inf).argmax(1)
        after = states.copy()
        go = live[~stuck]
        after[go] = moved(states[go], moves[~stuck])
        states = after
        way.append(states)
        live = go[~over(states[go])]
    return states, way


def solved(states: Ints, targets: Ints) -> Bools:
    """Whether a puzzle is over and its number is the target."""
    right: Bools = over(states) & (states[:, 0] == targets)
    return right


def judged(
    w: Weights, size: Size, rng: np.random.Generator, count: int, numbers: int, rollouts: int = 8
) -> tuple[Ints, Ints, Floats, Ints]:
    """States that the policy comes to, and how often it solves them: (states, targets, shares, depths).

    `rollouts` from every state on the way; ends, whose share is 0 or 1, are among them.
    """
    first, targets, _ = puzzles(rng, count, numbers)
    _, way = play(w, size, first, targets, rng)
    states, goals, shares, depths = [], [], [], []
    for depth, some in enumerate(way[1:], 1):
        again = np.repeat(some, rollouts, axis=0)
        ends, _ = play(w, size, again, np.repeat(targets, rollouts), rng)
        right = solved(ends, np.repeat(targets, rollouts)).reshape(-1, rollouts)
        states.append(some)
        goals.append(targets)
        shares.append(right.mean(1))
        depths.append(np.full(count, depth))
    return (
        np.concatenate(states),
        np.concatenate(goals),
        np.concatenate(shares),
        np.concatenate(depths),
    )


def fit_rewards(
    w: Weights,
    size: Size,
    schedule: Schedule,
    rng: np.random.Generator,
    data: tuple[Ints, Ints, Floats],
    progress: Progress | None = None,
) -> float:
    """Predict the shares of `judged`, by cross-entropy."""
    import torch
    from torch.nn import functional

    states, targets, shares = data

    def loss(step: int) -> Any:
        rows = rng.integers(0, len(states), schedule.batch)
        given, goals = net.tensors(w, states[rows], targets[rows])
        wanted = torch.as_tensor(shares[rows], dtype=torch.float32, device=given.device)
        logits = net.value_logits(w, given, goals, size.heads)
        return functional.binary_cross_entropy_with_logits(logits, wanted)

    return fit(w, schedule, loss, progress)


def auc(scores: npt.NDArray[np.floating[Any]], right: Bools) -> float:
    """The chance that a right one scores above a wrong one, ties half; NaN without both.

    Source: Mann-Whitney U over the number of pairs.
    """
    positive, negative = scores[right], np.sort(scores[~right])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(
        negative, positive, "right"
    )
    return float(below.sum() / (2.0 * len(positive) * len(negative)))
