"""A verifier: how the logit of its score depends on whether the solution is still alive, and on its errors.

At step k of K:  logit = bias + m_k (alive - 1/2) + class error + blind spot + step error,  with
m_k = strength (early + (1 - early) k / K): weak early, strong late. The class error and the blind spot
belong to a wrong answer (all its copies share them, so search finds them again and again); the step error
is AR(1) along a path. The right answer has no class error; a question may shift all its answers alike.

Source: constants and form after Treeline's design notes on search, "a generative model" (2026-11-23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from models.presets import PresetError, unknown, values


@dataclass(frozen=True, slots=True)
class VerifierModel:
    """The parameters of a verifier's score, in logits unless said otherwise.

    Raises ValueError where a parameter is outside its range.
    """

    name: str = "verifier"
    strength: float = 2.9  # distance of right from wrong at the last step
    early: float = 0.45  # share of the strength that is there before the first step
    class_sigma: float = 1.2  # sd of the error that all copies of one wrong answer share
    step_sigma: float = 1.7  # sd of the error of one step, at the last step
    noise_early: float = 1.0  # sd of the error before the first step, as a share of that
    question_sigma: float = 0.0  # sd of the error that all answers to one question share
    rho: float = 0.25  # correlation of the step error from one step to the next
    bias: float = 1.3
    blind_share: float = 0.03  # share of wrong answers that are blind spots
    blind_boost: float = 3.0  # what a blind spot adds
    outcome: bool = False  # an outcome verifier tells right from wrong at the last step alone
    gains: tuple[float, ...] | None = None  # m_k / strength for k = 1, 2, ..., instead of `early`
    common: float = 1.0  # how much of class errors and blind spots other versions have alike
    version: int = 0  # verifiers of one version share their step errors, node by node

    def __post_init__(self) -> None:
        if self.outcome not in (True, False):
            raise ValueError(f'"outcome" of verifier {self.name!r} must be true or false.')
        numbers = [getattr(self, f.name) for f in fields(self) if f.name not in ("name", "gains")]
        if not all(math.isfinite(x) for x in (*numbers, *(self.gains or ()))):
            raise ValueError(f"Every parameter of verifier {self.name!r} must be a finite number.")
        for name in ("class_sigma", "step_sigma", "noise_early", "question_sigma"):
            if getattr(self, name) < 0:
                raise ValueError(f'"{name}" of verifier {self.name!r} must be >= 0.')
        for name in ("blind_share", "common"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'"{name}" of verifier {self.name!r} must lie in [0, 1].')
        if not -1 < self.rho < 1:
            raise ValueError(f'"rho" of verifier {self.name!r} must lie inside (-1, 1).')
        if not (isinstance(self.version, int) and 0 <= self.version < 2**16):
            raise ValueError(
                f'"version" of verifier {self.name!r} must be an integer in [0, 65535].'
            )

    def gain(self, k: int, steps: int) -> float:
        """m_k: how many logits right and wrong lie apart after k of `steps` steps."""
        if self.outcome and k < steps:
            return 0.0
        if self.gains and k > 0:
            return self.strength * self.gains[min(k, len(self.gains)) - 1]
        return self.strength * (self.early + (1 - self.early) * k / steps)

    def sigma(self, k: int, steps: int) -> float:
        """The standard deviation of the step error after k of `steps` steps, in logits."""
        return self.step_sigma * (self.noise_early + (1 - self.noise_early) * k / steps)


def verifier_model(spec: str | Mapping[str, Any]) -> VerifierModel:
    """A verifier by preset name, or by a mapping with an optional `preset` and parameters that replace its own.

    Raises PresetError for an unknown preset or parameter, ValueError for one out of range.
    """
    given = {"preset": spec} if isinstance(spec, str) else dict(spec)
    name = str(given.pop("preset", "general"))
    parameters = values("verifiers", name)
    known = {f.name for f in fields(VerifierModel)} - {"name"}
    for key in given:
        if key not in known:
            raise PresetError(unknown("verifier parameter", key, known))
    parameters |= given
    gains = parameters.get("gains")
    parameters["gains"] = None if gains is None else tuple(float(g) for g in gains)
    return VerifierModel(name=name, **parameters)
