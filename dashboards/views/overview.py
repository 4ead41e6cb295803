"""One run at a glance: the verdict, the tiers, KV pressure, confidence and money."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import dollars, number, plain


def main() -> None:
    """Show the run that was chosen."""
    run = page.run()
    _head(run)
    _tiers(run)
    left, right = st.columns(2)
    with left:
        st.subheader("Latency")
        tiers = run.summary["tiers"]
        st.altair_chart(charts.latency_cdf(run.stored.result.queries, tiers))
    with right:
        st.subheader("Is the confidence true?")
        st.altair_chart(charts.reliability(run.summary["tiers"]))
    st.subheader("Quality by latency")
    tier_names = [tier["tier"] for tier in run.summary["tiers"]]
    st.altair_chart(charts.joint(run.stored.result.queries, tier_names))
    _kv(run)
    _money(run)
    _origin(run)


def _head(run: data.Run) -> None:
    summary = run.summary
    st.title(words.name(summary["scenario"], 100))
    if summary.get("question"):
        st.markdown(f"*{plain(summary['question'])}*")
    for line in summary["verdict"]["text"]:
        show = st.success if summary["verdict"]["holds"] else st.error
        if line.startswith("HOLDS"):
            show = st.success
        show(plain(line))
    st.markdown(f"**Binding:** {plain(summary['binding']['sentence'])}")


def _tiers(run: data.Run) -> None:
    rows: list[dict[str, Any]] = []
    for tier in run.summary["tiers"]:
        by_metric = {row["metric"]: row for row in tier["latency"]}
        judged = tier["targets"]
        state = "no objective" if not judged else "holds"
        if any(not target["met"] for target in judged):
            state = "MISSED"
        row: dict[str, Any] = {
            "tier": tier["tier"],
            "objectives": state,
            "offered /s": words.number(number(tier["offered_per_s"])),
            "goodput /s": words.number(number(tier["goodput_per_s"]["value"])),
            "samples": tier["n"],
            "accuracy": words.share(number(tier["accuracy"]["value"])),
            "accepted": words.share(number(tier["coverage"]["value"])),
            "right of those": words.share(number(tier["precision"]["value"])),
            "confidence": words.share(number(tier["calibration"]["mean_confidence"])),
            "ECE": words.number(number(tier["calibration"]["ece"])),
        }
        for metric in ("ttft", "ttfat", "e2e"):
            for quantile in ("p50", "p95", "p99"):
                value = by_metric[metric][quantile]["value"]
                shown = "never" if value is None else words.seconds(value)
                row[f"{metric.upper()} {quantile}"] = shown
        rows.append(row)
    st.subheader("Tiers")
    st.dataframe(rows, hide_index=True)
    st.caption(
        "Over all offered queries: what was never answered counts as never. TTFAT: time to the first "
        "token of the answer."
    )


def _kv(run: data.Run) -> None:
    st.subheader("KV memory")
    pools = run.summary["pools"]
    for tab, pool in zip(st.tabs([words.name(p["pool"]) for p in pools]), pools, strict=True):
        with tab:
            st.altair_chart(charts.kv_over_time(run.stored.result.timeline, pool["pool"]))
            st.caption(
                f"{pool['replicas']} x {plain(pool['device'])}, busy "
                f"{words.share(number(pool['utilisation']))}, preempted "
                f"{pool['num_preemptions']:,} times. Sharing saves "
                f"{words.share(number(pool['saved']))} of the pages."
            )


def _money(run: data.Run) -> None:
    st.subheader("Money")
    money = run.summary["money"]
    rows = [
        {
            "tier": tier["tier"],
            "cost per query": words.usd(number(tier["cost_per_query"]["value"])),
            "cost per correct": words.usd(number(tier["cost_per_correct"])),
            "revenue": words.usd(number(tier["revenue_usd"])),
            "refunds": words.usd(number(tier["refund_usd"])),
            "credits": words.usd(number(tier["credit_usd"])),
            "margin per query": words.usd(number(tier["margin_per_query"]["value"])),
        }
        for tier in money["tiers"]
    ]
    st.dataframe(rows, hide_index=True)
    parts = [{**tier, "margin_usd": _margin(tier)} for tier in money["tiers"]]
    bill = money["bill"]
    st.altair_chart(charts.money(parts, bill["idle_usd"]))
    st.caption(
        dollars(
            f"Fleet: {words.number(number(bill['gpu_hours']))} GPU-hours, "
            f"{words.usd(number(bill['total_usd']))} of which "
            f"{words.usd(number(bill['idle_usd']))} idle, warm-up and drain included."
        )
    )


def _margin(tier: dict[str, Any]) -> float:
    kept = number(tier["revenue_usd"]) - number(tier["refund_usd"]) - number(tier["credit_usd"])
    return kept - number(tier["cost_usd"])


def _origin(run: data.Run) -> None:
    with st.expander("Where the step cost comes from"):
        pools = run.stored.result.pools
        for name in dict.fromkeys(pools["pool"].tolist()):
            label = pools["cost_label"][pools["pool"] == name][0]
            st.markdown(f"**{plain(name)}**: {plain(label)}")
    with st.expander("The scenario"):
        st.code(run.stored.resolved, language="yaml")


main()
