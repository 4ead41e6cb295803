"""The kernel benchmark: our tree attention beside its peers on the same trees in one run, and the goals that it is for."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from hw import cuda, peers
from hw.backend import Backend, backend
from hw.bench import Bench, TooBig, bench
from hw.cases import case
from hw.device import Device, device
from hw.floors import attention_op, merge_op
from hw.grid import Point
from hw.measure import MeasureError, Request, plan_of
from hw.profiler import LOST, ceilings
from hw.timing import Budget, Times
from hw.transformer import Transformer, transformer

MODEL = "llama-3.1-8b"
AGREES = 1.5e-2
"""Relative L2 distance from our output beyond which a peer is taken to compute something else (both are bf16)."""

_OURS = {"ours": partial(peers.ours, shared=True), "ours_naive": partial(peers.ours, shared=False)}
_GOALS = ((64, 8192, 128), (8, 32768, 128))  # B, P, S of the trees that goals are about
STRIKES = 3
_RESTARTS = 24
_COMPILED = ("flex_attention",)  # compiled anew for every shape: on the points marked alone


@dataclass(frozen=True, slots=True)
class Trees:
    """The contest's grid: branches x prefix x suffix, and the points where compiled peers run too."""

    branches: tuple[int, ...] = (2, 8, 32, 64, 128, 256)
    prefix: tuple[int, ...] = (512, 2048, 8192, 32768)
    suffix: tuple[int, ...] = (128, 512)
    page: int = 16

    def points(self) -> Iterator[tuple[Point, bool]]:
        """Each tree, and whether it is one of the marked; those of a goal first, for time may run out."""
        trees = list(product(self.branches, self.prefix, self.suffix))
        for b, p, s in sorted(trees, key=lambda tree: tree not in _GOALS):
            marked = s == self.suffix[0] and b in self.branches[1::2]
            yield Point("attention", MODEL, self.page, b, p, s), marked


SMALL = Trees((2, 3), (32, 64), (16,))


Row = dict[str, Any]


def contest(
    on: Bench, shape: Transformer, trees: Trees, budget: Budget, tell: Callable[[str], None],
    until: float = float("inf"), rows: Sequence[Row] = (), keep: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:  # fmt: skip
    """Times of everybody on every tree in us, or the reason why there is none; peers stop at the time `until`.

    `rows` are those of an earlier process, which are not measured again; `keep` gets all rows after each tree. Whoever
    fails STRIKES times in a row is left out from then on. Raises DeviceLost, after `keep`.
    """
    found = list(rows)
    known = {(row["B"], row["P"], row["S"]) for row in found}
    points = [pair for pair in trees.points()
              if (pair[0].branches, pair[0].prefix, pair[0].suffix) not in known]  # fmt: skip
    struck = _strikes(found)
    for number, (point, marked) in enumerate(points):
        tell(f"{number}/{len(points)} B={point.branches} P={point.prefix} S={point.suffix}")
        row: Row = {"B": point.branches, "P": point.prefix, "S": point.suffix, "page": point.page}
        found.append(row)
        try:
            forest = peers.forest(on, shape, point)
        except TooBig as error:
            row["status"] = f"skipped: {error}"
            continue
        except Exception as error:
            lost = not on.backend.answers()
            row["status"] = (
                f"{LOST if lost else 'failed: '}{type(error).__name__}: {_first_line(error)}"
            )
            keep(found)
            if lost:
                raise cuda.DeviceLost(row["status"]) from error
            on.backend.spare()
            continue
        row |= {
            "floor_us": 1e6 * _floor_s(on.device, shape, point),
            "status": "ok",
            "us": {},
            "why_not": {},
        }
        expected = None
        for name, make in (_OURS | peers.PEERS).items():
            if name in _COMPILED and forest.cuda and not marked:
                continue
            if struck.get(name, 0) >= STRIKES:
                row["why_not"][name] = f"skipped: it failed {STRIKES} times in a row"
                continue
            if name not in _OURS and time.monotonic() > until:
                row["why_not"][name] = "skipped: out of time"
                continue
            out, reason = _one(on.backend, forest, make, budget, row, name)
            if not reason:
                expected = out.copy() if expected is None else expected
                away = peers.relative_error(out, expected)
                if not away <= AGREES:
                    del row["us"][name]
                    reason = f"failed: its output is {away:.2g} away from ours"
            struck[name] = _struck(struck.get(name, 0), reason)
            if reason:
                row["why_not"][name] = reason
            if reason.startswith(LOST):
                keep(found)
                raise cuda.DeviceLost(f"{name}: {reason}")
        keep(found)
    return found


def _one(
    on: Backend, forest: peers.Forest, make: Any, budget: Budget, row: Row, name: str
) -> tuple[Any, str]:
    """Times one on one tree into row["us"]; its output, and why there is none."""
    try:
        took, out = _timed(on, forest, make, budget)
    except (peers.Absent, TooBig) as error:
        return None, f"skipped: {error}"
    except Exception as error:  # noqa: BLE001 (one that fails must not cost the others)
        kind = "failed: " if on.answers() else LOST
        if kind != LOST:
            on.spare()
        return None, f"{kind}{type(error).__name__}: {_first_line(error)}"
    row["us"][name] = 1e6 * took.median
    if took.note:
        row.setdefault("notes", {})[name] = took.note
    return out, ""


def _struck(before: int, reason: str) -> int:
    if reason.startswith(LOST):
        return before + 2
    return before + 1 if reason.startswith("failed") else 0 if not reason else before


def _strikes(rows: Sequence[Row]) -> dict[str, int]:
    """How often each failed in a row at the end of these trees."""
    struck: dict[str, int] = {}
    for row in rows:
        for name in [*row.get("us", {}), *row.get("why_not", {})]:
            why_not: dict[str, str] = row.get("why_not", {})
            struck[name] = _struck(struck.get(name, 0), why_not.get(name, ""))
    return struck


def phases(on: Bench, shape: Transformer, budget: Budget, done: int = 0) -> Iterator[Row]:
    """The prefix kernel, the suffix kernel and the fork's copy alone, where the goals ask for them.

    The first `done` were measured before. Raises DeviceLost, after the row that says so.
    """
    asked = [
        Point("prefix_attention", MODEL, 16, 256, 32768, 16),
        Point("prefix_attention", MODEL, 16, 64, 8192, 16),
        Point("prefix_attention", MODEL, 16, 8, 32768, 16),
        Point("suffix_attention", MODEL, 16, 64, 0, 1024),
        Point("suffix_attention", MODEL, 16, 256, 0, 512),
        Point("fork_copy", MODEL, 16, 64, 512, rows=15, layers=shape.layers),
    ]
    for point in asked[done:]:
        row: Row = {"op": point.op, "B": point.branches, "P": point.prefix, "S": point.suffix}
        try:
            made = case(on, shape, point)
            took = on.backend.clock.time(made.run, made.units, budget, made.reset).median
        except TooBig as error:
            yield row | {"status": f"skipped: {error}"}
        except Exception as error:
            reason = f"{type(error).__name__}: {_first_line(error)}"
            if on.backend.answers():
                yield row | {"status": f"failed: {reason}"}
                continue
            yield row | {"status": LOST + reason}
            raise cuda.DeviceLost(f"{point.op}: {reason}") from error
        else:
            yield row | {
                "status": "ok", "us": 1e6 * took, "tflops": made.op.flops / took / 1e12,
                "gbps": made.op.bytes / took / 1e9, "of_floor": made.op.seconds / took,
            }  # fmt: skip


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def verdict(
    rows: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]], roofs: dict[str, float]
) -> list[str]:
    """The goals, each with what was measured; the losses too."""
    lines = []

    def at(b: int, p: int, s: int) -> dict[str, Any] | None:
        return next(
            (
                r
                for r in rows
                if (r["B"], r["P"], r["S"]) == (b, p, s) and "ours" in r.get("us", {})
            ),
            None,
        )

    def goal(what: str, reached: float, aim: float, unit: str, *, least: bool) -> None:
        met = reached >= aim if least else reached <= aim
        lines.append(
            f"{'met   ' if met else 'MISSED'} {what}: {reached:,.1f} {unit} (goal {'>=' if least else '<='} {aim:g})"
        )

    if row := at(*_GOALS[0]):
        goal("B=64 P=8192 S=128", row["us"]["ours"], 50.0, "us", least=False)
    if row := at(*_GOALS[1]):
        moved = 4 * 8 * 128 * (32768 + 8 * 128)
        share = moved / (row["us"]["ours"] * 1e-6) / roofs["read_bytes_per_s"]
        goal("B=8 P=32k, of read bandwidth", 100 * share, 75.0, "%", least=True)
    for part in parts:
        if part["status"] == "ok" and part["op"] == "prefix_attention" and part["B"] == 256:
            goal("prefix phase B=256 P=32k", part["tflops"], 300.0, "TFLOP/s", least=True)
        if part["status"] == "ok" and part["op"] == "fork_copy":
            goal(
                "fork of 64, of copy bandwidth",
                1e11 * part["gbps"] / roofs["copy_bytes_per_s"],
                80.0,
                "%",
                least=True,
            )
    ratios = [min(us for name, us in r["us"].items() if not name.startswith("ours")) / r["us"]["ours"]
              for r in rows if len([n for n in r.get("us", {}) if not n.startswith("ours")]) and "ours" in r["us"]]  # fmt: skip
    if ratios:
        share = 100 / len(ratios)
        goal(
            "of the grid at 0.8 times the best peer's speed or more",
            share * sum(x >= 0.8 for x in ratios),
            70.0,
            "%",
            least=True,
        )
        goal(
            "of the grid ahead of the best peer",
            share * sum(x > 1 for x in ratios),
            40.0,
            "%",
            least=True,
        )
    return lines


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Times as a text table, the best of each line marked."""
    names = [*_OURS, *peers.PEERS]
    lines = [
        f"{'B':>4}{'P':>7}{'S':>5}{'floor':>9}"
        + "".join(f"{name:>20}" for name in names)
        + "   (us)"
    ]
    for row in rows:
        head = f"{row['B']:>4}{row['P']:>7}{row['S']:>5}"
        if row["status"] != "ok":
            lines.append(f"{head}  {row['status']}")
            continue
        best = min(row["us"].values(), default=0.0)
        cells = [
            f"{row['us'][n]:,.1f}{'*' if row['us'][n] == best else ' '}" if n in row["us"] else "- "
            for n in names
        ]
        lines.append(f"{head}{row['floor_us']:>9,.1f}" + "".join(f"{cell:>20}" for cell in cells))
    said = ("why_not", "notes")
    reasons = sorted(
        {f"{name}: {why}" for row in rows for key in said for name, why in row.get(key, {}).items()}
    )
    return "\n".join([*lines, *reasons])


def _timed(on: Backend, forest: peers.Forest, make: Any, budget: Budget) -> tuple[Times, Any]:
    """Times of one layer, and the output on the first tree."""
    run, out = make(forest)
    found = on.clock.time(run, len(forest.pools), budget)
    run(0)
    on.wait()
    return found, out


def _floor_s(roofs: Device, shape: Transformer, point: Point) -> float:
    one, b = replace(shape, layers=1), point.branches
    own = b * point.suffix
    return (
        attention_op("", one, roofs, point.prefix, b * point.prefix).seconds
        + attention_op("", one, roofs, own, own).seconds
        + merge_op(one, roofs, b).seconds
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: writes kernels.json and kernels.txt; 0 fine, 1 ours failed, 2 usage, 4 no GPU or package.

    They are written after each tree. After a fault that takes the device a new process goes on with the next tree.
    """
    parser = argparse.ArgumentParser(prog="python -m hw.contest", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--small", action="store_true", help="four little trees: does it run?")
    parser.add_argument("--seconds", type=float, default=480.0, help="peers stop after so long")
    parser.add_argument("--restarts", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    try:
        on = backend(given.device)
        gpu = str(on.facts.get("gpu", ""))
        target = plan_of(Request("cuda", only=("merge",)), gpu).device if gpu else device("cpu")
    except cuda.GpuError as error:
        print(error, file=sys.stderr)
        return 4
    except MeasureError as error:
        print(error, file=sys.stderr)
        return 2
    budget = Budget(0.0, 2, 2, 1) if given.small else Budget(0.05, 10, 60, 3)
    if given.small:
        on = replace(on, arena_bytes=min(on.arena_bytes, 1e8))
    head = f"{gpu or on.facts['processor']}: {MODEL}, one layer, bf16, cold input sets"
    known = _document(given.out / "kernels.json") if given.restarts else {}
    found: dict[str, Any] = {"device": target.name, "facts": on.facts, "kernels_sha256": cuda.fingerprint(),
                             "complete": False, "roofs": known.get("roofs", {}), "phases": known.get("phases", []),
                             "trees": known.get("trees", []), "goals": []}  # fmt: skip

    def write(trees: list[Row]) -> None:
        found["trees"] = trees
        found["goals"] = verdict(trees, found["phases"], found["roofs"]) if gpu else []
        _write(given.out, found, "\n".join([head, table(trees), "", *found["goals"]]))

    try:
        ready = bench(on, target)
        found["roofs"] = found["roofs"] or ceilings(ready, budget)[0]
        ready = replace(ready, device=replace(target, **found["roofs"]))
        shape = transformer(MODEL)
        for row in () if given.small else phases(ready, shape, budget, len(found["phases"])):
            found["phases"].append(row)
            write(found["trees"])
        rows = contest(ready, shape, SMALL if given.small else Trees(), budget,
                       lambda line: print(line, file=sys.stderr, flush=True), begun + given.seconds,
                       found["trees"], write)  # fmt: skip
    except cuda.DeviceLost as error:
        left = given.seconds - (time.monotonic() - begun)
        print(error, file=sys.stderr, flush=True)
        if given.restarts < _RESTARTS:
            again = ["--device", given.device, "--out", str(given.out), *(["--small"] if given.small else []),
                     "--seconds", f"{left:.0f}", "--restarts", str(given.restarts + 1)]  # fmt: skip
            os.execv(sys.executable, [sys.executable, "-m", "hw.contest", *again])  # noqa: S606
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: what was measured is in {given.out}", file=sys.stderr)
        return 130
    found["complete"] = True
    write(rows)
    print((given.out / "kernels.txt").read_text("utf-8"), end="")
    failed = any(
        row.get("why_not", {}).get("ours", "").startswith(("failed", LOST)) for row in rows
    )
    return 1 if failed else 0


def _document(path: Path) -> dict[str, Any]:
    """What an earlier process of this contest wrote."""
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    assert isinstance(found, dict)
    return found


def _write(folder: Path, document: dict[str, Any], text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernels.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (folder / "kernels.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
