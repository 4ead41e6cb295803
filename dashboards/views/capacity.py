"""How much load the fleet takes: goodput against offered load, what binds, and what more hardware costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import streamlit as st

from dashboards import charts, data, desk, fixes, page, words, worker
from dashboards.page import number, plain
from hw.profile import ProfileError
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
    _mend(run)
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
    st.subheader("What it costs at each load")
    st.dataframe(
        [_money(name) for name in dict.fromkeys(row["run"] for row in rows)], hide_index=True
    )


def _mend(run: data.Run) -> None:
    """Changes that might mend what is missed, priced; estimated on paper, or played where a run of it exists."""
    holds = run.summary["verdict"]["holds"]
    st.subheader("What it could do without" if holds else "What would fix it, and what that costs")
    try:
        base, usd, found = page.once(run, "fixes", lambda: _fixes(run))
    except (UserError, ProfileError) as error:
        st.info(f"The cost model of this run cannot be built again here: {plain(error)}")
        return
    played = _played(run, {fix.essence for fix in found})
    bill = number(run.summary["money"]["bill"]["total_usd"])
    now = fixes.judged(run.summary["tiers"])
    verdict = fixes.overall(now)
    rows = [_fix_row("as it is", verdict, base, usd, 0.0, now, "this run", words.usd(bill))]
    holding: list[tuple[float, str]] = []
    for fix in found:
        if fix.essence in played:
            name, head = played[fix.essence]
            states = fixes.judged(head["tiers"])
            paid = number(head["money"]["bill"]["total_usd"])
            basis = f"simulated: run {name}"
            bought = f"{words.usd(paid)} ({words.change(paid - bill, 'USD')})"
            verdict = fixes.overall(states)
            if verdict == "holds":
                holding.append((fix.usd_per_h, _holds(fix, usd, paid - bill)))
        else:
            states, basis = fixes.projected(run.summary["tiers"], fix), "estimated on paper"
            verdict, bought = f"≈ {fixes.overall(states)}", "-"
        more = fix.usd_per_h - usd
        rows.append(
            _fix_row(fix.what, verdict, fix.gpus, fix.usd_per_h, more, states, basis, bought)
        )
    if holding:
        st.success(plain(min(holding)[1]))
    least = min(holding)[0] if holding else math.inf
    for fix in found:
        states = fixes.projected(run.summary["tiers"], fix)
        if fix.essence not in played and fix.usd_per_h < least and fixes.overall(states) == "holds":
            st.info(
                plain(f"Holds on paper: {fix.what}, {_hourly(fix, usd)}. Simulate it to be sure.")
            )
            break
    st.dataframe(rows, hide_index=True)
    st.caption(
        "USD an hour: every GPU of the fleet, busy or not, at the catalogue's rates. Estimated (≈): latencies "
        "go with the time of a step in the batch at which what comes in is what goes out; within "
        f"{words.share(fixes.EDGE)} of an objective it is on the edge. Simulated: a run of this change is in "
        "the folder, with the bill of its fleet for the same queries."
    )
    _simulate(run, [fix for fix in found if fix.essence not in played])
    if _running():
        _progress()


def _fixes(run: data.Run) -> tuple[int, float, list[fixes.Fix]]:
    """GPUs of the fleet, its USD an hour, and the candidates."""
    base = page.resolved(run)
    found = fixes.fixes(base, run.stored.resolved, run.stored.result, run.summary)
    return fixes.gpus(base.scenario), fixes.usd_per_h(base.scenario), found


def _fix_row(
    what: str,
    verdict: str,
    gpus: int,
    usd: float,
    more: float,
    states: dict[str, tuple[str, str]],
    basis: str,
    bought: str,
) -> dict[str, Any]:
    return {
        "change": what,
        "verdict": verdict + fixes.missing(states),
        "USD an hour": words.usd(usd),
        "more an hour": words.change(more, "USD"),
        "GPUs": gpus,
        "bill of this run": bought,
        "basis": basis,
        **{name: f"{shown} {state}".strip() for name, (shown, state) in states.items()},
    }


def _holds(fix: fixes.Fix, usd: float, more: float) -> str:
    """What a change that was played and holds says."""
    return (
        f"{fix.what} holds every objective (simulated): {_hourly(fix, usd)}; the bill for the same queries "
        f"changes by {words.change(more, 'USD')}."
    )


def _hourly(fix: fixes.Fix, usd: float) -> str:
    more = fix.usd_per_h - usd
    change = words.change(more, "USD") if abs(more) > 1e-9 else "no more than now"
    return f"{words.usd(fix.usd_per_h)} an hour, {change}"


def _played(run: data.Run, wanted: Collection[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Runs of the folder that are one of the wanted scenarios: name and summary by essence."""
    folder, found = page.desk().runs, {}
    for name in data.names(folder):
        try:
            if name != run.name and (key := page.essence(folder, name)) in wanted:
                found[key] = (name, data.head(folder, name))
        except (UserError, OSError):
            continue
    return found


def _simulate(run: data.Run, left: list[fixes.Fix]) -> None:
    """Start the chosen changes in the worker."""
    if not left:
        return
    hopeless = [fix for fix in left if fix.after is not None and fix.after.full]
    likely = [
        fix.what for fix in left if fix not in hopeless and not fix.settings[0].startswith("tiers.")
    ][:2]
    chosen = st.multiselect("To simulate", [fix.what for fix in left], likely)
    idle = not _running()
    if st.button(f"Simulate {len(chosen)}", disabled=not (chosen and idle), type="primary"):
        at = page.desk()
        draft = desk.check(at.scenarios, f"{run.name}.yaml", run.stored.resolved, at.roots)
        for fix in left:
            if fix.what in chosen:
                tails = [key.rpartition(".")[2] for key in fix.settings]
                _start(draft, "-".join((run.name, *tails)), fix.settings)
        st.rerun()


def _start(draft: desk.Draft, name: str, settings: Sequence[str]) -> None:
    """Start one change of a run as a run of its own, unless it is there."""
    runs, options = page.desk().runs, [*draft.options]
    for setting in settings:
        options += ["--set", setting]
    if not (runs / name).exists():
        worker.start(runs, name, draft.files, draft.main, [*options, "--workers", "1"])


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
    key = page.essence(folder, run.name, load=False)
    rows = []
    for name in data.names(folder):
        try:
            if page.essence(folder, name, load=False) != key:
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
        value = f"{now * factor:.6g}" + ("" if traced else "/s")
        _start(draft, f"{run.name}-load-{factor:g}x", [f"{key}={value}"])


def _running() -> list[worker.Job]:
    return [job for job in worker.listed(page.desk().runs) if job.state == "running"]


@st.fragment(run_every=1.0)
def _progress() -> None:
    jobs = _running()
    if not jobs:
        st.rerun()
    for job in jobs:
        st.progress(min(1.0, job.share), f"{plain(job.name)}: {plain(job.doing)}")


main()
