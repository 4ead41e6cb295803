"""What the step costs rest on: the device's roofs, the measured points, and an expansion's cost as a surface."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboards import charts, data, page, words
from dashboards.commands.profile_show import show
from dashboards.page import plain
from hw.profile import Profile, ProfileError, load
from hw.shipped import find_profile, shipped
from models.latency import StepCost
from scenarios.errors import UserError

_BRANCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_PREFIXES = (512, 1024, 2048, 4096, 8192, 16384, 32768)


def main() -> None:
    """Show the profiles that ship, and what the run that was chosen pays for an expansion."""
    run = page.run("Hardware")
    pools = run.stored.result.pools
    for name in dict.fromkeys(pools["pool"].tolist()):
        rows = pools["pool"] == name
        kind, label = pools["cost_source_kind"][rows][0], pools["cost_label"][rows][0]
        st.markdown(f"- **{plain(name)}**: {plain(kind)}, {plain(label)}")
    _expansion(run)
    st.header("Profiles")
    names = list(shipped())
    if not names:
        st.info("No profile ships. Measure this machine: treeline profile --device cpu --quick")
        return
    device = str(pools["device"][0]) if pools["device"].size else ""
    likely = next((name for name in names if name.startswith(device)), names[0])
    asked = page.choose("Profile", "profile", names, likely)
    try:
        profile = _load(asked)
    except ProfileError as error:
        st.error(plain(error))
        return
    found = show(profile)
    st.markdown(
        f"**{plain(found['label'])}** on {plain(found['device'])}: {plain(found['source_kind'])}, "
        f"{found['points']:,} points, {found['holdout']:,} of them held out of every fit."
    )
    st.altair_chart(charts.roofline(profile))
    st.caption("Dashed: the device's own roofs, as they were measured or stated with the profile.")
    left, right = st.columns(2)
    with left:
        st.altair_chart(charts.of_the_floor(found["operations"]))
        st.caption("Bars: the median point. Ticks: the best one.")
    with right:
        st.dataframe([_operation(row) for row in found["operations"]], hide_index=True)
    if found["ceilings"]:
        st.dataframe(
            [{"ceiling": key, "value": f"{value:.4g}"} for key, value in found["ceilings"].items()],
            hide_index=True,
        )


@st.cache_resource(show_spinner="Reading the profile", max_entries=4)
def _load(name: str) -> Profile:
    return load(find_profile(name))


def _operation(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "operation": row["op"],
        "points": row["points"],
        "time": f"{words.seconds(row['t_us_min'] / 1e6)} to {words.seconds(row['t_us_max'] / 1e6)}",
        "of its floor": words.share(row["of_floor_median"]),
        "best TFLOP/s": words.number(row["best_tflops"]),
        "best GB/s": words.number(row["best_gbps"]),
    }


def _expansion(run: data.Run) -> None:
    """The surface of one pool's step cost, from the very cost model that the run used."""
    try:
        pools = {pool.name: pool for pool in page.resolved(run).pools}
    except (UserError, ProfileError) as error:
        st.info(f"The cost model of this run cannot be built again here: {plain(error)}")
        return
    policies = [name for name, pool in pools.items() if pool.pool.role == "policy"]
    name = page.choose("Pool", "pool", policies, where=st.sidebar)
    st.subheader("What a token of a branch costs")
    suffix = st.select_slider("Own tokens of each branch", [0, 64, 256, 1024, 4096], 256)
    st.altair_chart(charts.expansion(cells(pools[name].cost, int(suffix))))
    st.caption(
        "Microseconds per token of one branch, when all branches share the prefix and read it once: "
        "wide trees divide the weights and the prefix among them."
    )


def cells(cost: StepCost, suffix: int) -> list[dict[str, Any]]:
    """Step cost by branches and shared prefix, each branch with `suffix` own tokens."""
    found = []
    for branches in _BRANCHES:
        for prefix in _PREFIXES:
            saturated = prefix * max(1.0, branches / cost.saturation)
            read = branches * suffix + saturated
            step = cost.base_s(branches, 0) + cost.reading(branches, 0, read)[0]
            found.append(
                {
                    "branches": branches,
                    "prefix": prefix,
                    "step_s": step,
                    "per_token_us": step / branches * 1e6,
                }
            )
    return found


main()
