"""`treeline fit search`: parameters of a search trained at equal GPU-seconds, judged on held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group

from dashboards.commands.searches import bench
from hw.device import CatalogError, device
from hw.transformer import transformer
from models.controller import PlanError
from models.latency import CapacityError, LatencyError, step_cost
from models.search import ALGORITHMS
from models.tuning import Estimate, Prices, Tuned, prices, train, trained_parameters
from scenarios.errors import UserError


def priced(policy: str, judge: str, on: str) -> Prices:
    """What a token costs of two models of the catalogue on a device, by the roofline.

    Raises UserError for a name that is not in the catalogue, or a model that does not fit.
    """
    try:
        card = device(on)
        return prices(step_cost(transformer(policy), card), step_cost(transformer(judge), card))
    except (CatalogError, CapacityError, LatencyError) as error:
        raise UserError(str(error)) from None


def fit_search(
    algorithm: str,
    preset: str,
    given: Mapping[str, str],
    *,
    only: list[str] | None,
    verifier: str | None,
    price: Prices,
    questions: int,
    candidates: int,
    seed: int,
    tell: Callable[[float, str], None] | None = None,
) -> Tuned:
    """Train the algorithm on a preset. Raises UserError for what does not exist or cannot be trained."""
    if algorithm not in ALGORITHMS:
        raise UserError(f"there is no search {algorithm!r}; there are: {', '.join(ALGORITHMS)}")
    try:
        trained_parameters(algorithm, only)
        return train(
            bench(preset, verifier, seed),
            algorithm,
            price,
            given={name: _value(text) for name, text in given.items()},
            only=only,
            candidates=candidates,
            questions=questions,
            held_out=min(2 * questions, 4000),
            tell=tell,
        )
    except (PlanError, ValueError) as error:
        raise UserError(str(error)) from None


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def document(found: Tuned, preset: str) -> dict[str, Any]:
    """What was found, as JSON values."""
    plain = asdict(found)
    plain["questions_of"] = preset
    plain["plan"], plain["default"] = (
        {"algorithm": p.algorithm} | dict(p.params) for p in (found.plan, found.default)
    )
    return plain


def text(found: Tuned, preset: str) -> Group:
    """What was found, for people: the verdict, then the lines to paste."""
    changed = {k: v for k, v in found.plan.params.items() if v != found.default.params[k]}
    before = {k: found.default.params[k] for k in changed}
    if not changed:
        verdict = "The defaults stay: no candidate was more accurate for no more GPU-seconds."
    elif found.gain.low > 0 and found.cost_ratio.low <= 1:
        verdict = "Better than the defaults on questions it never saw, at no more GPU-seconds."
    elif found.cost_ratio.high < 1 and found.gain.high >= 0:
        verdict = "Cheaper than the defaults; its accuracy cannot be told from theirs."
    else:
        verdict = "No better than the defaults on questions it never saw: keep those."
    paste = ", ".join(
        f"{k}: {v}" for k, v in ({"algorithm": found.plan.algorithm} | changed).items()
    )
    ratio = found.cost_ratio
    return Group(
        f"{found.plan.algorithm} on {preset}: {found.tried} candidates, "
        f"judged on {found.questions:,} held-out questions",
        verdict,
        "",
        f"accuracy     {found.accuracy:.1%}, was {found.default_accuracy:.1%}: {_points(found.gain)}",
        f"GPU-seconds  {found.gpu_s:.3g} a question, was {found.default_gpu_s:.3g}: "
        f"{ratio.value:.3f} times ({ratio.low:.3f} to {ratio.high:.3f})",
        "",
        f"search: {{{paste}}}" + (f"  # was {before}" if changed else ""),
    )


def _points(gain: Estimate) -> str:
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}, paired)"
