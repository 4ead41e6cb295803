"""What a command is to simulate: every file and cell resolved, with its base and a free place, before any starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from scenarios.loader import Loaded
from sim.records import Result
from sim.resolve import Resolved, resolve
from sim.run import Progress, run
from sim.store import check_free

Watch = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One simulation: its scenario, the base it is compared with, and where its run directory goes."""

    label: str
    resolved: Resolved
    base: Resolved | None
    place: Path

    @property
    def loaded(self) -> Loaded:
        """The scenario as loaded."""
        return self.resolved.loaded


def jobs(
    loaded: Sequence[Loaded], out: str | None = None, *, force: bool = False
) -> tuple[Job, ...]:
    """All jobs of some scenarios, one for each cell of a sweep.

    A single job goes to `out`, several go to folders in it; without `out` the place is runs/NAME, or
    the next free runs/NAME-2 unless `force`. Raises UserError where anything would fail later.
    """
    planned: list[Job] = []
    taken: set[Path] = set()
    cells = [(item, label, cell) for item in loaded for label, cell in _cells(item)]
    bases = {id(item): None if item.base is None else resolve(item.base) for item in loaded}
    for item, label, cell in cells:
        name = "-".join(filter(None, (item.scenario.name, _folder(label))))
        place = Path(out) if out and len(cells) == 1 else Path(out or "runs") / name
        if place in taken or not (out or force):
            place = _next_free(place, taken)
        check_free(place, force=force)
        taken.add(place)
        shown = " ".join(filter(None, (item.scenario.name, label)))
        planned.append(Job(shown, resolve(cell), bases[id(item)], place))
    return tuple(planned)


def simulate(
    job: Job, bases: dict[str, Result], watch: Watch, workers: int | None = None
) -> tuple[Result, Result | None]:
    """The result of a job, and of its base on the same seed.

    `bases` keeps the results of bases, so that what-ifs of one base run it once; `watch(what)` opens
    the progress of one simulation.
    """
    base = None
    scenario = job.loaded.scenario
    if job.base is not None:
        seed, replications = scenario.seed, scenario.replications
        asked = job.base.loaded.scenario
        key = f"{seed} {replications} {asked.model_dump_json()}"
        if key not in bases:
            with watch(f"{asked.name}, the base") as progress:
                bases[key] = run(
                    job.base,
                    seed=seed,
                    replications=replications,
                    workers=workers,
                    progress=progress,
                )
        base = bases[key]
    with watch(job.label) as progress:
        return run(job.resolved, workers=workers, progress=progress), base


def _cells(loaded: Loaded) -> list[tuple[str, Loaded]]:
    return loaded.sweep_cells() or [("", loaded)]


def _folder(label: str) -> str:
    """A label as the name of a folder: rate=6/s, replicas=4 -> rate=6-s-replicas=4."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._=") else "-" for c in label)
    return "-".join(part for part in kept.split("-") if part)[:120]


def _next_free(place: Path, taken: set[Path]) -> Path:
    numbered, number = place, 1
    while numbered in taken or numbered.exists():
        number += 1
        numbered = place.with_name(f"{place.name}-{number}")
    return numbered
