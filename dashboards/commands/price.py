"""`treeline price`: what a run or a scenario sells, at which margin, under which promises, and who pays for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dashboards.commands.price_write import check_writable, write_menu
from dashboards.menus import optimised
from dashboards.prices import price_list as shown
from dashboards.report import jsonable
from dashboards.terminal import near, plain, progress, stdout
from pricing.offers import played as played_run
from pricing.optimise import optimise
from pricing.pricelist import PriceList, price_list
from scenarios.errors import UserError
from scenarios.loader import Loaded, loads
from sim.jobs import jobs, simulate
from sim.records import Result
from sim.resolve import Resolved, resolve
from sim.store import GIVEN, load


def price(
    loaded: Loaded | None,
    run: str | None,
    overrides: Sequence[str],
    *,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> tuple[dict[str, Any], bool]:
    """Print the price list of a scenario, which is simulated first, or of a run directory.

    Returns the document and whether a promise was refused. Raises UserError as the parts do.
    """
    resolved, result = stored(run, overrides) if run else played(loaded, workers, quiet)
    with progress(f"prices of {resolved.scenario.name}", quiet=quiet) as tell:
        found = price_list(resolved, result, tell)
    if not as_json:
        stdout().print(shown(found))
    return document(found), bool(found.refused)


def stored(directory: str, overrides: Sequence[str]) -> tuple[Resolved, Result]:
    """A run as it was, under the prices and business assumptions of today.

    Raises UserError for an override that would need another run.
    """
    for text in overrides:
        key = text.partition("=")[0]
        if not (key.startswith("pricing.") or ".price" in key):
            raise UserError(
                f"--set {plain(key)} would need another run: only pricing.* and tiers.NAME.price.* of a "
                f"finished run can change. Price the scenario instead of the run."
            )
    found = load(directory)
    loaded = loads(found.resolved, f"{directory}/{GIVEN}", overrides)
    return resolve(loaded), found.result


def played(loaded: Loaded | None, workers: int | None, quiet: bool) -> tuple[Resolved, Result]:
    """A scenario, simulated. Raises UserError for a sweep, which has no single price list."""
    assert loaded is not None
    if loaded.sweep_cells():
        raise UserError(
            f"{plain(loaded.name)} is a sweep, and each of its cells has a price list of its own. "
            "Run it, then price one of its run directories."
        )
    (job,) = jobs([loaded], force=True)
    result, _ = simulate(replace(job, base=None), {}, partial(progress, quiet=quiet), workers)
    return job.resolved, result


def best_menu(
    loaded: Loaded | None,
    directories: Sequence[str],
    overrides: Sequence[str],
    *,
    workers: int | None,
    quiet: bool,
    as_json: bool,
    write: str | None = None,
) -> dict[str, Any]:
    """Print the best menu for a scenario (each cell of a sweep a way to play it), or for finished runs of one.

    A scenario that extends another is compared with that one too; `write` makes the best menu a what-if
    of it. Raises UserError as the parts do.
    """
    if write is not None:
        check_writable(loaded, overrides, write)
    watch = partial(progress, quiet=quiet)
    base = None
    runs: list[tuple[str, Resolved, Result]] = []
    if loaded is None:
        runs = [(name, *stored(name, overrides)) for name in directories]
    else:
        bases: dict[str, Result] = {}
        for job in jobs([loaded], force=True):
            result, before = simulate(job, bases, watch, workers)
            runs.append((job.label, job.resolved, result))
            if before is not None and job.base is not None:
                base = (job.base.scenario.name, job.base, before)
    with watch(f"menus of {runs[0][1].scenario.name}") as tell:
        found = optimise(
            [played_run(*run) for run in runs], None if base is None else played_run(*base), tell
        )
    if write is not None and loaded is not None:
        write_menu(found, loaded, write)
    if not as_json:
        stdout().print(optimised(found))
    plainly = jsonable(found)
    assert isinstance(plainly, dict)
    return plainly


def directories(what: Sequence[str], *, optimise: bool) -> tuple[str, ...]:
    """The run directories among the arguments; empty for one scenario file.

    Raises UserError for what is neither, and for several where one is meant.
    """
    for name in what:
        place = Path(name)
        if not place.exists() and place.suffix not in (".yaml", ".yml"):
            folder = place.parent if place.parent.is_dir() else Path()
            hint = near(place.name, [item.name for item in folder.iterdir()])
            raise UserError(f"{plain(name)} is neither a run directory nor a scenario file.{hint}")
    runs = tuple(name for name in what if Path(name).is_dir())
    if len(what) > 1 and (not optimise or len(runs) < len(what)):
        raise UserError(
            "Name one run or one scenario; several runs only with --optimise, as ways to play one scenario."
        )
    return runs


def document(found: PriceList) -> dict[str, Any]:
    """The list as JSON values, with what its properties say."""
    plainly = jsonable(found)
    assert isinstance(plainly, dict)
    for line, shown_ in zip(found.lines, plainly["lines"], strict=True):
        shown_["margin_usd"] = jsonable(line.money.margin_usd)
        shown_["margin_share"] = jsonable(line.margin_share)
    for item, row in zip(found.promises, plainly["promises"], strict=True):
        row["kept"] = item.kept
        for key in ("certified", "as_sold", "supported"):
            under = getattr(item, key)
            if under is not None:
                row[key]["coverage"] = under.coverage
                row[key]["precision"] = under.precision
                row[key]["cost_per_sold"] = jsonable(item.cost_per_sold(under))
    for cost, row in zip(found.drift, plainly["drift"], strict=True):
        row["seen_days"] = jsonable(cost.seen_days)
        row["until_seen_usd"] = jsonable(cost.until_seen_usd)
    for split, rows in zip(found.breakdowns, plainly["breakdowns"], strict=True):
        for group, row in zip(split.groups, rows["groups"], strict=True):
            for key in ("margin_usd", "cost_per_query", "cost_per_right", "cost_per_sold"):
                row[key] = jsonable(getattr(group, key))
    return plainly
