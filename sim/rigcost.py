"""What a tick of a rig costs, measured before a prediction: a grid of flat batches, fitted by the cost model's terms.

The terms are those of docs/engine.md: a base by decoders, a base by all rows where a prompt runs beside them,
KV tokens read, context under prompts, KV tokens copied. Nothing here has seen a search.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy
from scipy.optimize import nnls
from simpy.rt import RealtimeEnvironment

from models.latency import CAPTURE_SIZES, StepCost
from sim.batch import Batch, Settings
from sim.executor import RealEngine
from sim.stepper import Clock, Device, Log, Stepper, TickRow

Floats = npt.NDArray[np.float64]

KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROW_KNOTS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SATURATIONS = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 46.0, 64.0, 128.0, 1e18)
_DECODE_TICKS = 12  # of every flat batch: long enough for a median, short enough for a grid
_PILOT = 4.0  # weight of all ticks of the pilot over all of the grid
_RAGGED = 5  # tokens by which the prompts of a flat batch differ, as those of queries do
_WARM_UP = 2  # ticks of a batch that are left out: first touch, capture of a graph


class Nobody:
    """Whoever owns a flat batch's branches: it hears of everything and does nothing."""

    def started(self, branch: Any) -> None:
        """A branch has its first token."""

    def marked(self, branch: Any) -> None:
        """A branch has its marked token."""

    def finished(self, branch: Any) -> None:
        """A branch is over."""

    def scheduled(self, replica: Any) -> None:
        """A query was admitted."""


@dataclass(frozen=True, slots=True)
class Flat:
    """One flat batch: `prompts` of `tokens` tokens at once, `children` of each, of `ticks` tokens (0: scored)."""

    prompts: int
    tokens: int
    children: int
    ticks: int
    scored: int = 0  # tokens of a child that is scored


@dataclass(frozen=True, slots=True)
class Measured:
    """A tick of a flat batch; `shared` of the KV tokens it read are read by `sharers` branches each."""

    row: TickRow
    shared: float
    sharers: int


def grid(limits: Settings, judges: bool) -> list[Flat]:
    """Flat batches that span what an engine with these limits can meet."""
    room = limits.num_gpu_blocks * limits.block_size
    most = limits.max_num_seqs
    flats: list[Flat] = []
    if judges:
        for children in (1, 2, 4, 8, 16):
            for tokens, scored in ((64, 16), (200, 60), (600, 60), (600, 200)):
                if children <= most and (tokens + children * scored) * 2 < room:
                    flats.append(Flat(1, tokens, children, 0, scored))
        return [*flats, Flat(4, 200, 2, 0, 60), Flat(8, 100, 1, 0, 30)]
    for b in (n for n in KNOTS if n <= most):
        for tokens in (40, 400, 1_600):
            for prompts in sorted({b, max(1, b // 4), 1}):
                long = tokens + _RAGGED * prompts
                if prompts * long + b * 2 * _DECODE_TICKS < room // 2 and prompts * long <= 32_768:
                    flats.append(Flat(prompts, tokens, b // prompts, _DECODE_TICKS))
    return flats


def measure(
    limits: Settings,
    engine: RealEngine,
    vocab: int,
    judges: bool,
    clock: Clock,
    progress: Callable[[float, str], None] | None = None,
    repeats: int = 1,
) -> list[Measured]:
    """Play the grid on an engine, each flat batch alone, `repeats` times over; return its ticks without the warm-up.

    `progress` is told the share that is done and a word on it.
    """
    found: list[Measured] = []
    flats = grid(limits, judges) * repeats
    for number, flat in enumerate(flats):
        if progress is not None:
            progress(number / len(flats), f"{flat.prompts * flat.children} branches")
        ticks = _flat_ticks(flat, limits, engine, vocab, clock)
        # A scored batch is over in a few ticks: what is cold is only its first.
        rows = ticks[_WARM_UP if flat.ticks else 0 :]
        for row in rows:
            shared, sharers = 0.0, max(1, flat.children)
            if sharers > 1 and row.decoders == flat.prompts * flat.children:
                shared = (row.attended - row.read) / (sharers - 1)
            elif sharers > 1 and row.decoders:
                continue  # the batch fills or ends: who shares with whom is not known here
            found.append(Measured(row, shared, sharers))
    return found


def _flat_ticks(
    flat: Flat, limits: Settings, engine: RealEngine, vocab: int, clock: Clock
) -> list[TickRow]:
    env: simpy.Environment = (
        RealtimeEnvironment(strict=False) if clock == "wall" else simpy.Environment()
    )
    log = Log()
    batch = Batch(limits, StepCost.linear(1e-9))
    stepper = Stepper(env, batch, "flat", engine, vocab, Device(), log, clock=clock)
    _submit(stepper, flat)
    if isinstance(env, RealtimeEnvironment):
        env.sync()
    env.run()
    return log.ticks


SENTINEL = Flat(4, 200, 4, 3 * _DECODE_TICKS)
"""One flat batch that is timed again and again: what it takes later, over what it took first, is drift."""


def sentinel_s(limits: Settings, engine: RealEngine, vocab: int, clock: Clock) -> float:
    """The median tick of the sentinel in s."""
    ticks = _flat_ticks(SENTINEL, limits, engine, vocab, clock)
    return float(np.median([row.seconds for row in ticks if not row.prefill]))


def _submit(stepper: Stepper, flat: Flat) -> None:
    nobody = Nobody()

    def submit() -> None:
        batch = stepper.batch
        for number in range(flat.prompts):
            root = batch.prompt(flat.tokens + _RAGGED * number, (), nobody)
            for _ in range(flat.children):
                if flat.ticks:
                    batch.branch(root, flat.ticks, (nobody,))
                else:
                    batch.prefill(batch.given(root, flat.scored), (nobody,))

    stepper.do(submit)


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted cost and how well it meets the ticks it was fitted to: relative errors, median and p90."""

    cost: StepCost
    median: float
    p90: float
    ticks: int


def fit(measured: Sequence[Measured], padded: bool) -> Fit:
    """Non-negative least squares of relative error over the terms of a step, best of several saturations.

    `padded`: decode-only ticks run as graphs, padded to CAPTURE_SIZES. Raises ValueError for no ticks.
    """
    if not measured:
        raise ValueError("there are no measured ticks to fit a cost to")
    tried = [(_solve(measured, saturation, padded), saturation) for saturation in SATURATIONS]
    (weights, error), saturation = min(tried, key=lambda one: float(one[0][1].mean()))
    return _fitted(weights, error, saturation, padded)


def refit(old: Fit, measured: Sequence[Measured], pilot: Sequence[TickRow], padded: bool) -> Fit:
    """The same with the ticks of a pilot, which was charged with `old`'s saturation."""
    saturation = old.cost.saturation
    rows = [Measured(row, 0.0, 1) for row in pilot]
    each = _PILOT * len(measured) / max(1, len(rows))
    weights, error = _solve(
        [*measured, *rows], saturation, padded, [1.0] * len(measured) + [each] * len(rows)
    )
    return _fitted(weights, error, saturation, padded)


def _solve(
    measured: Sequence[Measured],
    saturation: float,
    padded: bool,
    importance: Sequence[float] | None = None,
) -> tuple[Floats, Floats]:
    """Weights of the terms, and the relative error of each tick. Near the least absolute relative error.

    A stutter of the host must not count much: weighted least squares, repeated.
    """
    seconds = np.array([m.row.seconds for m in measured])
    relative = np.array([_terms(m, saturation, padded) for m in measured]) / seconds[:, None]
    given = np.ones(len(seconds)) if importance is None else np.asarray(importance)
    scale = np.sqrt(given)
    for _ in range(5):
        weights, _ = nnls(relative * scale[:, None], scale)
        error = np.abs(relative @ weights - 1.0)
        scale = np.sqrt(given / np.maximum(error, 0.02))
    return weights, error


def _fitted(weights: Floats, error: Floats, saturation: float, padded: bool) -> Fit:
    k, r = len(KNOTS), len(ROW_KNOTS)
    cost = StepCost(
        step=Step(tuple(weights[:k]), tuple(weights[k : k + r]), padded),
        kv_s=float(weights[k + r]),
        saturation=saturation,
        copy_s=float(weights[k + r + 2]),
        label="measured on this rig",
        source_kind="measured",
        error=f"median {np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%} of its own ticks",
        chunk_s=Proportional(float(weights[k + r + 1])),
    )
    return Fit(cost, float(np.median(error)), float(np.quantile(error, 0.9)), len(error))


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of (decoders, prefill tokens): piecewise linear in decoders, or in all rows of a mixed tick."""

    decode: tuple[float, ...]  # what each knot adds to the one before
    mixed: tuple[float, ...]
    padded: bool

    def __call__(self, b: int, c: int) -> float:
        """Return the seconds of a tick of b decoders and c prefill tokens that reads no KV."""
        if c:
            return float(np.dot(_ramps(b + c, ROW_KNOTS), self.mixed))
        return float(np.dot(_ramps(_padded(b) if self.padded else b, KNOTS), self.decode))


@dataclass(frozen=True, slots=True)
class Proportional:
    """Seconds per context token of a chunk of c tokens: `pair_s` for each of the chunk's tokens."""

    pair_s: float

    def __call__(self, c: int) -> float:
        """Return the seconds per context token of a chunk of c tokens."""
        return self.pair_s * c


def _padded(b: int) -> int:
    return CAPTURE_SIZES[bisect_left(CAPTURE_SIZES, b)] if b <= CAPTURE_SIZES[-1] else b


def _ramps(x: float, knots: tuple[int, ...]) -> list[float]:
    """1, then the share of each interval between knots that lies below x: with weights >= 0 it never falls."""
    shares = [1.0]
    for low, high in pairwise(knots):
        last = high == knots[-1]
        share = (x - low) / (high - low)
        shares.append(max(0.0, share if last else min(1.0, share)))
    return shares


def _terms(measured: Measured, saturation: float, padded: bool) -> list[float]:
    row = measured.row
    read = row.read + measured.shared * (max(1.0, measured.sharers / saturation) - 1.0)
    none = [0.0] * len(KNOTS if row.prefill else ROW_KNOTS)
    if row.prefill:
        base = [*none, *_ramps(row.decoders + row.prefill, ROW_KNOTS)]
    else:
        base = [*_ramps(_padded(row.decoders) if padded else row.decoders, KNOTS), *none]
    return [*base, read, row.context, float(row.copied)]
