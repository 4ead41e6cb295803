"""From a few words (which device, which models, how fine) to a saved profile; `python -m hw.measure` needs no more than hw."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hw import cuda
from hw.backend import Backend, backend
from hw.device import CatalogError, Device, device, devices
from hw.grid import FULL, QUICK, grid
from hw.profile import Profile, ProfileError, save
from hw.profiler import JournalError, Plan, described, estimate_s, measure
from hw.timing import Budget
from hw.transformer import transformer

Kind = Literal["cpu", "cuda"]
MODELS = {
    "cpu": ("qwen2.5-1.5b",),
    "cuda": ("llama-3.1-8b", "llama-3.1-70b", "qwen2.5-32b", "qwen2.5-math-prm-7b"),
}
_BUDGETS = {
    ("cpu", True): Budget(0.1, 3, 15, 1),
    ("cpu", False): Budget(0.5, 5, 30, 2),
    ("cuda", True): Budget(0.03, 5, 30, 3),
    ("cuda", False): Budget(0.04, 7, 40, 2),
}


_RESTARTS = 24  # an operation that takes the device does so twice, then is left out


class MeasureError(ValueError):
    """A request that cannot be measured: the message says what, the rule and the way out."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure: on which kind of device, counted as which, for which models, in which grid, into which files."""

    kind: Kind
    models: tuple[str, ...] = ()
    quick: bool = False
    name: str | None = None
    only: tuple[str, ...] = ()
    out: Path | None = None
    resume: bool = False
    force: bool = False

    @property
    def journal(self) -> Path:
        """Where points are written down as they are measured."""
        return self.place.with_name(self.place.name + ".part.jsonl")

    @property
    def place(self) -> Path:
        """The profile's path without its endings."""
        given = self.out or Path("profiles") / (self.name or self.kind)
        return given.with_suffix("") if given.suffix in (".parquet", ".yaml") else given


def plan_of(request: Request, gpu: str = "") -> Plan:
    """The plan of a request; `gpu` is the name that the driver gives the card. Raises MeasureError, CatalogError."""
    shapes = tuple(transformer(name) for name in request.models or MODELS[request.kind])
    try:
        points = grid(shapes, QUICK if request.quick else FULL)
    except ValueError as error:
        raise MeasureError(str(error)) from None
    ops = sorted({point.op for point in points})
    for op in request.only:
        if op not in ops:
            raise MeasureError(f"there is no operation {op!r}; there are {', '.join(ops)}.")
    if request.only:
        points = tuple(point for point in points if point.op in request.only)
    budget = _BUDGETS[request.kind, request.quick]
    sentinels = 6 if request.quick else 20
    target = _target(request, gpu)
    return Plan(shapes, points, target, budget, sentinels, "quick" if request.quick else "full")


def check_place(request: Request) -> None:
    """Raises MeasureError where a profile or an interrupted run lies already and nothing was said about it."""
    interrupted = request.journal.exists()
    if request.force or (request.resume and interrupted):
        return
    if interrupted:
        raise MeasureError(
            f"{request.journal} holds an interrupted run: go on with --resume, or begin again with --force."
        )
    table = request.place.with_name(request.place.name + ".parquet")
    if table.exists():
        raise MeasureError(
            f"{table} exists already: name another with --out, or replace it with --force."
        )


def run(request: Request, plan: Plan, on: Backend, tell: object) -> Profile:
    """Measures and saves; the journal goes when the profile is complete.

    With `force` a journal of another plan or of other kernels is begun again. Raises JournalError, ProfileError.
    """
    assert callable(tell)
    try:
        found = measure(plan, on, tell=tell, journal=request.journal, resume=request.resume)
    except JournalError as error:
        if not request.force:
            raise
        tell(0, len(plan.points), math.nan, f"begun again: {error}")
        found = measure(plan, on, tell=tell, journal=request.journal)
    save(found, request.place)
    if found.meta["complete"]:
        request.journal.unlink(missing_ok=True)
    return found


def outline(request: Request, plan: Plan) -> dict[str, object]:
    """What a run would do: points by operation, models, budget, seconds (a guess)."""
    return {
        "device": plan.device.name,
        "kind": request.kind,
        "grid": plan.grid,
        "models": [shape.name for shape in plan.models],
        "points": described(plan),
        "holdout": sum(point.holdout for point in plan.points),
        "estimate_s": round(estimate_s(plan, request.kind), 1),
        "out": str(request.place),
    }


def _target(request: Request, gpu: str) -> Device:
    """The catalogue's device that is measured; a name that it does not hold stands for a device of its own."""
    name = request.name
    if name is None and request.kind == "cpu":
        name = "cpu"
    if name is None:
        cards = [card for card in devices() if _is(card, gpu)]
        if len(cards) != 1:
            if not gpu:
                return device("h200-sxm-141gb")
            raise MeasureError(
                f"the catalogue holds no {gpu}: name what is measured, for example --name my-gpu "
                f"(catalogue: {', '.join(devices())})."
            )
        name = cards[0]
    known = devices()
    # The roofs of a new device are measured first; the rest of the figures only shape the estimate.
    return known[name] if name in known else replace(known["h200-sxm-141gb"], name=name)


def _is(card: str, gpu: str) -> bool:
    """Whether the driver's name of a GPU is the catalogue's card: its words, its memory where told, not a PCIe card."""
    words = gpu.lower().replace("-", " ").split()
    *names, memory = card.split("-")
    sizes = [word for word in words if re.fullmatch(r"\d+gb", word)]
    named = all(word in words for word in names if word != "sxm")
    return bool(names) and named and "pcie" not in words and sizes in ([], [memory])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 fine, 1 the device was lost too often, 2 usage, 4 no GPU or a package is missing, 130 interrupted (what was measured is kept)."""
    parser = argparse.ArgumentParser(prog="python -m hw.measure", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--model", action="append", default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a coarse grid")
    parser.add_argument("--only", action="append", default=[], metavar="OP")
    parser.add_argument("--name", help="the device's name in scenarios")
    parser.add_argument("--out", type=Path, metavar="PATH")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    parser.add_argument("--restarts", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    request = Request(given.device, tuple(given.model), given.quick, given.name, tuple(given.only),
                      given.out, given.resume, given.force)  # fmt: skip
    try:
        if given.dry_run:
            for key, value in outline(request, plan_of(request)).items():
                print(f"{key}: {value}")
            return 0
        check_place(request)
        on = backend(request.kind)
        found = run(request, plan_of(request, str(on.facts.get("gpu", ""))), on, _line)
    except cuda.GpuError as error:
        print(error, file=sys.stderr)
        return 4
    except (MeasureError, CatalogError, JournalError, ProfileError) as error:
        print(error, file=sys.stderr)
        return 2
    except cuda.DeviceLost as error:
        return _again(arguments, given.restarts, str(error))
    except KeyboardInterrupt:
        print("interrupted before anything was measured", file=sys.stderr)
        return 130
    print(f"{request.place}.parquet: {len(found.columns['op'])} points, {found.label}")
    if "lost" in found.meta:
        return _again(arguments, given.restarts, found.meta["lost"])
    if not found.meta["complete"]:
        print(f"interrupted: go on with --resume ({request.journal})", file=sys.stderr)
        return 130
    return 0


def _again(arguments: Sequence[str] | None, restarts: int, lost: str) -> int:
    """After a fault of a kernel the GPU answers a new process alone: become one, which goes on with the rest."""
    print(lost, file=sys.stderr, flush=True)
    if restarts < _RESTARTS:
        words = [*(sys.argv[1:] if arguments is None else arguments)]
        words += [] if "--resume" in words else ["--resume"]
        words += ["--restarts", str(restarts + 1)]
        os.execv(sys.executable, [sys.executable, "-m", "hw.measure", *words])  # noqa: S606
    print(f"lost {restarts + 1} times: given up; what was measured is kept", file=sys.stderr)
    return 1


def _line(done: int, total: int, left_s: float, what: str) -> None:
    """One line of progress in so many points, for logs."""
    if done % max(1, total // 50) == 0 or not total:
        left = "" if math.isnan(left_s) else f", {left_s:.0f} s left"
        print(f"{done}/{total}{left}: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
