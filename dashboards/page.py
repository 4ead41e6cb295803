"""What every view shares: the run that was chosen, kept in the address, and text that stays text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import streamlit as st

from dashboards import data, words
from pricing.contract import Priced, price
from scenarios.errors import UserError
from scenarios.loader import loads
from sim.resolve import Resolved, resolve

Kept = TypeVar("Kept")
_SLASH: Final = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#+-.!|$~:&"})
_SHIPPED: Final = Path(__file__).resolve().parent.parent / "scenarios"


@dataclass(frozen=True, slots=True)
class Desk:
    """What the page was started with: the folder of runs, that of scenarios, and data it may read."""

    runs: Path
    scenarios: Path
    roots: tuple[Path, ...]


def desk(words: Sequence[str] = ()) -> Desk:
    """What `treeline dash RUNS [SCENARIOS]` named; `words` are set once, when the page starts."""
    if words or "desk" not in st.session_state:
        runs = Path(words[0] if words else "runs")
        scenarios = Path(words[1]) if len(words) > 1 and words[1] else _SHIPPED
        given = os.environ.get("TREELINE_DATA", "../shared/data")
        roots = (Path(given),) if Path(given).is_dir() else ()
        st.session_state["desk"] = Desk(runs, scenarios, roots)
    found: Desk = st.session_state["desk"]
    return found


def plain(text: object, longest: int = 400) -> str:
    """Text that may come from a scenario, so that Markdown shows it as it stands."""
    return words.name(str(text), longest).translate(_SLASH)


def number(value: float | None) -> float:
    """A figure of a summary, where null means that there is none."""
    return float("nan") if value is None else value


def dollars(text: str) -> str:
    """Text whose dollar signs are no formula."""
    return text.replace("$", "\\$")


def remembered(key: str, choices: Sequence[str], default: str) -> str:
    """What the address asks for under `key`, else what was chosen last, else `default`."""
    for asked in (st.query_params.get(key), st.session_state.get(f"kept {key}")):
        if asked in choices:
            return str(asked)
    return default


def keep(key: str, value: str) -> None:
    """Put a choice into the address, so that it can be shared, and remember it for other pages."""
    st.session_state[f"kept {key}"] = value
    if st.query_params.get(key) != value:
        st.query_params[key] = value


def choose(
    title: str,
    key: str,
    choices: Sequence[str],
    default: str = "",
    where: Any = None,
    label: Callable[[str], str] = str,
) -> str:
    """A select box whose choice is in the address; `choices` is not empty, `label` says what each is."""
    slot = f"box {key}"  # a box that keeps its name keeps every choice, whatever the address says
    st.session_state[slot] = remembered(key, choices, default or choices[0])
    found = (where or st).selectbox(
        title, choices, key=slot, format_func=label, on_change=_chosen, args=(key, slot)
    )
    keep(key, found)
    return str(found)


def _chosen(key: str, slot: str) -> None:
    keep(key, str(st.session_state[slot]))


def read(folder: Path, name: str) -> data.Run:
    """A run, read once for all visitors. Raises UserError, OSError."""
    return _read(str(folder), name, (folder / name / "manifest.json").stat().st_mtime)


@st.cache_resource(show_spinner="Reading the run", max_entries=6)
def _read(folder: str, name: str, _stamp: float) -> data.Run:
    return data.read(Path(folder), name)


def essence(folder: Path, name: str, *, load: bool = True) -> str:
    """What decides a run, with its load or without, read once. Raises UserError, OSError."""
    return _essence(str(folder), name, load, (folder / name / "manifest.json").stat().st_mtime)


@st.cache_data(show_spinner=False, max_entries=500)
def _essence(folder: str, name: str, load: bool, _stamp: float) -> str:
    return data.essence(data.resolved(Path(folder), name), load)


def once(run: data.Run, key: object, make: Callable[[], Kept]) -> Kept:
    """What `make` makes of a run, made once for all visitors; `key` tells it from what else is made of it."""
    found: Kept = _once(digest(run), repr(key), make)
    return found


@st.cache_resource(show_spinner=False, max_entries=400)
def _once(digest: str, key: str, _make: Callable[[], Any]) -> Any:
    return _make()


def digest(run: data.Run) -> str:
    """What tells a run, with its objectives and prices, from any other: the digests of all its files."""
    files = run.stored.manifest["files"]
    return "".join(str(files[name]["sha256"]) for name in sorted(files))


def priced(run: data.Run, changes: tuple[str, ...] = ()) -> Priced:
    """The queries of a run under its prices and overrides of them. Raises UserError."""

    def make() -> Priced:
        return price(
            run.stored.result, loads(run.stored.resolved, "resolved.yaml", changes).scenario
        )

    with st.spinner("Pricing the queries"):
        return once(run, ("priced", changes), make)


def resolved(run: data.Run) -> Resolved:
    """The scenario of a run, ready to run again. Raises UserError, ProfileError."""
    return once(run, "resolved", lambda: resolve(loads(run.stored.resolved, "resolved.yaml")))


def run(title: str = "") -> data.Run:
    """The run chosen at the side, below the view's title; the page ends here where there is none."""
    folder = desk().runs
    names = data.names(folder)
    if title or not names:
        st.title(title or "Treeline")
    if not names:
        empty()
        st.stop()
    name = choose("Run", "run", names, where=st.sidebar)
    try:
        found = read(folder, name)
    except (UserError, OSError) as error:
        st.error(plain(str(error).replace(f"{folder}{os.sep}", "")))
        st.stop()
    origin(found)
    return found


def empty() -> None:
    """What a first start shows instead of a run."""
    st.info(
        "There is no run yet. The quickstart takes about ten seconds: two L40S cards, three queries a "
        "second, and whether careful answers pay."
    )
    if st.button("Run the quickstart", type="primary"):
        st.session_state["start"] = "quickstart.yaml"
        st.switch_page(_view("scenario"))
    st.caption("Or in a terminal, then reload this page:")
    st.code("treeline run scenarios/quickstart.yaml", language="bash")


def origin(found: data.Run) -> None:
    """Say on every page what the figures rest on, where they were not measured."""
    kinds = {str(kind) for kind in found.stored.result.pools["cost_source_kind"]}
    if kinds != {"measured"}:
        st.sidebar.caption(
            f"Step costs: {', '.join(sorted(kinds))}. Figures rest on them; nothing here was "
            "measured on your GPU."
        )


def tier(found: data.Run, everything: str = "all tiers") -> str:
    """The tier chosen at the side, or `everything`."""
    names = [str(row["tier"]) for row in found.summary["tiers"]]
    chosen = choose("Tier", "tier", [everything, *names], where=st.sidebar)
    if chosen != everything:
        st.caption(f"Only the tier {plain(chosen)}, as chosen at the side.")
    return chosen


def _view(name: str) -> str:
    return str(Path(__file__).resolve().parent / "views" / f"{name}.py")
