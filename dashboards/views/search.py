"""One query told again: its tree growing, pruned and answered on a time axis, and its KV pages."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import plain
from hw.profile import ProfileError
from scenarios.errors import UserError
from scenarios.loader import loads
from sim.records import measured, select
from sim.resolve import resolve
from sim.retell import Step, Story, retell, trace

_LISTED = 200


def main() -> None:
    """Choose a query of the run and show its search."""
    run = page.run("One query")
    tier = page.tier(run)
    found = page.once(run, ("candidates", tier), lambda: _candidates(run, tier))
    if not found:
        st.info("This tier has no answered query.")
        return
    st.caption(
        "The queries that used the most GPU time come first. Nothing in a run is left to chance: the "
        "query is simulated again among the same others, and gives the very same tree."
    )
    asked = page.choose("Query", "query", list(found), label=found.__getitem__)
    replication, row = (int(part) for part in asked.split("-"))
    try:
        with st.spinner("Playing the run up to this query"):
            story = _told(run.stored.resolved, replication, row)
    except (UserError, ProfileError) as error:
        st.error(plain(error))
        return
    _same(run, story, replication)
    _facts(story)
    st.altair_chart(charts.search_tree(story))
    st.caption(
        "A bar is a branch, from when it was asked for to its last token, below its parent. Points are the "
        "verifier's scores, when they came. Gaps are barriers: siblings wait for the slowest."
    )
    st.subheader("Its KV memory")
    st.altair_chart(charts.search_pages(story))
    st.caption("Unique pages count what is shared once; without sharing, each branch has its path.")
    st.download_button(
        "Download as a Perfetto trace",
        json.dumps(trace(story)),
        file_name=f"{run.name}-{replication}-{row}.json",
        mime="application/json",
        help="Opens in ui.perfetto.dev and in chrome://tracing.",
    )
    with st.expander("Every branch"):
        st.dataframe([_row(step) for step in story.steps], hide_index=True)


def _candidates(run: data.Run, tier: str) -> dict[str, str]:
    """Queries to choose from, with what tells them apart."""
    table = measured(run.stored.result.queries)
    if tier != "all tiers":
        table = select(table, table["tier"] == tier)
    order = np.argsort(-table["gpu_seconds"], kind="stable")[:_LISTED]
    found = {}
    for number in order.tolist():
        replication, row = int(table["replication"][number]), int(table["query_id"][number])
        right = "right" if table["correct"][number] else "wrong"
        seconds = float(table["finish_s"][number] - table["arrival_s"][number])
        label = (
            f"{replication}-{row}: {words.name(str(table['tier'][number]))}, "
            f"{words.name(str(table['class'][number]))}, {int(table['expansions'][number])} branches, "
            f"{words.seconds(seconds) if math.isfinite(seconds) else 'never answered'}, {right}"
        )
        found[f"{replication}-{row}"] = label
    return found


@st.cache_data(show_spinner=False, max_entries=20)
def _told(resolved: str, replication: int, row: int) -> Story:
    return retell(resolve(loads(resolved, "resolved.yaml")), row, replication)


def _same(run: data.Run, story: Story, replication: int) -> None:
    """Say so where this version of Treeline plays the run another way than the one that made it."""
    table = run.stored.result.queries
    at = (table["query_id"] == story.row) & (table["replication"] == replication)
    was = float((table["finish_s"] - table["arrival_s"])[at][0])
    if not math.isclose(was, story.finish_s, rel_tol=1e-6) and math.isfinite(was):
        st.warning(
            f"In the run this query took {words.seconds(was)}, told again {words.seconds(story.finish_s)}: "
            "the run was made by another version of Treeline. Make it again to see its own tree."
        )


def _facts(story: Story) -> None:
    columns = st.columns(5)
    fates = [step.fate for step in story.steps]
    columns[0].metric("answer", "right" if story.correct else "wrong")
    columns[1].metric("latency", words.seconds(story.finish_s))
    columns[2].metric("branches", f"{len(fates):,}")
    columns[3].metric("pruned", f"{fates.count('pruned') + fates.count('cancelled'):,}")
    columns[4].metric("pass rate of one try", words.share(story.difficulty))


def _row(step: Step) -> dict[str, object]:
    found = asdict(step)
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in found.items()
    }


main()
