"""Scenarios as the page sees them: texts of one folder, checked before they run, and nothing beside it.

A person at the page may type any YAML. What it may name are the scenarios of the folder and files
below the roots that `treeline dash` was given; what it may not read is refused before it is opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios import document
from scenarios.document import Value
from scenarios.errors import Problem, ScenarioError, UserError
from scenarios.loader import Loaded, loads
from sim.resolve import Estimate, estimate, resolve

_OWN_WORDS = ("name", "question")  # free text, never a file
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Draft:
    """A scenario that may run: what `worker.start` needs, and how big it will be."""

    name: str
    main: str
    files: dict[str, str]
    options: tuple[str, ...]
    loaded: Loaded
    size: Estimate


def names(folder: Path) -> list[str]:
    """Return the scenario files of `folder`; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())


def text(folder: Path, name: str) -> str:
    """Return the text of one scenario of `folder`. Raises UserError for another name."""
    if name not in names(folder):
        raise UserError(f"There is no scenario {name!r} here. Choose one from the list.")
    with (folder / name).open("rb") as file:
        return file.read(document.MAX_BYTES).decode("utf-8", errors="replace")


def check(folder: Path, name: str, written: str, roots: Sequence[Path] = ()) -> Draft:
    """Check the text of a scenario as if it lay in `folder` as `name`.

    Raises: ScenarioError with every problem at its line, also where the text names a file that is
    neither a scenario of the folder nor below one of `roots`; UserError where the run is absurd.
    """
    place = folder / Path(name).name
    allowed = [folder.resolve(), *(root.resolve() for root in roots)]
    files = {place.name: written}
    tree = document.read(written, str(place))
    _check_files(tree, folder, allowed)
    above = tree.get("extends")
    while above is not None and above.data is not None:
        other = str(above.data)
        if other != Path(other).name or other not in names(folder):
            near = ", ".join(names(folder)) or "none yet"
            raise _refused(above, "the page extends scenarios of its own folder", f"one of: {near}")
        if other in files:
            break  # the loader says that it goes in a circle
        files[other] = text(folder, other)
        tree = document.read(files[other], str(folder / other))
        _check_files(tree, folder, allowed)
        above = tree.get("extends")
    loaded = loads(written, str(place))
    size = estimate(resolve(loaded))
    if loaded.sweep_cells():
        raise _refused(
            loaded.tree.get("sweep") or loaded.tree,
            "the page runs one scenario at a time, and a sweep is many",
            "run it in a terminal: treeline run FILE --out runs",
        )
    return Draft(loaded.scenario.name, place.name, files, tuple(_options(loaded)), loaded, size)


def difference(loaded: Loaded) -> list[tuple[str, str, str]]:
    """What a what-if changes: (key, in the base, here), in the order of the scenario.

    Empty for a scenario that extends nothing.
    """
    if loaded.base is None:
        return []
    before, after = (dict(_leaves(item.raw)) for item in (loaded.base, loaded))
    keys = [key for key in {**before, **after} if key.split(".")[0] not in _OWN_WORDS]
    return [
        (key, before.get(key, "-"), after.get(key, "-"))
        for key in keys
        if before.get(key) != after.get(key)
    ]


def short(error: UserError, folder: Path) -> str:
    """The message of an error with the folder's path left out."""
    return str(error).replace(f"{folder}{os.sep}", "")


def _leaves(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(data, dict) and data:
        for key, item in data.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, data if isinstance(data, str) else json.dumps(data)


def _words(value: Value, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Value]]:
    """Every text in a scenario with the path of its keys."""
    if isinstance(value.data, dict):
        for key, item in value.data.items():
            yield from _words(item, (*path, key))
    elif isinstance(value.data, list):
        for number, item in enumerate(value.data):
            yield from _words(item, (*path, str(number)))
    elif isinstance(value.data, str):
        yield path, value


def _check_files(tree: Value, folder: Path, allowed: Sequence[Path]) -> None:
    """Refuse every text that names a file outside `allowed`, whatever key it stands under."""
    for path, value in _words(tree):
        if path[:1] in {(word,) for word in _OWN_WORDS}:
            continue
        word = str(value.data)
        if not _names_a_file(word, folder):
            continue
        target = (folder / word).resolve()
        if not any(target.is_relative_to(root) for root in allowed):
            listed = ", ".join(root.name for root in allowed)
            raise _refused(
                value,
                "the page may not read this file",
                f"it reads files in these folders only: {listed}; use `treeline run` for others",
            )


def _names_a_file(word: str, folder: Path) -> bool:
    path = Path(word)
    if path.is_absolute() or ".." in path.parts:
        return True
    try:
        return (folder / path).exists()
    except (OSError, ValueError):
        return False


def _options(loaded: Loaded) -> Iterator[str]:
    """Files that the scenario names, found from the working directory instead of from its own."""
    arrivals = loaded.scenario.workload.arrivals
    path = getattr(arrivals, "path", None)
    if path is not None:
        yield from ("--set", f"workload.arrivals.path={json.dumps(os.path.relpath(path))}")
    for name, pool in loaded.scenario.fleet.items():
        if isinstance(pool.model, dict):
            config = json.dumps(os.path.relpath(pool.model["config"]))
            yield from ("--set", f"fleet.{name}.model.config={config}")


def _refused(value: Value, message: str, hint: str) -> ScenarioError:
    return ScenarioError((Problem(value.at, message, hint),))
