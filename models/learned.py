"""A learned controller: after each stage of a vote, is another one worth its price, or a beam, or neither?

Everything is priced in one currency. With value 1 for a right answer and a price `rate` for GPU time,
a query goes on while what is expected of going on, less what it costs, exceeds the better of what it has
now and what a beam promises less its cost. The trees behind it are plain arrays (models/forest.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.evidence import SEEN
from models.forest import Forest, from_dict
from models.switch import BEAMS, Switch, asked, asked_rows, from_json, size

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FORMAT: Final = "treeline-controller"
VERSION: Final = 2
STAGES: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # trajectories after each stage
RATES: Final = (3e-5, 1.0)  # prices of a mean trajectory, in right answers, that are learned
RATE: Final = 0.00548  # among them, where a class is checked and single figures are quoted
GO_ON, STOP = -2, -1  # decisions; any other is a place in BEAMS
SHIPPED: Final = Path(__file__).with_name("learned.json")  # it only votes
WITH_BEAMS: Final = Path(__file__).with_name("learned_beams.json")


@dataclass(frozen=True, slots=True)
class Fixed:
    """A plan that decides nothing, and what it does on a class: its share right and GPU-seconds a query."""

    algorithm: str
    params: Mapping[str, int]
    right: float
    gpu_s: float


@dataclass(frozen=True, slots=True)
class Learned:
    """The trees of every stage, what they were fitted on, and the currency they count in.

    A row is one-hot class, difficulty hint, then the numbers of models.evidence.SEEN. `right[s]` says the
    chance that the leading answer of stage s is right; `gain[s]`, of a row and the log of the price of a
    mean trajectory, what going on is worth over stopping or a beam (none at the last stage). `unit_gpu_s` are the
    GPU-seconds of a mean trajectory where it was fitted and `unit_tokens` its tokens. `falls_back` names
    the classes on which the best of their `fixed` plans is used instead, and why.
    """

    classes: tuple[str, ...]
    stages: tuple[int, ...]
    right: tuple[Forest, ...]
    gain: tuple[Forest, ...]
    switch: Switch | None  # None: it only votes
    mean_tokens: tuple[float, ...]
    unit_gpu_s: float
    unit_tokens: float
    fixed: Mapping[str, tuple[Fixed, ...]]
    falls_back: Mapping[str, str]
    provenance: Mapping[str, Any]

    def before(self, query_class: str, hint: float) -> list[float] | None:
        """The part of a row that is known before the search; None for a class it never saw."""
        if query_class not in self.classes:
            return None
        return [*(float(name == query_class) for name in self.classes), hint]

    def nothing_seen(self, query_class: str) -> list[float]:
        """The numbers of SEEN before anything is grown."""
        tokens = self.mean_tokens[self.classes.index(query_class)]
        return [*[0.0] * (len(SEEN) - 1), math.log(tokens)]

    def best_fixed(self, query_class: str, rate: float, most: int) -> Fixed:
        """The plan of at most `most` trajectories with the largest value less cost on a class."""
        price = rate / self.unit_gpu_s
        allowed = [
            plan for plan in self.fixed[query_class] if math.prod(plan.params.values()) <= most
        ]
        return max(allowed, key=lambda plan: plan.right - price * plan.gpu_s)

    def decide(self, stage: int, row: Sequence[float], rate: float, most: int) -> int:
        """GO_ON, STOP or the beam to leave for; `rate`: GPU-seconds of a mean trajectory x price over value.

        `most` bounds the trajectories (or their work) in all.
        """
        rate = min(max(rate, RATES[0]), RATES[1])
        if stage >= len(self.gain):
            return STOP
        if self.gain[stage].one([*row, math.log(rate)]) > 0.0:
            return GO_ON
        grown = self.stages[stage]
        if self.switch is None:
            return STOP if grown else GO_ON
        best, choice = (self.confidence(stage, row), STOP) if grown else (-math.inf, GO_ON)
        each = rate * math.exp(row[-1]) / self.unit_tokens
        for beam in fitting(grown, most):
            worth = -each * size(beam)
            if worth + 1.0 > best:  # else it cannot win, however sure
                worth += self.switch.after.one([*row, *asked(grown, beam)])
            if worth > best:
                best, choice = worth, beam
        return choice

    def confidence(self, stage: int, row: Sequence[float]) -> float:
        """The chance that the leading answer of a stage is right."""
        return self.right[stage].one(row)

    def confidences(self, stage: int, table: Floats) -> Floats:
        """`confidence` for many rows."""
        return self.right[stage].many(table)

    def beam_chances(self, stage: int, table: Floats, most: int = STAGES[-1]) -> Floats:
        """The chance of a right answer after each beam, (rows, len(BEAMS)); -inf for one that is too large."""
        grown = self.stages[stage]
        found = np.full((len(table), len(BEAMS)), -np.inf)
        if self.switch is None or stage >= len(self.gain):
            return found
        for beam in fitting(grown, most):
            found[:, beam] = self.switch.after.many(asked_rows(table, grown, beam))
        return found

    def decisions(
        self, stage: int, table: Floats, rate: float, chance: Floats, beams: Floats
    ) -> Ints:
        """`decide` for many rows, of which `chance` and `beams` are `confidences` and `beam_chances`."""
        rate = min(max(rate, RATES[0]), RATES[1])
        if stage >= len(self.gain):
            return np.full(len(table), STOP)
        worth = beams - beam_costs(table, rate, self.unit_tokens)
        beam = worth.argmax(axis=1)
        chosen = np.where(worth[np.arange(len(table)), beam] > chance, beam, STOP)
        price = np.full(len(table), math.log(rate))
        goes = self.gain[stage].many(np.column_stack([table, price])) > 0.0
        if not self.stages[stage]:
            goes |= chosen == STOP  # there is nothing yet to stop with
        return np.where(goes, GO_ON, chosen)


def fitting(grown: int, most: int) -> list[int]:
    """The beams whose work, beside the `grown` trajectories of the vote, is that of `most` at the most."""
    return [beam for beam in range(len(BEAMS)) if grown + size(beam) <= most]


def beam_costs(table: Floats, rate: Floats | float, unit_tokens: float) -> Floats:
    """The price of each beam in right answers, (rows, len(BEAMS)): the work of so many trajectories of mean length.

    On the frozen mix that is within 4 % of what beams cost on average, 2026-11-25.
    """
    each = np.exp(table[:, -1]) / unit_tokens * rate
    return np.outer(each, [size(beam) for beam in range(len(BEAMS))])


def save(learned: Learned, path: Path) -> None:
    """Write a controller as JSON."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "seen": SEEN,
        "beams": BEAMS,
        **{
            name: getattr(learned, name)
            for name in ("classes", "stages", "mean_tokens", "unit_gpu_s", "unit_tokens")
        },
        "falls_back": dict(learned.falls_back),
        "provenance": dict(learned.provenance),
        "fixed": {
            name: [[p.algorithm, dict(p.params), p.right, p.gpu_s] for p in plans]
            for name, plans in learned.fixed.items()
        },
        "right": [forest.as_dict() for forest in learned.right],
        "gain": [forest.as_dict() for forest in learned.gain],
        "switch": learned.switch.as_dict() if learned.switch is not None else None,
    }
    path.write_text(json.dumps(_short(document), separators=(",", ":")) + "\n", encoding="utf-8")


def load(path: Path = SHIPPED) -> Learned:
    """Read a controller; raises ValueError that names the file where it is none, or of other evidence."""
    try:
        return _read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no controller: {error}. Make one: treeline fit controller --out {path}"
        ) from None


def _read(found: Mapping[str, Any]) -> Learned:
    if found["format"] != FORMAT or found["version"] != VERSION:
        raise ValueError("it is of another format or version")
    if tuple(found["seen"]) != SEEN or [tuple(beam) for beam in found["beams"]] != list(BEAMS):
        raise ValueError("it was fitted on other evidence: fit it again")
    right = tuple(from_dict(item) for item in found["right"])
    gain = tuple(from_dict(item) for item in found["gain"])
    stages = tuple(map(int, found["stages"]))
    if not stages or len(right) != len(stages) or len(gain) != len(stages) - 1:
        raise ValueError("its trees do not fit its stages")
    classes = tuple(map(str, found["classes"]))
    return Learned(
        classes,
        stages,
        right,
        gain,
        from_json(found["switch"]) if found["switch"] is not None else None,
        tuple(map(float, found["mean_tokens"])),
        float(found["unit_gpu_s"]),
        float(found["unit_tokens"]),
        {name: tuple(Fixed(*plan) for plan in found["fixed"][name]) for name in classes},
        {str(name): str(why) for name, why in found["falls_back"].items()},
        dict(found["provenance"]),
    )


def _short(value: Any) -> Any:
    """Numbers with seven digits: what a tree was grown from is not known better."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value
