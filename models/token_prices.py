"""What a token of a search costs in GPU-seconds: generated, scored, read, from the cost model of a profile.

A controller needs one price a token, and the batch decides it: a token of a full batch is many times
cheaper than a lone one. So the batch and the context are stated, and are part of the label.
"""

from __future__ import annotations

import hashlib
from typing import Final

from models.latency import StepCost
from models.staged import Prices

BATCH: Final = 64  # sequences that decode together
CONTEXT: Final = 1024  # KV tokens that each of them reads on its own
_TRUST: Final = ("roofline", "imported", "measured")  # the least of two is said of both
CHUNK: Final = 4096  # tokens of a prefill


def token_prices(
    policy: StepCost, judge: StepCost | None, batch: int = BATCH, context: int = CONTEXT
) -> Prices:
    """GPU-seconds of a token: generated in a batch of `batch` that each read `context` tokens, scored, read."""
    step = policy.base_s(batch, 0) + policy.reading(batch, 0, batch * context)[0]
    generated = step / batch * policy.gpus
    scored = judge.base_s(0, CHUNK) / CHUNK * judge.gpus if judge is not None else 0.0
    prompt = policy.base_s(0, CHUNK) / CHUNK * policy.gpus + scored
    label = f"{policy.label}; batch {batch}, context {context}"
    digest = hashlib.sha256(f"{label} {generated:.9e} {scored:.9e} {prompt:.9e}".encode())
    kinds = [cost.source_kind for cost in (policy, judge) if cost is not None]
    kind = min(kinds, key=_TRUST.index)
    return Prices(generated, scored, prompt, label, digest.hexdigest(), kind)
