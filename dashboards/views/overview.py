"""One run at a glance: the verdict, the tiers, KV pressure, confidence and money."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import charts, data, words
from scenarios.errors import UserError

_SLASH = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#+-.!|$~:"})


def plain(text: object) -> str:
    """Text that may come from a scenario, so that Markdown shows it as it stands."""
    return words.name(str(text), 400).translate(_SLASH)


@st.cache_data(show_spinner="Reading the run", max_entries=8)
def _read(folder: str, name: str, stamp: float) -> data.Run:
    return data.read(Path(folder), name)


def number(value: float | None) -> float:
    """A figure of the summary, where null means that there is none."""
    return float("nan") if value is None else value


def main() -> None:
    """Show the run that was chosen."""
    folder = Path(st.session_state.get("runs", "runs"))
    names = data.names(folder)
    if not names:
        st.title("Treeline")
        st.info("There is no run yet. Make the first one, it takes about ten seconds:")
        st.code("treeline run scenarios/quickstart.yaml", language="bash")
        st.caption("Then reload this page.")
        return
    asked = st.query_params.get("run")
    start = names.index(asked) if asked in names else 0
    name = st.sidebar.selectbox("Run", names, index=start)
    st.query_params["run"] = name
    try:
        stamp = (folder / name / "manifest.json").stat().st_mtime
        run = _read(str(folder), name, stamp)
    except (UserError, OSError) as error:
        st.error(plain(error))
        return
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
    kinds = {str(kind) for kind in run.stored.result.pools["cost_source_kind"]}
    if kinds != {"measured"}:
        st.caption(
            f"Step costs: {', '.join(sorted(kinds))}. Figures rest on them; nothing here was "
            "measured on your GPU."
        )


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
        f"Fleet: {words.number(number(bill['gpu_hours']))} GPU-hours, "
        f"{words.usd(number(bill['total_usd']))} of which {words.usd(number(bill['idle_usd']))} idle, "
        "warm-up and drain included.".replace("$", "\\$")
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
