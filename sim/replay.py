"""Does the simulator predict a real engine? Measure a tick's cost, write the prediction, run, compare.

    PYTHONPATH=. python -m sim.replay --device cuda --out build/replay

The engine is hw/engine.py with random weights of real shapes; the batch, the searches and their worlds are the
simulator's own. Everything is written to the folder: cost.json, prediction.json and its digest before the first
measured run, then one file a run, and report.json and report.txt at the end. docs/replay.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from models.latency import StepCost
from sim.agreement import agreement, verdict
from sim.rig import Rig, Run, rig, run
from sim.rigcost import Fit, fit, measure, refit, sentinel_s
from sim.stepper import Clock, TickRow

_PILOT_SEED, _CAPACITY_SEED = 9_001, 9_003  # of searches that no measured run meets
_PILOT_LOADS = (0.3, 0.9)  # of what the grid alone says the rig can do: few decoders, and many
_CAPACITY_QUERIES = 60


class ReplayError(Exception):
    """A replay that cannot be run here; the message says what to do. `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be run: device, loads as shares of the predicted capacity, seeds, seconds of arrivals a run."""

    device: str
    out: Path
    loads: tuple[float, ...]
    seeds: tuple[int, ...]
    seconds: float
    clock: Clock
    limit_s: float
    dry_run: bool = False


def make_engines(setup: Rig, device: str) -> tuple[Any, Any]:
    """The policy's and the judge's engine. Raises ReplayError where torch or a GPU is missing."""
    try:
        from hw.cuda import GpuError
        from hw.engine import Engine, Limits, torch_package

        torch = torch_package()
    except ModuleNotFoundError as error:
        raise ReplayError(
            f"the engine needs {error.name}, which is not installed: pip install torch", 4
        ) from None
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        policy, judge = (
            Engine(
                shape,
                Limits(
                    limits.num_gpu_blocks,
                    limits.block_size,
                    limits.max_num_seqs,
                    limits.max_num_batched_tokens + limits.max_num_seqs,
                ),
                device=device,
                exact=device == "cpu",
            )
            for shape, limits in (
                (setup.policy, setup.policy_limits),
                (setup.judge, setup.judge_limits),
            )
        )
    except (GpuError, RuntimeError) as error:
        raise ReplayError(f"no engine on {device}: {error}", 4) from None
    for engine in (policy, judge):
        if engine.still is not None:
            engine.still.make_all(_teller("graphs of decode ticks"))
    return policy, judge


def measure_costs(
    setup: Rig, engines: tuple[Any, Any], clock: Clock, pilot_s: float
) -> tuple[tuple[StepCost, StepCost], dict[str, Any]]:
    """What ticks cost here: a grid of flat batches, then a pilot of the same kinds of searches as will be run."""
    shapes = ((setup.policy, setup.policy_limits), (setup.judge, setup.judge_limits))
    measured, fits = [], []
    for name, engine, (shape, limits) in zip(("policy", "judge"), engines, shapes, strict=True):
        tell = _teller(f"cost of the {name}'s ticks")
        # A batch of scored steps is over in a tick or two: it is played more often.
        repeats = setup.grid_repeats * (3 if shape.score_head else 1)
        measured.append(
            measure(limits, engine, shape.vocab, shape.score_head, clock, tell, repeats)
        )
        fits.append(fit(measured[-1], engine.padded))
    costs = (fits[0].cost, fits[1].cost)
    most = capacity(setup, costs)
    pilot: list[TickRow] = []
    for number, load in enumerate(_PILOT_LOADS):
        tell = _teller(f"pilot at {load:.0%}")
        pilot += run(
            setup, costs, _PILOT_SEED + number, load * most, pilot_s, engines, clock=clock,
            progress=lambda now, n, done, tell=tell: tell(  # type: ignore[misc]
                now / pilot_s, f"{done} of {n} queries answered"
            ),
        ).ticks  # fmt: skip
    again = [
        refit(old, flat, [row for row in pilot if row.pool == pool], engine.padded)
        for old, flat, pool, engine in zip(
            fits, measured, ("policy", "judge"), engines, strict=True
        )
    ]
    document = {
        pool: {"grid": _fit(old), "grid and pilot": _fit(new)}
        for pool, old, new in zip(("policy", "judge"), fits, again, strict=True)
    }
    return (again[0].cost, again[1].cost), document


def _fit(found: Fit) -> dict[str, Any]:
    cost = found.cost
    return {
        "ticks": found.ticks,
        "median_error": found.median,
        "p90_error": found.p90,
        "base_s": {str(b): cost.base_s(b, 0) for b in (1, 2, 4, 8, 16, 32, 64, 128)},
        "mixed_s": {str(c): cost.base_s(1, c) for c in (15, 63, 255, 511, 2047)},
        "kv_s": cost.kv_s,
        "saturation": cost.saturation,
        "context_s": cost.context_s(1),
        "copy_s": cost.copy_s,
    }


def capacity(setup: Rig, costs: tuple[StepCost, StepCost]) -> float:
    """Queries a second that the simulator answers when all are there at once, in the middle of the run."""
    full = run(setup, costs, _CAPACITY_SEED, 1e3, _CAPACITY_QUERIES / 1e3)
    ends = np.sort([row.finish_s for row in full.queries])
    low, high = len(ends) // 5, (4 * len(ends)) // 5
    return float((high - low) / (ends[high] - ends[low]))


def _teller(what: str) -> Any:
    """Progress on stderr, a line every few seconds."""
    last = [0.0]

    def tell(share: float, text: str) -> None:
        if time.monotonic() - last[0] > 2.0:
            last[0] = time.monotonic()
            print(f"{what}: {min(share, 1.0):.0%} {text}".rstrip(), file=sys.stderr, flush=True)

    print(what, file=sys.stderr, flush=True)
    return tell


def replay(asked: Asked, engines: tuple[Any, Any] | None = None) -> dict[str, Any]:
    """Run the whole experiment and write its files; return the report. Raises ReplayError."""
    began = time.monotonic()
    setup = rig(asked.device)
    if engines is None:
        engines = make_engines(setup, asked.device)

    def sentinel() -> float:
        return sentinel_s(setup.policy_limits, engines[0], setup.policy.vocab, asked.clock)

    asked.out.mkdir(parents=True, exist_ok=True)
    costs, cost_document = measure_costs(setup, engines, asked.clock, asked.seconds / 3)
    _write(asked.out / "cost.json", cost_document)
    first_s = sentinel()
    most = capacity(setup, costs)
    cells = [(load, seed) for load in asked.loads for seed in asked.seeds]
    predicted = {
        (load, seed): run(setup, costs, seed, load * most, asked.seconds) for load, seed in cells
    }
    digest = _write(
        asked.out / "prediction.json",
        {
            "capacity_per_s": most,
            "runs": {_name(*cell): _columns(one) for cell, one in predicted.items()},
        },
    )
    print(f"prediction.json is written: sha256 {digest}", file=sys.stderr, flush=True)
    (asked.out / "prediction.sha256").write_text(f"{digest}  prediction.json\n", encoding="utf-8")
    done: dict[float, list[tuple[Run, Run]]] = {}  # by load: predicted and measured
    drifts: dict[float, list[float]] = {}
    interrupted = False
    try:
        for load, seed in cells:
            if time.monotonic() - began > asked.limit_s - 2 * asked.seconds:
                print(f"no time left for {_name(load, seed)}", file=sys.stderr)
                continue
            tell = _teller(_name(load, seed))
            drifts.setdefault(load, []).append(sentinel() / first_s - 1.0)
            one = run(
                setup, costs, seed, load * most, asked.seconds, engines, clock=asked.clock,
                progress=lambda now, n, answered, tell=tell: tell(  # type: ignore[misc]
                    now / asked.seconds, f"{answered} of {n} queries answered"
                ),
            )  # fmt: skip
            _write(asked.out / f"{_name(load, seed)}.json", _columns(one))
            done.setdefault(load, []).append((predicted[load, seed], one))
            drifts[load].append(sentinel() / first_s - 1.0)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: the report holds the runs that were finished", file=sys.stderr)
    loads: dict[str, Any] = {}
    for load, runs in done.items():
        ours, theirs = zip(*runs, strict=True)
        found = agreement(_together(ours), _together(theirs))
        loads[f"{load:.0%}"] = found | {
            "goals": verdict(found),
            "seeds": len(runs),
            "drift": float(np.mean(drifts[load])),
        }
    report = {
        "device": engines[0].described,
        "models": [setup.policy.name, setup.judge.name],
        "clock": asked.clock,
        "capacity_per_s": most,
        "prediction_sha256": digest,
        "cost": cost_document,
        "loads": loads,
        "interrupted": interrupted,
    }
    _write(asked.out / "report.json", report)
    (asked.out / "report.txt").write_text(text(report) + "\n", encoding="utf-8")
    return report


def planned(asked: Asked) -> str:
    """What the experiment would be, by the roofline of an H200: nothing is run and nothing is measured."""
    from hw.device import device
    from models.latency import step_cost

    setup = rig("cuda")
    h200 = device("h200-sxm-141gb")
    costs = (step_cost(setup.policy, h200), step_cost(setup.judge, h200))
    most = capacity(setup, costs)
    held = sum(
        shape.weight_bytes()
        + limits.num_gpu_blocks * limits.block_size * shape.kv_bytes_per_token()
        for shape, limits in (
            (setup.policy, setup.policy_limits),
            (setup.judge, setup.judge_limits),
        )
    )
    models = f"{setup.policy.name} and {setup.judge.name}"
    lines = [
        f"{models} on one {h200.name}: weights and KV pools take {held / 1e9:.0f} GB.",
        f"By the roofline (not measured) the rig answers {most:.3g} queries/s at most.",
    ]
    for load in asked.loads:
        runs = [run(setup, costs, seed, load * most, asked.seconds) for seed in asked.seeds]
        queries = sum(len(one.queries) for one in runs)
        ticks = sum(len(one.ticks) for one in runs)
        p50 = float(
            np.median([row.finish_s - row.arrival_s for one in runs for row in one.queries])
        )
        lines.append(
            f"{load:.0%}: {queries} queries, {ticks:,} ticks in {sum(one.span_s for one in runs):.0f} s, "
            f"p50 {p50:.1f} s [roofline]"
        )
    return "\n".join(lines)


def _together(runs: Sequence[Run]) -> Run:
    """Several seeds of one load as one run."""
    pools = runs[0].pages_max
    return Run(
        tuple(row for one in runs for row in one.queries),
        tuple(row for one in runs for row in one.ticks),
        {pool: max(one.pages_max[pool] for one in runs) for pool in pools},
        sum(one.span_s for one in runs),
        all(one.books_agree for one in runs),
    )


def _name(load: float, seed: int) -> str:
    return f"load-{round(load * 100)}-seed-{seed}"


def _columns(one: Run) -> dict[str, Any]:
    """A run as columns."""

    def columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for row in rows:
            for key, value in asdict(row).items():
                found.setdefault(key, []).append(value)
        return found

    return {
        "queries": columns(one.queries),
        "ticks": columns(one.ticks),
        "pages_max": dict(one.pages_max),
        "span_s": one.span_s,
        "books_agree": one.books_agree,
    }


def _write(path: Path, document: Any) -> str:
    """Write a JSON file whole and return its SHA-256."""
    content = json.dumps(document, indent=None, separators=(",", ":")).encode()
    beside = path.with_suffix(".part")
    beside.write_bytes(content)
    beside.replace(path)
    return sha256(content).hexdigest()


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    models, device = " and ".join(report["models"]), report["device"]
    head = ("load", "queries", "ticks", "tick error: median", "p90", "bias", "drift")
    lines = [
        f"Replay of {models} on {device}, clock: {report['clock']}.",
        f"Predicted capacity {report['capacity_per_s']:.3g} queries/s, prediction.json sha256 "
        + report["prediction_sha256"],
        "",
        "  ".join((*head, *(f"{q} error [90 % interval]" for q in ("p50", "p90", "p99")), "KS")),
    ]
    for load, found in report["loads"].items():
        ticks = found["ticks"]["all"]
        cells = [
            load.rjust(4),
            str(found["queries"]).rjust(7),
            str(ticks["ticks"]).rjust(5),
            f"{ticks['median']:.1%}".rjust(18),
            f"{ticks['p90']:.1%}".rjust(3),
            f"{ticks['bias']:+.1%}".rjust(6),
            f"{found['drift']:+.1%}".rjust(6),
            *(
                f"{row['error']:+.1%} [{row['low']:+.0%}, {row['high']:+.0%}]".rjust(25)
                for row in found["latency"].values()
            ),
            f"{found['ks']:.3f}",
        ]
        lines.append("  ".join(cells))
    lines += [
        "",
        "Drift: what a fixed batch took around the measured runs over what it took before the prediction.",
    ]
    for load, found in report["loads"].items():
        peaks = ", ".join(
            f"{pool} {row['predicted']} predicted and {row['measured']} measured"
            for pool, row in found["peak_pages"].items()
        )
        equal = found["pages_named_equal_pages_counted"]
        lines.append(
            f"{load}: the engines' pages {'equal' if equal else 'DIFFER FROM'} the batch's count in "
            f"{'every' if equal else 'some'} tick; most pages at once: {peaks}"
        )
    for load, found in report["loads"].items():
        missed = [name for name, met in found["goals"].items() if not met]
        lines.append(f"{load}: {'all goals met' if not missed else 'missed: ' + ', '.join(missed)}")
    return "\n".join(lines)


def arguments(given: Sequence[str] | None = None) -> Asked:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sim.replay",
        description="Does the simulator predict a real engine? Measure, predict, run, compare.",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.85])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=45.0, help="of arrivals in each run")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: what this process computes, for a machine that others use too",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, default=560.0, help="start no run after so many s")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would run, by the roofline; needs no GPU"
    )
    found = parser.parse_args(given)
    if min(found.loads) <= 0 or found.seconds <= 0:
        parser.error("--loads and --seconds must be above 0")
    if found.device == "cuda" and found.clock == "cpu":
        parser.error("--clock cpu would not see what a GPU does; leave it at wall")
    return Asked(
        found.device, found.out, tuple(found.loads), tuple(found.seeds), found.seconds, found.clock,
        found.limit, found.dry_run,
    )  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    """Run the experiment; return the exit code."""
    asked = arguments(given)
    if asked.dry_run:
        print(planned(asked))
        return 0
    try:
        report = replay(asked)
    except ReplayError as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted before the first measured run; nothing is reported", file=sys.stderr)
        return 130
    print(text(report))
    return 130 if report["interrupted"] else 0


if __name__ == "__main__":
    sys.exit(main())
