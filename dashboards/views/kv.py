"""What fills the KV memory: over time, by cause and by tier, and what sharing along the tree saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import plain
from sim.estimate import Floats
from sim.metrics import PoolMetrics, pool_table
from sim.records import measured, select


def main() -> None:
    """Show the KV memory of the run that was chosen."""
    run = page.run("KV memory")
    pools = {pool.pool: pool for pool in pool_table(run.stored.result)}
    name = page.choose("Pool", "pool", list(pools), where=st.sidebar)
    pool, result = pools[name], run.stored.result
    tiers = [str(tier["tier"]) for tier in run.summary["tiers"]]
    columns = st.columns(5)
    columns[0].metric("pinned, mean", words.share(pool.pinned_mean / pool.pages_total))
    columns[1].metric("cached besides", words.share(pool.cached_mean / pool.pages_total))
    columns[2].metric("pinned, fullest", words.share(pool.pages_max / pool.pages_total))
    columns[3].metric("saved by sharing", words.share(pool.saved))
    columns[4].metric("preemptions", f"{pool.num_preemptions:,}")
    st.caption(
        "Means over replicas in the measured time, the warm-up left out; the fullest is one replica at its "
        "worst moment."
    )
    lines = page.once(run, ("fills", name), lambda: [_in_words(pool), *_fills(run, tiers, pool)])
    for line in lines:
        st.markdown(f"- {plain(line)}")
    st.subheader("Occupancy")
    st.altair_chart(
        page.once(run, ("kv", name), lambda: charts.kv_over_time(result.timeline, name))
    )
    st.caption(
        "Pinned: a running branch reads it. Cached: kept for reuse, taken when somebody needs the "
        "place. Without sharing: what the same branches would hold if each had a copy of its path."
    )
    st.subheader("Load")
    st.altair_chart(
        page.once(run, ("load", name), lambda: charts.load_over_time(result.timeline, name))
    )
    if pool.role == "policy":
        st.subheader("Whose pages")
        st.altair_chart(
            page.once(run, "pages", lambda: charts.pages_by_tier(result.queries, tiers))
        )
        st.caption(
            "Every query in flight counts with its own peak: who needs the memory, not when."
        )
        st.dataframe(page.once(run, "pages by tier", lambda: _by_tier(run, tiers)), hide_index=True)


def _in_words(pool: PoolMetrics) -> str:
    full, mean = pool.pages_max / pool.pages_total, pool.pinned_mean / pool.pages_total
    if pool.num_preemptions:
        return (
            f"The memory runs full: {pool.num_preemptions:,} times a branch had to give its place "
            "and be computed again. More memory a replica (tensor_parallel), fewer searches at once "
            "(engine.max_active_searches) or sharing (kv.sharing: tree) would help."
        )
    if full > 0.9:
        return f"Close to full at the worst moment ({words.share(full)}); nobody was preempted."
    return f"Memory is not what binds here: {words.share(mean)} pinned on average, {words.share(full)} at most."


def _fills(run: data.Run, tiers: list[str], pool: PoolMetrics) -> Iterator[str]:
    """Whose pages they are, and what they would be without sharing, as sentences."""
    if pool.role == "policy":
        held = {tier: share for tier, share in _held(run, tiers).items() if share > 0}
        if held:
            parts = [
                f"{tier} {words.share(held[tier])}" for tier in sorted(held, key=held.__getitem__)
            ]
            yield f"Whose queries fill it: {words.sentence_of(parts[::-1])} (peak pages times stay)."
    if pool.naive_mean > pool.pinned_mean:
        yield (
            f"Sharing along the tree saves {words.share(pool.saved)}: with a copy of its path for every "
            f"branch the same would take {words.share(pool.naive_mean / pool.pages_total)} of the memory."
        )


def _held(run: data.Run, tiers: list[str]) -> dict[str, float]:
    """Each tier's share of page-seconds: the peak pages of its queries times their stay."""
    table = measured(run.stored.result.queries)
    stay: Floats = table["finish_s"] - table["first_scheduled_s"]
    held = np.where(np.isfinite(stay), stay, 0.0) * table["peak_kv_pages"]
    total = float(held.sum()) or 1.0
    return {tier: float(held[table["tier"] == tier].sum()) / total for tier in tiers}


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
