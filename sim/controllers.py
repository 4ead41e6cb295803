"""The controller that a scenario names, in the currency of its own fleet."""

from __future__ import annotations

from pathlib import Path

from hw.device import CatalogError, device
from hw.rates import hourly
from models.controller import Controller, Fixed
from models.latency import StepCost
from models.learned import load
from models.learned_controller import LearnedController
from models.token_prices import token_prices
from scenarios.errors import UserError
from scenarios.loader import Loaded


def controller_of(loaded: Loaded, policy: StepCost, judge: StepCost | None) -> Controller:
    """The controller of a scenario whose pools cost `policy` and `judge` a step.

    The price of a mean trajectory is what it takes on this fleet, at the hourly rate of its device, over
    the value of a right answer. Raises UserError where the file is no controller, or the rate unknown.
    """
    asked = loaded.scenario.controller
    if asked.kind == "fixed":
        return Fixed()
    assert asked.value_per_correct is not None
    try:
        learned = load(Path(asked.file)) if asked.file is not None else load()
    except ValueError as error:
        raise UserError(f"{loaded.where(['controller', 'file'])}: {error}") from None
    told = learned.provenance
    here = token_prices(policy, judge)
    unit = learned.unit_gpu_s * here.generated_s / float(told["gpu_s_per_generated_token"])
    rate = unit * _usd_per_s(loaded) / asked.value_per_correct
    return LearnedController(
        learned, rate, float(told["informativeness"]), asked.load_gain, asked.max_rounds
    )


def _usd_per_s(loaded: Loaded) -> float:
    """USD a GPU-second of the policy pool."""
    scenario = loaded.scenario
    name, pool = next((n, p) for n, p in scenario.fleet.items() if p.role == "policy")
    given = pool.device if isinstance(pool.device, str) else str(pool.device.get("name", ""))
    rate = scenario.pricing.device_rates.get(given)
    if rate is None:
        try:
            rate = hourly(device(given), scenario.pricing.terms).value
        except CatalogError as error:
            raise UserError(f"{loaded.where(['fleet', name, 'device'])}: {error}") from None
    if rate <= 0:
        raise UserError(
            f"{loaded.where(['controller'])}: a learned controller weighs GPU time, and the rate of {given} "
            f"is not known; add pricing: {{device_rates: {{{given}: 3.50 USD/h}}}}"
        )
    return rate / 3600.0
