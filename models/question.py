"""Classes of questions by name or by parameters: presets.yaml and what a scenario changes -> QuestionModel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final

from models.lengths import Quantile, quantile
from models.presets import PresetError, unknown, values
from models.verifier import verifier_model
from models.world import TABLE, QuestionModel, World

__all__ = ["QuestionModel", "World", "question_model"]

DEFAULT_PRESET: Final = MappingProxyType(
    {"single_step": "chat", "steps": "math-500", "thinking": "thinking-r1"}
)
REVISE_KEEP: Final = 0.35
REVISE_STUCK: Final = 0.1
"""Chance that a revision repeats the right, or the wrong, answer that it was shown.

With them a model of pass rates Beta(.5, 2.2) turns 39 % of its right answers into wrong ones, and its
pass rate rises from .19 to .22. Source: 38 % and about .18 to .24, Snell et al., arXiv 2408.03314,
section 6 and figure 6 (from memory, 2026-11-25)."""
REVISE_LENGTH: Final = MappingProxyType({"single_step": 1.0, "steps": 1.0, "thinking": 0.5})
"""Tokens of a revision as a share of a first try's: a chain of thought told to wait only goes on.
Source: assumed, 2026-11-25."""
COMMON: Final = frozenset(
    {"kind", "verifier", "prompt_tokens", "pass_rate", "bottleneck", "bottleneck_range", "theta"}
    | {"revise_keep", "revise_stuck", "revise_length"}
)
OWN: Final = MappingProxyType(
    {
        "single_step": frozenset({"output_tokens", "length_correlation"}),
        "steps": frozenset(
            {"steps", "kappa", "weights", "diversity", "recovery", "step_tokens", "output_tokens"}
            | {"length_correlation", "wrong_steps", "ramble", "max_output"}
        ),
        "thinking": frozenset(
            {"output_tokens", "length_correlation", "wrong_longer", "lengths_of", "max_output"}
            | {"reasoning_share", "share_correlation"}
        ),
    }
)


def question_model(spec: str | Mapping[str, Any]) -> QuestionModel:
    """A class of questions by preset name, or by a mapping of parameters over a preset.

    The mapping may hold `preset`, `kind` and any parameter of that kind; without `preset` the rest comes
    from chat (single_step), math-500 (steps) or thinking-r1 (thinking). `output_tokens` given for `steps`
    replaces `step_tokens`. Raises PresetError for an unknown preset, kind or parameter, ValueError for a
    value out of range.
    """
    given = {"preset": spec} if isinstance(spec, str) else dict(spec)
    kind = given.get("kind")
    if kind is not None and kind not in OWN:
        raise PresetError(unknown("kind of question", kind, OWN))
    preset = given.pop("preset", None)
    if preset is None:
        if kind is None:
            raise PresetError('A question needs a "preset" or a "kind".')
        preset = DEFAULT_PRESET[kind]
    p = values("questions", preset)
    if kind is not None and kind != p["kind"]:
        raise PresetError(
            f"Preset {preset!r} is of kind {p['kind']!r}, not {kind!r}: drop one of the two."
        )
    kind = str(p["kind"])
    for name in given:
        if name not in COMMON | OWN[kind]:
            raise PresetError(unknown(f"parameter of a {kind} question", name, COMMON | OWN[kind]))
    p |= given
    return _build(str(preset), kind, p, by_total=kind != "steps" or "output_tokens" in given)


def _build(name: str, kind: str, p: Mapping[str, Any], by_total: bool) -> QuestionModel:
    steps_min, edges = _steps(p["steps"]) if "steps" in p else (1, (1.0,))
    low, high = _pair(p, "bottleneck_range", (10**-5.5, 10**-2))
    weights = p.get("weights")
    if weights is not None:
        fits = isinstance(weights, (list, tuple)) and len(edges) == 1 and len(weights) == steps_min
        if not fits or not all(isinstance(w, (int, float)) and 0 < w < math.inf for w in weights):
            raise ValueError('"weights" must be one number > 0 per step of a constant number.')
        weights = tuple(float(w) / sum(weights) for w in weights)
    lengths_of = p.get("lengths_of", "all")
    if lengths_of not in ("all", "solved"):
        raise ValueError(f'"lengths_of" must be all or solved, got {lengths_of!r}.')
    limit = p.get("max_output")
    if p.get("ramble") and limit is None:
        raise ValueError(
            '"ramble" needs a "max_output": without it a solution could run on for ever.'
        )
    verifier_model(
        p["verifier"]
    )  # an unknown verifier is an error here, not in the middle of a run
    return QuestionModel(
        name=name,
        kind=kind,
        verifier=p["verifier"],
        prompt_tokens=quantile(p["prompt_tokens"]),
        pass_rate=_beta(p["pass_rate"]),
        bottleneck=_number(p, "bottleneck", 0.0, 0.0, 0.999),
        bottleneck_range=(low, high),
        theta=_number(p, "theta", 7.0, 1e-3, 1e6),
        steps_edges=edges,
        steps_min=steps_min,
        kappa=_number(p, "kappa", 2.0, 1e-3, 1e6),
        weights=weights,
        wrong_steps=_number(p, "wrong_steps", 0.0, 0.0, 10.0),
        ramble=_number(p, "ramble", 0.0, 0.0, 1.0),
        diversity=_number(p, "diversity", 0.0, 0.0, 1.0),
        recovery=_number(p, "recovery", 0.0, 0.0, 1.0),
        step_tokens=None if by_total else _table(quantile(p["step_tokens"])),
        output_tokens=quantile(p["output_tokens"]) if by_total else None,
        length_correlation=_number(p, "length_correlation", 0.5, 0.0, 1.0),
        wrong_longer=_number(p, "wrong_longer", 1.0, 0.01, 100.0),
        solved_lengths=lengths_of == "solved",
        reasoning_share=quantile(p["reasoning_share"]) if "reasoning_share" in p else None,
        share_correlation=_number(p, "share_correlation", 0.0, -1.0, 1.0),
        max_output=None if limit is None else int(_number(p, "max_output", 0, 1, 2**31)),
        revise_keep=_number(p, "revise_keep", REVISE_KEEP, 0.0, 1.0),
        revise_stuck=_number(p, "revise_stuck", REVISE_STUCK, 0.0, 1.0),
        revise_length=_number(p, "revise_length", REVISE_LENGTH[kind], 0.01, 10.0),
    )


def _number(p: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = p.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f'"{name}" must be a number from {low:g} to {high:g}, got {value!r}.')
    return float(value)


def _pair(p: Mapping[str, Any], name: str, default: tuple[float, float]) -> tuple[float, float]:
    value = p.get(name, default)
    real = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
    if not (real and len(value) == 2 and 0 < value[0] <= value[1] <= 1):
        raise ValueError(f'"{name}" must be [low, high] with 0 < low <= high <= 1, got {value!r}.')
    return float(value[0]), float(value[1])


def _beta(spec: Mapping[str, Any]) -> tuple[float, float]:
    if not isinstance(spec, Mapping) or spec.get("kind", "beta") != "beta":
        raise ValueError(f'"pass_rate" must look like {{kind: beta, a: 4, b: 1}}, got {spec!r}.')
    if set(spec) - {"kind", "a", "b"}:
        raise PresetError(unknown("key of pass_rate", min(set(spec) - {"kind", "a", "b"}), "ab"))
    return _number(spec, "a", math.nan, 1e-3, 1e6), _number(spec, "b", math.nan, 1e-3, 1e6)


def _steps(spec: Any) -> tuple[int, tuple[float, ...]]:
    """The least number of steps, and the cumulative probability of that number, one more, and so on."""
    if isinstance(spec, int):
        spec = {"kind": "constant", "value": spec}
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if kind == "constant":
        return int(_number(spec, "value", math.nan, 1, 1000)), (1.0,)
    if kind != "poisson":
        raise PresetError(unknown("kind of steps", kind or spec, ("constant", "poisson")))
    least = int(_number(spec, "min", 1, 1, 1000))
    most = int(_number(spec, "max", 1000, least, 1000))
    mean = _number(spec, "mean", math.nan, 0.0, 700.0)
    chances = [math.exp(-mean)]
    for j in range(1, most - least):
        chances.append(chances[-1] * mean / j)
    return least, (*accumulate(chances[: most - least]), 1.0)


def _table(draw: Quantile) -> tuple[int, ...]:
    return tuple(max(1, round(draw((i + 0.5) / TABLE))) for i in range(TABLE))
