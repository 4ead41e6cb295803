"""What the schema found wrong, in words a stranger can act on: the place, the rule, and "did you mean".

Which keys exist where is read off the JSON Schema, so that this file knows no field by name
except those of later releases and the examples it offers.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from scenarios import merge, rules, units
from scenarios.document import Value
from scenarios.errors import Mark, Problem
from scenarios.merge import Keys
from scenarios.schema import json_schema

_LATER: Final = frozenset(
    [
        "versions",
        "rollback",
        "autoscale",
        "failures",
        "canary",
        "objective",
        "swap",
        "best_fixed",
        "oracle",
        "learned",
        "dvts",
        "rebase",
        "mcts",
        "speculative",
    ]
)
_LATER_HINT: Final = "not in this version; remove it"
_EXAMPLES: Final[Mapping[str, str]] = {
    "fleet": "fleet: {thinker: {model: llama-3.1-8b, device: h200-sxm-141gb}}",
    "workload": "workload: {arrivals: {rate: 3/s}, classes: {chat: {preset: chat}}}",
    "tiers": "tiers: {fast: {search: {algorithm: direct}, slo: {e2e_p95: 20s}}}",
    "arrivals": "arrivals: {rate: 3/s}",
    "classes": "classes: {chat: {preset: chat}}",
    "model": "model: llama-3.1-8b",
    "device": "device: h200-sxm-141gb",
    "rate": "rate: 3/s",
    "cv": "cv: 2.3",
    "median": "median: 600",
    "sigma": "sigma: 0.9",
    "value": "value: 600",
    "low": "low: 100",
    "high": "high: 900",
    "values": "values: [100, 900]",
    "probs": "probs: [40%, 60%]",
    "grid": "grid: {workload.arrivals.rate: [6/s, 12/s]}",
}
_TRACES: Final[Mapping[str, tuple[str, str]]] = {  # format -> file, where it is published
    "azure": ("AzureLLMInferenceTrace_conv.csv", "github.com/Azure/AzurePublicDataset (data/)"),
    "mooncake": (
        "conversation_trace.jsonl",
        "github.com/kvcache-ai/Mooncake (FAST25-release/traces/)",
    ),
    "burstgpt": ("BurstGPT_1.csv", "github.com/HPMLL/BurstGPT (data/)"),
    "servegen": ("CLIENT_FOLDER", "github.com/alibaba/ServeGen (data/)"),
    "bailian": (
        "qwen_thinking_blksz_16.jsonl",
        "github.com/alibaba-edu/qwen-bailian-usagetraces-anon",
    ),
}


def problems(error: ValidationError, tree: Value) -> list[Problem]:
    """The problems of a validation, each where it was written in `tree`."""
    found = (_problem(item, tree) for item in error.errors(include_url=False))
    return list({(p.where, p.message): p for p in found}.values())


def unknown_path(tree: Value, path: Keys, at: Mark) -> list[Problem]:
    """The problem of setting `path` when neither the data nor the schema has it; [] when it exists."""
    found: Value | None = tree
    for depth, key in enumerate(path):
        here = path[:depth]
        keys, names, free = _known(here)
        inside = found.data.get(key) if found and isinstance(found.data, dict) else None
        if free or inside is not None or key in keys or (names and depth == len(path) - 1):
            found = inside
            continue
        present = list(found.data) if found and isinstance(found.data, dict) else []
        return [Problem(at, _nowhere(path, depth), _elsewhere(tree, path, (*keys, *present)))]
    return []


def useless_nulls(tree: Value, unused: Sequence[tuple[Keys, Mark]]) -> list[Problem]:
    """Nulls that delete nothing: fine for a known key (it keeps its default), a slip for another."""
    found: list[Problem] = []
    for path, mark in unused:
        keys, _, free = _known(path[:-1])
        if path[-1] not in keys and not free:
            parent = tree.get(*path[:-1])
            present = tuple(parent.data) if parent and isinstance(parent.data, dict) else ()
            message = f"there is no {'.'.join(path)} to delete"
            found.append(Problem(mark, message, rules.nearest(path[-1], (*keys, *present))))
    return found


def _nowhere(path: Keys, depth: int) -> str:
    where = f" in {'.'.join(path[:depth])}" if depth else ""
    return f"there is no {path[depth]!r}{where}"


def _elsewhere(tree: Value, path: Keys, near: tuple[str, ...]) -> str:
    """The likely path: a misspelt key here, or the same leaf somewhere else in the scenario."""
    if path[-1] in _LATER:
        return _LATER_HINT
    everywhere = sorted(item for item in _paths(tree) if not item.startswith("sweep."))
    depth = next(i for i in range(len(path)) if ".".join(path[: i + 1]) not in everywhere)
    close = difflib.get_close_matches(path[depth], near, n=1, cutoff=0.6)
    same = [item for item in everywhere if item.rsplit(".", 1)[-1] == path[-1]]
    if close and not (len(path) == 1 and same):
        return f"did you mean {'.'.join((*path[:depth], close[0], *path[depth + 1 :]))}?"
    close = same[:3]
    if not close and depth + 1 < len(
        path
    ):  # else the place is right, and its own keys are the answer
        close = difflib.get_close_matches(".".join(path), everywhere, n=2, cutoff=0.7)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return rules.nearest(path[depth], tuple(dict.fromkeys(near)))


def _paths(tree: Value, path: Keys = ()) -> Iterator[str]:
    """Every dotted path that the data or the schema has below `path`, one level past the data."""
    present = tree.data if isinstance(tree.data, dict) else {}
    for key in {*present, *_known(path)[0]}:
        yield ".".join((*path, key))
        deeper = present.get(key, Value({}, tree.at))
        if isinstance(deeper.data, dict) and len(path) < 6:
            yield from _paths(deeper, (*path, key))


@functools.cache
def _schema() -> dict[str, Any]:
    return json_schema()


def _branches(nodes: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Schema nodes with references followed and alternatives spread out."""
    for node in nodes:
        if "$ref" in node:
            yield from _branches([_schema()["$defs"][node["$ref"].rsplit("/", 1)[-1]]])
        elif "anyOf" in node:
            yield from _branches(node["anyOf"])
        else:
            yield node


def _nodes(path: Keys, kind: Any = None) -> list[dict[str, Any]]:
    """The schema nodes at a path; with `kind`, only those of that kind."""
    nodes = list(_branches([_schema()]))
    for key in path:
        inner: list[Any] = []
        for node in nodes:
            if key in node.get("properties", {}):
                inner.append(node["properties"][key])
            else:
                inner += [item for item in _open_values(node) if isinstance(item, dict)]
        nodes = list(_branches(inner))
    of_kind = [n for n in nodes if _schema_kind(n) == kind] if isinstance(kind, str) else []
    return of_kind or nodes


def _open_values(node: dict[str, Any]) -> list[Any]:
    return [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]


def _schema_kind(node: dict[str, Any]) -> Any:
    kind = node.get("properties", {}).get("kind", {})
    return next((item["const"] for item in kind.get("anyOf", [kind]) if "const" in item), None)


def _known(path: Keys, kind: Any = None) -> tuple[tuple[str, ...], bool, bool]:
    """The keys a mapping at `path` may have, whether it takes any name, whether it takes anything."""
    nodes = [node for node in _nodes(path, kind) if node.get("type") in ("object", None)]
    keys = [key for node in nodes for key in node.get("properties", {})]
    keys += [key for node in nodes for key in node.get("propertyNames", {}).get("enum", ())]
    names = any(isinstance(item, dict) for node in nodes for item in _open_values(node))
    names = names and not any("enum" in node.get("propertyNames", {}) for node in nodes)
    free = any(node.get("additionalProperties") is True for node in nodes)
    return tuple(dict.fromkeys(keys)), names, free


def _problem(error: ErrorDetails, tree: Value) -> Problem:
    bad_key = error["loc"][-1:] == ("[key]",)
    path = tuple(str(p) for p in error["loc"] if not str(p).startswith("kind=") and p != "[key]")
    dotted, context = ".".join(path), error.get("ctx", {})
    value, kind = error.get("input"), error["type"]
    here = merge.locate(tree, path)
    if kind == "treeline":
        return Problem(here, str(context["message"]), str(context["hint"]))
    if kind == "extra_forbidden":
        return _unknown_key(path, tree)
    if kind == "missing":
        return _missing(path, tree)
    if bad_key and kind == "literal_error":
        names = _known(path[:-1])[0]
        message = f"unknown target {path[-1]!r} in {'.'.join(path[:-1])}"
        return Problem(merge.locate_key(tree, path), message, rules.nearest(path[-1], names))
    if bad_key:
        hint = "write letters, digits, - and _, at most 64 and no other characters"
        return Problem(merge.locate_key(tree, path), f"{path[-1]!r} cannot be a name", hint)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _kind_problem(path, value, tree)
    if kind == "literal_error":
        known = _enum(path, tree)
        hint = (
            _LATER_HINT
            if isinstance(value, str) and value in _LATER
            else rules.nearest(_shown(value), known)
        )
        return Problem(here, f"{dotted} cannot be {units.quoted(value)}", hint)
    message, hint = _plain(kind, value, dotted, context, error["msg"])
    return Problem(here, message, hint)


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, "") if isinstance(value, bool) else str(value)


def _enum(path: Keys, tree: Value) -> tuple[str, ...]:
    parent = tree.get(*path[:-1])
    kind = parent.get("kind") if parent else None
    nodes = _nodes(path[:-1], kind.data if kind and path[-1] != "kind" else None)
    leaves = _branches(
        [n["properties"][path[-1]] for n in nodes if path[-1] in n.get("properties", {})]
    )
    values = [
        v for leaf in leaves for v in leaf.get("enum", [leaf["const"]] if "const" in leaf else [])
    ]
    return tuple(dict.fromkeys(str(value) for value in values))


def _unknown_key(path: Keys, tree: Value) -> Problem:
    parent = tree.get(*path[:-1])
    found = parent.get("kind") if parent else None
    default = merge.DEFAULT_KINDS.get(path[-2]) if len(path) > 1 else None
    kind = found.data if found else default
    keys = _known(path[:-1], kind)[0]
    where = f" in {'.'.join(path[:-1])}" if path[:-1] else ""
    at = merge.locate_key(tree, path)
    if path[-1] in _LATER:
        return Problem(at, f"{path[-1]}{where} is not in this version", "remove it")
    owners = [_schema_kind(n) for n in _nodes(path[:-1]) if path[-1] in n.get("properties", {})]
    if owners and isinstance(kind, str):
        message = f"kind: {kind} has no {path[-1]}{where}"
        return Problem(at, message, f"{path[-1]} belongs to kind: {' or '.join(map(str, owners))}")
    return Problem(at, f"unknown key {path[-1]!r}{where}", rules.nearest(path[-1], keys))


def _missing(path: Keys, tree: Value) -> Problem:
    *parents, key = path
    where, at = ".".join(parents), merge.locate(tree, tuple(parents))
    if parents == ["workload", "arrivals"] and key == "path":
        given = tree.get("workload", "arrivals", "format")
        wanted, source = _TRACES.get(str(given.data) if given else "azure", _TRACES["azure"])
        file = at.name if at.line else tree.at.name
        return Problem(
            at,
            "a trace is replayed from a file, and no path is given",
            f"download {wanted} from https://{source}, then run:\n"
            f"    treeline run {file} --set workload.arrivals.path=PATH/TO/{wanted}",
        )
    message = f"{where} needs {key}" if where else f"the scenario needs {key}"
    return Problem(at, message, f"add {_EXAMPLES.get(key, f'{key}: ...')}")


def _kind_problem(path: Keys, value: Any, tree: Value) -> Problem:
    kinds = tuple(str(k) for n in _nodes(path) if (k := _schema_kind(n)) is not None)
    if not isinstance(value, dict):
        hint = f"write for example {_EXAMPLES.get(path[-1], '{kind: lognormal, median: 600, sigma: 0.9}')}"
        return Problem(merge.locate(tree, path), f"{'.'.join(path)} must be a mapping", hint)
    where = merge.locate(tree, (*path, "kind"))
    if "kind" not in value:
        return Problem(where, f"{'.'.join(path)} needs kind", f"add kind: {' or '.join(kinds)}")
    kind = value["kind"]
    hint = rules.nearest(_shown(kind), kinds)
    return Problem(where, f"{units.quoted(kind)} is not a kind of {path[-1]}", hint)


def _plain(
    kind: str, value: Any, path: str, context: Mapping[str, Any], text: str
) -> tuple[str, str]:
    """Message and hint of a plain type or range error."""
    shown = units.quoted(value)
    if kind.startswith(("int_", "float_", "bool_")) or kind == "finite_number":
        wanted = {"i": "a whole number", "f": "a number", "b": "true or false"}[kind[0]]
        hint = (
            f"write {path.rsplit('.', 1)[-1]}: {value}, without quotes"
            if _bare(value, kind)
            else ""
        )
        return f"{path} must be {wanted}, not {shown}", hint or f"write {wanted}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return (
            f"{path or 'the scenario'} must be a mapping, not {shown}",
            "write KEY: VALUE under it",
        )
    if kind in ("list_type", "tuple_type"):
        return f"{path} must be a list, not {shown}", "write [a, b, c]"
    if kind == "string_type":
        return f"{path} must be text, not {shown}", 'put it in quotes if it is meant: "..."'
    if kind == "string_pattern_mismatch":
        return f"{path}: {shown} cannot be a name", "use letters, digits, . - and _"
    signs = {
        "greater_than": "gt",
        "greater_than_equal": "ge",
        "less_than": "lt",
        "less_than_equal": "le",
    }
    if kind in signs:
        words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
        sign = signs[kind]
        return f"{path} is {shown}, and must be {words[sign]} {context[sign]:g}", ""
    if kind == "too_short":
        return f"{path} is empty", "write at least one entry"
    return f"{path}: {text}", ""


def _bare(value: Any, kind: str) -> bool:
    if not isinstance(value, str):
        return False
    return value.isdigit() or (kind[0] == "b" and value in ("true", "false"))
