"""`treeline profile`: measure this machine's operations, with progress and time left, and say how a scenario uses them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dashboards.terminal import plain, program, quoted
from hw.backend import backend
from hw.cuda import DeviceLost, GpuError
from hw.device import CatalogError, devices
from hw.measure import MeasureError, Request, check_place, outline, plan_of, run
from hw.profile import Profile, ProfileError
from hw.profiler import JournalError
from scenarios.errors import MissingError, UserError

KINDS = ("cpu", "cuda")


def request(
    device: str | None, models: list[str], only: list[str], out: str | None, **flags: Any
) -> Request:
    """What was asked for; raises UserError for a device that cannot be measured."""
    if device is None:
        raise UserError(
            f"Say what to measure: {program()} profile --device cpu --quick, or --device cuda. "
            "`import` brings in what others measured, `show` reads a profile."
        )
    if device not in KINDS:
        known = ", ".join(devices())
        raise UserError(
            f"--device {plain(device)}: what is measured is this machine's `cpu` or its NVIDIA GPU (`cuda`). "
            f"To name the card, add --name; the catalogue knows {known}."
        )
    kind: Literal["cpu", "cuda"] = "cuda" if device == "cuda" else "cpu"
    return Request(kind, tuple(models), only=tuple(only), out=Path(out) if out else None, **flags)


def planned(asked: Request) -> dict[str, Any]:
    """What a run would do, without doing it; raises UserError."""
    try:
        return outline(asked, plan_of(asked))
    except (MeasureError, CatalogError) as error:
        raise UserError(str(error)) from None


def measured(asked: Request, *, quiet: bool) -> dict[str, Any]:
    """Measure and save; what was written and what it holds.

    Raises: MissingError without a GPU or a package; UserError for a request that cannot be; KeyboardInterrupt when
    interrupted before anything was measured.
    """
    try:
        check_place(asked)
        plan_of(asked, "" if asked.kind == "cpu" or asked.name is None else asked.name)
        on = backend(asked.kind)
        plan = plan_of(asked, str(on.facts.get("gpu", "")))
        with _bar(f"profiling {plan.device.name}", quiet=quiet) as tell:
            found = run(asked, plan, on, tell)
    except GpuError as error:
        raise MissingError(str(error)) from None
    except (MeasureError, CatalogError, JournalError, ProfileError) as error:
        raise UserError(str(error)) from None
    except DeviceLost as error:
        raise UserError(f"{error}. Measure the rest with the same command and --resume.") from None
    except OSError as error:
        raise UserError(
            f"{asked.place} cannot be written: {error.strerror}. Name another with --out."
        ) from None
    return document(found, asked)


def document(found: Profile, asked: Request) -> dict[str, Any]:
    """What was measured, as one JSON document."""
    status = found.columns["status"]
    ok = status == "ok"
    return {
        "written": [f"{asked.place}.parquet", f"{asked.place}.yaml"],
        "complete": bool(found.meta["complete"]),
        "device": found.device,
        "label": found.label,
        "points": int(found.meta["points"]),
        "measured": int(ok.sum()),
        "not_measured": {
            reason: int((status == reason).sum()) for reason in sorted(set(status[~ok].tolist()))
        },
        "holdout": int(found.columns["is_holdout"].sum()),
        "ceilings": dict(found.ceilings),
        "drift": found.meta["drift"],
        "lost": found.meta.get("lost"),
        "journal": None if found.meta["complete"] else str(asked.journal),
    }


def text(found: dict[str, Any]) -> str:
    """The document of `measured` for people."""
    roofs = found["ceilings"]
    drift = found["drift"]
    count = f"{found['measured']} of {found['points']} points ({found['holdout']} of them held out of every fit)"
    moves = f"copy {roofs['copy_bytes_per_s'] / 1e9:,.1f} GB/s, read {roofs['read_bytes_per_s'] / 1e9:,.1f} GB/s"
    computes = f"bf16 matrix product {roofs['gemm_flops_bf16'] / 1e12:,.2f} TFLOP/s"
    lines = [f"Measured {count}: {found['label']}.", f"Roofs: {moves}, {computes}."]
    lines += [f"{count} points: {plain(reason)}" for reason, count in found["not_measured"].items()]
    if "median" in drift:
        lines.append(
            f"{drift['sentinels']} points timed again later: median change {drift['median']:+.1%}, "
            f"worst {drift['worst']:+.1%} ({drift['worst_point']})."
        )
    place = found["written"][0]
    named = place if "/" in place else f"./{place}"
    lines.append(f"Wrote {' and '.join(found['written'])}.")
    if found["complete"]:
        lines.append(f"See it: {program()} profile show {quoted(place)}")
        lines.append(
            f"Use it in a scenario: device: {found['device']}, latency: {{kind: profile, profile: {named}}}"
        )
    elif found["lost"]:
        lines.append(
            f"{plain(found['lost'])}. Measure the rest with the same command and --resume."
        )
    else:
        lines.append("Interrupted: measure the rest with the same command and --resume.")
    return "\n".join(lines)


def outline_text(found: dict[str, Any]) -> str:
    """The document of `planned` for people."""
    ops = ", ".join(f"{count} {op}" for op, count in found["points"].items())
    return (
        f"Would measure {sum(found['points'].values()):,} points on {found['device']} ({found['grid']} grid, "
        f"{', '.join(found['models'])}): {ops}.\n"
        f"{found['holdout']} of them are held out of every fit. About {found['estimate_s']:,.0f} s on a device like "
        f"the catalogue's. Nothing was measured; it would be written to {found['out']}.parquet and .yaml."
    )


@contextmanager
def _bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int, float, str], None]]:
    """Progress on stderr: a bar with the time left on a terminal, a line every tenth elsewhere."""
    if quiet:
        yield lambda done, total, left_s, now: None
    elif not sys.stderr.isatty():
        told: set[int] = set()

        def line(done: int, total: int, left_s: float, now: str) -> None:
            tenth = 10 * done // max(1, total)
            if tenth not in told:
                told.add(tenth)
                left = "" if math.isnan(left_s) else f", about {left_s:,.0f} s left"
                print(f"{what}: {done} of {total} points{left}", file=sys.stderr, flush=True)

        yield line
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=1.0, left="")

            def step(done: int, total: int, left_s: float, now: str) -> None:
                left = "" if math.isnan(left_s) else f"{left_s:,.0f} s left"
                bar.update(
                    task, completed=done / max(1, total), description=f"{what}: {now}", left=left
                )

            yield step
