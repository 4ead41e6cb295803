"""Serving points, modelled: the step cost and memory of each point's replica, and the parts of its prediction.

A point that the cost model does not cover is kept with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from hw.device import CatalogError, device
from hw.profile import Profile, ProfileError
from hw.profile import load as load_profile
from hw.shipped import default_profile
from hw.transformer import Transformer, transformer_named
from models.latency import CapacityError, StepCost, kv_pages, step_cost
from sim.closed_loop import Seen
from sim.points import NODE, SHORTEST, VARIED, Point
from sim.points_played import played, plays
from sim.steady import Load, Parts, parts

SYSTEMS: Mapping[str, str] = {"h100_sxm": "h100-sxm-80gb", "h200_sxm": "h200-sxm-141gb"}
_KV_FP8 = 0.5  # TensorRT-LLM's fp8 checkpoints hold their KV in fp8 too
_SHORT = 0.02  # answers that a request waits for memory, from which on the closed form does not say where it waits


@dataclass(frozen=True, slots=True)
class Modelled:
    """A point and the parts of its prediction; `seen` in their place where memory is short and the batch can play it."""

    point: Point
    parts: Parts
    experts: bool  # a mixture of experts
    step_source: str
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class Unmodelled:
    """A point that the cost model does not cover, and why."""

    point: Point
    reason: str


def modelled(
    points: Sequence[Point], tell: Callable[[float, str], None] | None = None
) -> tuple[list[Modelled], list[Unmodelled]]:
    """Each point's parts from the profile that ships for its device; those not covered with the reason.

    `tell` hears of the share that is done.
    """
    found, left = [], []
    for number, point in enumerate(points):
        if tell is not None:
            tell(number / len(points), point.model)
        try:
            cost, shape, kv_tokens = replica(point)
        except (CatalogError, CapacityError, ProfileError) as error:
            left.append(Unmodelled(point, str(error)))
            continue
        scale = (1 + SHORTEST) / 2 if point.harness == VARIED else 1.0
        load = Load(point.clients, scale * point.input_tokens, scale * point.output_tokens)
        fp8_kv = point.engine == "trtllm" and shape.dtype == "fp8" and not shape.experts
        kv_scale = _KV_FP8 if fp8_kv else 1.0
        made = parts(cost, load, kv_tokens / kv_scale, kv_scale)
        short = made.waiting > _SHORT and plays(point, kv_tokens)
        seen = played(point, cost, kv_tokens) if short else None
        found.append(Modelled(point, made, bool(shape.experts), cost.label, seen))
    return found, left


def replica(point: Point) -> tuple[StepCost, Transformer, float]:
    """The cost, shape and KV tokens of one replica; raises CatalogError, CapacityError, ProfileError."""
    return _replica(
        point.model, point.system, point.precision, point.tensor_parallel, point.expert_parallel,
        point.data_parallel, point.moe_ways,
    )  # fmt: skip


@cache
def _replica(
    model: str, system: str, precision: str, tp: int, ep: int, dp: int, moe_ways: int
) -> tuple[StepCost, Transformer, float]:
    if system not in SYSTEMS:
        raise CatalogError(f"no device for system {system}")
    if dp > 1 or tp > NODE:
        raise CatalogError("attention data parallel, or more than one node")
    shape = transformer_named(model, precision)
    if shape.experts and moe_ways != tp:
        raise CatalogError("experts on other devices than attention")
    chosen = device(SYSTEMS[system])
    cost = step_cost(shape, chosen, _profile(chosen.name), tp, ep)
    return cost, shape, 16.0 * kv_pages(shape, chosen, tp)


@cache
def _profile(name: str) -> Profile | None:
    path = default_profile(name)
    return load_profile(path) if path is not None else None
