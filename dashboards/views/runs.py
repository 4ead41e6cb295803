"""All runs of the folder: named, compared, deleted; and the runs that are under way."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from dashboards import data, page, words, worker
from dashboards.page import plain
from scenarios.errors import UserError


def main() -> None:
    """List the runs."""
    st.title("Runs")
    folder = page.desk().runs
    if any(job.state == "running" for job in worker.listed(page.desk().runs)):
        _under_way()
    else:
        _jobs()
    names = data.names(folder)
    if not names:
        page.empty()
        return
    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            rows.append(_row(name, data.head(folder, name)))
        except (UserError, OSError) as error:
            rows.append({"run": name, "verdict": f"cannot be read: {error}"})
    chosen = st.dataframe(rows, hide_index=True, on_select="rerun", selection_mode="multi-row")
    picked = [names[number] for number in chosen["selection"]["rows"]]
    if not picked:
        st.caption("Tick one run to open, rename or delete it; tick two to compare them.")
        return
    if len(picked) == 2 and st.button(f"Compare {plain(picked[0])} with {plain(picked[1])}"):
        st.session_state["kept run"], st.session_state["kept base"] = picked
        st.switch_page("views/compare.py")
    if len(picked) == 1:
        _one(picked[0])
    _delete(picked)


def _one(name: str) -> None:
    left, right = st.columns([1, 3])
    if left.button("Open"):
        st.session_state["kept run"] = name
        st.switch_page("views/overview.py")
    with right.form("rename", border=False):
        new = st.text_input("New name", name, max_chars=100)
        if st.form_submit_button("Rename"):
            try:
                data.rename(page.desk().runs, name, new)
            except UserError as error:
                st.error(plain(error))
            else:
                st.session_state["kept run"] = new
                st.rerun()


def _delete(picked: list[str]) -> None:
    what = words.sentence_of([words.name(name) for name in picked])
    with st.popover(f"Delete {len(picked)}"):
        st.markdown(f"Delete {plain(what)} for good?")
        if st.button("Yes, delete", type="primary"):
            for name in picked:
                data.delete(page.desk().runs, name)
            st.rerun()


@st.fragment(run_every=1.0)
def _under_way() -> None:
    if not _jobs():
        st.rerun()


def _jobs() -> bool:
    """Show the runs under way and those that failed; say whether any is under way."""
    folder = page.desk().runs
    jobs = worker.listed(folder)
    for job in jobs:
        if job.state == "running":
            left, right = st.columns([5, 1])
            left.progress(min(1.0, job.share), f"{plain(job.name)}: {plain(job.doing)}")
            if right.button("Cancel", key=f"cancel {job.id}"):
                worker.cancel(folder, job.id)
                st.rerun()
        elif job.state in ("failed", "lost"):
            with st.expander(f"{plain(job.name)} failed", icon="⚠️"):
                st.code(
                    job.error or "Its process is gone: it was killed, or the machine restarted."
                )
                if st.button("Forget it", key=f"forget {job.id}"):
                    worker.forget(folder, job.id)
                    st.rerun()
    return any(job.state == "running" for job in jobs)


def _row(name: str, head: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": name,
        "scenario": head["scenario"],
        "verdict": "holds" if head["verdict"]["holds"] else "MISSED",
        "binding": head["binding"]["sentence"],
        "seed": head["seed"],
        "made": time.strftime("%Y-%m-%d %H:%M", time.localtime(head["made"])),
    }


main()
