"""Serving points played by the simulator's batch: no closed form, and no constant of TTFT but the server's own time."""

from __future__ import annotations

from models.latency import StepCost
from sim.batch import Settings
from sim.closed_loop import Loop, Seen, play, with_host
from sim.points import SHORTEST, VARIED, Point
from sim.steady import Terms

_PAGE = 16
_HOST = Terms()  # as one expects of any server
# As many clients as the batch's own scheduler and graphs were made for; beyond, engines limit themselves.
_MOST_CLIENTS = 256


def plays(point: Point, kv_tokens: float) -> bool:
    """Whether an engine schedules as the batch does, under a load test that is known in full, with room for a request."""
    known = (point.engine, point.harness) == ("vllm", VARIED) and point.clients <= _MOST_CLIENTS
    return known and kv_tokens > point.input_tokens + point.output_tokens + 2 * _PAGE


def played(point: Point, cost: StepCost, kv_tokens: float) -> Seen:
    """What the clients of a point see of a batch whose pool holds `kv_tokens`.

    Settings: max_num_seqs equal to the clients, 8,192 tokens a step, no prefix cache; ten requests a client.
    Source: InferenceMAX README, benchmark client and server of Llama-3.1-70B on H200, read 2026-11-25.
    """
    settings = Settings(
        num_gpu_blocks=int(kv_tokens / _PAGE),
        block_size=_PAGE,
        max_num_seqs=point.clients,
        max_num_batched_tokens=8192,
        attention="naive",
        reclaim="lru",
        enable_prefix_caching=False,
    )
    loop = Loop(point.clients, point.input_tokens, point.output_tokens, SHORTEST)
    return play(loop, settings, with_host(cost, _HOST.gap_s, _HOST.each_s), _HOST.start_s)
