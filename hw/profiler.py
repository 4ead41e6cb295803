"""The profiler: every point of a plan is built, checked, timed and written down; what was measured is never lost."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hw import cuda
from hw.backend import Backend
from hw.bench import REPLAY_S, Bench, Case, TooBig, bench, checked
from hw.cases import case, tree
from hw.device import Device
from hw.floors import Op
from hw.grid import HOLDOUT_SEED, LINEAR, Point, digest
from hw.imported import attention_widths
from hw.profile import Profile, make_profile
from hw.timing import Budget, Times
from hw.transformer import Transformer, Work, linear_work

Row = dict[str, Any]
Tell = Callable[[int, int, float, str], None]
"""tell(points done, points in all, seconds left, what is measured now)."""

ORDER_SEED = 7
SETUP_S = 0.02  # of building and checking a point, beside its runs
GIVE_UP = 10  # points that fail in a row: the device is not usable any more
STRIKES = 4  # failures of an operation in a row after which its other points are left out; a lost device counts twice
LOST = "lost the device: "
INCLUDED = 1e-9  # launch_s of a measured profile: its times hold the launch already
_HEADS = ("prefix_attention", "suffix_attention", "attention", "naive_attention", "merge",
          "kv_append", "prefill_attention", "fork_copy", "prune")  # fmt: skip


class JournalError(ValueError):
    """A journal that belongs to another plan, device or version of the kernels, or is not one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, on what it counts as, and how long a point may take."""

    models: tuple[Transformer, ...]
    points: tuple[Point, ...]
    device: Device
    budget: Budget
    sentinels: int = 20
    grid: str = "full"

    @property
    def order(self) -> list[Point]:
        """All points, shuffled, so that drift does not pass for a trend."""
        at = np.random.default_rng(ORDER_SEED).permutation(len(self.points))
        return [self.points[i] for i in at.tolist()]

    def watched(self) -> list[Point]:
        """The sentinels: points of every kind, timed at the start, in the middle and at the end."""
        kinds: dict[str, list[Point]] = {}
        for point in self.order:
            if not point.holdout and point.op not in ("decode_step", "expansion", "layer"):
                kinds.setdefault(point.op, []).append(point)
        turns = [point for turn in zip(*(_cycle(p, self.sentinels) for p in kinds.values()), strict=True)
                 for point in turn]  # fmt: skip
        return list(dict.fromkeys(turns))[: self.sentinels]


def estimate_s(plan: Plan, backend_kind: str) -> float:
    """About how long the plan takes: floors on the catalogue's roofs, times what software usually reaches of them."""
    from hw.floors import attention_op

    shapes = {shape.name: shape for shape in plan.models}
    slack, device = 3.0, plan.device
    spent = 0.0
    known: dict[tuple[str, int], dict[str, Work]] = {}
    for point in [*plan.points, *plan.watched(), *plan.watched()]:
        shape = replace(shapes[point.model], layers=max(1, point.layers))
        key = (shape.name, shape.layers)
        works = known.setdefault(key, known.get(key) or {w.name: w for w in linear_work(shape)})
        if point.op in works and point.op != "kv_append":
            once = works[point.op].floor_s(device, point.rows) / works[point.op].calls
        else:
            read = point.branches * (point.prefix + point.suffix + point.rows)
            once = attention_op("", shape, device, read, read * max(1, point.rows)).seconds
            if point.op in ("layer", "decode_step", "expansion"):
                tokens = point.branches * max(1, point.rows)
                once += sum(work.floor_s(device, tokens) for work in works.values())
        if backend_kind == "cuda":
            once = max(once, REPLAY_S)
        spent += SETUP_S + (plan.budget.warm + 1 + plan.budget.samples(slack * once)) * slack * once
    return spent


def measure(
    plan: Plan,
    backend: Backend,
    *,
    tell: Tell,
    journal: Path | None = None,
    resume: bool = False,
) -> Profile:
    """Measures the plan on the backend; on KeyboardInterrupt the profile of what was measured until then.

    `journal` gets a line a point as it is measured; with `resume` its points are not measured again. meta["complete"]
    tells whether all points are in the profile, meta["lost"] whether a fault of a kernel took the device from this
    process: another one can go on. An operation that fails again and again is left out, the others are not. Raises
    JournalError, hw.profile.ProfileError where no point at all could be measured, hw.cuda.DeviceLost where that is why.
    """
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    head: Row = {
        "plan": digest(plan.points),
        "device": plan.device.name,
        "kernels": cuda.fingerprint(),
    }
    known = _resumed(journal, head) if resume and journal is not None else None
    tell(0, len(plan.points), math.nan, "filling memory with random data")
    ready = bench(backend, plan.device)
    if known is None:
        tell(0, len(plan.points), math.nan, "the device's own ceilings")
        head["ceilings"], head["launch"] = ceilings(ready, plan.budget)
        rows: list[Row] = []
    else:
        head, rows = known
    ready = replace(ready, device=replace(plan.device, **head["ceilings"]))
    write = _journal(journal, head, rows)
    complete, drift, lost = _all_points(plan, ready, rows, write, tell)
    if lost and not any(row["status"] == "ok" for row in rows):
        raise cuda.DeviceLost(lost)
    meta = {
        "grid": plan.grid, "complete": complete, "begun": begun,
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "models": [shape.name for shape in plan.models], "points": len(plan.points),
        "plan_digest": head["plan"], "holdout_seed": HOLDOUT_SEED, "kernels_sha256": head["kernels"],
        "collector_sha256": collector_hash(), "launch": head["launch"], "drift": drift,
        "times_include_launch": True, "facts": backend.facts, **_git(), **({"lost": lost} if lost else {}),
    }  # fmt: skip
    label = (
        f"measured on {backend.facts.get('gpu') or backend.facts.get('processor')}, {begun[:10]}"
    )
    return make_profile(
        plan.device.name, "measured", label, rows, ceilings=head["ceilings"], meta=meta
    )


def ceilings(ready: Bench, budget: Budget) -> tuple[dict[str, float], dict[str, float]]:
    """The device's own roofs (Device field names), and the time of a launch in s, in a graph and on its own.

    A roof is the best that was seen of a dozen runs or more.
    """
    budget = replace(budget, least=12, most=max(12, budget.most))
    backend, linear = ready.backend, ready.backend.linear
    most = (1 << 30) if backend.kind == "cuda" else (1 << 27)
    half = min(ready.arena.shape[0] // 2, most) // 128 * 128
    source = ready.take((half,))
    target = source.copy()  # touched once: its first pages are not what is timed
    tensors = ready.tensors([source, target])
    copied = backend.clock.time(lambda _: linear.copy(*tensors), 1, budget).least
    read = backend.clock.time(lambda _: linear.read(tensors[0]), 1, budget).least
    side = min(8192 if backend.kind == "cuda" else 1024, math.isqrt(ready.arena.shape[0] // 2))
    a, b = (ready.take((side, side), i * side * side) for i in (0, 1))
    square = ready.tensors([a, b, backend.xp.empty((side, side), np.uint16)])
    product = backend.clock.time(lambda _: linear.matmul(*square), 1, budget).least
    little = ready.tensors([ready.take((128,)), backend.xp.empty(128, np.uint16)])
    gap = backend.clock.time(lambda _: linear.copy(*little), 32, budget).median
    begin = time.perf_counter()
    for _ in range(1000):
        linear.copy(*little)
    eager = (time.perf_counter() - begin) / 1000
    found = {
        "copy_bytes_per_s": 4.0 * half / copied,
        "read_bytes_per_s": 2.0 * half / read,
        "gemm_flops_bf16": 2.0 * side**3 / product,
        "launch_s": INCLUDED,
        "eager_launch_s": eager if backend.kind == "cuda" else INCLUDED,
    }
    return found, {"graph_s": gap, "eager_s": eager}


def collector_hash() -> str:
    """SHA-256 of the modules that measure: another hash, another method."""
    folder = Path(__file__).parent
    names = (
        "backend",
        "bench",
        "cases",
        "cpu",
        "grid",
        "linear",
        "ops",
        "profiler",
        "timing",
        "whole",
    )
    return hashlib.sha256(b"\0".join((folder / f"{n}.py").read_bytes() for n in names)).hexdigest()


def _all_points(
    plan: Plan, ready: Bench, rows: list[Row], write: Callable[[Row], None], tell: Tell
) -> tuple[bool, dict[str, Any], str]:
    """Measures what rows does not hold yet, appending to it.

    Whether all was, how far the sentinels drifted, and what took the device (empty where nothing did).
    """
    shapes = {shape.name: shape for shape in plan.models}
    done = {row["point_seed"] for row in rows}
    todo = [point for point in plan.order if point.seed not in done]
    watched = plan.watched()
    seen: list[list[float]] = []
    begin, spent = time.monotonic(), 0

    struck = _strikes(rows)

    def timed(point: Point) -> Row:
        if struck.get(point.op, 0) >= STRIKES:
            nothing = (math.nan,) * 3
            return _row(ready, shapes[point.model], point, None, None,
                        f"skipped: {point.op} failed {STRIKES} times in a row", nothing)  # fmt: skip
        row = _measured(ready, shapes[point.model], point, plan.budget)
        _strike(struck, row)
        return row

    def keep(row: Row) -> None:
        write(row)
        rows.append(row)
        done.add(row["point_seed"])

    def go_on(row: Row) -> None:
        if row["status"].startswith(LOST):
            if row["point_seed"] not in done:
                keep(row)
            raise cuda.DeviceLost(row["status"])

    def sentinels() -> None:
        failed = {row["point_seed"] for row in rows if row["status"] != "ok"}
        found = []
        for point in watched:
            if point.seed in failed:  # it may have taken the device before
                found.append(0.0)
                continue
            row = timed(point)
            found.append(row.get("t_us_median", 0.0))
            go_on(row)
        seen.append(found)

    try:
        sentinels()
        for number, point in enumerate(todo):
            if number == len(todo) // 2:
                sentinels()
            each = (time.monotonic() - begin) / max(1, spent)
            left = each * (len(todo) - number + len(watched)) if spent else math.nan
            tell(len(rows), len(plan.points), left, _said(point))
            row = timed(point)
            keep(row)
            go_on(row)
            spent += 1
            if len(rows) >= GIVE_UP and all(
                r["status"].startswith("failed") for r in rows[-GIVE_UP:]
            ):
                return False, _drift(watched, seen), ""
        sentinels()
    except KeyboardInterrupt:
        return False, _drift(watched, seen), ""
    except cuda.DeviceLost as error:
        return False, _drift(watched, seen), str(error)
    tell(len(rows), len(plan.points), 0.0, "done")
    return True, _drift(watched, seen), ""


def _strikes(rows: Iterable[Row]) -> dict[str, int]:
    """How often each operation failed in a row, at the end of what was measured."""
    struck: dict[str, int] = {}
    for row in rows:
        _strike(struck, row)
    return struck


def _strike(struck: dict[str, int], row: Row) -> None:
    op, status = row["op"], row["status"]
    if status == "ok":
        struck[op] = 0
    elif status.startswith(("failed", LOST)):
        struck[op] = struck.get(op, 0) + (2 if status.startswith(LOST) else 1)


def _measured(ready: Bench, shape: Transformer, point: Point, budget: Budget) -> Row:
    """One row: its times, or the reason in words why there are none."""
    before, on = ready.backend.sense(), ready.backend

    def without(reason: str) -> Row:
        return _row(ready, shape, point, None, None, reason, before)

    def tried() -> Row:
        made = case(ready, shape, point)
        if wrong := checked(made):
            return without(f"wrong: {wrong}")
        found = on.clock.time(made.run, made.units, budget, made.reset)
        return _row(ready, shape, point, made, found, found.note or "ok", before)

    try:
        try:
            return tried()
        except on.exhausted:
            on.spare()  # memory that one package keeps for itself is what the other lacks
        return tried()
    except TooBig as error:
        return without(f"skipped: {error}")
    except on.exhausted as error:
        return without(f"out of memory: {_first_line(error)}")
    except Exception as error:  # noqa: BLE001 (one operation that fails must not cost the others)
        reason = f"{type(error).__name__}: {_first_line(error)}"
        return without(("failed: " if on.answers() else LOST) + reason)


def _row(
    ready: Bench,
    shape: Transformer,
    point: Point,
    made: Case | None,
    found: Times | None,
    status: str,
    before: tuple[float, float, float],
) -> Row:
    op = made.op if made is not None else Op(point.op, 0.0, 0.0, 0.0)
    after = ready.backend.sense()
    work = next((w for w in linear_work(shape) if w.name == point.op and point.op in LINEAR), None)
    n, k = (work.n, work.k) if work is not None else (0, 0)
    if point.op in _HEADS:
        n, k = attention_widths(shape)
    m = point.branches * point.rows if point.op == "fork_copy" else point.rows
    suffixes = point.branches * point.suffix
    if point.ragged:
        suffixes = int(tree(point, point.seed)[1].sum()) - point.branches * point.prefix
    row: Row = {
        "op": point.op, "model_shape": f"{shape.name}/tp1", "dtype": "bfloat16", "page": point.page,
        "B": point.branches, "P": point.prefix, "S": point.suffix, "sum_s": suffixes,
        "m": m, "n": n, "k": k, "splits": point.parts,
        "variant": "ragged" if point.ragged else point.variant, "calls": max(op.calls, point.layers),
        "sm_mhz_before": before[0], "sm_mhz_after": after[0], "power_w": after[1], "temp_c": after[2],
        "run_id": f"{ready.device.name}/{ready.backend.kind}", "point_seed": point.seed,
        "is_holdout": int(point.holdout), "status": status, "bytes_floor": op.bytes, "flop": op.flops,
        "floor_us": 1e6 * op.seconds, "l2_state": "none",
    }  # fmt: skip
    if made is None or found is None:
        return row
    cold = made.units * made.touched >= 2 * ready.backend.cache_bytes
    return row | {
        "t_us_median": 1e6 * found.median, "t_us_p10": 1e6 * found.p10, "t_us_p90": 1e6 * found.p90,
        "t_us_min": 1e6 * found.least, "samples": found.samples, "units_per_replay": found.units,
        "frac_floor": op.seconds / found.median, "l2_state": "cold" if cold else "warm",
    }  # fmt: skip


def _drift(watched: Sequence[Point], seen: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How the sentinels' last times compare with their first: 0.02 is 2 % slower."""
    if len(seen) < 2:
        return {"sentinels": len(watched), "rounds": len(seen)}
    pairs = [
        (p, last / first - 1)
        for p, first, last in zip(watched, seen[0], seen[-1], strict=True)
        if first and last
    ]
    worst = max(pairs, key=lambda pair: abs(pair[1]), default=None)
    return {
        "sentinels": len(watched), "rounds": len(seen),
        "median": float(np.median([change for _, change in pairs])) if pairs else 0.0,
        "worst": worst[1] if worst else 0.0, "worst_point": _said(worst[0]) if worst else "",
    }  # fmt: skip


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _said(point: Point) -> str:
    """A point in a few words."""
    names = (("B", point.branches), ("P", point.prefix), ("S", point.suffix), ("m", point.rows))
    return " ".join([point.op, *(f"{name}={value}" for name, value in names if value)])


def _cycle(points: Sequence[Point], count: int) -> list[Point]:
    return [points[i % len(points)] for i in range(count)]


def _journal(
    path: Path | None, head: Mapping[str, Any], rows: Iterable[Row]
) -> Callable[[Row], None]:
    """What appends a row to the journal; it begins with its head and the rows so far."""
    if path is None:
        return lambda row: None
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(head), *(json.dumps(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def write(row: Row) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    return write


def _resumed(path: Path, head: Mapping[str, Any]) -> tuple[dict[str, Any], list[Row]] | None:
    """Head and rows of a journal, None where there is none; raises JournalError for one of another plan."""
    if not path.exists():
        return None
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        kept = json.loads(first)
        rows = []
        for number, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                if number != len(lines) - 1:  # a line that an interrupt cut is the last one
                    raise
    except (ValueError, UnicodeDecodeError) as error:
        raise JournalError(
            f"{path} is not the journal of a profile ({error}); delete it and measure again."
        ) from None
    different = [
        key for key, value in head.items() if not isinstance(kept, dict) or kept.get(key) != value
    ]
    if different:
        raise JournalError(
            f"{path} holds points of another {' and '.join(different)}: delete it, or measure without --resume."
        )
    return kept, rows


def _git() -> dict[str, Any]:
    """The commit that measured, where this is a checkout."""
    import subprocess

    def ask(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None
        return found.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    return (
        {} if commit is None else {"git": commit, "git_dirty": bool(ask("status", "--porcelain"))}
    )


def described(plan: Plan) -> dict[str, int]:
    """How many points of each operation a plan holds."""
    counts: dict[str, int] = {}
    for point in plan.points:
        counts[point.op] = counts.get(point.op, 0) + 1
    return counts
