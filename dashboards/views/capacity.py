"""How much load the fleet takes: goodput against offered load, what binds, and what more hardware costs."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboards import charts, data, desk, page, words, worker
from dashboards.page import number, plain
from scenarios.errors import UserError

_FACTORS = (0.5, 0.75, 1.25, 1.5, 2.0)


def main() -> None:
    """Show the capacity of the run that was chosen, and of those that differ from it in load only."""
    run = page.run("Capacity")
    summary = run.summary
    st.subheader("What binds")
    st.markdown(plain(summary["binding"]["sentence"]))
    st.dataframe([_bound(row) for row in summary["bounds"]], hide_index=True)
    st.caption(
        "On paper: what the load needs at the very least in a full batch without any queue. The "
        "simulation beside it has bursts, barriers and memory, and needs more."
    )
    st.subheader("Goodput against load")
    rows = _family(run)
    st.altair_chart(charts.goodput(rows))
    st.caption(
        "Runs of this scenario that differ in load only. On the dashed line every query meets its "
        "objectives; where a tier falls below it, its capacity ends."
    )
    if len({row["load"] for row in rows}) < 3:
        st.markdown("There are few loads yet. Run the same scenario at half to twice the load:")
    if st.button("Sweep the load", disabled=bool(_running())):
        _sweep(run)
        st.rerun()
    _progress()
    st.subheader("What it costs at each load")
    st.dataframe(
        [_money(name) for name in dict.fromkeys(row["run"] for row in rows)], hide_index=True
    )


def _bound(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "pool": words.name(row["pool"]),
        "replicas": row["fleet"],
        "needed on paper": row["replicas"],
        "by compute": words.number(number(row["compute"])),
        "by KV memory": words.number(number(row["kv"])),
        "why": row["reason"],
    }


def _family(run: data.Run) -> list[dict[str, Any]]:
    """One row per tier of every run that is this scenario at another load."""
    folder = page.desk().runs
    key = data.but_for_load(run.stored.resolved)
    rows = []
    for name in data.names(folder):
        try:
            if data.but_for_load(data.resolved(folder, name)) != key:
                continue
            head = data.head(folder, name)
        except (UserError, OSError):
            continue
        load = sum(number(tier["offered_per_s"]) for tier in head["tiers"])
        for tier in head["tiers"]:
            good = tier["goodput_per_s"]
            offered = number(tier["offered_per_s"])
            rows.append(
                {
                    "run": name,
                    "tier": tier["tier"],
                    "load": load,
                    "attained": number(good["value"]) / offered if offered else 0.0,
                    "goodput": number(good["value"]),
                    "offered": offered,
                }
            )
    return sorted(rows, key=lambda row: row["load"])


def _money(name: str) -> dict[str, Any]:
    head = data.head(page.desk().runs, name)
    load = sum(number(tier["offered_per_s"]) for tier in head["tiers"])
    money = head["money"]
    return {
        "run": name,
        "load /s": words.number(load),
        "verdict": "holds" if head["verdict"]["holds"] else "MISSED",
        **{
            f"cost/query {words.name(tier['tier'])}": words.usd(
                number(tier["cost_per_query"]["value"])
            )
            for tier in money["tiers"]
        },
        "idle": words.share(
            number(money["bill"]["idle_usd"]) / (number(money["bill"]["total_usd"]) or 1.0)
        ),
    }


def _sweep(run: data.Run) -> None:
    """Start this scenario at other loads, each a run of its own."""
    at = page.desk()
    file = f"{run.name}.yaml"
    draft = desk.check(at.scenarios, file, run.stored.resolved, at.roots)
    arrivals = draft.loaded.scenario.workload.arrivals
    traced = arrivals.kind == "trace"
    key = "workload.arrivals.speed" if traced else "workload.arrivals.rate"
    now = float(getattr(arrivals, key.rpartition(".")[2]))
    for factor in _FACTORS:
        name = f"{run.name}-load-{factor:g}x"
        if (at.runs / name).exists():
            continue
        value = f"{now * factor:.6g}" + ("" if traced else "/s")
        options = [*draft.options, "--set", f"{key}={value}", "--workers", "1"]
        worker.start(at.runs, name, draft.files, draft.main, options)


def _running() -> list[worker.Job]:
    return [job for job in worker.listed(page.desk().runs) if job.state == "running"]


@st.fragment(run_every=1.0)
def _progress() -> None:
    jobs = _running()
    if not jobs and st.session_state.pop("sweeping", False):
        st.rerun()
    st.session_state["sweeping"] = bool(jobs)
    for job in jobs:
        st.progress(min(1.0, job.share), f"{plain(job.name)}: {plain(job.doing)}")


main()
