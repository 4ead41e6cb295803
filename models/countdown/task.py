"""The Countdown puzzle: which moves a state has, what they lead to, and exactly how good a state is.

A state is up to SLOTS numbers; a move joins two of them by + - x /, with a whole result from 1 to LARGEST. A
puzzle of k numbers ends after k - 1 moves and is solved if the last number is the target.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SLOTS: Final = 6  # most numbers of a puzzle
LARGEST: Final = 199
NUMBERS: Final = 20  # a puzzle's numbers are 1 to NUMBERS
OPERATIONS: Final = "+-x/"
PAIRS: Final = tuple(combinations(range(SLOTS), 2))
MOVES: Final = len(PAIRS) * len(OPERATIONS)


def results(states: Ints) -> Ints:
    """What every move gives [n, MOVES], 0 where it is not legal; states [n, SLOTS], descending, 0 where empty."""
    i, j = np.array(PAIRS).T
    large, small = states[:, i], states[:, j]
    divides = (large % np.maximum(small, 1)) == 0
    quotient = np.where(divides, large // np.maximum(small, 1), 0)
    found = np.stack([large + small, large - small, large * small, quotient], -1)
    legal = (small > 0)[..., None] & (found >= 1) & (found <= LARGEST)
    joined: Ints = np.where(legal, found, 0).reshape(len(states), MOVES)
    return joined


def moved(states: Ints, moves: Ints) -> Ints:
    """The states after one legal move each [n], descending again."""
    rows = np.arange(len(states))
    pair = np.array(PAIRS)[moves // len(OPERATIONS)]
    after = states.copy()
    after[rows, pair[:, 0]] = results(states)[rows, moves]
    after[rows, pair[:, 1]] = 0
    return -np.sort(-after, axis=1)


def over(states: Ints) -> Bools:
    """Whether one number is left."""
    ended: Bools = states[:, 1] == 0
    return ended


def puzzles(
    rng: np.random.Generator, count: int, numbers: int
) -> tuple[Ints, Ints, list[tuple[Ints, Ints]]]:
    """`count` puzzles of so many numbers that can be solved: states, targets, and a solution's (states, moves).

    The target is what a random sequence of moves leads to. Raises ValueError for numbers outside 2 to SLOTS.
    """
    if not 2 <= numbers <= SLOTS:
        raise ValueError(f'"numbers" must be 2 to {SLOTS}, got {numbers}.')
    parts: list[list[Ints]] = []
    have = 0
    while have < count:  # few random sequences come to a state without a move
        states = np.zeros((count, SLOTS), np.int64)
        states[:, :numbers] = -np.sort(-rng.integers(1, NUMBERS + 1, (count, numbers)), axis=1)
        columns: list[Ints] = []
        alive = np.ones(count, bool)
        for _ in range(numbers - 1):
            legal = results(states) > 0
            alive &= legal.any(1)
            moves = np.where(legal, rng.random(legal.shape), -1.0).argmax(1)
            columns += [states, moves]
            states = np.where(alive[:, None], moved(states, np.where(alive, moves, 0)), states)
        kept = np.flatnonzero(alive)[: count - have]
        parts.append([column[kept] for column in (*columns, states[:, 0])])
        have += len(kept)
    *ways, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
    trace = list(zip(ways[::2], ways[1::2], strict=True))
    return trace[0][0], targets, trace


@lru_cache(maxsize=200_000)
def chance(state: tuple[int, ...], target: int) -> float:
    """The exact probability that uniformly random legal moves from `state` end at the target; 0: it cannot be solved.

    By dynamic programming over the multisets of numbers that can be reached.
    """
    if len(state) == 1:
        return float(state[0] == target)
    total = moves = 0.0
    for i, j in combinations(range(len(state)), 2):
        large, small = max(state[i], state[j]), min(state[i], state[j])
        rest = [state[n] for n in range(len(state)) if n not in (i, j)]
        options = [large + small, large - small, large * small]
        if large % small == 0:
            options.append(large // small)
        for value in options:
            if 1 <= value <= LARGEST:
                moves += 1
                total += chance(tuple(sorted([*rest, value], reverse=True)), target)
    return total / moves if moves else 0.0


def solvable(state: tuple[int, ...], target: int) -> bool:
    """Whether some sequence of moves ends at the target."""
    return chance(tuple(sorted(state, reverse=True)), target) > 0.0
