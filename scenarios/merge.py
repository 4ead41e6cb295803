"""How a what-if changes its base: a mapping merges, a scalar or list replaces, null deletes.

A mapping whose `kind` changes is replaced whole, because the other kind has other keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from scenarios.document import Value
from scenarios.errors import Mark

Keys = tuple[str, ...]
DEFAULT_KINDS: Final[Mapping[str, str]] = {
    "arrivals": "poisson",
    "latency": "auto",
    "controller": "fixed",
}


def merge(base: Value, over: Value, path: Keys = ()) -> tuple[Value, list[tuple[Keys, Mark]]]:
    """`over` on top of `base`, and the nulls that had nothing to delete. Neither is changed."""
    if not isinstance(over.data, dict):
        return over, []
    if not isinstance(base.data, dict) or _kind_changes(base, over, path):
        base = Value({}, over.at)
    assert isinstance(base.data, dict)
    data, keys = dict(base.data), dict(base.keys)
    unused: list[tuple[Keys, Mark]] = []
    for key, item in over.data.items():
        where = over.keys.get(key, item.at)
        if item.data is None:
            if data.pop(key, None) is None:
                unused.append(((*path, key), where))
            keys.pop(key, None)
            continue
        merged, deeper = merge(data.get(key, Value({}, item.at)), item, (*path, key))
        data[key], keys[key] = merged, where
        unused += deeper
    return Value(data, over.at if not base.data else base.at, keys), unused


def _kind_changes(base: Value, over: Value, path: Keys) -> bool:
    new = over.get("kind")
    if new is None:
        return False
    old = base.get("kind")
    default = DEFAULT_KINDS.get(path[-1]) if path else None
    return new.data != (old.data if old is not None else default)


def overlay(first: Value, second: Value) -> Value:
    """Two sets of changes as one, the second in force; nulls stay, to delete later."""
    if not isinstance(first.data, dict) or not isinstance(second.data, dict):
        return second
    data, keys = dict(first.data), dict(first.keys)
    for key, item in second.data.items():
        data[key] = overlay(data[key], item) if key in data else item
        keys[key] = second.keys.get(key, item.at)
    return Value(data, first.at, keys)


def wrapped(path: Keys, value: Value) -> Value:
    """`value` as the only leaf of nested mappings along `path`."""
    for key in reversed(path):
        value = Value({key: value}, value.at, {key: value.at})
    return value


def locate(tree: Value, path: Keys) -> Mark:
    """Where the value at `path` was written: its key's place for a mapping, else its own."""
    mark, found = tree.at, tree
    for key in path:
        inside: Value | None = None
        if isinstance(found.data, dict):
            inside = found.data.get(key)
        elif isinstance(found.data, list) and str(key).isdigit() and int(key) < len(found.data):
            inside = found.data[int(key)]
        if inside is None:
            break
        nested = isinstance(inside.data, dict) and isinstance(found.data, dict)
        mark = found.keys.get(key, inside.at) if nested else inside.at
        found = inside
    return mark


def locate_key(tree: Value, path: Keys) -> Mark:
    """Where the last key of `path` was written, or the nearest mapping around it."""
    parent = tree.get(*path[:-1]) if path else None
    if parent is not None and path[-1] in parent.keys:
        return parent.keys[path[-1]]
    return locate(tree, path)


def with_paths_resolved(tree: Value) -> Value:
    """File names inside the scenario made relative to the working directory, as `--set` ones are."""
    paths: list[Keys] = [("workload", "arrivals", "path"), ("controller", "file")]
    fleet = tree.get("fleet")
    if fleet is not None and isinstance(fleet.data, dict):
        paths += [("fleet", name, "model", "config") for name in fleet.data]
    for path in paths:
        value = tree.get(*path)
        if value is None or not isinstance(value.data, str) or not value.at.line or not value.data:
            continue
        joined = os.path.normpath(Path(value.at.name).parent / value.data)
        tree = merge(tree, wrapped(path, replace(value, data=joined)))[0]
    return tree
