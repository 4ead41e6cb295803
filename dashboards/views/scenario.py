"""Ask a question: a scenario as form and YAML side by side, checked as you type, run without leaving."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import streamlit as st

from dashboards import desk, page, words, worker
from dashboards.page import plain
from scenarios.errors import ScenarioError, UserError
from scenarios.loader import loads
from scenarios.units import show


def main() -> None:
    """Edit a scenario and run it."""
    st.title("Scenario")
    at = page.desk()
    listed = desk.names(at.scenarios)
    if not listed:
        st.info("There is no scenario in this folder. Write a first one: treeline new first.yaml")
        return
    asked = st.session_state.pop("start", None)
    if asked in listed:
        page.keep("scenario", str(asked))
    _last_run(at.runs)
    name = page.choose("Scenario", "scenario", listed, "quickstart.yaml")
    written = st.session_state.get(f"text {name}") or desk.text(at.scenarios, name)
    left, right = st.columns(2)
    with right:
        written = _editor(name, written, desk.text(at.scenarios, name))
    draft = None
    with left:
        try:
            draft = desk.check(at.scenarios, name, written, at.roots)
        except UserError as error:
            st.error("This scenario cannot run yet:")
            st.code(desk.short(error, at.scenarios), language=None)
        if draft is not None:
            _form(name, draft)
    if draft is None:
        return
    changes = desk.difference(draft.loaded)
    if changes:
        st.subheader("What it changes from its base")
        st.dataframe(
            [{"key": key, "in the base": a, "here": b} for key, a, b in changes], hide_index=True
        )
    if asked == name:
        _start(at.runs, draft, _free(at.runs, draft.name))


def _editor(name: str, written: str, original: str) -> str:
    slot = (
        f"area {name}"  # one name for all edits: a box of another name would lose every second one
    )
    st.session_state.setdefault(slot, written)
    found = st.text_area("YAML", height=_height(original), key=slot)
    st.session_state[f"text {name}"] = found
    a, b = st.columns(2)
    if found != original:
        a.button("Back to the file's text", on_click=_back, args=(name, original))
    b.download_button("Download", found, file_name=name, mime="application/yaml")
    return str(found)


def _height(text: str) -> int:
    return min(900, max(300, 23 * (text.count("\n") + 2)))


def _back(name: str, original: str) -> None:
    for slot in (f"area {name}", f"text {name}"):
        st.session_state[slot] = original


def _form(name: str, draft: desk.Draft) -> None:
    """The figures that what-ifs change most; each becomes --set on the run."""
    scenario = draft.loaded.scenario
    if scenario.question:
        st.markdown(f"*{plain(scenario.question)}*")
    st.caption(
        f"About {draft.size.queries:,.0f} queries that grow {draft.size.branch_steps:,.0f} branches in "
        f"each of {draft.size.replications} replications."
    )
    changes: list[str] = []
    arrivals = scenario.workload.arrivals
    if arrivals.kind != "trace":
        rate = st.number_input(
            "Queries per second",
            0.001,
            1e6,
            float(arrivals.rate),
            format="%.3g",
            key=f"rate {name}",
        )
        if rate != float(arrivals.rate):
            changes.append(f"workload.arrivals.rate={rate:g}/s")
    else:
        speed = st.number_input(
            "Speed of the trace", 0.01, 1000.0, float(arrivals.speed), key=f"speed {name}"
        )
        if speed != float(arrivals.speed):
            changes.append(f"workload.arrivals.speed={speed:g}")
    pools: list[dict[str, Any]] = [
        {
            "pool": pool,
            "device": item.device if isinstance(item.device, str) else "inline",
            "replicas": item.replicas,
            "GPUs a replica": item.tensor_parallel,
        }
        for pool, item in scenario.fleet.items()
    ]
    edited: list[dict[str, Any]] = st.data_editor(
        pools, hide_index=True, disabled=["pool", "device"], key=f"fleet {name} {hash(str(pools))}"
    )
    for before, after in zip(pools, edited, strict=True):
        for column, key in (("replicas", "replicas"), ("GPUs a replica", "tensor_parallel")):
            if after[column] != before[column] and after[column]:
                changes.append(f"fleet.{before['pool']}.{key}={after[column]:d}")
    tiers = [
        {
            "tier": tier,
            "share %": round(100 * item.share, 4) if item.share is not None else None,
            "objectives": ", ".join(
                f"{metric} {show(value, 'time')}"
                for metric, value in (item.slo.targets if item.slo else {}).items()
            ),
            "search": item.search.algorithm if item.search else "",
        }
        for tier, item in scenario.tiers.items()
    ]
    st.dataframe(tiers, hide_index=True)
    seed = st.number_input("Seed", 0, 2**31, scenario.seed, key=f"seed {name}")
    if seed != scenario.seed:
        changes.append(f"seed={seed}")
    _go(draft, changes)


def _go(draft: desk.Draft, changes: list[str]) -> None:
    at = page.desk()
    default = draft.name + "".join(f"-{_leaf(change)}" for change in changes)
    with st.form("go", border=False):
        asked = st.text_input("Name of the run", _free(at.runs, _name(default)), max_chars=100)
        if changes:
            st.caption("Changed by the form: " + plain(", ".join(changes)))
        pressed = st.form_submit_button("Run", type="primary")
    if pressed:
        name = _name(asked)
        if name != asked or (at.runs / name).exists():
            st.error(f"Name it otherwise: {plain(_free(at.runs, name))} is free.")
            return
        try:
            loads(draft.files[draft.main], str(at.scenarios / draft.main), changes)
        except ScenarioError as error:
            st.code(desk.short(error, at.scenarios), language=None)
            return
        _start(at.runs, draft, name, changes)


def _start(runs: Path, draft: desk.Draft, name: str, changes: list[str] | None = None) -> None:
    options = [*draft.options]
    for change in changes or ():
        options += ["--set", change]
    st.session_state["job"] = worker.start(runs, name, draft.files, draft.main, options)
    st.rerun()


def _last_run(runs: Path) -> None:
    """The run that this visitor started last: its progress, its error, or the way to its result."""
    ident = st.session_state.get("job")
    if ident is None:
        open_jobs = [job for job in worker.listed(runs) if job.state == "running"]
        if not open_jobs:
            return
        ident = st.session_state["job"] = open_jobs[0].id  # after a reload
    try:
        job = worker.watch(runs, ident)
    except KeyError:
        del st.session_state["job"]
        return
    if job.state == "running":
        _under_way(runs, ident)
    elif job.state == "done":
        took = "" if not job.started else f" after {words.seconds(time.time() - job.started)}"
        st.success(
            f"{plain(job.name)} is done{took if st.session_state.get('seen') != ident else ''}."
        )
        st.session_state["seen"] = ident
        if st.button("Show the result", type="primary"):
            st.session_state["kept run"] = job.name
            del st.session_state["job"]
            st.switch_page("views/overview.py")
    elif job.state == "cancelled":
        st.info(f"{plain(job.name)} was cancelled. Nothing of it is left.")
    else:
        st.error(f"{plain(job.name)} failed:")
        st.code(job.error or "Its process is gone.", language=None)


@st.fragment(run_every=0.7)
def _under_way(runs: Path, ident: str) -> None:
    """Its progress. Once it is over nothing here is asked again: a tick would undo a change of the page."""
    job = worker.watch(runs, ident)
    if job.state != "running":
        st.rerun()
    left, right = st.columns([5, 1])
    left.progress(min(1.0, job.share), f"{plain(job.name)}: {plain(job.doing)}")
    if right.button("Cancel"):
        worker.cancel(runs, ident)
        st.rerun()


def _leaf(change: str) -> str:
    key, _, value = change.partition("=")
    return f"{key.rsplit('.', 1)[-1]}={value}"


def _name(text: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9_.=-]+", "-", text).strip("-.=_")[:100]
    return kept or "run"


def _free(runs: Path, name: str) -> str:
    found, number = name, 1
    while (runs / found).exists():
        number += 1
        found = f"{name}-{number}"
    return found


main()
