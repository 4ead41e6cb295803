"""How fast the simulator is, beside raw SimPy on the same machine in the same minutes: `make bench`.

Goals are printed with the word "pass" or "miss" and never change the exit code: machines differ, and a
bench that fails a build on a noisy one gets switched off. Ratios are medians of interleaved repeats.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # our models/, not tests/models

import numpy as np
import simpy

from models.calibration import Calibrator
from models.compiled import CHOICE, COMPILED, INTERPRETED, core
from scenarios.loader import load, loads
from sim import store
from sim.records import Result
from sim.resolve import Resolved, resolve
from sim.run import replicate
from tests.decided import decisions_us, speeds
from tests.flat import Flat, Served

ROOT = Path(__file__).resolve().parents[1]
PEAK = ROOT / "scenarios" / "evening-peak.yaml"
THINKING = "busy-evening.yaml", "think-less.yaml"  # with a fixed controller, and with a learned one
OUT = ROOT / "build" / "bench.json"

Say = Callable[[str], None]

# Searches of five steps of exactly `step_tokens`, far from the limits of the pool.
STEADY = """\
question: Does the wall time follow queries, not tokens?
horizon: {{warmup: 0s, measure: {measure}s}}
fleet:
  thinker: {{model: llama-3.1-8b, device: h200-sxm-141gb, replicas: 2, latency: {{kind: roofline}}}}
  judge: {{role: verifier, model: qwen2.5-math-prm-7b, device: h200-sxm-141gb}}
workload:
  arrivals: {{rate: {rate}/s}}
  classes:
    math:
      question:
        preset: math-500
        prompt_tokens: {{kind: constant, value: 200}}
        steps: {{kind: constant, value: 5}}
        step_tokens: {{kind: constant, value: {step_tokens}}}
tiers:
  careful: {{search: {{algorithm: beam, width: 4, expand: 4}}}}
"""


@dataclass(frozen=True, slots=True)
class FlatCase:
    """Flat requests on one replica of the evening peak's reasoner with a pool of `pages` pages."""

    name: str
    flat: Flat
    pages: int
    goal_s: float | None = None  # CPU seconds of the simulation's loop, at most


@dataclass(frozen=True, slots=True)
class Settings:
    """How long the bench takes: repeats, sizes in simulated seconds, and what `treeline run` is told."""

    timeouts: int = 400_000  # of SimPy, each time
    end_to_end_repeats: int = 2
    end_to_end: tuple[str, ...] = ()  # `--set` of the evening peak
    limit_repeats: int = 3
    limit_measure_s: float = 60.0
    limit_pages: int = 1600  # just more than the longest branch of the evening peak can need
    steady_repeats: int = 5
    steady_measure_s: float = 300.0
    controller_repeats: int = 3
    controller_measure_s: float = 120.0
    rate: float = 1.0  # of the steady scenario at 480 tokens a step, 1/s
    flat_repeats: int = 5
    flat: tuple[FlatCase, ...] = (
        FlatCase("long", Flat(300, 200, 8000, 0.5), 100_000, 0.03),
        FlatCase("many", Flat(1000, 512, 512, 10.0), 100_000, 0.05),
        FlatCase("long_kv_saturated", Flat(300, 200, 8000, 0.5), 16_000),
        FlatCase("many_kv_saturated", Flat(1000, 512, 512, 10.0), 2_500),
    )


def main(settings: Settings | None = None, out: Path = OUT, say: Say = print) -> dict[str, Any]:
    """Measure, print with goals, write `out` as JSON and return what it holds."""
    settings = settings or Settings()
    began = time.perf_counter()
    raw: list[float] = []
    figures: dict[str, Any] = {}
    figures |= _end_to_end(settings, raw, say)
    figures |= _at_the_limit(settings, raw, say)
    figures |= _ratios(settings, say)
    figures |= _controllers(settings, say)
    figures |= _flat_requests(settings, say)
    figures["simpy_timeouts_per_s"] = max(raw)
    figures["simpy_timeouts_per_cpu_s"] = max(
        simpy_timeouts_per_s(settings.timeouts, time.process_time) for _ in range(3)
    )
    figures["simpy_timeouts_per_s_all"] = raw
    figures["bench_wall_s"] = time.perf_counter() - began
    figures["context"] = _context()
    _show(figures, say)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    say(f"written: {out.name}")
    return figures


def simpy_timeouts_per_s(count: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Timeouts per second of one raw SimPy process that does nothing but wait."""
    env = simpy.Environment()

    def tick() -> Any:
        while True:
            yield env.timeout(1)

    env.process(tick())
    began = clock()
    env.run(until=count)
    return count / (clock() - began)


# -- the evening peak, through the command line -----------------------------------------------------------


def _end_to_end(settings: Settings, raw: list[float], say: Say) -> dict[str, Any]:
    """Branch-steps per second of wall time of whole `treeline run`s: start, calibration, records, report.

    With the core that this process uses; where that is the compiled one, also with the interpreted one.
    """
    rates: dict[str, list[float]] = {}
    cpu_s: dict[str, float] = {}
    cores = [core()] if core() == INTERPRETED else [COMPILED, INTERPRETED]
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(settings.end_to_end_repeats):
            for used in cores:
                raw.append(simpy_timeouts_per_s(settings.timeouts))
                say(
                    f"[{repeat + 1}/{settings.end_to_end_repeats}] treeline run scenarios/{PEAK.name}, "
                    f"{used} (raw SimPy: {raw[-1]:,.0f} timeouts/s)"
                )
                place = Path(folder) / "run"
                before_s = _children_cpu_s()
                wall_s = _command(settings.end_to_end, place, used)
                cpu_s[used] = cpu_s.get(used, 0.0) + _children_cpu_s() - before_s
                result = store.load(place).result
                steps = policy_branch_steps(result)
                rates.setdefault(used, []).append(steps / wall_s)
                say(f"      {rates[used][-1]:,.0f} branch-steps/s, {wall_s:.1f} s")
                workers = min(os.cpu_count() or 1, len(np.unique(result.queries["replication"])))
                shutil.rmtree(place)
    raw.append(simpy_timeouts_per_s(settings.timeouts))
    regimes = _sum(result.pools, "regimes", result.pools["role"] == "policy")
    of_core = {
        used: {
            "branch_steps_per_s": statistics.median(rates[used]),
            "branch_steps_per_cpu_s": steps * len(rates[used]) / cpu_s[used]
            if cpu_s[used]
            else None,
            "branch_steps_per_s_all": rates[used],
        }
        for used in cores
    }
    return of_core[cores[0]] | {
        "core": cores[0],
        "interpreted": of_core[INTERPRETED],
        "regimes_per_branch_step": regimes / steps,
        "workers": workers,
        "branch_steps": steps,
    }


def _command(sets: Sequence[str], place: Path, used: str) -> float:
    """Run the evening peak as a user would and return the wall seconds of the whole process."""
    words = [sys.executable, str(ROOT / "treeline.py"), "run", str(PEAK), "--quiet"]
    words += [word for key in sets for word in ("--set", key)]
    words += ["--out", str(place)]
    began = time.perf_counter()
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env=os.environ | {CHOICE: used}
    )
    wall_s = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"treeline run failed ({done.returncode}):\n{done.stderr}")
    return wall_s


def _children_cpu_s() -> float:
    """CPU seconds of every process we waited for; a busy machine disturbs it less. 0 where unknown."""
    times = os.times()
    return times.children_user + times.children_system


def policy_branch_steps(result: Result) -> int:
    """Branches that grew to their end on the policy pools, over all replications."""
    pools = result.pools
    return int(np.sum(pools["branch_steps"][pools["role"] == "policy"]))


# -- one replication on one core ----------------------------------------------------------------------------


def _replicate(resolved: Resolved) -> tuple[float, Result]:
    """Simulate replication 0 here and return (CPU seconds, result); confidence is not calibrated.

    On an idle machine this one process takes as long by the wall; on a busy one the wall measures others.
    """
    unknown = Calibrator.fit([], [])
    pairs = [(c, t) for c in range(len(resolved.classes)) for t in range(len(resolved.plans))]
    began = time.process_time()
    result = replicate(resolved, 0, dict.fromkeys(pairs, unknown))
    return time.process_time() - began, result


def _at_the_limit(settings: Settings, raw: list[float], say: Say) -> dict[str, Any]:
    """The evening peak on replicas whose pools hold little more than one query: preemptions all the time."""
    sets = [
        f"fleet.reasoner.engine.num_gpu_blocks={settings.limit_pages}",
        "horizon.warmup=0s",
        f"horizon.measure={settings.limit_measure_s}s",
    ]
    resolved = resolve(load(PEAK, sets))
    rates = []
    for repeat in range(settings.limit_repeats):
        say(f"[{repeat + 1}/{settings.limit_repeats}] at the limit of the pool")
        wall_s, result = _replicate(resolved)
        steps = policy_branch_steps(result)
        rates.append(steps / wall_s)
        raw.append(simpy_timeouts_per_s(settings.timeouts))
        say(f"      {rates[-1]:,.0f} branch-steps/s on one core, {wall_s:.1f} s")
    pools = result.pools
    policy = pools["role"] == "policy"
    return {
        "at_pool_limit_branch_steps_per_s": statistics.median(rates),
        "at_pool_limit_preemptions_per_branch_step": _sum(pools, "num_preemptions", policy) / steps,
        "at_pool_limit_regimes_per_branch_step": _sum(pools, "regimes", policy) / steps,
    }


def _ratios(settings: Settings, say: Say) -> dict[str, Any]:
    """Wall time of twice the tokens at half the rate, and of twice the queries, over that of neither."""
    rate, measure_s = settings.rate, settings.steady_measure_s
    cases = {
        "base": _steady(480, rate, measure_s),
        "tokens": _steady(960, rate / 2, 2 * measure_s),  # the same queries, half as often
        "queries": _steady(480, rate, 2 * measure_s),
    }
    walls: dict[str, list[float]] = {name: [] for name in cases}
    results: dict[str, Result] = {}
    for repeat in range(settings.steady_repeats + 1):
        say(f"[{repeat}/{settings.steady_repeats}] 480 tokens a step, 960, and twice the queries")
        for name, resolved in cases.items():
            wall_s, results[name] = _replicate(resolved)
            if repeat:  # the first round warms caches up
                walls[name].append(wall_s)
    steps = {name: policy_branch_steps(result) for name, result in results.items()}
    base = results["base"].pools
    policy = base["role"] == "policy"
    preemptions = sum(int(np.sum(r.pools["num_preemptions"])) for r in results.values())
    return {
        "double_tokens_wall_ratio": _median_ratio(walls["tokens"], walls["base"]),
        "double_queries_wall_ratio": _median_ratio(walls["queries"], walls["base"]),
        "double_queries_branch_steps_ratio": steps["queries"] / max(1, steps["base"]),
        "steady_regimes_per_branch_step": _sum(base, "regimes", policy) / max(1, steps["base"]),
        "steady_branch_steps_per_s": steps["base"] / statistics.median(walls["base"]),
        "steady_preemptions": preemptions,
        "steady_walls_s": walls,
    }


def _steady(step_tokens: int, rate: float, measure_s: float) -> Resolved:
    text = STEADY.format(step_tokens=step_tokens, rate=rate, measure=measure_s)
    return resolve(loads(text, "steady.yaml"))


def _controllers(settings: Settings, say: Say) -> dict[str, Any]:
    """The same busy evening with a fixed and a learned controller on one core, and what a decision takes."""
    sets = ["horizon.warmup=0s", f"horizon.measure={settings.controller_measure_s}s"]
    fixed, learned = (resolve(load(ROOT / "scenarios" / name, sets)) for name in THINKING)
    say(f"{THINKING[0]} and {THINKING[1]}")

    def measured(resolved: Resolved) -> tuple[float, int, int]:
        cpu_s, result = _replicate(resolved)
        return cpu_s, len(result.queries["status"]), policy_branch_steps(result)

    deciding_us, seeing_us = decisions_us(learned)
    found = speeds(fixed, learned, settings.controller_repeats, measured)
    return {"controllers": found | {"decision_us": deciding_us, "evidence_us": seeing_us}}


def _flat_requests(settings: Settings, say: Say) -> dict[str, Any]:
    """CPU seconds that the loop takes for requests without search: the least of some repeats."""
    policy = resolve(load(PEAK, [])).policy
    figures: dict[str, Any] = {}
    for case in settings.flat:
        engine = replace(policy.settings, num_gpu_blocks=case.pages)
        runs = [Served(case.flat, engine, policy.cost) for _ in range(settings.flat_repeats)]
        best = min(run.loop_s for run in runs)
        preemptions = runs[0].replica.batch.num_preemptions
        say(f"flat requests, {case.name}: {best:.4f} s, {preemptions} preemptions")
        figures[case.name] = {
            "loop_s": best,
            "goal_s": case.goal_s,
            "requests": case.flat.count,
            "tokens_in": case.flat.tokens_in,
            "tokens_out": case.flat.tokens_out,
            "rate_per_s": case.flat.rate,
            "num_gpu_blocks": case.pages,
            "num_preemptions": preemptions,
        }
    return {"flat_requests": figures}


def _median_ratio(ours: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, base, strict=True))


def _sum(table: dict[str, np.ndarray[Any, Any]], column: str, rows: Any) -> float:
    return float(np.sum(table[column][rows]))


# -- words ------------------------------------------------------------------------------------------------------


def _show(figures: dict[str, Any], say: Say) -> None:
    raw = figures["simpy_timeouts_per_s"]
    whole = figures["branch_steps_per_s"] / raw
    limit = figures["at_pool_limit_branch_steps_per_s"] / raw
    tokens = figures["double_tokens_wall_ratio"]
    queries = figures["double_queries_wall_ratio"]
    asked = figures["double_queries_branch_steps_ratio"]
    say("")
    say(f"raw SimPy                {raw:>10,.0f} timeouts/s (best of the interleaved runs)")
    say(
        f"treeline run             {figures['branch_steps_per_s']:>10,.0f} branch-steps/s end to end, "
        f"{figures['core']}, {figures['workers']} workers: 1/{_inverse(whole)} of raw SimPy; goal 1/12: "
        f"{_word(whole >= 1 / 12)}, stretch 1/6: {_word(whole >= 1 / 6)}"
    )
    if figures["core"] == COMPILED:
        plain = figures["interpreted"]["branch_steps_per_s"]
        say(
            f"the same, interpreted    {plain:>10,.0f} branch-steps/s: 1/{_inverse(plain / raw)}; "
            f"compiled is {figures['branch_steps_per_s'] / plain:.2f} times as fast"
        )
    say(
        f"at the pool's limit      {figures['at_pool_limit_branch_steps_per_s']:>10,.0f} branch-steps/s on "
        f"one core, {figures['at_pool_limit_preemptions_per_branch_step']:.2f} preemptions each: "
        f"1/{_inverse(limit)}; goal 1/60: {_word(limit >= 1 / 60)}"
    )
    say(
        f"regimes per branch-step  {figures['regimes_per_branch_step']:>10.2f} at the evening peak, "
        f"{figures['at_pool_limit_regimes_per_branch_step']:.2f} at the pool's limit, "
        f"{figures['steady_regimes_per_branch_step']:.2f} with steps of constant length"
    )
    if figures["branch_steps_per_cpu_s"]:
        alone = figures["branch_steps_per_cpu_s"] / figures["simpy_timeouts_per_cpu_s"]
        say(
            f"per CPU second           {figures['branch_steps_per_cpu_s']:>10,.0f} branch-steps end to end, "
            f"1/{_inverse(alone)} of raw SimPy on one core; other work on the machine disturbs this less"
        )
    say(
        f"twice the tokens a step  {tokens:>10.2f} x the wall time (480 -> 960, half the rate, "
        f"{figures['steady_preemptions']} preemptions); goal 1 +- .15: {_word(abs(tokens - 1) <= 0.15)}"
    )
    say(
        f"twice the queries        {queries:>10.2f} x the wall time for {asked:.2f} x the branch-steps; "
        f"goal 2 +- .3: {_word(abs(queries - 2) <= 0.3)}"
    )
    both = figures["controllers"]
    slower = both["queries_ratio"]
    say(
        f"learned controller       {slower:>10.2f} x the queries/s of the fixed one on the same evening "
        f"({both['branch_steps_ratio']:.2f} x the branch-steps/s: it grows fewer a query); goal 2/3: "
        f"{_word(slower >= 2 / 3)}"
    )
    say(
        f"one decision             {both['decision_us']:>10.1f} us, after {both['evidence_us']:.1f} us to sum "
        f"the votes up; goal 20 us: {_word(both['decision_us'] <= 20)}"
    )
    for name, case in figures["flat_requests"].items():
        goal = case["goal_s"]
        judged = f"; goal {goal} s: {_word(case['loop_s'] <= goal)}" if goal else ""
        say(
            f"flat requests            {case['loop_s']:>10.4f} s of loop for {case['requests']:,} of "
            f"{case['tokens_in']:,} in, {case['tokens_out']:,} out, at {case['rate_per_s']:g}/s, "
            f"{case['num_preemptions']:,} preemptions ({name}){judged}"
        )


def _word(passed: bool) -> str:
    return "pass" if passed else "miss"


def _inverse(share: float) -> str:
    return f"{1 / share:.1f}" if share > 0 else str(math.inf)


def _context() -> dict[str, Any]:
    """What a figure depends on besides the code; nothing that names the machine or its user."""
    packages = {name: version(name) for name in ("simpy", "numpy", "scipy", "pyarrow")}
    return packages | {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main(say=lambda text: print(text, flush=True))
