"""How long answers take: by tier against its objectives, over time, and where the time goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import number, plain
from sim.records import measured, select


def main() -> None:
    """Show the latency of the run that was chosen."""
    run = page.run("Latency")
    tier = page.tier(run)
    tiers = [t for t in run.summary["tiers"] if tier in ("all tiers", t["tier"])]
    names = [str(t["tier"]) for t in tiers]
    queries = run.stored.result.queries
    _objectives(tiers)
    st.subheader("How many are answered within a time")
    st.altair_chart(
        page.once(run, ("cdf", tier, "e2e"), lambda: charts.latency_cdf(queries, tiers))
    )
    st.caption("A diamond is an objective: the line has to pass above and left of it.")
    st.subheader("Where the time goes")
    st.altair_chart(page.once(run, ("time", tier), lambda: charts.where_time_goes(queries, names)))
    for line in page.once(run, ("time in words", tier), lambda: _in_words(run, names)):
        st.markdown(f"- {plain(line)}")
    st.subheader("By time of arrival")
    st.altair_chart(page.once(run, ("over", tier), lambda: charts.over_time(queries, names)))


def _objectives(tiers: list[dict[str, Any]]) -> None:
    rows = [
        {
            "tier": tier["tier"],
            "objective": f"{target['metric'].upper()} p{100 * target['quantile']:g}",
            "target": words.seconds(target["target_s"]),
            "observed": "never"
            if target["observed_s"] is None
            else words.seconds(target["observed_s"]),
            "within": words.share(number(target["attained"])),
            "of": target["n"],
            "state": "holds" if target["met"] else "MISSED",
        }
        for tier in tiers
        for target in tier["targets"]
    ]
    if rows:
        st.dataframe(rows, hide_index=True)
    else:
        st.info("No tier here has an objective. Give it one: slo: {e2e_p95: 20s}")


def _in_words(run: data.Run, names: list[str]) -> list[str]:
    """The largest part of each tier's time, as a sentence."""
    table = measured(run.stored.result.queries)
    lines = []
    for tier in names:
        parts = charts.time_spent(select(table, table["tier"] == tier))
        means = {
            word: float(np.mean(parts[part])) for part, word in charts.PARTS if parts[part].size
        }
        if means:
            most = max(means, key=means.__getitem__)
            total = sum(means.values()) or 1.0
            lines.append(
                f"{tier}: {words.seconds(total)} on average, most of it "
                f"{most} ({words.share(means[most] / total)})."
            )
    return lines


main()
