"""Steady state in closed form: what a fixed number of clients see of one engine, TTFT and TPOT.

Each of C clients sends its next request when the last is answered. In the time in which one answer decodes,
each of the C - 1 others brings one prompt in, so that

    TPOT = gap + each x b + decode x (one step of b branches) + prefill x (b - 1) / output x (one prompt)
    TTFT = start + alone x (one prompt) + burst x (b - 1) / 2 x (one prompt) + steps x (one step) [+ wait]
    wait = (queued + C - b) / b x (one answer)

A step and a prompt cost what the cost model says. The constants (Terms) are an engine's and a load test's:
how far the CPU stays behind, how much of the first burst the average still holds, how many requests the engine
leaves queued though they would fit. Where KV memory holds only b < C requests, the others wait too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.latency import StepCost
from sim.renewal import Floats

# A request that is being answered holds its prompt and, on average over its life and with the engine's
# reserve, three quarters of its answer. Source: half is the mean of a growing answer, one what
# TensorRT-LLM's GUARANTEED_NO_EVICT reserves; the middle of both.
_HELD = 0.75
_CHUNK = 8192  # tokens of a full prefill step. Source: vLLM V1's max_num_batched_tokens on 80 GB and more


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients do. Units: requests at a time, tokens."""

    clients: int
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Parts:
    """What the formulas are made of. Units: s, requests."""

    step_s: float  # one decode step of the batch
    prompt_s: float  # one prompt's share of a full prefill step
    alone_s: float  # one prompt in a step of its own
    others_s: float  # (b - 1) x prompt_s
    share_s: float  # others_s / output tokens
    output_tokens: float
    batch: float
    waiting: float  # (C - b) / b: answers that a request waits for memory


@dataclass(frozen=True, slots=True)
class Terms:
    """An engine's constants in the formulas. Units: s, the rest factors.

    The defaults are what one expects before any calibration: what the device does takes its time
    (factors of one), the CPU a millisecond a step and 20 us a sequence, an average holds some of the burst.
    Source of gap and each: the least error of TPOT over the public half of AIConfigurator's Hopper samples.
    """

    gap_s: float = 1.0e-3  # of the CPU between two steps
    each_s: float = (
        20e-6  # of the CPU for each sequence of a step: scheduling, sampling's way back, text
    )
    decode: float = 1.0
    prefill: float = 1.0
    start_s: float = (
        30e-3  # of the server before a prompt is scheduled, and of its first token's way back
    )
    alone: float = 1.2
    burst: float = 0.15
    steps: float = 2.0  # decode steps that a prompt waits for
    queued: float = 1e-3  # requests that wait for another's end, on average over the run


_RATE = ("gap_s", "each_s", "decode", "prefill")  # the terms of TPOT
_FIRST = ("start_s", "alone", "burst", "steps", "queued")  # those of TTFT alone
# How far a calibration may move a term, in log scale: factors of the device's time a tenth, the rest a half or
# more. One standard deviation of the prior beside an error of a tenth in each point.
_PRIOR: Mapping[str, float] = {"gap_s": 0.5, "each_s": 0.5, "decode": 0.1, "prefill": 0.2,
                               "start_s": 1.0, "alone": 0.5, "burst": 1.0, "steps": 1.0,
                               "queued": 3.0}  # fmt: skip
_TRIED = {
    "queued": 0.1
}  # where the search starts if not at the prior: there a small change would not show
_SOFT = 0.1  # relative errors from here on count linearly


def parts(cost: StepCost, load: Load, kv_tokens: float, kv_scale: float = 1.0) -> Parts:
    """The parts of a load on one replica that holds `kv_tokens`.

    `kv_scale` is the time to read a KV token over that of bf16 (fp8: 0.5).
    """
    held = load.input_tokens + _HELD * load.output_tokens
    batch = min(float(load.clients), max(1.0, kv_tokens / held))
    b, prompt = max(1, round(batch)), max(1, round(load.input_tokens))
    read = b * (load.input_tokens + load.output_tokens / 2)
    step_s = cost.linear_s(b, 0) + kv_scale * cost.reading(b, 0, read)[0]
    many = max(1, round(_CHUNK / prompt))
    context = cost.context_s(prompt) * prompt / 2
    prompt_s = (cost.linear_s(0, many * prompt) + many * context) / many
    return Parts(
        step_s=step_s,
        prompt_s=prompt_s,
        alone_s=cost.linear_s(0, prompt) + context,
        others_s=(batch - 1) * prompt_s,
        share_s=(batch - 1) / load.output_tokens * prompt_s,
        output_tokens=load.output_tokens,
        batch=batch,
        waiting=(load.clients - batch) / batch,
    )


def tpot(found: Parts, terms: Terms) -> float:
    """Mean seconds between two tokens of an answer."""
    host_s = terms.gap_s + terms.each_s * found.batch
    return host_s + terms.decode * found.step_s + terms.prefill * found.share_s


def ttft(found: Parts, terms: Terms) -> float:
    """Mean seconds from a request to its first token."""
    served = (
        terms.start_s
        + terms.alone * found.alone_s
        + terms.burst * found.others_s / 2
        + terms.steps * found.step_s
    )
    answers = found.waiting + terms.queued / found.batch
    return served + answers * (served + found.output_tokens * tpot(found, terms))


def calibrate(
    found: Sequence[Parts], tpots: Sequence[float], ttfts: Sequence[float], prior: Terms
) -> Terms:
    """The terms that fit measured points with least relative error and do not move far from `prior`.

    TPOT's first, then TTFT's. Outliers count linearly (soft L1 in log scale). Loads that overfill the
    memory say nothing of TTFT.
    """
    terms = _moved(found, tpots, prior, _RATE, tpot)
    fits = [i for i, part in enumerate(found) if part.waiting <= 0.02]
    return _moved([found[i] for i in fits], [ttfts[i] for i in fits], terms, _FIRST, ttft)


def _moved(
    found: Sequence[Parts], measured: Sequence[float], prior: Terms, names: tuple[str, ...],
    predict: Callable[[Parts, Terms], float],
) -> Terms:  # fmt: skip
    from scipy.optimize import least_squares

    if not found:
        return prior
    centre = np.log([getattr(prior, name) for name in names])
    start = np.log([max(getattr(prior, name), _TRIED.get(name, 0.0)) for name in names])
    spread = np.array([_PRIOR[name] for name in names])
    aim = np.log(measured)

    def with_(logs: Floats) -> Terms:
        return replace(prior, **dict(zip(names, np.exp(logs).tolist(), strict=True)))

    def misses(logs: Floats) -> Floats:
        terms = with_(logs)
        errors = np.log([predict(part, terms) for part in found]) - aim
        return np.concatenate([errors, _SOFT * (logs - centre) / spread])

    result = least_squares(misses, start, loss="soft_l1", f_scale=_SOFT, max_nfev=60)
    return with_(result.x)
