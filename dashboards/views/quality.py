"""How good answers are, and how that goes with latency and compute; whether confidence is true."""

from __future__ import annotations

from functools import partial

import streamlit as st

from dashboards import charts, page, promised, words
from dashboards.page import number, plain


def main() -> None:
    """Show the quality of the run that was chosen."""
    run = page.run("Quality")
    tier = page.tier(run)
    tiers = [t for t in run.summary["tiers"] if tier in ("all tiers", t["tier"])]
    names = [str(t["tier"]) for t in tiers]
    queries = run.stored.result.queries
    st.subheader("Is the confidence we sell true?")
    for row in tiers:
        st.markdown(f"- {plain(_sentence(row))}")
    left, right = st.columns(2)
    with left:
        st.altair_chart(charts.reliability(tiers))
        st.caption("On the dashed line, what is stated is true; below it, we promise too much.")
    with right:
        made = partial(charts.accuracy_by_compute, queries, names)
        st.altair_chart(page.once(run, ("compute", tier), made))
        st.caption("Bars are 95 % intervals. Compute goes where questions are hard.")
    slot = st.container()  # judged last: everything else is there by then
    st.subheader("Quality and latency together")
    st.altair_chart(page.once(run, ("marginals", tier), lambda: charts.marginals(queries, names)))
    st.altair_chart(page.once(run, ("joint", tier), lambda: charts.joint(queries, names)))
    st.subheader("By difficulty")
    st.altair_chart(
        page.once(run, ("difficulty", tier), lambda: charts.by_difficulty(queries, names))
    )
    with slot:
        promised.show(run, names)


def _sentence(tier: dict[str, object]) -> str:
    found = tier["calibration"]
    assert isinstance(found, dict)
    claimed, ece = number(found["mean_confidence"]), number(found["ece"])
    if claimed != claimed:
        return f"{tier['tier']}: states no confidence."
    accuracy = tier["accuracy"]
    precision = tier["precision"]
    assert isinstance(accuracy, dict)
    assert isinstance(precision, dict)
    off = claimed - number(accuracy["value"])
    word = "about true" if abs(off) < 0.02 else "too high" if off > 0 else "too low"
    text = (
        f"{tier['tier']}: states {words.share(claimed)} on average and is right "
        f"{words.share(number(accuracy['value']))}: {word} (ECE {words.number(ece)})."
    )
    goal = tier.get("promised")
    if goal is None:
        return text
    assert isinstance(goal, float)
    kept = number(precision["value"])
    if kept != kept:
        return f"{text} It accepts no answer at the promised {words.share(goal)}."
    return (
        f"{text} It promises {words.share(goal)}, and over all classes {words.share(kept)} of the accepted "
        f"are right; class by class, see below."
    )


main()
