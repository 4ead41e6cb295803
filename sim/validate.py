"""The simulator against a real engine: the errors of a measured run's latencies, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.accuracy import Metric, compare
from sim.diagnosis import QUANTITIES, Errors, Term, changes, diagnose
from sim.measured import Measured, Timeline
from sim.mirror import Played, play
from sim.replication import calibrate_all
from sim.resolve import Resolved

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """What the engine did over time, measured and simulated, averaged over the time that both worked."""

    running: tuple[float, float]
    waiting: tuple[float, float]
    kv_share: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Validation:
    """A measured run, what the simulator made of it, and how far it is off."""

    run: Measured
    played: Played
    metrics: Sequence[Metric]
    mechanism: Mechanism | None
    terms: Sequence[Term]  # empty where no diagnosis was asked for

    @property
    def holds(self) -> bool:
        """Whether every metric is within the limits."""
        return all(metric.holds for metric in self.metrics)


def validate(
    run: Measured, resolved: Resolved, *, diagnosis: bool = True, progress: Progress | None = None
) -> Validation:
    """Simulate a measured run's scenario (sim/mirror.py) and compare. Raises UserError as `play`."""
    tell = progress or (lambda share, text: None)
    calibrators = calibrate_all(resolved)
    worlds = changes(resolved) if diagnosis else {}
    turns = 1 + len(worlds)
    tell(0.0, "the run itself")
    played = play(resolved, calibrators, lambda share: tell(share / turns, "the run itself"))
    metrics = compared(run, played)
    done = 1

    def errors_of(world: Resolved) -> Errors:
        nonlocal done
        tell(done / turns, "with one term changed")
        done += 1
        return errors(compared(run, play(world, calibrators)))

    terms = diagnose(errors(metrics), worlds, errors_of) if worlds else ()
    return Validation(run, played, metrics, _mechanism(run.timeline, played.timeline), terms)


def compared(run: Measured, played: Played) -> list[Metric]:
    """TTFT, TPOT and E2E of both, over the same requests."""
    found, ours = run.requests.latencies, played.requests.latencies
    return [compare(name, found[name], ours[name]) for name in found if len(found[name])]


def errors(metrics: Sequence[Metric]) -> Mapping[tuple[str, str], float]:
    """The relative errors that a diagnosis explains."""
    by_name = {metric.name: metric for metric in metrics}
    return {(name, key): by_name[name].error[key] for name, key in QUANTITIES if name in by_name}


def _mechanism(found: Timeline | None, ours: Timeline) -> Mechanism | None:
    if found is None:
        return None
    end = min(_last(found), _last(ours))

    def mean(line: Timeline, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return float(np.mean(values[line.time_s <= end]))

    return Mechanism(
        (mean(found, found.running), mean(ours, ours.running)),
        (mean(found, found.waiting), mean(ours, ours.waiting)),
        (mean(found, found.kv_share), mean(ours, ours.kv_share)),
    )


def _last(line: Timeline) -> float:
    busy = line.time_s[line.running > 0]
    return float(busy[-1]) if len(busy) else 0.0
