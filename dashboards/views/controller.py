"""How much thinking a query deserves: where queries of a run stopped, and how good the learned controller is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from dashboards import charts, data, page, words
from dashboards.page import plain
from models.learned import SHIPPED
from sim.records import measured, select

_EVALUATION = SHIPPED.with_name("learned_evaluation.json")


def main() -> None:
    """Show what decided in the run that was chosen, and what the learned controller is worth."""
    run = page.run("Controller")
    kind = (run.given.get("controller") or {}).get("kind")
    asked = "learned" if "kind: learned" in run.stored.resolved else kind or "fixed"
    st.markdown(
        f"In this run the controller is **{plain(asked)}**: "
        + (
            "it decides stage by stage what a query's vote is worth."
            if asked == "learned"
            else "every query gets what its tier's search says."
        )
    )
    st.subheader("Where queries stopped")
    names = [str(tier["tier"]) for tier in run.summary["tiers"]]
    st.altair_chart(page.once(run, "stopped", lambda: charts.thought(_stopped(run, names), names)))
    st.subheader("Why they stopped")
    st.dataframe(page.once(run, "why", lambda: _why(run, names, asked)), hide_index=True)
    found = _evaluation(_EVALUATION)
    if found is None:
        st.info("Judge the controller that ships: treeline controller")
        return
    st.header("The learned controller that ships")
    for row in found["equal"]:
        st.markdown(
            f"- At the accuracy of {plain(row['target'])} ({words.share(row['accuracy'])}) it spends "
            f"**{words.share(row['of_it'])}** of its GPU-seconds, and {words.share(row['of_best_fixed'])} "
            "of the best fixed plan's."
        )
    st.caption(
        f"Judged on {found['questions']:,} held-out questions, whatever this run played. GPU-seconds: {plain(found['prices'])}."
    )
    left, right = st.columns(2)
    with left:
        st.subheader("Cost against accuracy")
        st.altair_chart(charts.cost_accuracy(found))
    with right:
        st.subheader("Decision map")
        st.altair_chart(charts.decisions(found))
        st.caption(
            "Trajectories it grows: the harder a question looks the more, the dearer GPU time the fewer."
        )
    st.subheader("Regret to the oracle")
    for line in _regret(found):
        st.markdown(f"- {plain(line)}")
    st.subheader("By class")
    st.dataframe([_class(row) for row in found["classes"]], hide_index=True)
    st.subheader("Promises")
    st.dataframe([_promise(row) for row in found["promises"]], hide_index=True)
    st.caption(
        "Learn-then-Test on 6,000 calibration questions a class, redrawn: how often a promise was broken, "
        "and how much could be sold under it against what would be possible."
    )
    st.subheader("If the world is not as it was learned")
    st.dataframe(
        [
            {
                "what if": row["variant"],
                "GPU-seconds": words.number(row["gpu_s"]),
                "accuracy": words.share(row["accuracy"]),
            }
            for row in found["variants"]
        ],
        hide_index=True,
    )


_ENDS = (
    ("answered", "done: its search had what it needed"),
    ("cut", "cut by its budget or deadline, answered with what it had"),
    ("refused", "refused: longer than the memory"),
    ("unfinished", "unfinished when the simulation ended"),
)


def _why(run: data.Run, names: list[str], controller: str) -> list[dict[str, Any]]:
    """What ended the queries of each tier, and how far below its widest plan they stopped."""
    table = measured(run.stored.result.queries)
    rows = []
    for tier in names:
        mine = table["tier"] == tier
        grown, n = table["trajectories"][mine], max(1, int(mine.sum()))
        most = int(grown.max(initial=0))
        row: dict[str, Any] = {"tier": words.name(tier)}
        if controller == "learned":
            row["stopped before its widest"] = words.share(float((grown < most).sum()) / n)
        for status, text in _ENDS:
            row[text] = words.share(float((table["status"][mine] == status).sum()) / n)
        rows.append(row)
    return rows


_KNOWS = {
    "O1": "an oracle that knows class and pass rate and picks a fixed plan",
    "O2": "one that also stops as it goes",
}


def _regret(found: dict[str, Any]) -> list[str]:
    """What the controller leaves to oracles that know what no server can, as sentences."""
    areas = found["areas"]
    lines = []
    for name, text in _KNOWS.items():
        left = areas[name] - areas["learned"]
        side = "below" if left > 0 else "above"
        lines.append(
            f"{text}: the controller is {100 * abs(left):.1f} points of accuracy {side} it, averaged over log "
            f"cost; it closes {words.share(found['closed'][name])} of the gap from the best fixed plans."
        )
    return lines


def _stopped(run: data.Run, names: list[str]) -> list[dict[str, Any]]:
    """Shares of each tier's queries by the trajectories they grew."""
    table = measured(run.stored.result.queries)
    rows: list[dict[str, Any]] = []
    for tier in names:
        mine = select(table, table["tier"] == tier)
        numbers, counts = np.unique(mine["trajectories"], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:24]
        rows += [
            {
                "tier": tier,
                "n": int(numbers[i]),
                "share": float(counts[i] / counts.sum()),
                "queries": int(counts[i]),
            }
            for i in sorted(order.tolist())
        ]
    return rows


@st.cache_resource(show_spinner=False)
def _evaluation(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _class(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "class": row["class"],
        "best fixed plan": row["best_fixed"],
        "its accuracy": words.share(row["accuracy_best_fixed"]),
        "learned": words.share(row["accuracy"]),
        "its GPU-s": words.number(row["gpu_s_best_fixed"]),
        "learned GPU-s": words.number(row["gpu_s"]),
        "utility gained": words.share(row["utility_gain"]),
        "at least (95 %)": words.share(row["bound"]),
    }


def _promise(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "class": row["class"],
        "promise": words.share(row["promise"]),
        "broken": f"{row['broken']} of {row['redraws']}",
        "refused": row["refused"],
        "sold": words.share(row["coverage"]),
        "possible": words.share(row["ideal_coverage"]),
        "right of those": "-" if row["precision"] is None else words.share(row["precision"]),
    }


main()
