"""The page: `treeline dash` starts it on a folder of runs; every view is a file in views/."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if sys.path[:1] != [str(HERE.parent)]:  # before any other folder that holds a `models`, say
    sys.path.insert(0, str(HERE.parent))

import streamlit as st  # noqa: E402  # the path comes first


def main() -> None:
    """Lay out the page."""
    st.set_page_config(page_title="Treeline", page_icon="🌲", layout="wide")
    st.session_state["runs"] = sys.argv[1] if len(sys.argv) > 1 else "runs"
    st.navigation([st.Page(HERE / "views" / "overview.py", title="Overview", icon="🌲")]).run()


main()
