"""Attention as it was timed: a grid over chunk, its context, decoders and their context, read linearly."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Point = tuple[int, int, int, int]
"""(tokens of the prefill chunk, its context, decoders, context of each decoder)."""
Floats = np.ndarray[Any, np.dtype[np.float64]]


class GridError(ValueError):
    """Timed points that span no grid."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Seconds over KV tokens read, in straight pieces: from `starts[i]` on `values[i]` rising by `slopes[i]`."""

    starts: tuple[float, ...]
    values: tuple[float, ...]
    slopes: tuple[float, ...]

    def at(self, read: float) -> tuple[float, float, float]:
        """Seconds at `read` tokens, seconds for each further one, and up to how many that holds."""
        starts = self.starts
        i = max(bisect_right(starts, read) - 1, 0)
        upto = starts[i + 1] if i + 1 < len(starts) else float("inf")
        return self.values[i] + self.slopes[i] * (read - starts[i]), self.slopes[i], upto

    def times(self, factor: float) -> Lines:
        """The same, `factor` times as long."""
        values = tuple(factor * value for value in self.values)
        return Lines(self.starts, values, tuple(factor * slope for slope in self.slopes))


@dataclass(frozen=True, slots=True)
class Skew:
    """How far a step with unequal contexts lies between one of their mean and one of their longest.

    `alphas[mixed]` holds (decoders up to, alpha) in ascending order, for steps without and with a chunk.
    The alphas were timed with two-valued batches; a batch of other shape takes its share by variance.
    """

    alphas: Mapping[bool, tuple[tuple[int, float], ...]]

    def alpha(self, decoders: int, mixed: bool) -> float:
        """Alpha of a two-valued batch, in [0, 1]; 0 where none was timed."""
        table = self.alphas.get(mixed, ())
        for upto, alpha in table:
            if decoders <= upto:
                return min(max(alpha, 0.0), 1.0)
        return min(max(table[-1][1], 0.0), 1.0) if table else 0.0


class AttentionGrid:
    """Seconds of one layer's attention in a step with at most one prefill chunk beside some decoders.

    Between timed points the time is linear along each axis; beyond the last it goes on as it rose last.
    A chunk shorter than the shortest timed one counts as that one (a step with any chunk runs another
    kernel than one of decoders alone), and so does a decoder's context. A corner that was not timed goes on
    along the number of decoders. Raises GridError where chunks, decoders or both were never timed.
    """

    __slots__ = ("chunks", "contexts", "decoders", "tokens", "times", "launch_s")

    def __init__(self, timed: Mapping[Point, float]) -> None:
        chunks, contexts, decoders, tokens = (sorted({p[i] for p in timed}) for i in range(4))
        self.chunks = [0, *(c for c in chunks if c)]
        self.contexts = contexts
        self.decoders = [0, *(n for n in decoders if n)]
        self.tokens = [v for v in tokens if v]
        if min(len(self.chunks), len(self.contexts), len(self.decoders), len(self.tokens)) < 2:
            raise GridError(
                "attention must be timed at two or more of each: chunks, contexts, decoders"
            )
        self.launch_s = min(timed.values())
        axes = (self.chunks, self.contexts, self.decoders, self.tokens)
        self.times: Floats = np.full([len(axis) for axis in axes], np.nan)
        for place in product(*(range(len(axis)) for axis in axes)):
            c, k, n, v = (axis[i] for axis, i in zip(axes, place, strict=True))
            found = timed.get((c, k if c else 0, n, v if n else 0))
            if found is not None:
                self.times[place] = found
        self.times[0, :, 0, :] = 0.0
        for axis in (2, 3, 1):
            self._extend(axis, np.array(axes[axis], dtype=float))
        if np.isnan(self.times).any():
            raise GridError("attention was not timed densely enough: some corner has no neighbours")

    def _extend(self, axis: int, at: Floats) -> None:
        times = np.moveaxis(self.times, axis, 0)  # a view
        first = 3 if axis == 2 else 2  # no decoders is not on the line that decoders follow
        for i in range(first, len(at)):
            rise = (times[i - 1] - times[i - 2]) / (at[i - 1] - at[i - 2])
            onward = times[i - 1] + np.maximum(rise, 0.0) * (at[i] - at[i - 1])
            times[i] = np.where(np.isnan(times[i]), onward, times[i])

    def seconds(self, chunk: float, context: float, decoders: float, tokens: float) -> float:
        """Seconds of one layer; 0 for an empty step."""
        return float(self._over_tokens(chunk, context, decoders) @ _weights(self.tokens, tokens))

    def _over_tokens(self, chunk: float, context: float, decoders: float) -> Floats:
        """Seconds at every timed decoder context, shape (tokens,)."""
        found: Floats = np.einsum(
            "ckdv,c,k,d->v",
            self.times,
            _weights(self.chunks, chunk, apart=True),
            _weights(self.contexts, context),
            _weights(self.decoders, decoders, apart=True),
        )
        return found

    def decode_lines(self, decoders: int, chunk: int, layers: int) -> Lines:
        """What `decoders` add to a step with a chunk of `chunk` tokens (0: none), over all tokens they read."""
        values = self._over_tokens(chunk, 0, decoders) - self._over_tokens(chunk, 0, 0)
        starts = decoders * np.array(self.tokens, dtype=float)
        slopes = np.diff(values) / np.diff(starts)
        slopes = np.append(slopes, slopes[-1])
        return Lines(
            (0.0, *starts.tolist()),
            (layers * float(values[0]), *(layers * values).tolist()),
            (0.0, *(layers * slopes).tolist()),
        )

    def context_s(self, chunk: int) -> float:
        """Seconds of one layer for each context token of a chunk: the mean rise over all timed contexts."""
        far = self.contexts[-1]
        return (self.seconds(chunk, far, 0, 0) - self.seconds(chunk, 0, 0, 0)) / far


def _weights(axis: list[int], x: float, apart: bool = False) -> Floats:
    """How much each point of an axis counts at x, their sum 1; `apart`: point 0 counts for x = 0 alone."""
    weights = np.zeros(len(axis))
    low = 1 if apart and x > 0 else 0
    if x <= axis[low]:
        weights[low] = 1.0
        return weights
    i = min(max(bisect_right(axis, x) - 1, low), len(axis) - 2)
    share = (x - axis[i]) / (axis[i + 1] - axis[i])
    weights[i], weights[i + 1] = 1.0 - share, share
    return weights
