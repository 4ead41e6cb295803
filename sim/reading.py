"""What reading KV takes where attention was timed: straight pieces between timed contexts, and unequal contexts."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.batch import Batch


def timed_reads(batch: Batch, b: int, c: int, ticks: int) -> tuple[float, float, int]:
    """What timed reads take beyond `kv_s` a token: in the next tick, more in each after, for how many.

    The decoders share it, as they share the step's base. Between two timed contexts a step's time is
    straight, so a regime ends where the next piece begins. Unequal contexts (`skew`) need each
    decoder's own, which naive attention has.
    """
    cost = batch.cost
    read = batch.read + batch.read_saturated / batch.saturation
    now, slope, upto = _reading(batch, b, c, read)
    share = 0.0
    if batch.naive and b > 1:
        alpha = cost.alpha(b, c > 0)
        if alpha:
            low, high, variance = _spread(batch, b)
            mean = read / b
            if low < high:
                share = alpha * variance / ((mean - low) * (high - mean))
                longest, rise, end = cost.reading(b, c, b * high)
                upto = min(upto, read + end - b * high)
                now += share * (longest - now)
                slope += share * (rise - slope)
    more, drift = now - cost.kv_s * read, (slope - cost.kv_s) * b
    batch._per_decoder += more / b
    batch._drift = drift / b
    if upto < float("inf"):
        ticks = min(ticks, max(1, ceil((upto - read) / b)))
    return more, drift, ticks


def _reading(batch: Batch, b: int, c: int, read: float) -> tuple[float, float, float]:
    """`Cost.reading`; the pieces of decoders alone are kept, because most ticks ask for those."""
    if c:
        return batch.cost.reading(b, c, read)
    lines = batch._lines.get(b)
    if lines is None:
        of = batch.cost.lines
        if of is None:
            return batch.cost.reading(b, c, read)
        lines = batch._lines[b] = of(b, c)
    return lines.at(read)


def _spread(batch: Batch, b: int) -> tuple[int, int, float]:
    """Least and most KV tokens that a decoder reads now, and their variance."""
    tick = batch.tick
    least, most, squares, total = 1 << 60, 0, 0, 0
    for _, query in batch._decoding:
        for cohort in query.cohorts:
            own = cohort.written + tick - cohort.joined + cohort.context
            for node in cohort.nodes:
                if node.cohort is cohort:
                    tokens = own + node.tail
                    least, most = min(least, tokens), max(most, tokens)
                    total += tokens
                    squares += tokens * tokens
    return least, most, squares / b - (total / b) ** 2
