"""Whole steps and expansions put together from their parts, beside the same whole as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hw.device import CatalogError, Device
from hw.profile import Column, Profile
from hw.transformer import Transformer, transformer
from models.latency import StepCost, step_cost

WHOLE = ("layer", "decode_step", "expansion")


def composed(profile: Profile, device: Device, rows: Mapping[str, Column]) -> Column:
    """Seconds that the cost model says of rows of WHOLE (all their layers), NaN for an unknown model.

    A layer has no head; a decode step is B branches that share P tokens and own S each; an expansion forks
    B children off a tail of S tokens, decodes one token of each, and scores m tokens of each.
    """
    costs: dict[tuple[str, int], StepCost | None] = {}
    found = []
    for op, name, layers, b, p, s, m in zip(
        *(rows[key].tolist() for key in ("op", "model_shape", "calls", "B", "P", "S", "m")),
        strict=True,
    ):
        key = (str(name).partition("/")[0], max(1, int(layers)))
        if key not in costs:
            costs[key] = _cost(profile, device, *key)
        cost = costs[key]
        found.append(np.nan if cost is None else _seconds(cost, op, b, p, s, m))
    return np.array(found)


def _cost(profile: Profile, device: Device, name: str, layers: int) -> StepCost | None:
    try:
        shape: Transformer = replace(transformer(name), layers=layers)
    except CatalogError:
        return None
    return step_cost(shape, device, profile)


def _seconds(cost: StepCost, op: str, b: int, p: int, s: int, m: int) -> float:
    read = p * max(1.0, b / cost.saturation) + b * s
    step = cost.linear_s(b, 0) + cost.reading(b, 0, read)[0]
    if op == "layer":
        return step - cost.head_s(b)
    if op == "decode_step":
        return step
    fork = cost.copy_s * s * (b - 1)
    score = cost.linear_s(0, b * m) - cost.head_s(1) + b * cost.context_s(m) * (p + s + m / 2)
    return fork + step + score
