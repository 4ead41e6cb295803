"""A what-if against its base: the same queries, paired, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import number, plain
from scenarios.errors import UserError
from sim.compare import Comparison, Difference, PoolComparison, TierComparison, compare
from sim.metrics import PoolMetrics

_TELLING = (
    "p95 E2E",
    "mean E2E",
    "answered",
    "accuracy",
    "GPU cost per query",
    "margin before idle",
)


def main() -> None:
    """Compare the run that was chosen with another."""
    run = page.run("Compare")
    folder = page.desk().runs
    others = [name for name in data.names(folder) if name != run.name]
    if not others:
        st.info("There is only one run. Make another, for example a what-if on the scenario page.")
        return
    base = page.choose("Against", "base", others, _likely(run, others), where=st.sidebar)
    try:
        before = page.read(folder, base)
        found = page.once(
            run,
            ("against", page.digest(before)),
            lambda: compare(before.stored.result, run.stored.result),
        )
    except (UserError, OSError) as error:
        st.error(plain(error))
        return
    except ValueError:
        st.warning(
            f"{plain(run.name)} and {plain(base)} were made with different seeds: their queries are "
            "not the same, so nothing can be paired. Run one again with the seed of the other."
        )
        return
    if not any(tier.pairs for tier in found.tiers):
        st.warning("These runs have no query in common: they come from different scenarios.")
        return
    left, right = st.columns([5, 1])
    left.markdown(f"From **{plain(base)}** to **{plain(run.name)}**, on the very same queries.")
    right.button("Swap them", on_click=_swap, args=(run.name, base))
    _verdicts(before, run)
    _headline(found)
    for tier in found.tiers:
        if tier.pairs:
            st.subheader(words.name(tier.tier))
            st.altair_chart(charts.changes(tier.differences))
            if never := _never(tier):
                st.markdown(plain(never))
            with st.expander(f"All figures, over {tier.pairs:,} pairs"):
                st.dataframe([_row(row) for row in tier.differences], hide_index=True)
    rows = [
        {
            "pool": pool.base.pool,
            "GPUs": _both(pool, lambda one: f"{one.replicas * one.gpus}"),
            "USD an hour": f"{_hourly(before, pool.base)} → {_hourly(run, pool.other)}",
            "KV mean": _both(pool, lambda one: words.share(one.pinned_mean / one.pages_total)),
            "busy": _both(pool, lambda one: words.share(one.utilisation)),
            "preemptions": _both(pool, lambda one: f"{one.num_preemptions:,}"),
        }
        for pool in found.pools
    ]
    st.subheader("Fleet")
    st.dataframe(rows, hide_index=True)


def _both(pool: PoolComparison, figure: Callable[[PoolMetrics], str]) -> str:
    return f"{figure(pool.base)} → {figure(pool.other)}"


def _hourly(run: data.Run, pool: PoolMetrics) -> str:
    """What a pool's GPUs cost an hour in a run, whether they work or not."""
    rates = {row["pool"]: row["rate"] for row in run.summary["money"]["bill"]["pools"]}
    return words.usd(number(rates.get(pool.pool)) * pool.replicas * pool.gpus)


def _never(tier: TierComparison) -> str:
    """The percentiles that one of the runs never reaches: they have no ratio, so the chart lacks them."""
    lost = [row for row in tier.differences if math.isinf(row.base) or math.isinf(row.other)]
    if not lost:
        return ""
    parts = [f"{row.name} {words.seconds(row.base)} → {words.seconds(row.other)}" for row in lost]
    return f"Not in the chart: {words.sentence_of(parts)}. Never: more than 5 % are not answered at all."


def _likely(run: data.Run, others: list[str]) -> str:
    """The run to compare with first: the base that the scenario extends, if it is there."""
    given = run.given.get("extends")
    stem = str(given).rsplit("/", 1)[-1].removesuffix(".yaml") if given else ""
    return stem if stem in others else others[0]


def _swap(run: str, base: str) -> None:
    page.keep("run", base)
    page.keep("base", run)


def _verdicts(before: data.Run, after: data.Run) -> None:
    for column, found in zip(st.columns(2), (before, after), strict=True):
        with column:
            holds = found.summary["verdict"]["holds"]
            show = st.success if holds else st.error
            show(f"**{plain(found.name)}**  \n" + plain(" ".join(found.summary["verdict"]["text"])))


def _headline(found: Comparison) -> None:
    """What tells most of each tier, in one table."""
    rows = [
        {"tier": words.name(tier.tier), **_row(row)}
        for tier in found.tiers
        for name in _TELLING
        for row in tier.differences
        if row.name == name and not row.unchanged
    ]
    if not rows:
        st.markdown("Nothing that tells has changed.")
        return
    st.dataframe(rows, hide_index=True)
    st.caption(
        "Lower and higher: the 95 % interval of the paired change holds no nought. No interval: there are too "
        "few queries in a replication for this percentile, or it is never in one of them."
    )


def _row(row: Difference) -> dict[str, Any]:
    return {
        "figure": row.name,
        "base": words.quantity(row.base, row.unit),
        "here": words.quantity(row.other, row.unit),
        "change": words.change(row.change.value, row.unit),
        "95 % interval": words.range_of(row.change, row.unit),
        "": row.state,
    }


main()
