"""The terminal report: the verdict first, then what it rests on, then what to do next."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from dashboards import words
from dashboards.verdict import bounds_of, count, next_command, on_paper, verdict
from pricing.contract import Priced
from scenarios.loader import Loaded
from scenarios.schema import Scenario
from sim.bound import Binding, Bound, binding
from sim.compare import Comparison, Difference
from sim.metrics import (
    TierMetrics,
    joint,
    latencies,
    pool_table,
    tier_table,
    warnings,
)
from sim.records import Result, measured, select, size

_HEADLINES = ("p95 E2E", "mean E2E", "answered", "accuracy", "coverage", "tokens per query",
              "GPU-seconds per query", "GPU cost per query", "margin before idle")  # fmt: skip


def report(
    result: Result,
    loaded: Loaded,
    priced: Priced,
    comparison: Comparison | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    command: str | None = None,
) -> RenderableType:
    """The report of one run as a rich renderable for 100 columns.

    `comparison` adds the differences to a base; `command` is the command that made the run, which
    the suggested next one extends (default: `treeline run FILE`).
    """
    scenario = loaded.scenario
    tiers = tier_table(result, scenario)
    found = binding(result, scenario)
    parts: list[RenderableType] = [
        _title(result, scenario),
        _verdict(tiers, found, bounds_of(result)),
        _section("Tiers", _tiers(tiers)),
        _section("Latency", _latency(result, tiers)),
        _section("Quality by latency", _joint(result, tiers)),
        _section("Fleet and KV memory", _fleet(result)),
        _section("Money", _money(priced)),
    ]
    if comparison is not None:
        title = f"Against {words.name(comparison.base_name)}, the same queries"
        parts.append(_section(title, _comparison(comparison)))
    parts.append(_section("Step cost", _step_cost(result)))
    notes = warnings(tiers)
    if notes:
        parts.append(_section("Read with care", _lines(f"! {words.name(n, 200)}" for n in notes)))
    parts.append(_next(loaded, tiers, found, run_dir, command))
    return Group(*parts)


def to_text(
    result: Result,
    loaded: Loaded,
    priced: Priced,
    comparison: Comparison | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    command: str | None = None,
    width: int = 100,
) -> str:
    """The report as plain text, without colour or escape sequences, at most `width` columns."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False)
    console.print(report(result, loaded, priced, comparison, run_dir, command))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip() + "\n"


def summary(
    result: Result,
    loaded: Loaded,
    priced: Priced,
    comparison: Comparison | None = None,
    run_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The figures of the report as JSON values; what is not a finite number is null.

    `verdict.holds` says whether every tier holds every objective.
    """
    scenario = loaded.scenario
    tiers = tier_table(result, scenario)
    missed = [{"tier": tier.tier, **dataclasses.asdict(t)} for tier in tiers for t in tier.missed]
    found: dict[str, Any] = {
        "scenario": scenario.name,
        "question": scenario.question,
        "seed": result.seed,
        "replications": scenario.replications,
        "verdict": {"holds": not missed, "missed": missed, "text": verdict(tiers)},
        "binding": binding(result, scenario),
        "bounds": bounds_of(result),
        "tiers": tiers,
        "pools": pool_table(result),
        "money": {"bill": priced.bill, "tiers": priced.tiers},
        "comparison": comparison,
        "warnings": warnings(tiers),
        "meta": result.meta,
        "run": None if run_dir is None else os.fspath(run_dir),
    }
    plain = jsonable(found)
    assert isinstance(plain, dict)
    return plain


def jsonable(value: Any) -> Any:
    """The value as JSON: dataclasses as objects, NumPy scalars as numbers, NaN and inf as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _title(result: Result, scenario: Scenario) -> Text:
    text = Text(words.name(scenario.name, 100), style="bold")
    if scenario.question:
        text.append(f"\n{words.name(scenario.question, 2000)}", style="italic")
    n, span = size(measured(result.queries)), float(result.pools["span_s"].max(initial=0.0))
    text.append(
        f"\nseed {result.seed}, {count(scenario.replications, 'replication')} of "
        f"{words.seconds(span)} measured, {n:,} queries",
        style="not bold",
    )
    return text


def _verdict(tiers: list[TierMetrics], found: Binding, bounds: list[Bound]) -> Padding:
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(ratio=1)
    for index, line in enumerate(verdict(tiers)):
        grid.add_row("" if index else "Verdict", Text(line, style="bold"))
    grid.add_row("Binding", Text(words.name(str(found), 400)))
    for index, bound in enumerate(bounds):
        grid.add_row("" if index else "On paper", Text(on_paper(bound)))
    return Padding(grid, (1, 0, 0, 0))


def _section(title: str, body: RenderableType) -> Padding:
    return Padding(Group(Text(title, style="bold underline"), body), (1, 0, 0, 0))


def _grid(first: str, *columns: str) -> Grid:
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column(first, overflow="fold", max_width=22)
    for column in columns:
        grid.add_column(column, justify="right", no_wrap=True)
    return grid


def _lines(lines: Iterable[str]) -> Text:
    return Text("\n".join(lines))


def _tiers(tiers: list[TierMetrics]) -> RenderableType:
    grid = _grid("tier", "offered", "goodput", "samples", "accuracy", "accepted", "right of those",
                 "confidence", "ECE")  # fmt: skip
    for tier in tiers:
        grid.add_row(
            Text(words.name(tier.tier)),
            f"{words.number(tier.offered_per_s)}/s",
            f"{words.number(tier.goodput_per_s.value)}/s",
            f"{tier.n:,}",
            words.share_interval(tier.accuracy),
            words.share(tier.coverage.value),
            words.share_interval(tier.precision),
            words.share(tier.calibration.mean_confidence),
            words.number(tier.calibration.ece),
        )
    notes = [
        f"{words.name(tier.tier)}: {words.share(count / tier.n)} of its queries {what}."
        for tier in tiers
        for count, what in (
            (tier.refused, "were refused on arrival"),
            (tier.escalated, "went on to the larger model"),
        )
        if count
    ]
    return Group(grid, _lines(notes)) if notes else grid


def _latency(result: Result, tiers: list[TierMetrics]) -> RenderableType:
    grid = _grid("tier", "latency", "p50", "p95", "p99", "objective", "")
    grid.add_column("E2E, all answers", no_wrap=True)
    queries = measured(result.queries)
    times = latencies(queries)["e2e"]
    finite = times[np.isfinite(times) & (times > 0)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    for tier in tiers:
        for metric in ("ttft", "ttfat", "e2e"):
            row = tier.of(metric)
            judged = [t for t in tier.targets if t.metric == metric]
            marks = {name: "?" if name in row.few else "" for name in ("p50", "p95", "p99")}
            bars = words.histogram(times[queries["tier"] == tier.tier], low, high)
            grid.add_row(
                Text(words.name(tier.tier) if metric == "ttft" else ""),
                metric.upper(),
                *(words.seconds(getattr(row, p).value) + marks[p] for p in marks),
                ", ".join(
                    f"p{round(100 * t.quantile)} {words.seconds(t.target_s)}" for t in judged
                ),
                "" if not judged else "holds" if all(t.met for t in judged) else "MISSED",
                Text(f"|{bars}|" if metric == "e2e" and bars else ""),
            )
    legend = "TTFAT: first token of the answer. Over all offered queries; never answered = never."
    if any(row.few for tier in tiers for row in tier.latency[:2]):
        legend += " ?: few samples."
    if high > low:
        legend += f" Bars: {words.seconds(low)} to {words.seconds(high)}, log scale."
    return Group(grid, Text(legend, style="dim"))


def _joint(result: Result, tiers: list[TierMetrics]) -> Grid:
    grid = _grid("tier", "", "fastest quarter", "second", "third", "slowest quarter")
    queries = measured(result.queries)
    for tier in tiers:
        bins = joint(select(queries, queries["tier"] == tier.tier))
        if len(bins) < 4:
            continue
        grid.add_row(
            Text(words.name(tier.tier)), "E2E to", *(words.seconds(row.high_s) for row in bins)
        )
        grid.add_row("", "accuracy", *(words.share(row.accuracy) for row in bins))
    return grid


def _fleet(result: Result) -> RenderableType:
    grid = _grid("pool", "device", "replicas", "busy", "KV mean", "KV max", "preempted", "saved",
                 "prefix hits")  # fmt: skip
    lines = []
    for pool in pool_table(result):
        total = pool.pages_total
        grid.add_row(
            Text(words.name(pool.pool)),
            Text(words.name(pool.device, 20) + (f" x{pool.gpus}" if pool.gpus > 1 else "")),
            f"{pool.replicas}",
            words.share(pool.utilisation),
            words.share(pool.pinned_mean / total if total else math.nan),
            words.share(pool.pages_max / total if total else math.nan),
            f"{pool.num_preemptions:,}",
            words.share(pool.saved),
            words.share(pool.hit),
        )
        if pool.naive_mean > 0:
            lines.append(
                f"{words.name(pool.pool)}: running branches hold {pool.pinned_mean:,.0f} unique pages "
                f"a replica on average; {pool.naive_mean:,.0f} without sharing."
            )
    return Group(grid, _lines(lines))


def _money(priced: Priced) -> RenderableType:
    grid = _grid("tier", "cost/query", "", "per correct", "revenue", "refunds", "credits", "margin",
                 "margin/query")  # fmt: skip
    for tier in priced.tiers:
        grid.add_row(
            Text(words.name(tier.tier)),
            words.usd(tier.cost_per_query.value),
            words.plus_minus(tier.cost_per_query),
            words.usd(tier.cost_per_correct),
            words.usd(tier.revenue_usd),
            words.usd(tier.refund_usd),
            words.usd(tier.credit_usd),
            words.usd(tier.margin_usd),
            words.usd(tier.margin_per_query.value),
        )
    bill = priced.bill
    if math.isnan(bill.total_usd):
        names = [words.name(pool.device) for pool in bill.pools if math.isnan(pool.rate)]
        what = f"No USD/h is known for {words.sentence_of(list(dict.fromkeys(names)))}: "
        return Group(grid, Text(what + "add pricing: {device_rates: {NAME: 3.50 USD/h}}."))
    idle = bill.idle_usd / bill.total_usd if bill.total_usd > 0 else 0.0
    parts = (
        f"{words.usd(bill.total_usd)} = {words.usd(bill.attributed_usd)} for queries + "
        f"{words.usd(bill.idle_usd)} idle ({words.share(idle)})"
    )
    lines = [
        f"Fleet: {words.number(bill.gpu_hours)} GPU-hours, {parts}, warm-up and drain included.",
        "Costs hold their share of idle time; revenue and margin are of the measured queries.",
    ]
    for tier in priced.tiers:
        if tier.refund_usd > 0 and not math.isnan(tier.margin_claimed):
            lines.append(
                f"{words.name(tier.tier)}: if its confidence were right, the margin would be "
                f"{words.usd(tier.margin_claimed)} a query, not "
                f"{words.usd(tier.margin_per_query.value)}."
            )
    return Group(grid, _lines(lines))


def _comparison(comparison: Comparison) -> RenderableType:
    grid = _grid("tier", "figure", "base", "this", "change", "95 % interval", "")
    lines = []
    for tier in comparison.tiers:
        shown = [row for row in tier.differences if row.name in _HEADLINES]
        moved = [row for row in shown if not row.unchanged]
        tag = f"{words.name(tier.tier)} ({tier.pairs:,} pairs)"
        for index, row in enumerate(moved):
            grid.add_row(Text(tag if not index else ""), row.name, *_difference(row))
        same = [row.name for row in shown if row.unchanged]
        if same:
            lines.append(f"{words.name(tier.tier)}: unchanged are {words.sentence_of(same)}.")
    for pool in comparison.pools:
        base, other = pool.base, pool.other
        lines.append(
            f"{words.name(base.pool)}: KV mean {base.pinned_mean:,.0f} -> {other.pinned_mean:,.0f} pages, "
            f"max {base.pages_max:,} -> {other.pages_max:,}, preempted "
            f"{base.num_preemptions:,} -> {other.num_preemptions:,}, "
            f"busy {words.share(base.utilisation)} -> {words.share(other.utilisation)}"
        )
    return Group(grid, _lines(lines))


def _difference(row: Difference) -> tuple[str, str, str, str, str]:
    return (
        words.quantity(row.base, row.unit),
        words.quantity(row.other, row.unit),
        words.change(row.change.value, row.unit),
        words.range_of(row.change, row.unit),
        "clear" if row.clear else "",
    )


def _step_cost(result: Result) -> Text:
    errors = result.meta.get("cost_errors", {})
    lines = []
    for pool in pool_table(result):
        known = errors.get(pool.pool)
        unknown = "its error is not known: nobody measured it"
        error = f"error {known}" if known else unknown
        share = result.meta.get("cost_outside", {}).get(pool.pool)
        if share is not None:
            error += f"; {share:.1%} of its batches lie outside what was measured"
        lines.append(
            f"{words.name(pool.pool)}: {words.name(pool.cost_label, 200)} "
            f"[{pool.cost_source_kind}]; {words.name(error, 200)}."
        )
    return _lines(lines)


def _next(
    loaded: Loaded,
    tiers: list[TierMetrics],
    found: Binding,
    run_dir: str | os.PathLike[str] | None,
    command: str | None,
) -> Padding:
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    again = command or f"treeline run {shlex.quote(loaded.name)}"
    if run_dir is not None:
        path, program = shlex.quote(os.fspath(run_dir)), again.partition(" run ")[0]
        grid.add_row("Run", Text(words.name(os.fspath(run_dir), 4096)))
        grid.add_row("Again", Text(words.name(f"{program} show {path}", 4096)))
    grid.add_row("Next", Text(words.name(next_command(again, loaded.scenario, tiers, found), 4096)))
    return Padding(grid, (1, 0, 0, 0))
