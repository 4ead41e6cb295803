"""A what-if against its base: the same queries, paired, with intervals."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import plain
from scenarios.errors import UserError
from sim.compare import Comparison, Difference, compare

_TELLING = (
    "mean E2E",
    "p95 E2E",
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
        found = compare(before.stored.result, run.stored.result)
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
    st.markdown(f"From **{plain(base)}** to **{plain(run.name)}**, on the very same queries.")
    _verdicts(before, run)
    _headline(found)
    for tier in found.tiers:
        if tier.pairs:
            st.subheader(words.name(tier.tier))
            st.altair_chart(charts.changes(tier.differences))
            with st.expander(f"All figures, over {tier.pairs:,} pairs"):
                st.dataframe([_row(row) for row in tier.differences], hide_index=True)
    rows = [
        {
            "pool": pool.base.pool,
            "KV mean": f"{words.share(pool.base.pages_mean / pool.base.pages_total)} → {words.share(pool.other.pages_mean / pool.other.pages_total)}",
            "busy": f"{words.share(pool.base.utilisation)} → {words.share(pool.other.utilisation)}",
            "preemptions": f"{pool.base.num_preemptions:,} → {pool.other.num_preemptions:,}",
        }
        for pool in found.pools
    ]
    st.subheader("Fleet")
    st.dataframe(rows, hide_index=True)


def _likely(run: data.Run, others: list[str]) -> str:
    """The run to compare with first: the base that the scenario extends, if it is there."""
    given = run.given.get("extends")
    stem = str(given).rsplit("/", 1)[-1].removesuffix(".yaml") if given else ""
    return stem if stem in others else others[0]


def _verdicts(before: data.Run, after: data.Run) -> None:
    for column, found in zip(st.columns(2), (before, after), strict=True):
        with column:
            holds = found.summary["verdict"]["holds"]
            show = st.success if holds else st.error
            show(f"**{plain(found.name)}**  \n" + plain(" ".join(found.summary["verdict"]["text"])))


def _headline(found: Comparison) -> None:
    """The largest clear changes first, as sentences."""
    lines = []
    for tier in found.tiers:
        for row in tier.differences:
            if row.name in _TELLING and row.clear:
                lines.append(
                    f"{tier.tier}: {row.name} {words.quantity(row.base, row.unit)} → "
                    f"{words.quantity(row.other, row.unit)} "
                    f"({words.change(row.change.value, row.unit)} "
                    f"{words.range_of(row.change, row.unit)})"
                )
    for line in lines or ["No clear change of p95, accuracy or margin in any tier."]:
        st.markdown(f"- {plain(line)}")


def _row(row: Difference) -> dict[str, Any]:
    return {
        "figure": row.name,
        "base": words.quantity(row.base, row.unit),
        "here": words.quantity(row.other, row.unit),
        "change": words.change(row.change.value, row.unit),
        "95 % interval": words.range_of(row.change, row.unit),
        "clear": "yes" if row.clear else "no",
    }


main()
