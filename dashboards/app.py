"""The page: `treeline dash` starts it on a folder of runs; every view is a file in views/."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if sys.path[:1] != [str(HERE.parent)]:  # before any other folder that holds a `models`, say
    sys.path.insert(0, str(HERE.parent))

import streamlit as st  # noqa: E402  # the path comes first

from dashboards import page  # noqa: E402

VIEWS = {
    "One run": (
        ("latency", "Latency", ":material/timer:"),
        ("quality", "Quality", ":material/target:"),
        ("kv", "KV memory", ":material/memory:"),
        ("controller", "Controller", ":material/psychology:"),
        ("verifier", "Verifier", ":material/fact_check:"),
        ("pricing", "Pricing", ":material/payments:"),
        ("search", "One query", ":material/account_tree:"),
    ),
    "What if": (
        ("scenario", "Scenario", ":material/edit_note:"),
        ("compare", "Compare", ":material/balance:"),
        ("capacity", "Capacity", ":material/trending_up:"),
        ("runs", "Runs", ":material/folder:"),
    ),
    "Basis": (("hardware", "Hardware", ":material/developer_board:"),),
}


def main() -> None:
    """Lay out the page."""
    st.set_page_config(page_title="Treeline", page_icon="🌲", layout="wide")
    page.desk(sys.argv[1:3])
    first = HERE / "views" / "overview.py"
    shown = {
        group: [
            st.Page(HERE / "views" / f"{name}.py", title=title, icon=icon, url_path=name)
            for name, title, icon in views
        ]
        for group, views in VIEWS.items()
    }
    # The first page answers at /; whoever has its name in an address finds it there too.
    named = st.Page(first, title="Overview", url_path="overview", visibility="hidden")
    home = st.Page(first, title="Overview", icon=":material/forest:", url_path="home", default=True)
    st.navigation({"": [home, named], **shown}, expanded=True).run()


main()
