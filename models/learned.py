"""A learned controller: after each stage of a vote, is another one worth its price?

Everything is priced in one currency. With value 1 for a right answer and a price `rate` for GPU time,
a query goes on while what is expected of going on, less what it costs, exceeds what it has now:
decision = learned.goes_on(stage, row, rate). The trees behind it are plain arrays (models/forest.py).
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

Floats = npt.NDArray[np.float64]

FORMAT: Final = "treeline-controller"
VERSION: Final = 1
STAGES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # trajectories after each stage
RATES: Final = (3e-5, 1.0)  # prices of a mean trajectory, in right answers, that are learned
SHIPPED: Final = Path(__file__).with_name("learned.json")


@dataclass(frozen=True, slots=True)
class Learned:
    """The trees of every stage, what they were fitted on, and the currency they count in.

    A row is one-hot class, difficulty hint, then the numbers of models.evidence.SEEN. `right[s]` says the
    chance that the leading answer of stage s is right; `gain[s]`, of a row and the log of the price of a
    mean trajectory, what going on is worth (none at the last stage). `unit_gpu_s` are the GPU-seconds of a
    mean trajectory where it was fitted; `hinted` says whether the hint is used.
    """

    classes: tuple[str, ...]
    stages: tuple[int, ...]
    right: tuple[Forest, ...]
    gain: tuple[Forest, ...]
    unit_gpu_s: float
    provenance: Mapping[str, Any]

    def before(self, query_class: str, hint: float) -> list[float] | None:
        """The part of a row that is known before the search; None for a class it never saw."""
        if query_class not in self.classes:
            return None
        return [*(float(name == query_class) for name in self.classes), hint]

    def goes_on(self, stage: int, row: Sequence[float], rate: float) -> bool:
        """Whether to grow the next stage, at `rate`: GPU-seconds of a mean trajectory x their price over the value."""
        if stage >= len(self.gain):
            return False
        low, high = RATES
        return self.gain[stage].one([*row, math.log(min(max(rate, low), high))]) > 0.0

    def confidence(self, stage: int, row: Sequence[float]) -> float:
        """The chance that the leading answer of a stage is right."""
        return self.right[stage].one(row)

    def go_on(self, stage: int, table: Floats, rate: Floats | float) -> npt.NDArray[np.bool_]:
        """`goes_on` for many rows, (rows, features)."""
        if stage >= len(self.gain):
            return np.zeros(len(table), dtype=np.bool_)
        price = np.log(np.clip(np.broadcast_to(rate, len(table)), *RATES))
        found: npt.NDArray[np.bool_] = self.gain[stage].many(np.column_stack([table, price])) > 0.0
        return found

    def confidences(self, stage: int, table: Floats) -> Floats:
        """`confidence` for many rows."""
        return self.right[stage].many(table)


def save(learned: Learned, path: Path) -> None:
    """Write a controller as JSON."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "classes": learned.classes,
        "stages": learned.stages,
        "seen": SEEN,
        "unit_gpu_s": learned.unit_gpu_s,
        "provenance": dict(learned.provenance),
        "right": [forest.as_dict() for forest in learned.right],
        "gain": [forest.as_dict() for forest in learned.gain],
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
    if tuple(found["seen"]) != SEEN:
        raise ValueError("it was fitted on other evidence: fit it again")
    right = tuple(from_dict(item) for item in found["right"])
    gain = tuple(from_dict(item) for item in found["gain"])
    stages = tuple(map(int, found["stages"]))
    if not stages or len(right) != len(stages) or len(gain) != len(stages) - 1:
        raise ValueError("its trees do not fit its stages")
    classes = tuple(map(str, found["classes"]))
    unit = float(found["unit_gpu_s"])
    return Learned(classes, stages, right, gain, unit, dict(found["provenance"]))


def _short(value: Any) -> Any:
    """Numbers with seven digits: what a tree was grown from is not known better."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value
