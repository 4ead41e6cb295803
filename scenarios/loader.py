"""A scenario file becomes a Scenario: extends, --set, sweep cells, and every error where it was written."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from scenarios import document, explain, merge, rules
from scenarios.document import Value
from scenarios.errors import Mark, Problem, ScenarioError
from scenarios.schema import Scenario

MAX_CELLS: Final = 1000
_MAX_EXTENDS: Final = 16
_OWN_KEYS: Final = ("name", "question", "extends")  # not inherited from the file that is extended


@dataclass(frozen=True, slots=True)
class Loaded:
    """A scenario, the text it came from and the data after `extends` and `--set`.

    `base` is the file that it extends, loaded with the same overrides where they exist there;
    None without `extends`, and where that file is no complete scenario of its own.
    """

    scenario: Scenario
    raw: dict[str, Any]
    text: str
    name: str
    base: Loaded | None
    tree: Value

    def where(self, path: Sequence[str]) -> str:
        """`file:line:col` of a value by its path of keys, or of the nearest mapping around it."""
        return str(merge.locate(self.tree, tuple(path)))

    def sweep_cells(self) -> list[tuple[str, Loaded]]:
        """Every cell of the sweep grid with its label, in the grid's order; [] without a sweep.

        Raises ScenarioError when a combination of values is not a scenario.
        """
        sweep = self.scenario.sweep
        if sweep is None:
            return []
        grid = self.tree.get("sweep", "grid")
        assert grid is not None
        assert isinstance(grid.data, dict)
        axes = [(path, _items(values)) for path, values in grid.data.items()]
        leaf = [path.split(".")[-1] for path, _ in axes]
        names = [
            path if leaf.count(end) > 1 else end for (path, _), end in zip(axes, leaf, strict=True)
        ]
        cells: list[tuple[str, Loaded]] = []
        problems: list[Problem] = []
        for number, values in enumerate(itertools.product(*(items for _, items in axes))):
            paths = [tuple(path.split(".")) for path, _ in axes]
            label = ", ".join(f"{n}={_label(v)}" for n, v in zip(names, values, strict=True))
            if not sweep.common_random_numbers:
                paths.append(("seed",))
                values = (*values, Value(self.scenario.seed + number, grid.at))
            try:
                cells.append((label, self._cell(paths, values)))
            except ScenarioError as error:
                problems += error.problems
        _raise_any(problems)
        return cells

    def _cell(self, paths: Sequence[tuple[str, ...]], values: Sequence[Value]) -> Loaded:
        tree = self.tree
        problems: list[Problem] = []
        for path, value in zip(paths, values, strict=True):
            problems += explain.unknown_path(tree, path, value.at)
            tree = merge.merge(tree, merge.wrapped(path, value))[0]
        _raise_any(problems)
        assert isinstance(tree.data, dict)
        tree = replace(tree, data={k: v for k, v in tree.data.items() if k != "sweep"})
        return Loaded(_validated(tree), tree.plain(), self.text, self.name, None, tree)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Loaded:
    """Load a scenario file with `a.b.c=value` overrides. Raises ScenarioError with all problems."""
    name = os.fspath(path)
    return _load(name, _text_of(Mark(name), name), tuple(overrides), ())


def loads(text: str, name: str = "<string>", overrides: Sequence[str] = ()) -> Loaded:
    """Load a scenario from text; `extends` is relative to the working directory. Raises ScenarioError."""
    return _load(name, text, tuple(overrides), ())


def _load(name: str, text: str, overrides: tuple[str, ...], chain: tuple[str, ...]) -> Loaded:
    chain = (*chain, name)
    own = document.read(text, name)
    if not isinstance(own.data, dict):
        hint = "begin with fleet:, workload: and tiers:, or see `treeline new FILE`"
        _refuse(own.at, "a scenario is a mapping of keys to values", hint)
    parent, parent_problems = _parent(own, chain)
    tree = parent if parent is not None else Value({}, own.at)
    tree, unused = merge.merge(tree, own)
    problems = parent_problems + explain.useless_nulls(tree, unused)
    tree, kept, wrong = _overridden(tree, overrides)
    problems += wrong
    assert isinstance(tree.data, dict)
    tree.data.pop("extends", None)
    tree.data.setdefault("name", Value(_name_from(name), own.at))
    try:
        scenario = _validated(tree)
    except ScenarioError as error:
        _raise_any(problems + list(error.problems))
        raise
    _raise_any(problems)
    loaded = Loaded(scenario, tree.plain(), text, name, _base(own, kept, chain), tree)
    loaded.sweep_cells()
    return loaded


def _parent(own: Value, chain: tuple[str, ...]) -> tuple[Value | None, list[Problem]]:
    """The merged data of the files that this one extends, before any override."""
    assert isinstance(own.data, dict)
    extends = own.data.get("extends")
    if extends is None or extends.data is None:
        return None, []
    name = _extended(extends, chain)
    base = document.read(_text_of(extends.at, name), name)
    if not isinstance(base.data, dict):
        _refuse(base.at, "a scenario is a mapping of keys to values", "is this the right file?")
    above, problems = _parent(base, (*chain, name))
    tree, unused = merge.merge(above or Value({}, base.at), base)
    problems = problems + explain.useless_nulls(tree, unused)
    assert isinstance(tree.data, dict)
    inherited = {key: item for key, item in tree.data.items() if key not in _OWN_KEYS}
    return replace(tree, data=inherited), problems


def _extended(extends: Value, chain: tuple[str, ...]) -> str:
    """The path of the extended file as shown to the user; refuses a cycle."""
    target = extends.data
    if not isinstance(target, str) or not target or "\0" in target:
        _refuse(extends.at, "extends wants the path of a scenario", "write extends: other.yaml")
    name = os.path.normpath(Path(chain[-1]).parent / target)
    seen = [os.path.realpath(item) for item in chain]
    if os.path.realpath(name) in seen:
        shown = " -> ".join((*chain, name))
        _refuse(extends.at, f"extends goes in a circle: {shown}", "remove one of these extends")
    if len(chain) > _MAX_EXTENDS:
        _refuse(extends.at, f"extends goes through more than {_MAX_EXTENDS} files", "merge some")
    return name


def _base(own: Value, overrides: tuple[str, ...], chain: tuple[str, ...]) -> Loaded | None:
    """The extended file as a scenario of its own, with the overrides that exist in it."""
    extends = own.get("extends")
    if extends is None or extends.data is None:
        return None
    name = _extended(extends, chain)
    text = _text_of(extends.at, name)
    plain = _parent(Value({"extends": extends}, extends.at), chain)[0]
    assert plain is not None
    shared = [
        text
        for text in overrides
        if text.split("=")[0].split(".")[0].strip() not in _OWN_KEYS
        and not explain.unknown_path(plain, _split(text)[0], extends.at)
    ]
    try:
        return _load(name, text, tuple(shared), chain)
    except ScenarioError:  # a fragment that only its extensions complete
        return None


def _overridden(
    tree: Value, overrides: tuple[str, ...]
) -> tuple[Value, tuple[str, ...], list[Problem]]:
    """The tree with all overrides merged at once, later ones first in force; those used; the wrong ones."""
    over = Value({}, Mark("--set"))
    kept: list[str] = []
    problems: list[Problem] = []
    for text in overrides:
        at = Mark(f"--set {text}")
        path, value_text = _split(text)
        if not all(path) or value_text is None or len(path) > document.MAX_DEPTH:
            hint = "write for example --set workload.arrivals.rate=12/s"
            problems.append(Problem(at, "an override is a dotted path, = and a value", hint))
            continue
        if path[0] == "extends":
            problems.append(Problem(at, "extends is set in the file only", "copy the file"))
            continue
        try:
            value = document.read_value(value_text, at)
        except ScenarioError as error:
            problems += error.problems
            continue
        seen = merge.merge(tree, over)[0]
        wrong = explain.unknown_path(seen, path, at)
        if not wrong:
            over = merge.overlay(over, merge.wrapped(path, value))
            kept.append(text)
        problems += wrong
    tree, unused = merge.merge(tree, over)
    return tree, tuple(kept), problems + explain.useless_nulls(tree, unused)


def _split(override: str) -> tuple[tuple[str, ...], str | None]:
    path, equals, value = override.partition("=")
    return tuple(part.strip() for part in path.split(".")), value if equals else None


def _validated(tree: Value) -> Scenario:
    """The Scenario of merged data. Raises ScenarioError with schema errors and broken rules together."""
    data = tree.plain()
    problems = [
        Problem(merge.locate(tree, path), message, hint)
        for path, message, hint in rules.check(data)
    ]
    scenario = None
    try:
        scenario = Scenario.model_validate(merge.with_paths_resolved(tree).plain())
    except ValidationError as error:
        problems += explain.problems(error, tree)
    if scenario is not None and scenario.sweep is not None:
        problems += _sweep_problems(tree)
    _raise_any(problems)
    assert scenario is not None
    return scenario


def _sweep_problems(tree: Value) -> list[Problem]:
    grid = tree.get("sweep", "grid")
    assert grid is not None
    assert isinstance(grid.data, dict)
    problems: list[Problem] = []
    cells = 1
    for path, values in grid.data.items():
        at = grid.keys[path]
        parts = tuple(path.split("."))
        cells *= max(1, len(_items(values)))
        if not _items(values):
            problems.append(Problem(at, f"no values for {path}", "give a list: [6/s, 12/s]"))
        if parts[0] in ("sweep", *_OWN_KEYS) or not all(parts):
            problems.append(
                Problem(at, f"{path} cannot be swept", "sweep a setting of the scenario")
            )
        else:
            problems += explain.unknown_path(tree, parts, at)
    if cells > MAX_CELLS:
        hint = "give fewer values, or split the sweep into several files"
        problems.append(
            Problem(grid.at, f"the grid has {cells:,} cells, at most {MAX_CELLS:,}", hint)
        )
    return problems


def _items(values: Value) -> list[Value]:
    return values.data if isinstance(values.data, list) else []


def _label(value: Value) -> str:
    plain = value.plain()
    return str(plain) if not isinstance(plain, bool) else str(plain).lower()


def _raise_any(problems: Sequence[Problem]) -> None:
    unique = {(problem.where, problem.message): problem for problem in problems}
    if unique:
        order = sorted(unique.values(), key=_place)
        raise ScenarioError(tuple(order))


def _place(problem: Problem) -> tuple[bool, str, int, int]:
    where = problem.where
    return where.line == 0, where.name, where.line, where.column


def _name_from(path: str) -> str:
    return (
        re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(path).stem).strip("-.")[:100].lstrip("_.-")
        or "scenario"
    )


def _text_of(asked: Mark, name: str) -> str:
    """The text of a scenario file; `asked` is where it was named. Raises ScenarioError."""
    try:
        path = Path(name)
        if path.is_dir():
            _refuse(asked, f"{name} is a directory", "name a scenario file in it")
        if path.exists() and not path.is_file():
            _refuse(asked, f"{name} is not a regular file", "name a scenario file")
        with path.open("rb") as file:
            data = file.read(document.MAX_BYTES + 1)
    except FileNotFoundError:
        _refuse(asked, f"there is no file {name}", _similar_file(name))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _refuse(asked, f"cannot read {name}: {reason}", "check the path and its permissions")
    if len(data) > document.MAX_BYTES:
        message = f"{name} is larger than the limit of {document.MAX_BYTES // 1_000_000} MB"
        _refuse(asked, message, "a scenario is a page or two of settings; is this the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        hint = f"save it as UTF-8: iconv -f latin1 -t utf-8 {name}"
        _refuse(Mark(name, line, column), f"byte 0x{data[error.start]:02x} is not UTF-8", hint)


def _similar_file(name: str) -> str:
    folder = Path(name).parent
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    try:
        files = sorted(item.name for item in folder.iterdir() if item.suffix in (".yaml", ".yml"))
    except OSError:
        files = []
    hint = rules.nearest(Path(name).name, tuple(files))
    return hint or "`treeline new FILE` writes a first scenario"


def _refuse(where: Mark, message: str, hint: str) -> NoReturn:
    raise ScenarioError((Problem(where, message, hint),))
