"""Serving points played by the simulator's batch: no closed form, and no constant of TTFT but the server's own time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sim.batch import Settings
from sim.closed_loop import Loop, Seen, play, with_host
from sim.points import SHORTEST, VARIED, Modelled, replica
from sim.points_accuracy import expected
from sim.renewal import Floats

_PAGE = 16
# As many clients as the batch's own scheduler and graphs were made for; beyond, engines limit themselves.
_MOST_CLIENTS = 256


def playable(found: Sequence[Modelled]) -> list[Modelled]:
    """The points whose engine schedules as the batch does, under a load test that is known in full."""
    return [
        item
        for item in found
        if (item.point.engine, item.point.harness) == ("vllm", VARIED)
        and item.point.clients <= _MOST_CLIENTS
        and _pages(item) * _PAGE > item.point.input_tokens + item.point.output_tokens + _PAGE
    ]


def played(item: Modelled) -> Seen:
    """What the clients of a point see of the batch.

    Settings: max_num_seqs equal to the clients, 8,192 tokens a step, no prefix cache; ten requests a client.
    Source: InferenceMAX README, benchmark client and server of Llama-3.1-70B on H200, read 2026-11-25.
    """
    point = item.point
    cost = replica(point)[0]
    host = expected(item)
    settings = Settings(
        num_gpu_blocks=_pages(item),
        block_size=_PAGE,
        max_num_seqs=point.clients,
        max_num_batched_tokens=8192,
        attention="naive",
        reclaim="lru",
        enable_prefix_caching=False,
    )
    loop = Loop(point.clients, point.input_tokens, point.output_tokens, SHORTEST)
    return play(loop, settings, with_host(cost, host.gap_s, host.each_s), host.start_s)


def _pages(item: Modelled) -> int:
    return int(replica(item.point)[2] / _PAGE)


def played_errors(
    found: Sequence[Modelled], tell: Callable[[float, str], None] | None = None
) -> tuple[Floats, Floats]:
    """Relative errors of TPOT and TTFT of points that are played; `tell` hears of the share that is done."""
    rates, firsts = np.empty(len(found)), np.empty(len(found))
    for number, item in enumerate(found):
        if tell is not None:
            tell(number / len(found), f"playing {item.point.model}")
        seen = played(item)
        rates[number] = seen.tpot_s / item.point.tpot_s - 1
        firsts[number] = seen.ttft_s / item.point.ttft_s - 1
    return rates, firsts
