"""Time of one operation: many input sets in turn so that caches are cold, medians, and events where a clock would lie."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

_LONG = 5.0
Run = Callable[[int], None]
"""run(i): issue the operation once on input set i."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long one point may take: at least `least` samples, then until `seconds` are spent, at most `most`."""

    seconds: float = 0.06
    least: int = 7
    most: int = 60
    warm: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or self.seconds < 0 or self.warm < 1:
            raise ValueError(
                f"a budget needs 1 <= least <= most, seconds >= 0 and warm >= 1, got {self}"
            )

    def samples(self, once_s: float) -> int:
        """How many samples of `once_s` seconds this budget pays for."""
        return int(np.clip(self.seconds / max(once_s, 1e-9), self.least, self.most))


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one run: median, 10th and 90th percentile, least; `samples` timed, `units` runs in each.

    `note` says in words why they are not what was asked for; empty where they are.
    """

    median: float
    p10: float
    p90: float
    least: float
    samples: int
    units: int
    note: str = ""


class Clock(Protocol):
    """Times run(0), run(1), ... run(units - 1), over and over; `reset` puts changed inputs back, outside of the time."""

    def time(
        self, run: Run, units: int, budget: Budget, reset: Callable[[], None] | None = None
    ) -> Times:
        """Seconds of one run on cold inputs."""
        ...


def times(seconds: Iterable[float], units: int, note: str = "") -> Times:
    """The statistics of samples that are seconds of one run each."""
    found = np.array(list(seconds))
    low, median, high = np.percentile(found, (10, 50, 90)).tolist()
    return Times(median, low, high, float(found.min()), len(found), units, note)


@dataclass(frozen=True, slots=True)
class WallClock:
    """A CPU's: each run between two readings of a monotonic clock."""

    now: Callable[[], float] = time.perf_counter

    def time(
        self, run: Run, units: int, budget: Budget, reset: Callable[[], None] | None = None
    ) -> Times:
        """Seconds of one run; the input sets take turns, so that the one to be read was used longest ago.

        A run that takes several times the whole budget is timed once.
        """
        at, taken = 0, []

        def once() -> float:
            nonlocal at
            if reset is not None and at % units == 0:
                reset()
            begin = self.now()
            run(at % units)
            at += 1
            return self.now() - begin

        first = [once() for _ in range(min(units, budget.warm))]
        if first[-1] > _LONG * budget.seconds > 0:
            return times(first[-1:], 1)
        for _ in range(budget.samples(first[-1])):
            taken.append(once())
        return times(taken, 1)


@dataclass(frozen=True, slots=True)
class GraphClock:
    """A GPU's: a CUDA graph of all input sets, replayed between events; `on` makes both array packages use `stream`.

    Where a run cannot be captured, the same runs launched one by one are timed, and `note` says so.
    """

    torch: Any
    stream: Any
    on: Callable[[], AbstractContextManager[None]]

    def time(
        self, run: Run, units: int, budget: Budget, reset: Callable[[], None] | None = None
    ) -> Times:
        """Seconds of one run within a replay, launch gaps of a graph included."""
        self.torch.cuda.synchronize()  # inputs are made on another stream

        def launched() -> None:
            for unit in range(units):
                run(unit)

        with self.on():
            if reset is not None:
                reset()
            launched()  # compiles, finds memory, lets libraries choose: nothing of it may happen in a capture
            self.stream.synchronize()
            replay, note = launched, ""
            try:
                replay = self._captured(launched)
            except Exception as error:  # noqa: BLE001 (the time of single launches is better than none)
                first = (str(error).splitlines() or [""])[0][:160]
                note = f"not in a graph: {type(error).__name__}: {first}"
                self.stream.synchronize()  # raises where the device itself is lost
            once = self._played(replay, budget.warm, reset)[-1]
            found = self._played(replay, budget.samples(once), reset)
        return times([seconds / units for seconds in found], units, note)

    def _captured(self, launched: Callable[[], None]) -> Callable[[], None]:
        """What replays a graph of all that `launched` issues."""
        graph = self.torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.collect()
        gc.disable()  # memory that is given back in the middle of a capture would break it
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                launched()
            except BaseException:
                with suppress(Exception):  # what the run raised is what happened
                    graph.capture_end()
                raise
            graph.capture_end()
        finally:
            if collects:
                gc.enable()
        replay: Callable[[], None] = graph.replay
        return replay

    def _played(
        self, replay: Callable[[], None], count: int, reset: Callable[[], None] | None
    ) -> list[float]:  # seconds of each
        pairs = []
        for _ in range(count):
            if reset is not None:
                reset()
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(self.stream)
            replay()
            end.record(self.stream)
            pairs.append((begin, end))
        self.stream.synchronize()
        return [begin.elapsed_time(end) * 1e-3 for begin, end in pairs]
