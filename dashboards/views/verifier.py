"""What the verifier costs and how long queries wait for it; what of it is not played yet."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from dashboards import charts, data, page, words
from sim.metrics import pool_table
from sim.records import measured


def main() -> None:
    """Show the verifier of the run that was chosen."""
    run = page.run("Verifier")
    judges = [pool for pool in pool_table(run.stored.result) if pool.role == "verifier"]
    if not judges:
        st.info("This fleet has no verifier: its searches vote, or answer at the first try.")
    for pool in judges:
        columns = st.columns(3)
        columns[0].metric("replicas", f"{pool.replicas} x {words.name(pool.device)}")
        columns[1].metric("busy", words.share(pool.utilisation))
        columns[2].metric("KV pinned, fullest", words.share(pool.pages_max / pool.pages_total))
        st.subheader("Who waits for it")
        rows = page.once(run, "verifier", lambda: _by_tier(run))
        st.dataframe(rows, hide_index=True)
        st.caption(
            "Waiting: time in which a query waited for scores and for nothing else. GPU time: the "
            "verifier's part of what its queries took."
        )
        st.subheader("Load")
        drawn = partial(charts.load_over_time, run.stored.result.timeline, pool.pool)
        st.altair_chart(page.once(run, ("load", pool.pool), drawn))
    st.subheader("Versions, canaries and drift")
    st.info(
        "What waits: versions of a verifier, canaries and rollback are not played by the simulator yet. "
        "Whether the confidence that rests on it is true now is on the page Quality; what a drift "
        "would cost until an audit sees it, `treeline price` says (pricing.drift in the scenario)."
    )


def _by_tier(run: data.Run) -> list[dict[str, Any]]:
    """How much each tier asks of the verifier."""
    table = measured(run.stored.result.queries)
    rows = []
    for tier in (str(tier["tier"]) for tier in run.summary["tiers"]):
        mine = table["tier"] == tier
        if not mine.any():
            continue
        waits, scores = table["verify_s"][mine], table["scores"][mine]
        spent, judged = (
            float(table[name][mine].sum()) for name in ("gpu_seconds", "verifier_gpu_seconds")
        )
        rows.append(
            {
                "tier": words.name(tier),
                "scores a query": words.number(float(scores.mean())),
                "waiting, mean": words.seconds(float(waits.mean())),
                "waiting, p95": words.seconds(float(np.quantile(waits, 0.95))),
                "its GPU time": words.share(judged / spent if spent else 0.0),
            }
        )
    return rows


main()
