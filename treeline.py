"""The command line: each command answers one question, and imports what it needs only when it is asked."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from scenarios.loader import Loaded
    from sim.jobs import Job
    from sim.records import Result

HERE: Final = Path(__file__).resolve().parent
# The rooms have plain names: whatever else is called models/ where we are started, ours comes first.
sys.path[:] = [str(HERE), *(entry for entry in sys.path if entry != str(HERE))]

USAGE, MISSED, MISSING = 2, 3, 4  # exit codes; 0 is fine, 1 our fault, 130 interrupted
REPORT, SUMMARY = "report.txt", "summary.json"
# extra -> the modules it brings, and the names of the packages to install
EXTRAS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = MappingProxyType(
    {
        "dashboard": (("streamlit", "altair", "vl_convert"), "streamlit altair vl-convert-python"),
        "gpu": (("cupy", "pynvml"), "cupy-cuda13x torch nvidia-ml-py"),
        "torch": (("torch",), "torch"),
        "aiconfigurator": (("aiconfigurator_core",), "aiconfigurator-core"),
        "cluster": (("dask", "distributed"), "dask distributed"),
        "prices": (("genai_prices",), "genai-prices"),
    }
)

app = typer.Typer(
    name="treeline",
    help="Plan capacity for models that think: latency tiers, KV memory, the price of confidence.",
    epilog="Exit codes: 0 fine, 1 our fault, 2 scenario or usage error, 3 an SLO missed "
    "(--fail-on-slo), 4 an extra or a GPU is missing, 130 interrupted.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
profile_app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    invoke_without_command=True,
    subcommand_metavar="[import | show]",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(profile_app, name="profile")
fit_app = typer.Typer(
    help="Parameters from data, with what the fit misses.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(fit_app, name="fit")
Files = Annotated[list[str], typer.Argument(help="Scenario files.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value by its path; repeatable."),
]
Replications = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="More of them narrow the intervals.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes; all cores by default.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def main() -> None:
    """Entry point of the `treeline` command; exits with a code of the table above."""
    import os

    from dashboards.terminal import program

    # joblib looks for physical cores with lscpu, and complains where there is none; one will do
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a narrow encoding is no reason to fail
    app(prog_name=program())


def command(
    function: Callable[..., None], group: typer.Typer = app, name: str | None = None
) -> Callable[..., None]:
    """Register a command whose foreseeable errors end in a message and an exit code."""
    return group.command(name)(_guarded(function))


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def guarded(**given: Any) -> None:
        from scenarios.errors import MissingError, UserError

        try:
            function(**given)
        except MissingError as error:
            _refuse(error, as_json=given["as_json"], code=MISSING)
        except UserError as error:
            _refuse(error, as_json=given["as_json"])
        except ModuleNotFoundError as error:
            root = (error.name or "").partition(".")[0]
            for extra, (modules, packages) in EXTRAS.items():
                if root in modules:
                    typer.echo(f"{root} is not installed. {_install(extra, packages)}", err=True)
                    raise typer.Exit(MISSING) from None
            raise

    return guarded


@app.callback(invoke_without_command=True)
def _treeline(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from sim.store import versions

        typer.echo(f"treeline {versions()['treeline']}")


@command
def run(
    files: Files,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Run directory; else runs/NAME, the next free one."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Other queries of the same kind.")
    ] = None,
    set_: Set = None,
    replications: Replications = None,
    workers: Workers = None,
    quiet: Quiet = False,
    force: Force = False,
    as_json: Json = False,
    fail_on_slo: Annotated[
        bool, typer.Option("--fail-on-slo", help="Exit code 3 when a tier misses a target.")
    ] = False,
) -> None:
    """Simulate scenarios: who is served how fast, how right, at what cost.

    A scenario that extends another also runs that one, on the same queries, and shows the
    difference.

    \b
    Example: treeline run scenarios/quickstart.yaml
             treeline run scenarios/quickstart.yaml --set workload.arrivals.rate=6/s --out runs/six
    """
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import progress
    from sim.jobs import jobs, simulate

    given = (("seed", seed), ("replications", replications))
    options = [*(set_ or ()), *(f"{key}={value}" for key, value in given if value is not None)]
    planned = jobs([_load(file, options) for file in files], out, force=force)
    watch = functools.partial(progress, quiet=quiet)
    bases: dict[str, Result] = {}
    documents, missed = [], False
    for job in planned:
        result, base = simulate(job, bases, watch, workers)
        document = _report(job, result, base, options, force=force, silent=as_json)
        documents.append(document)
        missed |= not document["verdict"]["holds"]
    if as_json:
        typer.echo(to_json({"runs": documents}))
    if missed and fail_on_slo:
        raise typer.Exit(MISSED)


@command
def check(
    files: Files,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the scenario with every default.")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Check scenarios without running them, and say how big a run would be.

    \b
    Example: treeline check scenarios/quickstart.yaml --resolved
    """
    from dataclasses import asdict

    import yaml

    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import plain
    from scenarios.units import show
    from sim.run import estimate, resolve

    documents = []
    for file in files:
        loaded = _load(file, set_ or ())
        cells = max(1, len(loaded.sweep_cells()))
        size = estimate(resolve(loaded))
        full = loaded.scenario.model_dump(mode="json", by_alias=True, exclude_none=True)
        documents.append(
            {"file": file, "scenario": loaded.scenario.name, "cells": cells}
            | {"estimate": asdict(size)}
            | ({"resolved": full} if resolved else {})
        )
        if resolved and not as_json:
            typer.echo(yaml.safe_dump(full, sort_keys=False, allow_unicode=True), nl=False)
        elif not as_json:
            each = f" in each of {cells} cells" if cells > 1 else ""
            typer.echo(
                f"{plain(file)}: fine. About {size.queries:,.0f} queries that grow "
                f"{size.branch_steps:,.0f} branches, "
                f"{show(float(f'{size.memory_bytes:.2g}'), 'bytes')} of memory, in each of "
                f"{size.replications} replications{each}."
            )
    if as_json:
        typer.echo(to_json({"scenarios": documents}))


@command
def new(
    file: Annotated[str, typer.Argument(help="Where to write it.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a first scenario, commented, ready to run and to change.

    \b
    Example: treeline new first.yaml
    """
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import plain, program, quoted
    from scenarios.errors import UserError

    text = (HERE / "scenarios" / "first.yaml").read_text(encoding="utf-8")
    try:
        with Path(file).open("w" if force else "x", encoding="utf-8", newline="\n") as stream:
            stream.write(text.replace("FILE", quoted(file)))
    except FileExistsError:
        raise UserError(
            f"{plain(file)} exists already. Name another, or replace it with --force."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{plain(file)} cannot be written: {error}. Name another file.") from None
    if as_json:
        typer.echo(to_json({"written": file}))
    else:
        typer.echo(f"Wrote {plain(file)}. Run it: {program()} run {quoted(file)}")


@command
def explain(
    term: Annotated[list[str] | None, typer.Argument(help="A term; none lists them all.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a term means: one sentence, its formula, its source.

    \b
    Example: treeline explain goodput
             treeline explain late credit
    """
    from dataclasses import asdict

    from dashboards.glossary import find, table, terms
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import stdout

    found = terms() if not term else (find(" ".join(term)),)
    if as_json:
        documents = [asdict(entry) for entry in found]
        typer.echo(to_json(documents[0] if term else {"terms": documents}))
    elif not term:
        stdout().print(table(found))
    else:
        typer.echo(f"{found[0].name}: {found[0].sentence}")
        for key in ("formula", "unit", "source"):
            if value := getattr(found[0], key):
                typer.echo(f"  {key:9}{value}")


@command
def show(
    directory: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Json = False,
) -> None:
    """Show the report of a run again, or its figures as JSON.

    \b
    Example: treeline show runs/quickstart
    """
    from scenarios.errors import UserError, printable
    from sim.store import load

    load(directory)
    place = Path(directory) / (SUMMARY if as_json else REPORT)
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read: {error}. Make the run again.") from None
    typer.echo(printable(text), nl=False)


@command
def report(
    directory: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    html: Annotated[str, typer.Option("--html", metavar="FILE", help="The file to write.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a run as one HTML file with its pictures, to send to somebody; needs `dashboard`.

    \b
    Example: treeline report runs/quickstart --html quickstart.html
    """
    from dashboards.commands.html import write
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import plain

    written = write(directory, html, force=force)
    text = f"Wrote {plain(str(written))}, {written.stat().st_size // 1000:,} kB. It needs nothing else."
    typer.echo(to_json({"written": str(written)}) if as_json else text)


@command
def dash(
    runs: Annotated[str, typer.Argument(help="The folder of run directories.")] = "runs",
    scenarios: Annotated[
        str,
        typer.Option(metavar="DIR", help="The folder of scenarios; by default those that ship."),
    ] = "",
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="N", help="Port on this machine.")
    ] = 8501,
    as_json: Json = False,
) -> None:
    """Open the page on a folder of runs, in the browser; needs the extra `dashboard`.

    \b
    Example: treeline dash runs
    """
    import signal
    import subprocess
    from importlib.util import find_spec

    from dashboards.terminal import as_json as to_json

    for module in EXTRAS["dashboard"][0]:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    if as_json:
        typer.echo(to_json({"url": f"http://localhost:{port}", "runs": runs}))
    page = str(HERE / "dashboards" / "app.py")
    options = (
        f"--server.port={port}",
        "--server.address=localhost",  # this machine alone
        "--browser.gatherUsageStats=false",
    )
    streamlit = [sys.executable, "-m", "streamlit", "run", page, *options, "--", runs, scenarios]
    with subprocess.Popen(streamlit, stdout=sys.stderr) as server:  # noqa: S603
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())  # whoever stops us stops it
        try:
            code = server.wait()
        except KeyboardInterrupt:  # it heard it too
            code = server.wait()
    raise typer.Exit(1 if code > 0 else 0)


@command
def price(
    what: Annotated[
        list[str],
        typer.Argument(metavar="RUN|SCENARIO", help="A run directory, or a scenario to run."),
    ],
    optimise: Annotated[
        bool,
        typer.Option("--optimise", help="Find the best menu; several runs are ways to play it."),
    ] = False,
    write: Annotated[
        str | None, typer.Option("--write", metavar="FILE", help="Save the best menu as a what-if.")
    ] = None,
    set_: Set = None,
    replications: Replications = None,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
    fail_on_promise: Annotated[
        bool, typer.Option("--fail-on-promise", help="Exit code 3 when a promise is refused.")
    ] = False,
) -> None:
    """List prices with margins and break-evens, promises kept or refused, reserves and subsidies.

    \b
    Example: treeline price runs/quickstart
             treeline price scenarios/quickstart.yaml --set pricing.calibration_queries=90
             treeline price scenarios/flat-to-confidence.yaml --optimise
    """
    from dashboards.commands import price as pricing
    from dashboards.terminal import as_json as to_json

    options = list(set_ or ())
    if replications is not None:
        options.append(f"replications={replications}")
    runs = pricing.directories(what, optimise=optimise)
    loaded = None if runs else _load(what[0], options)
    known: dict[str, Any] = {"workers": workers, "quiet": quiet, "as_json": as_json}
    refused = False
    if optimise:
        found = pricing.best_menu(loaded, runs, options, write=write, **known)
    elif write is not None:
        raise typer.BadParameter("--write saves what --optimise finds: add --optimise")
    else:
        found, refused = pricing.price(loaded, runs[0] if runs else None, options, **known)
    if as_json:
        typer.echo(to_json(found))
    if refused and fail_on_promise:
        raise typer.Exit(MISSED)


@command
def bill(
    what: Annotated[
        str, typer.Argument(metavar="RUN|SCENARIO", help="A run directory, or a scenario to run.")
    ],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="MODEL", help="An API model to compare; repeatable."),
    ] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="DATE", help="Day of its prices; today.")
    ] = None,
    set_: Set = None,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what a workload costs a month on whole nodes, and when an API would be cheaper.

    \b
    Example: treeline bill scenarios/thinking-r1.yaml
             treeline bill runs/quickstart --against gpt-5 --as-of 2026-11-01
    """
    from dashboards.commands import bill as bills
    from dashboards.terminal import as_json as to_json

    runs = bills.directories([what], optimise=False)
    loaded = None if runs else _load(what, set_ or ())
    found = bills.bill(
        loaded,
        what if runs else None,
        set_ or (),
        against or (),
        as_of,
        workers=workers,
        quiet=quiet,
        as_json=as_json,
    )
    if as_json:
        typer.echo(to_json(found))


@command
def controller(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A controller; by default the one that ships."),
    ] = None,
    questions: Annotated[
        int, typer.Option(min=2000, metavar="N", help="Held-out questions of the frozen mix.")
    ] = 24_000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Other questions.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Judge a learned controller: cost at equal accuracy, oracles, promises, a map of its decisions.

    Everything on questions that it never saw; takes two minutes.

    \b
    Example: treeline controller
             treeline controller mine.json --json
    """
    from dashboards.commands.controller import evaluate, text
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import progress

    with progress("a controller", quiet=quiet, doing="judging") as tell:
        found = evaluate(file, questions, seed, tell)
    typer.echo(to_json(found) if as_json else text(found))


@command
def catalog(
    kind: Annotated[
        str | None, typer.Argument(help="devices, models, presets or algorithms; all by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what scenarios can name: devices, models, presets and algorithms, with their sources.

    \b
    Example: treeline catalog devices
    """
    from dashboards import catalog as catalogues
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import near, plain, stdout
    from scenarios.errors import UserError

    kinds = catalogues.KINDS
    if kind is not None and kind not in kinds:
        known = f"{near(kind, kinds)} There are {', '.join(kinds)}."
        raise UserError(f"There is no catalogue of {plain(kind)!r}.{known}")
    chosen = kinds if kind is None else (kind,)
    if as_json:
        typer.echo(to_json({name: catalogues.data(name) for name in chosen}))
        return
    console = stdout()
    for name in chosen:
        console.print(catalogues.table(name))


@profile_app.callback()
@_guarded
def profile(
    ctx: typer.Context,
    device: Annotated[
        str | None, typer.Option("--device", "-d", metavar="cpu|cuda", help="What to measure.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model of the catalogue; repeatable."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A coarse grid: about a minute.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="OP", help="Only this operation; repeatable.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The device's name in scenarios.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="PATH", help="Else profiles/NAME; two files."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was interrupted.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be measured, and how long.")
    ] = False,
    quiet: Quiet = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure what one expansion of a search tree costs on this machine, operation by operation.

    Writes a profile that scenarios name: latency: {kind: profile, profile: PATH}. Ctrl-C keeps what
    was measured.

    \b
    Example: treeline profile --device cpu --quick
             treeline profile --device cuda --dry-run
             treeline profile show profiles/cpu
    """
    if ctx.invoked_subcommand is not None:
        return
    from dashboards.commands.profile import measured, outline_text, planned, request, text
    from dashboards.terminal import as_json as to_json

    flags = {"quick": quick, "name": name, "resume": resume, "force": force}
    asked = request(device, model or [], only or [], out, **flags)
    if dry_run:
        found = planned(asked)
        typer.echo(to_json(found) if as_json else outline_text(found))
        return
    found = measured(asked, quiet=quiet)
    typer.echo(to_json(found) if as_json else text(found))
    if not found["complete"]:
        raise typer.Exit(130)


@functools.partial(command, group=profile_app, name="show")
def profile_show(
    path: Annotated[str, typer.Argument(help="A profile, with or without its suffix.")],
    as_json: Json = False,
) -> None:
    """Show what a profile holds, with its roofline as a picture in text.

    \b
    Example: treeline profile show profiles/cpu
    """
    from dashboards.commands.profile_show import read, show, text
    from dashboards.terminal import as_json as to_json

    found = read(path)
    typer.echo(to_json(show(found)) if as_json else text(show(found), found))


@functools.partial(command, group=profile_app, name="import")
def profile_import(
    path: Annotated[
        str, typer.Argument(help="A folder or file; aiconfigurator means the installed package.")
    ],
    device: Annotated[
        str, typer.Option("--device", "-d", metavar="NAME", help="The device it was measured on.")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="PATH", help="PATH.parquet and PATH.yaml.")
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model, where the files do not say.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="AIConfigurator's tables: vllm, sglang, trtllm, or best."
        ),
    ] = "best",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Import what others measured: LLMServingSim's, Vidur's or AIConfigurator's tables.

    \b
    Example: treeline profile import data/vllm_rtx4090/profile --device rtx-4090-24gb --out my/4090
             treeline profile import aiconfigurator --device h200-sxm-141gb --out my/h200
    """
    from dashboards.commands.profile_import import import_profile, text
    from dashboards.terminal import as_json as to_json

    found = import_profile(path, device, out, model=model, engine=engine, force=force)
    typer.echo(to_json(found) if as_json else text(found))


@command
def validate(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A folder or file that a real engine's run left.")
    ],
    engine: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A scenario whose policy pool is the engine measured."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", metavar="NAME", help="Its device.")
    ] = None,
    set_: Set = None,
    scenario: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the scenario that is played here.")
    ] = None,
    diagnosis: Annotated[
        bool, typer.Option(help="Say which term of the model would explain what is left.")
    ] = True,
    quiet: Quiet = False,
    force: Force = False,
    as_json: Json = False,
    fail_on_error: Annotated[
        bool, typer.Option("--fail-on-error", help="Exit code 3 when an error is over its limit.")
    ] = False,
) -> None:
    """Compare the simulator with a real engine: a run that it served, or loads that it held.

    RUN is an LLMServingSim 2.0 bundle (requests.jsonl, meta.json, profile/), the JSON of
    `vllm bench serve --save-result --save-detailed`, which needs --engine, or serving points: a CSV
    file of TTFT and TPOT at a number of clients, as AIConfigurator's silicon samples.

    \b
    Example: treeline validate data/vllm_rtx4090
             treeline validate data/vllm_rtx4090 --set fleet.engine.kv.reclaim=youngest
             treeline validate result.json --engine my-engine.yaml
             treeline validate data/serving_points
    """
    from dashboards.commands import validate_points as points
    from dashboards.commands.validate import document, picture, validate_run
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import progress, stdout

    if points.is_points(run):
        given = {"--engine": engine, "--device": device, "--set": set_, "--scenario": scenario}
        with progress(run, quiet=quiet) as tell:
            report = points.validate_points(run, given, tell)
        if as_json:
            typer.echo(to_json(points.document(report)))
        else:
            stdout().print(points.picture(report))
        if fail_on_error and not report.holds:
            raise typer.Exit(MISSED)
        return
    with progress(run, quiet=quiet) as tell:
        found = validate_run(
            run,
            engine=engine,
            device=device,
            changes=set_ or (),
            scenario=scenario,
            diagnosis=diagnosis,
            force=force,
            tell=tell,
        )
    if as_json:
        typer.echo(to_json(document(found)))
    else:
        stdout().print(picture(found))
    if fail_on_error and not found.holds:
        raise typer.Exit(MISSED)


@command
def science(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Experiments; all by default.")
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0.01, max=100.0, metavar="X", help="Times as many questions.")
    ] = 1.0,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the page docs/science.md here.")
    ] = None,
    quiet: Quiet = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run every published comparison again: target, ours, tolerance, standard error, verdict.

    \b
    Example: treeline science
             treeline science math-500 bands --scale 4
    """
    from dashboards.commands.science import document, run_science, table, write_page
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import progress, stdout

    with progress("published comparisons", quiet=quiet, doing="running") as tell:
        rows = run_science(names or (), scale, tell)
    if markdown is not None:
        write_page(markdown, rows, names or (), scale, force=force)
    if as_json:
        typer.echo(to_json(document(rows)))
    else:
        stdout().print(table(rows))


@command
def frontier(
    target: Annotated[
        str, typer.Argument(help="A loss such as 2.0, or 70B: as good as a model of that size.")
    ],
    queries: Annotated[float, typer.Option(metavar="N", help="Queries in the model's life.")] = 1e9,
    tokens: Annotated[
        float, typer.Option(metavar="N", help="Generated tokens of a plain answer.")
    ] = 500.0,
    verification: Annotated[
        str, typer.Option(metavar="KIND", help="any, or cheap verification.")
    ] = "any",
    device: Annotated[
        str, typer.Option("--device", "-d", metavar="NAME", help="The device that is paid.")
    ] = "h200-sxm-141gb",
    as_json: Json = False,
) -> None:
    """Train more or think longer: the cheapest way to a quality for a volume of queries.

    \b
    Example: treeline frontier 70B --queries 1e6
             treeline frontier 2.0 --queries 1e12 --verification "cheap verification"
    """
    from dashboards.commands.frontier import frontier_of, picture, quality
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import stdout

    found = frontier_of(quality(target), queries, tokens, verification, device)
    if as_json:
        typer.echo(to_json(found))
    else:
        stdout().print(picture(found))


@functools.partial(command, group=fit_app, name="profile")
def fit_cost(
    profile: Annotated[
        str, typer.Argument(help="A profile that ships, by name, or the path of one.")
    ],
    record: Annotated[
        bool, typer.Option("--record", help="Note the error in the profile, for every report.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fit the cost model to a profile: its error where it has not looked, by operation, and a picture.

    \b
    Example: treeline fit profile h200-sxm-141gb-aiconfigurator
             treeline fit profile profiles/cpu --record
    """
    from dashboards.commands.fit_profile import document, fit_profile, picture
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import stdout

    found = fit_profile(profile, record=record)
    if as_json:
        typer.echo(to_json(document(*found)))
    else:
        stdout().print(picture(*found))


@functools.partial(command, group=fit_app, name="controller")
def fit_controller(
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Where to write it.")
    ] = "controller.json",
    questions: Annotated[
        int, typer.Option(min=1000, metavar="N", help="Training questions of the frozen mix.")
    ] = 30_000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Other questions.")] = 0,
    profile: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="Whose step costs price a token.")
    ] = None,
    from_logs: Annotated[
        str | None,
        typer.Option(metavar="CSV", help="Learn which plan a query needs from logged outcomes."),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(metavar="PLAN=USD", help="Of a plan in the logs, per million tokens."),
    ] = None,
    quiet: Quiet = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a controller from scratch: how much thinking is a query worth? A minute or two.

    \b
    Example: treeline fit controller --out mine.json
             treeline fit controller --from-logs outcomes.csv --price weak=0.6 --price strong=30
    """
    if from_logs is not None:
        from dashboards.commands import controller_logs
        from dashboards.terminal import as_json as to_json

        routed = controller_logs.learn_from(from_logs, price or (), seed)
        shown = controller_logs.document(routed) if as_json else None
        typer.echo(controller_logs.text(routed) if shown is None else to_json(shown))
        return
    from dashboards.commands.controller import train
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import plain, progress

    with progress("a controller", quiet=quiet, doing="fitting") as tell:
        found = train(out, questions, seed, profile=profile, force=force, tell=tell)
    if as_json:
        typer.echo(to_json(found))
    else:
        typer.echo(
            f"Wrote {plain(found['written'])}, learned from {found['questions']:,} questions. Use it: "
            f"controller: {{kind: learned, file: {plain(found['written'])}, value_per_correct: 0.05 USD}}"
        )
        for name, why in found["falls_back"].items():
            typer.echo(f"{plain(name)} falls back to its best fixed plan: {plain(why)}")


@functools.partial(command, group=fit_app, name="questions")
def fit_questions(
    data: Annotated[str, typer.Argument(help="A CSV or JSON Lines file, a row for every sample.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fit a class of questions, or a verifier, to graded samples: maximum likelihood and its misfit.

    Knows four kinds of file by their columns: graded answers (question, correct; answer, tokens,
    n_good_steps and scores are used where they are there), one sample of several models (NAME_correct),
    judged steps (depth, alive, value), and a published table (method, N, accuracy).

    \b
    Example: treeline fit questions samples.csv
    """
    from dashboards.commands.fit_questions import document, tables
    from dashboards.commands.fit_questions import fit_questions as fitted
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import progress, stdout

    with progress(data, quiet=quiet, doing="fitting") as tell:
        fits, skipped = fitted(data, tell)
    if as_json:
        typer.echo(to_json(document(data, fits, skipped)))
    else:
        stdout().print(tables(fits, skipped))


@functools.partial(command, group=fit_app, name="search")
def fit_search(
    algorithm: Annotated[str, typer.Argument(help="A search of `treeline catalog algorithms`.")],
    questions: Annotated[
        str, typer.Option("--questions", "-q", metavar="PRESET", help="A preset of questions.")
    ] = "math-500",
    verifier: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Else the one that fits the questions.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="Start from this; repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Train this parameter; repeatable."),
    ] = None,
    model: Annotated[str, typer.Option(help="Model that thinks, for its price.")] = "qwen2.5-7b",
    judge: Annotated[
        str, typer.Option(help="Model that judges, for its price.")
    ] = "qwen2.5-math-prm-7b",
    device: Annotated[str, typer.Option(help="Device of both.")] = "h200-sxm-141gb",
    count: Annotated[int, typer.Option(min=100, help="Questions to train on.")] = 3000,
    candidates: Annotated[int, typer.Option(min=5, help="Parameter settings to try.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Other questions of the same kind.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train the parameters of a search: more right answers for no more GPU-seconds, held out.

    \b
    Example: treeline fit search adaptive_vote
             treeline fit search tree_search --questions game-24 --only confidence --only margin
    """
    from dashboards.commands import fit_search as fit
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import progress, stdout
    from scenarios.errors import UserError

    given = dict(item.partition("=")[::2] for item in param or ())
    if not all(given.values()):
        raise UserError("--param takes NAME=VALUE, for example --param n=32")
    price = fit.priced(model, judge, device)
    with progress(algorithm, quiet=quiet, doing="training") as tell:
        found = fit.fit_search(
            algorithm, questions, given, only=only or None, verifier=verifier, price=price,
            questions=count, candidates=candidates, seed=seed, tell=tell,
        )  # fmt: skip
    if as_json:
        typer.echo(to_json(fit.document(found, questions)))
    else:
        stdout().print(fit.text(found, questions))


@command
def searches(
    questions: Annotated[
        str, typer.Argument(metavar="PRESET", help="A preset of questions.")
    ] = "math-500",
    n: Annotated[int, typer.Option("-n", min=1, max=1024, help="Size of each search.")] = 16,
    verifier: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Else the one that fits the questions.")
    ] = None,
    count: Annotated[int, typer.Option(min=10, help="Questions.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Other questions of the same kind.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare every search on the same questions: accuracy, tokens, tokens on the critical path.

    \b
    Example: treeline searches math-500 -n 16
    """
    from dashboards.commands import searches as them
    from dashboards.terminal import as_json as to_json
    from dashboards.terminal import progress, stdout

    where = them.bench(questions, verifier, seed)
    with progress(questions, quiet=quiet, doing="searching") as tell:
        rows = them.compare(where, n, count, tell)
    if as_json:
        typer.echo(to_json(them.document(where, rows, count)))
    else:
        stdout().print(them.table(where, rows, count))


def _load(file: str, overrides: Any) -> Loaded:
    """Load a scenario; one that ships with Treeline is found from any folder."""
    from scenarios.loader import load

    shipped = HERE / "scenarios" / Path(file).name
    ours = Path(file).parent in (Path("scenarios"), Path()) and shipped.is_file()
    return load(shipped if ours and not Path(file).exists() else file, overrides)


def _report(
    job: Job, result: Result, base: Result | None, options: list[str], *, force: bool, silent: bool
) -> dict[str, Any]:
    """Price, compare, save and print one run; returns its summary. Raises UserError when unwritable."""
    import os

    from dashboards.report import report, summary, to_text
    from dashboards.terminal import WIDTH, as_json, program, quoted, stdout
    from pricing.contract import price
    from sim.compare import compare
    from sim.store import save

    loaded = job.loaded
    priced = price(_timeless(result), loaded.scenario)
    comparison = None
    if base is not None and loaded.base is not None:
        comparison = compare(price(base, loaded.base.scenario).result, priced.result)
    known = (priced.result, loaded, priced, comparison)
    document = summary(*known, run_dir=job.place)
    asked = Path(loaded.name)
    file = asked.relative_to(HERE) if asked.is_relative_to(HERE) else asked  # found from anywhere
    words = ["run", quoted(str(file)), *(f"--set {quoted(text)}" for text in options)]
    texts = {
        REPORT: to_text(*known, command=" ".join(["treeline", *words])),
        SUMMARY: as_json(summary(*known)) + "\n",
    }
    save(priced.result, loaded, job.place, force=force, reports=texts)
    if silent:
        return document
    again = " ".join([program(), *words])
    if sys.stdout.isatty():
        stdout().print(report(*known, job.place, again))
    else:
        width = int(os.environ.get("COLUMNS", "") or WIDTH)
        typer.echo(to_text(*known, job.place, again, width), nl=False)
    return document


def _timeless(result: Result) -> Result:
    """Leave out what differs from run to run, so that the same seed gives the same bytes."""
    from dataclasses import replace

    kept = {k: v for k, v in result.meta.items() if k not in ("wall_s", "workers", "simulate_s")}
    return replace(result, meta=kept)


def _refuse(error: Exception, *, as_json: bool, code: int = USAGE) -> NoReturn:
    """End with the message on stderr, and where JSON was asked for with a document on stdout too."""
    from dashboards.terminal import as_json as to_json
    from scenarios.errors import ScenarioError

    typer.echo(str(error), err=True)
    if as_json:
        problems = error.problems if isinstance(error, ScenarioError) else ()
        listed = [{"where": str(p.where), "message": p.message, "hint": p.hint} for p in problems]
        typer.echo(to_json({"error": str(error), "problems": listed}))
    raise typer.Exit(code) from None


def _install(extra: str, packages: str) -> str:
    """The command that installs an extra here."""
    from dashboards.terminal import quoted

    if extra == "dashboard" and (HERE / "Makefile").is_file():
        return f"Install it and open the page: make -C {quoted(str(HERE))} dash"
    return f"Install it: pip --python {quoted(sys.executable)} install {packages}"


if __name__ == "__main__":
    main()
