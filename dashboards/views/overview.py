"""One run at a glance: the verdict, the tiers, KV pressure, confidence and money."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import number, plain
from dashboards.verdict import on_paper
from sim.bound import Bound
from sim.metrics import pool_table

_FIRST = ("e2e", "ttfat", "ttft")  # what objectives are mostly about comes first


def main() -> None:
    """Show the run that was chosen."""
    run = page.run()
    try:
        _show(run)
    except (KeyError, TypeError, ValueError, IndexError):
        st.error(
            "The summary of this run is not laid out as this version writes it. Make the run again: "
            f"treeline run SCENARIO \\-\\-out {plain(page.desk().runs / run.name)} \\-\\-force"
        )


def _show(run: data.Run) -> None:
    queries, tiers = run.stored.result.queries, run.summary["tiers"]
    _head(run)
    _tiers(tiers)
    _latency(tiers)
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader("Who waits how long")
        for metric, tab in zip(_FIRST, st.tabs([m.upper() for m in _FIRST]), strict=True):
            tab.altair_chart(
                page.once(
                    run,
                    ("cdf", "all tiers", metric),
                    partial(charts.latency_cdf, queries, tiers, metric),
                )
            )
        st.caption(
            "Dashed lines are objectives: one that holds ends in a circle, a MISSED one in a cross."
        )
    with right:
        st.subheader("Is the confidence true?")
        st.altair_chart(charts.reliability(tiers))
        st.caption(
            "Below the dashed diagonal, answers claim more than they hold. The larger a mark, the more answers it "
            "stands for. Whether each class keeps the promise: page Quality."
        )
    st.subheader("Quality by latency")
    names = [str(tier["tier"]) for tier in tiers]
    st.altair_chart(page.once(run, ("joint", "all tiers"), lambda: charts.joint(queries, names)))
    st.caption("Numbers in the cells: queries. Cells of few queries say little.")
    _kv(run)
    _money(run)
    if run.summary.get("comparison"):
        _comparison(run.summary["comparison"])
    _origin(run)


def _head(run: data.Run) -> None:
    summary, result = run.summary, run.stored.result
    st.title(plain(run.name, 100))
    if summary.get("question"):
        st.markdown(f"*{plain(summary['question'], 2000)}*")
    for line in summary["verdict"]["text"]:
        word = line.partition(":")[0]
        show = {"MISSED": st.error, "NO OBJECTIVE": st.info}.get(word, st.success)
        show(plain(line))
    if not summary["verdict"]["holds"] and st.button("What would fix it, and what that costs"):
        st.switch_page("views/capacity.py")
    lines = [f"**Binding:** {plain(summary['binding']['sentence'])}"]
    lines += [f"**On paper:** {plain(on_paper(Bound(**row)))}" for row in summary["bounds"]]
    st.markdown("  \n".join(lines))
    span = float(result.pools["span_s"].max(initial=0.0))
    n = int(result.queries["measured"].sum())
    run_of = f"{summary['replications']} x {words.seconds(span)} measured, {n:,} queries"
    notes = [f"seed {result.seed}, {run_of}"]
    kinds = {str(kind) for kind in result.pools["cost_source_kind"]}
    if kinds != {"measured"}:
        notes.append(f"Step costs: {plain(', '.join(sorted(kinds)))}, not measured on your GPU.")
    notes += [f"Read with care: {plain(line)}" for line in summary["warnings"]]
    st.caption("  \n".join(notes))


def _state(targets: list[dict[str, Any]]) -> str:
    if not targets:
        return "no objective"
    return "holds" if all(target["met"] for target in targets) else "MISSED"


def _around(found: dict[str, Any]) -> str:
    """A share with half its 95 % interval."""
    value, low, high = (number(found[key]) for key in ("value", "low", "high"))
    half = max(high - value, value - low)
    return words.share(value) + ("" if half != half else f" ±{words.number(100 * half, 2)}")


def _table(rows: list[dict[str, Any]], first: str = "tier") -> None:
    """Rows as a table whose first column stays in sight on a phone."""
    st.dataframe(pd.DataFrame(rows).set_index(first))


def _tiers(tiers: list[dict[str, Any]]) -> None:
    st.subheader("Tiers")
    _table(
        [
            {
                "tier": words.name(tier["tier"]),
                "objectives": _state(tier["targets"]),
                "offered": f"{words.number(number(tier['offered_per_s']))}/s",
                "goodput": f"{words.number(number(tier['goodput_per_s']['value']))}/s",
                "samples": f"{tier['n']:,}",
                "accuracy": _around(tier["accuracy"]),
                "accepted": words.share(number(tier["coverage"]["value"])),
                "right of those": _around(tier["precision"]),
                "promised": words.share(number(tier["promised"])),
                "confidence": words.share(number(tier["calibration"]["mean_confidence"])),
                "ECE": words.number(number(tier["calibration"]["ece"])),
            }
            for tier in tiers
        ]
    )
    st.caption(
        "Goodput: queries a second that meet every objective. ECE: how far stated confidence lies "
        "from the share that was right. ±: half a 95 % interval."
    )


def _latency(tiers: list[dict[str, Any]]) -> None:
    st.subheader("Latency")
    rows = []
    for tier in tiers:
        by_metric = {row["metric"]: row for row in tier["latency"]}
        for metric in charts.METRICS:
            row = by_metric[metric]
            judged = [target for target in tier["targets"] if target["metric"] == metric]
            rows.append(
                {
                    "tier": words.name(tier["tier"]),
                    "latency": metric.upper(),
                    **{p: _percentile(row, p) for p in ("p50", "p95", "p99")},
                    "objective": ", ".join(
                        f"p{100 * t['quantile']:g} {words.seconds(t['target_s'])}" for t in judged
                    ),
                    "state": _state(judged) if judged else "",
                }
            )
    _table(rows)
    st.caption(
        "Over all offered queries: what was never answered counts as never. TTFT: first token. "
        "TTFAT: first token of the answer. E2E: the whole answer. ?: few samples."
    )


def _percentile(row: dict[str, Any], name: str) -> str:
    if not row["n"]:
        return "-"
    value = row[name]["value"]
    shown = "never" if value is None else words.seconds(value)
    return shown + ("?" if name in row["few"] else "")


def _kv(run: data.Run) -> None:
    st.subheader("KV memory")
    pools = pool_table(run.stored.result)
    for tab, pool in zip(st.tabs([plain(p.pool) for p in pools]), pools, strict=True):
        with tab:
            timeline = run.stored.result.timeline
            drawn = partial(charts.kv_over_time, timeline, pool.pool)
            st.altair_chart(page.once(run, ("kv", pool.pool), drawn))
            st.caption(
                f"{pool.replicas} x {plain(pool.device)}, busy {words.share(pool.utilisation)}, preempted "
                f"{pool.num_preemptions:,} times. {pool.pages_total:,} pages a replica: running branches "
                f"hold {pool.pinned_mean:,.0f} on average, {pool.naive_mean:,.0f} without sharing "
                f"({words.share(pool.saved)} saved). Prefix hits {words.share(pool.hit)}."
            )


def _money(run: data.Run) -> None:
    st.subheader("Money")
    money = run.summary["money"]
    tiers = [{**tier, "margin_usd": _margin(tier)} for tier in money["tiers"]]
    _table(
        [
            {
                "tier": words.name(tier["tier"]),
                "cost/query": words.usd(number(tier["cost_per_query"]["value"])),
                "per correct": words.usd(number(tier["cost_per_correct"])),
                "revenue": words.usd(number(tier["revenue_usd"])),
                "refunds": words.usd(number(tier["refund_usd"])),
                "credits": words.usd(number(tier["credit_usd"])),
                "margin": words.usd(tier["margin_usd"]),
                "margin/query": words.usd(number(tier["margin_per_query"]["value"])),
                "if confidence were right": words.usd(number(tier["margin_claimed"])),
            }
            for tier in tiers
        ]
    )
    st.altair_chart(charts.money(tiers))
    bill = money["bill"]
    if bill["total_usd"] is None:
        st.warning(plain("No USD/h is known for a device: add pricing: {device_rates: ...}."))
        return
    st.caption(
        plain(
            f"Fleet: {words.number(number(bill['gpu_hours']))} GPU-hours, "
            f"{words.usd(bill['total_usd'])} = {words.usd(number(bill['attributed_usd']))} for "
            f"queries + {words.usd(number(bill['idle_usd']))} idle, warm-up and drain included. "
            "Costs hold their share of idle time; revenue and margin are of the measured queries.",
        )
    )


def _margin(tier: dict[str, Any]) -> float:
    """As TierMoney.margin_usd: revenue less refunds, credits, GPU time and its share of idle time."""
    kept = number(tier["revenue_usd"]) - number(tier["refund_usd"]) - number(tier["credit_usd"])
    return kept - number(tier["cost_usd"]) - number(tier["idle_usd"])


def _comparison(comparison: dict[str, Any]) -> None:
    st.subheader(f"Against {plain(comparison['base_name'])}")
    rows = []
    for tier in comparison["tiers"]:
        for row in tier["differences"]:
            low, high = number(row["change"]["low"]), number(row["change"]["high"])
            if not (row["change"]["value"] == 0 and not high > 0):  # every pair is the same
                unit = row["unit"]
                rows.append(
                    {
                        "tier": words.name(tier["tier"]),
                        "figure": row["name"],
                        "base": words.quantity(number(row["base"]), unit),
                        "this": words.quantity(number(row["other"]), unit),
                        "change": words.change(number(row["change"]["value"]), unit),
                        "95 % interval": f"{words.change(low, unit)} to {words.change(high, unit)}",
                        "": "no interval"
                        if low * high != low * high
                        else "clear"
                        if low * high > 0
                        else "",
                    }
                )
    if rows:
        _table(rows)
        st.caption("The same queries in both runs, paired. clear: the interval holds no nought.")
    else:
        st.markdown("Nothing changed.")


def _origin(run: data.Run) -> None:
    pools, errors = run.stored.result.pools, run.stored.result.meta.get("cost_errors", {})
    with st.expander("Where the step cost comes from"):
        for name in dict.fromkeys(pools["pool"].tolist()):
            label = pools["cost_label"][pools["pool"] == name][0]
            known = errors.get(name)
            error = f"error {known}" if known else "its error is not known: nobody measured it"
            st.markdown(f"**{plain(name)}**: {plain(label)}; {plain(error)}.")
    with st.expander("The scenario, with what it inherits"):
        st.code(run.stored.resolved, language="yaml")
    if run.report:
        with st.expander("The report in the terminal, with the command to run next"):
            st.code(run.report, language=None)


main()
