"""YAML text -> values that know where they were written, read by the YAML 1.2 core schema.

`no` and `on` are strings, `1e3` is a number, `010` is ten, dates and sexagesimals do not exist.
Size, depth and aliases are bounded, so that a hostile file is refused before it costs anything.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import yaml
from yaml.composer import Composer, ComposerError
from yaml.events import AliasEvent, Event, NodeEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser, ParserError
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner, ScannerError

from scenarios.errors import Mark, Problem, ScenarioError

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 40
MAX_VALUES: Final = 20_000
_MAX_DIGITS: Final = 19

Scalar = str | int | float | bool | None


@dataclass(slots=True)
class Value:
    """A scalar, list or mapping with the place it was written at; `keys` holds the places of the keys."""

    data: Scalar | list[Value] | dict[str, Value]
    at: Mark
    keys: dict[str, Mark] = field(default_factory=dict)

    def plain(self) -> Any:
        """The same as dict, list and scalar, without places."""
        if isinstance(self.data, dict):
            return {key: item.plain() for key, item in self.data.items()}
        if isinstance(self.data, list):
            return [item.plain() for item in self.data]
        return self.data

    def get(self, *path: str) -> Value | None:
        """The value at a path of mapping keys, or None."""
        found: Value | None = self
        for key in path:
            found = found.data.get(key) if found and isinstance(found.data, dict) else None
        return found


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's composer without its YAML 1.1 resolver, with depth and size bounded."""

    def __init__(self, text: str) -> None:
        self.depth = self.count = 0
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Event = self.peek_event()  # type: ignore[no-untyped-call]
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH:
            raise _RefusedError(f"nested deeper than {MAX_DEPTH} levels", event.start_mark, _TIDY)
        if self.count > MAX_VALUES:
            raise _RefusedError(f"more than {MAX_VALUES:,} values", event.start_mark, _TIDY)
        if isinstance(event, NodeEvent) and not isinstance(event, AliasEvent):
            tag = getattr(event, "tag", None)
            if tag not in (None, "!"):
                hint = "remove the tag; a scenario holds plain values only"
                shown = str(tag).replace("tag:yaml.org,2002:", "!!")
                raise _RefusedError(
                    f"the tag {shown} is not used in scenarios", event.start_mark, hint
                )
        node = Composer.compose_node(self, parent, index)
        self.depth -= 1
        return node


_TIDY: Final = "a scenario is a page or two of settings; is this the right file?"


class _RefusedError(Exception):
    def __init__(self, message: str, mark: Any, hint: str) -> None:
        super().__init__(message)
        self.message, self.mark, self.hint = message, mark, hint


def read(text: str, name: str) -> Value:
    """The document in `text` as located values.

    Raises ScenarioError with every duplicate key and impossible value, or the first syntax error.
    """
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)
    if len(text) > MAX_BYTES:
        _refuse(Mark(name), f"larger than the limit of {MAX_BYTES:,} characters", _TIDY)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except _RefusedError as error:
        _refuse(_mark(error.mark, name, lines), error.message, error.hint)
    except ReaderError as error:
        _refuse(_of_offset(text, error.position, name, lines), *_unreadable(error))
    except (ScannerError, ParserError, ComposerError) as error:
        mark = error.problem_mark or error.context_mark
        if "stream end" in str(error.problem) or "end of stream" in str(error.problem):
            mark = error.context_mark or mark  # what was opened and never closed
        where = _mark(mark, name, lines) if mark is not None else Mark(name)
        _refuse(where, *_syntax(error, where))
    except (ValueError, OverflowError):  # PyYAML's scanner on an escape such as "\UFFFFFFFF"
        where = Mark(name) if loader is None else _of_offset(text, loader.index, name, lines)
        _refuse(
            where, "an escape here is not a character", 'remove it, or write "\\\\" for a backslash'
        )
    if node is None:
        _refuse(Mark(name), "the scenario is empty", "`treeline new FILE` writes a first one")
    reader = _Reader(name, lines)
    value = reader.value(node, 0)
    if reader.problems:
        raise ScenarioError(tuple(reader.problems))
    return value


def read_value(text: str, at: Mark) -> Value:
    """One value of the command line (`8`, `12/s`, `[1, 2]`), everything in it located at `at`."""
    try:
        if not text.strip():
            return Value("", at)
        return _relocated(read(text, at.name), at)
    except ScenarioError as error:
        first = error.problems[0]
        _refuse(at, f"{text!r} is not a YAML value: {first.message}", first.hint)


def _relocated(value: Value, at: Mark) -> Value:
    if isinstance(value.data, dict):
        items = {key: _relocated(item, at) for key, item in value.data.items()}
        return Value(items, at, dict.fromkeys(items, at))
    if isinstance(value.data, list):
        return Value([_relocated(item, at) for item in value.data], at)
    return Value(value.data, at)


class _Reader:
    """Turns composed nodes into values and collects what is wrong with them."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name, self.lines = name, lines
        self.problems: list[Problem] = []
        self.expanded = 0
        self.open: set[int] = set()  # nodes being read, to see an alias inside its own anchor

    def value(self, node: Node, depth: int) -> Value:
        at = _mark(node.start_mark, self.name, self.lines)
        self.expanded += 1
        if self.expanded > MAX_VALUES or depth > MAX_DEPTH:
            hint = "write the values out, or use extends"
            _refuse(at, f"aliases expand to more than {MAX_VALUES:,} values", hint)
        if id(node) in self.open:
            _refuse(at, "an alias refers to a value that holds it", "write the value out")
        if isinstance(node, ScalarNode):
            return Value(self.scalar(node, at), at)
        self.open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return Value([self.value(item, depth + 1) for item in node.value], at)
            assert isinstance(node, MappingNode)
            return self.mapping(node, at, depth)
        finally:
            self.open.discard(id(node))

    def mapping(self, node: MappingNode, at: Mark, depth: int) -> Value:
        result: dict[str, Value] = {}
        keys: dict[str, Mark] = {}
        for key_node, item in node.value:
            where = _mark(key_node.start_mark, self.name, self.lines)
            if not isinstance(key_node, ScalarNode):
                self.problem(where, "a key must be plain text", "did you forget quotes or a colon?")
                continue
            key = key_node.value
            _no_surrogates(key, where, self)
            if key == "<<" and key_node.style is None:
                self.problem(
                    where, "merge keys are not in YAML 1.2", "use extends, or write it out"
                )
                continue
            if key in result:
                hint = "keep one of the two"
                self.problem(where, f"{key!r} is here twice (first on line {keys[key].line})", hint)
                continue
            result[key], keys[key] = self.value(item, depth + 1), where
        return Value(result, at, keys)

    def scalar(self, node: ScalarNode, at: Mark) -> Scalar:
        text: str = node.value
        if node.style is not None:
            _no_surrogates(text, at, self)
            return text
        try:
            return core_scalar(text)
        except ValueError as error:
            self.problem(at, str(error), "write a finite number of at most 19 digits")
            return 1

    def problem(self, where: Mark, message: str, hint: str) -> None:
        self.problems.append(Problem(where, message, hint))


_CONSTANTS: Final[dict[str, Scalar]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT: Final = re.compile(r"[-+]?[0-9]+")
_BASED: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def core_scalar(text: str) -> Scalar:
    """A plain scalar by the YAML 1.2 core schema; raises ValueError where it is no finite number.

    Source: YAML 1.2.2, section 10.3.2 (tag resolution), 2021-10-01.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if _INT.fullmatch(text) or _BASED.fullmatch(text):
        if len(text.lstrip("+-").lstrip("0")) > _MAX_DIGITS:
            raise ValueError(f"{text[:20]}... has too many digits")
        return int(text, 0) if _BASED.fullmatch(text) else int(text)
    if _FLOAT.fullmatch(text):
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text} is not a finite number")
        return number
    return text


def _no_surrogates(text: str, at: Mark, reader: _Reader) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        reader.problem(at, "half of a surrogate pair is not a character", "remove the \\u escape")


def _refuse(where: Mark, message: str, hint: str) -> NoReturn:
    raise ScenarioError((Problem(where, message, hint),))


def _mark(mark: Any, name: str, lines: list[str]) -> Mark:
    source = lines[mark.line] if mark.line < len(lines) else ""
    return Mark(name, mark.line + 1, mark.column + 1, source)


def _of_offset(text: str, offset: int, name: str, lines: list[str]) -> Mark:
    before = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text[:offset])
    return Mark(name, len(before), len(before[-1]) + 1, lines[min(len(before), len(lines)) - 1])


def _unreadable(error: ReaderError) -> tuple[str, str]:
    code = (
        error.character
        if isinstance(error.character, int)
        else ord(str(error.character)[:1] or "?")
    )
    return (
        f"the control character U+{code:04X} is not text",
        "is this a YAML file? remove the character",
    )


def _syntax(error: yaml.MarkedYAMLError, where: Mark) -> tuple[str, str]:
    problem = error.problem or "not YAML"
    rules = (
        ("'\\t'", "a tab where YAML wants spaces", "replace the tab by spaces"),
        ("mapping values are not allowed", "a second colon on one line", _COLON),
        ("could not find expected ':'", "a key without a colon", "write KEY: VALUE"),
        (
            "expected ',' or '}'",
            "a { is not closed here",
            "close it with }, and put , between entries",
        ),
        (
            "expected ',' or ']'",
            "a [ is not closed here",
            "close it with ], and put , between entries",
        ),
        ("but found another document", "a second document begins here", "one file is one scenario"),
        (
            "expected the node content",
            "the text ends too early",
            "close what is open: { [ or quotes",
        ),
        ("undefined alias", problem, "define the anchor before its alias, or quote the *"),
        ("duplicate anchor", problem, "each anchor is defined once"),
        ("while scanning a quoted", "a quote is not closed", "close it"),
        ("unexpected end of stream", "a quote is not closed", "close it"),
        ("expected <block end>", "this line is indented differently", _INDENT),
        (
            "found character '%'",
            "a plain value cannot begin with %",
            'write "50%"-like values in full',
        ),
        ("cannot start any token", f"{problem}", "put the value in quotes"),
    )
    if "\t" in where.source[: max(where.column, 1)]:
        return "a tab where YAML wants spaces", "replace the tab by spaces"
    for sign, message, hint in rules:
        if sign in problem:
            return message, hint
    return f"not YAML: {problem}", "check quotes, colons, brackets and indentation near here"


_COLON: Final = "put the value in quotes, begin a new line, or use {braces: with, commas: between}"
_INDENT: Final = "indent it like its neighbours, with spaces"
