"""Fills docs/accuracy.md with what `treeline validate` says of the public serving points: python tests/accuracy.py DATA"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dashboards.commands.validate_points import document, validate_points  # noqa: E402
from tests.readme import filled  # noqa: E402

PAGE = ROOT / "docs" / "accuracy.md"
_NUMBERS = (
    "points",
    "TPOT median",
    "mean",
    "p90",
    "signed",
    "TTFT median",
    "mean",
    "p90",
    "signed",
)


def section(made: Mapping[str, Any]) -> str:
    """The section as Markdown, of the command's JSON."""
    played = {f"played by the batch, {kind}": both for kind, both in made["played"].items()}
    ways = {
        f"{way}, {kind}": both
        for way, kinds in made["errors"].items()
        for kind, both in kinds.items()
    }
    by = {
        f"{name}: {value}": both
        for name, values in made["by"].items()
        for value, both in values.items()
    }
    left = "; ".join(f"{count} {reason}" for reason, count in made["not_modelled"].items())
    halves = [
        (f"{which}, learned on {_models(half['learned_on'])}", str(half["points"]), f"{half['coverage']:.1%}",
         f"±{half['width']:.1%}")
        for which, found in made["bands"].items()
        for half in found["halves"]
    ]  # fmt: skip
    every = [
        (f"{which}, mean of all {found['every_half']['splits']} halves", "",
         f"{found['every_half']['coverage']:.1%} (deviation {found['every_half']['deviation']:.1%})",
         f"±{found['every_half']['width']:.1%}")
        for which, found in made["bands"].items()
        if found["every_half"]
    ]  # fmt: skip
    return "\n\n".join(
        (
            f"{made['modelled']} of {made['points']} points are modelled. Not modelled: {left}.",
            _table(
                ("constants", *_NUMBERS),
                [_row(name, both) for name, both in (ways | played).items()],
            ),
            "With the constants that ship:",
            _table(("group", *_NUMBERS), [_row(name, both) for name, both in by.items()]),
            "With the expected constants:",
            _table(
                ("group", *_NUMBERS),
                [_row(f"model: {name}", both) for name, both in made["by_model_expected"].items()],
            ),
            "Bands of TPOT around predictions with expected constants, nominal 90 %:",
            _table(("bands", "points", "inside", "width"), [*halves, *every]),
        )
    )


def _row(name: str, both: Mapping[str, Any]) -> Sequence[str]:
    cells = [
        f"{both[of][what]:{'+' if what == 'signed' else ''}.1%}"
        for of in ("tpot", "ttft")
        for what in ("median", "mean", "p90", "signed")
    ]
    return name, str(both["tpot"]["points"]), *cells


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _models(names: Sequence[str]) -> str:
    return ", ".join(name.rpartition("/")[2] for name in names)


def main(folder: str) -> None:
    """Predict the points and fill the page."""
    text = section(document(validate_points(folder)))
    page = filled(PAGE.read_text(encoding="utf-8"), "serving-points", text, fence=False)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
