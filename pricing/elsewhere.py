"""What the same queries would cost at somebody's API, by the dated prices of the package genai-prices, offline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np

from pricing.contract import Priced
from scenarios.errors import UserError
from sim.records import measured, size

_PRICED = 400  # queries that are priced one by one; more are sampled evenly


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """One model of an API on one day; USD per query, mean over the run's queries, each priced as one request.

    `one_answer` is its prompt and as many output tokens as one of our trajectories, `same_tokens` the
    prompt and all tokens that our search generated, branches and all.
    """

    asked: str
    provider: str
    model: str
    as_of: str
    one_answer: float
    same_tokens: float


def elsewhere(priced: Priced, models: list[str], as_of: str) -> tuple[Elsewhere, ...]:
    """Price a run's measured queries at each model. `as_of` is an ISO date.

    Raises UserError for a date or model that it does not know, ModuleNotFoundError without the extra.
    """
    import genai_prices

    try:
        day = date.fromisoformat(as_of)
    except ValueError:
        raise UserError(f"{as_of!r} is no date. Write --as-of 2026-11-01.") from None
    at = datetime.combine(day, time(12), tzinfo=UTC)
    table = measured(priced.result.queries)
    rows = np.unique(np.linspace(0, size(table) - 1, min(_PRICED, size(table))).astype(np.int64))
    prompts = table["input_tokens"][rows].tolist()
    tokens = table["output_tokens"][rows]
    single = np.ceil(tokens / np.maximum(1, table["trajectories"][rows])).astype(int).tolist()

    def mean(model: str, outputs: list[int]) -> tuple[float, Any]:
        total, last = 0.0, None
        for prompt, output in zip(prompts, outputs, strict=True):
            usage = genai_prices.Usage(input_tokens=int(prompt), output_tokens=int(output))
            last = genai_prices.calc_price(usage, model, genai_request_timestamp=at)
            total += float(last.total_price)
        return total / max(1, len(rows)), last

    found = []
    for model in models:
        try:
            one, last = mean(model, single)
            same, _ = mean(model, tokens.tolist())
        except LookupError as error:
            hint = "Names are those of genai-prices, for example gpt-5, o3, claude-haiku-4-5."
            raise UserError(f"--against {model}: {error}. {hint}") from None
        found.append(Elsewhere(model, last.provider.id, last.model.id, as_of, one, same))
    return tuple(found)
