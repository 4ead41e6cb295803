"""`treeline validate`: how far the simulator is from a real engine, on runs that others measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dashboards.terminal import Tell, plain
from scenarios.errors import UserError
from scenarios.loader import load, loads
from sim.accuracy import MEAN_LIMIT, P99_LIMIT, STATISTICS, Metric
from sim.diagnosis import Term
from sim.measured import read_measured
from sim.mirror import mirror
from sim.resolve import resolve
from sim.validate import Mechanism, Validation, validate

_WIDTH, _HEIGHT = 58, 9  # of a picture, in characters
_EXPLAINS = 0.5  # a term that explains less of the errors is not named as their cause
_ALIKE = 0.05  # terms that explain almost as much as the best are named beside it


def validate_run(
    path: str,
    *,
    engine: str | None,
    device: str | None,
    changes: Sequence[str] = (),
    scenario: str | None,
    diagnosis: bool,
    force: bool,
    tell: Tell | None,
) -> Validation:
    """Read a measured run, play it, compare. With `scenario` the scenario played is written there.

    `changes` are `a.b.c=value` overrides of that scenario.

    Raises: UserError for what cannot be read, named or played.
    """
    run = read_measured(path)
    text = mirror(run, path, engine=load(engine) if engine else None, device=device)
    if scenario is not None:
        try:
            with Path(scenario).open("w" if force else "x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError:
            raise UserError(f"{scenario} exists already. Name another, or add --force.") from None
        except OSError as error:
            raise UserError(f"{scenario} cannot be written: {error.strerror}.") from None
    return validate(
        run, resolve(loads(text, "mirror", changes)), diagnosis=diagnosis, progress=tell
    )


def document(found: Validation) -> dict[str, Any]:
    """Everything as JSON values."""
    run = found.run
    return {
        "run": run.label,
        "format": run.format,
        "requests": len(run.requests),
        "left_out": run.left_out,
        "step_cost": found.played.step_source,
        "holds": found.holds,
        "limits": {"mean": MEAN_LIMIT, "p99": P99_LIMIT},
        "metrics": {m.name: _metric(m) for m in found.metrics},
        "simulated": {
            "preemptions": found.played.preemptions,
            "iterations": found.played.iterations,
            "recomputed_tokens": found.played.recomputed_tokens,
        },
        "over_time": None if found.mechanism is None else _mechanism(found.mechanism),
        "diagnosis": [
            {
                "term": term.name,
                "change": term.change,
                "answer": dict(term.answer),
                "needed": term.needed,
                "explains": term.explains,
            }
            for term in found.terms
        ],
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "measured_s": dict(metric.measured),
        "simulated_s": dict(metric.simulated),
        "error": dict(metric.error),
        "ks": metric.ks,
        "standard_error_of_mean": metric.spread,
        "holds": metric.holds,
        "count": metric.count,
    }


def _mechanism(found: Mechanism) -> dict[str, Any]:
    names = ("running", "waiting", "kv_share")
    return {n: dict(zip(("measured", "simulated"), getattr(found, n), strict=True)) for n in names}


def picture(found: Validation) -> RenderableType:
    """The report for a terminal of 100 columns."""
    run = found.run
    left = f", {run.left_out} more failed or never finished" if run.left_out else ""
    parts: list[RenderableType] = [
        Text(plain(run.label) + left, style="bold"),
        Text(f"Step costs: {plain(found.played.step_source)}"),
        Text(""),
        _verdict(found),
        Text(""),
        _errors(found.metrics),
        Padding(
            Text(
                "Error: simulated / measured - 1. KS: largest distance of the two distributions. "
                "Sampling: standard error of the measured mean."
            ),
            (0, 0, 1, 0),
        ),
    ]
    measured, simulated = run.requests.latencies, found.played.requests.latencies
    for name in measured:
        parts.append(_cdf(name, measured[name], simulated[name]))
    parts.append(
        Text("Share of requests up to a time: # both, m measured alone, s simulated alone.")
    )
    if found.mechanism is not None:
        parts += [Text(""), _over_time(found.mechanism)]
    played = found.played
    parts.append(
        Text(
            f"Simulated: {played.iterations:,} iterations, {played.preemptions:,} preemptions, "
            f"{played.recomputed_tokens:,} tokens computed again."
        )
    )
    if found.terms:
        parts += [Text(""), _diagnosis(found.terms), _cause(found)]
    return Group(*parts)


def _verdict(found: Validation) -> Text:
    limits = f"means within {_percent(MEAN_LIMIT, '.0f')}, p99 within {_percent(P99_LIMIT, '.0f')}"
    if found.holds:
        return Text(f"HOLDS: {limits}.", style="bold")
    worst = [
        f"{m.name} {key} {_percent(m.error[key], '+.1f')}"
        for m in found.metrics
        for key, limit in (("mean", MEAN_LIMIT), ("p99", P99_LIMIT))
        if abs(m.error[key]) > limit
    ]
    return Text(f"MISSED ({limits}): {', '.join(worst)}.", style="bold")


def _errors(metrics: Sequence[Metric]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for key in (*STATISTICS, "KS", "sampling"):
        table.add_column(key, justify="right")
    for m in metrics:
        table.add_row(f"{m.name} measured", *(_time(m.measured[key]) for key in STATISTICS), "", "")
        table.add_row("  simulated", *(_time(m.simulated[key]) for key in STATISTICS), "", "")
        errors = (Text(_percent(m.error[key]), style="bold") for key in STATISTICS)
        table.add_row("  error", *errors, f"{m.ks:.3f}", f"±{_percent(m.spread, '.1f')}")
    return table


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:#.4g} ms" if seconds < 1 else f"{seconds:#.4g} s"


def _percent(share: float, form: str = "+.2f") -> str:
    return f"{100 * share:{form}} %"


def _cdf(name: str, measured: Any, simulated: Any) -> Table:
    """Both distribution functions as text: # where they meet, m measured alone, s simulated alone."""
    low = float(min(measured.min(), simulated.min()))
    high = float(max(measured.max(), simulated.max()))
    span = max(high - low, 1e-12)
    at = low + span * (np.arange(_WIDTH) + 0.5) / _WIDTH
    rows = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    heights = [
        np.searchsorted(np.sort(sample), at, side="right") / len(sample)
        for sample in (measured, simulated)
    ]
    for mark, share in zip("ms", heights, strict=True):
        for x, value in enumerate(share):
            row = rows[_HEIGHT - 1 - min(int(value * _HEIGHT), _HEIGHT - 1)]
            row[x] = "#" if row[x] not in (" ", mark) else mark
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(justify="right", width=12)
    table.add_column(width=_WIDTH + 2, no_wrap=True)
    labels = {0: f"{name} 100 %", _HEIGHT // 2: "50 %", _HEIGHT - 1: "0 %"}
    for i, row in enumerate(rows):
        table.add_row(labels.get(i, ""), "|" + "".join(row).rstrip())
    scale = _time(low) + _time(high).rjust(_WIDTH - len(_time(low)))
    table.add_row("", " " + scale)
    return table


def _over_time(found: Mechanism) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("Over time, mean", "running", "waiting", "KV in use"):
        table.add_column(head, justify="left" if head.startswith("Over") else "right")
    for i, who in enumerate(("measured", "simulated")):
        running, waiting = f"{found.running[i]:.1f}", f"{found.waiting[i]:.1f}"
        table.add_row(who, running, waiting, _percent(found.kv_share[i], ".1f"))
    return table


def _diagnosis(terms: Sequence[Term]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("Term", "changed", "TTFT", "TPOT", "E2E", "would explain", "with"):
        table.add_column(head, justify="left" if head in ("Term", "changed", "with") else "right")
    for term in terms:
        answer = (_percent(term.answer[m]) for m in ("TTFT", "TPOT", "E2E"))
        table.add_row(
            term.name,
            term.change,
            *answer,
            _percent(term.explains, ".0f"),
            f"{term.needed:+.2f} of it",
        )
    return table


def _cause(found: Validation) -> Text:
    best = found.terms[0]
    if best.explains < _EXPLAINS:
        return Text("No single term explains what is left.")
    alike = [t for t in found.terms if t.explains > best.explains - _ALIKE]
    causes = ", or ".join(f"{t.name} ({t.needed:+.2f} times {t.change})" for t in alike)
    return Text(
        f"What is left looks most like {causes}: {_percent(best.explains, '.0f')} of it explained."
    )
