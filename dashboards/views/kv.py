"""What fills the KV memory: over time, by cause and by tier, and what sharing along the tree saves."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import number, plain
from sim.records import measured, select


def main() -> None:
    """Show the KV memory of the run that was chosen."""
    run = page.run("KV memory")
    pools = {str(pool["pool"]): pool for pool in run.summary["pools"]}
    name = page.choose("Pool", "pool", list(pools), where=st.sidebar)
    pool, result = pools[name], run.stored.result
    tiers = [str(tier["tier"]) for tier in run.summary["tiers"]]
    columns = st.columns(4)
    columns[0].metric(
        "mean occupancy", words.share(number(pool["pages_mean"]) / pool["pages_total"])
    )
    columns[1].metric("highest", words.share(number(pool["pages_max"]) / pool["pages_total"]))
    columns[2].metric("saved by sharing", words.share(number(pool["saved"])))
    columns[3].metric("preemptions", f"{pool['num_preemptions']:,}")
    st.markdown(plain(_in_words(pool)))
    st.subheader("Occupancy")
    st.altair_chart(charts.kv_over_time(result.timeline, name))
    st.caption(
        "Pinned: a running branch reads it. Cached: kept for reuse, taken when somebody needs the "
        "place. Without sharing: what the same branches would hold if each had a copy of its path."
    )
    st.subheader("Load")
    st.altair_chart(charts.load_over_time(result.timeline, name))
    if pool["role"] == "policy":
        st.subheader("Whose pages")
        st.altair_chart(charts.pages_by_tier(result.queries, tiers))
        st.caption(
            "Every query in flight counts with its own peak: who needs the memory, not when."
        )
        st.dataframe(_by_tier(run, tiers), hide_index=True)


def _in_words(pool: dict[str, Any]) -> str:
    total = pool["pages_total"]
    full, mean = number(pool["pages_max"]) / total, number(pool["pages_mean"]) / total
    if pool["num_preemptions"]:
        return (
            f"The memory runs full: {pool['num_preemptions']:,} times a branch had to give its place "
            "and be computed again. More memory a replica (tensor_parallel), fewer searches at once "
            "(engine.max_active_searches) or sharing (kv.sharing: tree) would help."
        )
    if full > 0.9:
        return f"Close to full at the worst moment ({words.share(full)}); nobody was preempted."
    return f"Memory is not what binds here: {words.share(mean)} on average."


def _by_tier(run: data.Run, tiers: list[str]) -> list[dict[str, Any]]:
    table = measured(run.stored.result.queries)
    rows = []
    for tier in tiers:
        mine = select(table, table["tier"] == tier)
        pages = mine["peak_kv_pages"]
        if pages.size:
            rows.append(
                {
                    "tier": tier,
                    "pages of a query, median": f"{np.median(pages):,.0f}",
                    "p99": f"{np.percentile(pages, 99):,.0f}",
                    "preemptions": int(mine["num_preemptions"].sum()),
                    "queries preempted": words.share(float((mine["num_preemptions"] > 0).mean())),
                }
            )
    return rows


main()
