"""Scenario -> Result: replications of the fleet in simulated time, on any number of workers."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from models.calibration import Calibrator
from sim.bound import noted
from sim.records import Result, merge
from sim.replication import Calibrators, calibrate, calibrate_all, calibrated, replicate
from sim.resolve import Estimate, Resolved, estimate, resolve

__all__ = ["Estimate", "Resolved", "calibrate", "estimate", "replicate", "resolve", "run"]

Progress = Callable[[float, str], None]


def run(
    resolved: Resolved,
    *,
    seed: int | None = None,
    replications: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Simulate a scenario; the same seed gives the same bytes on any number of workers.

    `progress` is called with a share in [0, 1] and a word on what is being done.
    Raises: UserError where a branch does not fit a replica's memory or the scenario is absurd.
    """
    began = time.perf_counter()
    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if replications is not None:
        changes["replications"] = replications
    if changes:
        scenario = resolved.scenario.model_copy(update=changes)
        resolved = replace(resolved, loaded=replace(resolved.loaded, scenario=scenario))
    estimate(resolved)
    count = resolved.scenario.replications
    workers = min(count, workers or multiprocessing.cpu_count())
    report = progress or (lambda share, text: None)
    if workers == 1:
        report(0.0, "calibrating confidence")
        calibrators = calibrate_all(resolved)
        results = [
            replicate(
                resolved,
                number,
                calibrators,
                lambda share, number=number: report(  # type: ignore[misc]
                    (number + share) / count, f"replication {number + 1} of {count}"
                ),
            )
            for number in range(count)
        ]
    else:
        results = _in_parallel(resolved, workers, report)
    meta: dict[str, Any] = {
        "wall_s": time.perf_counter() - began,
        "workers": workers,
        "versions": {name: version(name) for name in ("simpy", "numpy", "scipy")},
        "branch_steps": int(sum(result.meta["branch_steps"] for result in results)),
        "simulate_s": sum(result.meta["simulate_s"] for result in results),
        "provenance": results[0].meta["provenance"],
    }
    costs = {pool.name: pool.cost for pool in resolved.pools}
    return noted(merge(results, meta), resolved.scenario, costs)


# -- many replications at once ----------------------------------------------------------------------------

_shared: dict[str, Any] = {}  # in a worker: what its initialiser was given


class _StoppedError(RuntimeError):
    """Another replication failed, or the user wants no more."""


def _begin_worker(resolved: Resolved, shares: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everybody; the parent decides
    _shared["resolved"] = resolved
    _shared["shares"] = shares


def _go_on() -> None:
    shares = _shared["shares"]
    if shares[len(shares) - 1]:
        raise _StoppedError


def _calibrate_in_worker(key: tuple[int, ...]) -> Calibrator:
    _go_on()
    return calibrate(_shared["resolved"], *key)


def _replicate_in_worker(number: int, calibrators: Calibrators) -> Result:
    shares = _shared["shares"]

    def progress(share: float) -> None:
        shares[number] = share
        _go_on()

    return replicate(_shared["resolved"], number, calibrators, progress)


def _in_parallel(resolved: Resolved, workers: int, report: Progress) -> list[Result]:
    count = resolved.scenario.replications
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    shares = context.Array("d", count + 1, lock=False)  # the last one tells the workers to stop
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (resolved, shares))
    try:
        report(0.0, "calibrating confidence")
        wanted = calibrated(resolved)
        calibrators = dict(zip(wanted, pool.map(_calibrate_in_worker, wanted), strict=True))
        futures = [
            pool.submit(_replicate_in_worker, number, calibrators) for number in range(count)
        ]
        open_: set[Future[Result]] = set(futures)
        while open_:
            done, open_ = wait(open_, timeout=0.1, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            finished = count - len(open_)
            share = sum(1.0 if f.done() else shares[i] for i, f in enumerate(futures)) / count
            report(share, f"{finished} of {count} replications done")
        return [future.result() for future in futures]
    except BaseException:
        shares[count] = 1.0
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
