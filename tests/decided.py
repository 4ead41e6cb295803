"""What a learned controller costs the simulator: its decisions, and the same evening with it and without it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from models.controller import STAGED, Features
from models.evidence import seen_one
from sim.resolve import Resolved

ANSWERS = (1, 2, 3, None)  # of made-up votes: what a decision takes depends little on what is seen
VOTES = 200  # of each stage
PRESSURE = 0.3


def decisions_us(resolved: Resolved) -> tuple[float, float]:
    """Microseconds of one decision, and of summing up the votes it rests on: means over tiers, classes, stages.

    Raises: ValueError where the controller decides no tier's search in stages.
    """
    luck = random.Random(0)
    deciding_s = seeing_s = 0.0
    count = 0
    for tier in resolved.plans:
        for item in resolved.classes:
            known = Features(tier, item.name, 200, item.questions.name, 7, lambda: PRESSURE)
            plan = resolved.controller.plan(known)
            if plan.algorithm != STAGED:
                continue
            for stage, n in enumerate(plan.params["stages"]):
                if not n:
                    continue
                votes = [
                    (
                        luck.choices(ANSWERS, k=n),
                        [luck.random() for _ in range(n)],
                        [luck.randint(50, 900) for _ in range(n)],
                    )
                    for _ in range(VOTES)
                ]
                began = time.process_time()
                rows = [seen_one(*vote)[0] for vote in votes]
                seen = time.process_time()
                for row in rows:
                    plan.params["decide"](stage, row)
                seeing_s += seen - began
                deciding_s += time.process_time() - seen
                count += VOTES
    if not count:
        raise ValueError("the controller decides no search in stages")
    return 1e6 * deciding_s / count, 1e6 * seeing_s / count


def speeds(
    fixed: Resolved,
    learned: Resolved,
    repeats: int,
    measured: Callable[[Resolved], tuple[float, int, int]],
) -> dict[str, Any]:
    """The simulator's speed with each controller, medians of interleaved repeats after one that warms up.

    `measured` plays a replication and returns (CPU s, queries, branch-steps).
    """
    rows: dict[str, list[tuple[float, int, int]]] = {"fixed": [], "learned": []}
    for repeat in range(repeats + 1):
        for name, resolved in (("fixed", fixed), ("learned", learned)):
            row = measured(resolved)
            if repeat:
                rows[name].append(row)
    found: dict[str, Any] = {}
    for name, played in rows.items():
        found[f"{name}_queries_per_s"] = median(queries / s for s, queries, _ in played)
        found[f"{name}_branch_steps_per_s"] = median(steps / s for s, _, steps in played)
    for unit in ("queries", "branch_steps"):
        found[f"{unit}_ratio"] = found[f"learned_{unit}_per_s"] / found[f"fixed_{unit}_per_s"]
    return found
