"""Keyed randomness: every draw is a function of a key and a purpose, so nothing depends on the order of calls.

A key is a 64-bit integer that names one thing (a query, a node, a wrong-answer class). What happens to
that thing is `uniform(key, PURPOSE)`, so a what-if that asks in another order meets the same luck and a
comparison of two systems is paired.

Source: the finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014, with Stafford's variant 13 constants).
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

GOLDEN: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: successive ordinals are far apart
MASK: Final = 0xFFFFFFFFFFFFFFFF
UNIT: Final = 2.0**-52
NORMALS: Final = 1 << 16
LANES: Final = 16  # keys that are scrambled side by side in one long integer,
LANE: Final = 128  # bits from one to the next: a product of two keys fits
ONES: Final = sum(1 << LANE * i for i in range(LANES))  # one in every lane
LOW: Final = MASK * ONES
ORDINALS: Final = sum((i * GOLDEN & MASK) << LANE * i for i in range(LANES))
UNPACK: Final = Struct("<" + "Q8x" * LANES)

Keys = npt.NDArray[np.uint64]

normal_quantile = NormalDist().inv_cdf


def mix(x: int) -> int:
    """Scramble an integer (taken modulo 2^64) into 64 well-mixed bits; a bijection on [0, 2^64)."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def child_key(key: int, ordinal: int) -> int:
    """The key of the child numbered `ordinal` (from 0) of the thing named by `key`."""
    return mix(key + (ordinal + 1) * GOLDEN)


def chains(key: int, first: int, steps: int) -> list[tuple[int, ...]]:
    """The keys of LANES children from number `first` on, each followed by those of `steps` - 1 only children.

    What `child_key` makes, in a fifth of the time: an operation on a long integer is one on all its lanes.
    """
    x = (((key + (first + 1) * GOLDEN) & MASK) * ONES + ORDINALS) & LOW
    rows = []
    for _ in range(steps):
        x = ((x ^ (x >> 30)) & LOW) * 0xBF58476D1CE4E5B9 & LOW
        x = ((x ^ (x >> 27)) & LOW) * 0x94D049BB133111EB & LOW
        x = (x ^ (x >> 31)) & LOW
        rows.append(UNPACK.unpack(x.to_bytes(LANES * LANE // 8, "little")))
        x = (x + GOLDEN * ONES) & LOW
    return list(zip(*rows, strict=True))


def uniform(key: int, purpose: int) -> float:
    """A uniform draw strictly inside (0, 1) for one purpose (a small integer) of one key."""
    return ((mix(key ^ purpose) >> 12) + 0.5) * UNIT


def normal(key: int, purpose: int) -> float:
    """A standard normal draw for one purpose (a small integer) of one key."""
    return normal_quantile(((mix(key ^ purpose) >> 12) + 0.5) * UNIT)


@lru_cache(maxsize=1)
def normals() -> tuple[float, ...]:
    """The normal quantiles at the middles of 2^16 equal shares: a normal draw is a look-up by 16 bits."""
    return tuple(normal_quantile((i + 0.5) / NORMALS) for i in range(NORMALS))


@lru_cache(maxsize=256)
def stream_key(seed: int, replication: int, stream: int) -> int:
    """The key of a whole stream (say, all queries) of one replication; all three arguments are >= 0.

    Raises ValueError for a negative argument.
    """
    if min(seed, replication, stream) < 0:
        raise ValueError(
            f"seed, replication and stream must be >= 0, got {seed}, {replication}, {stream}."
        )
    sequence = np.random.SeedSequence(seed, spawn_key=(replication, stream))
    return int(sequence.generate_state(1, np.uint64)[0])


def root_key(seed: int, replication: int, stream: int, index: int) -> int:
    """The key of the thing numbered `index` in a stream: the root from which a query draws everything."""
    return mix(stream_key(seed, replication, stream) + (index + 1) * GOLDEN)


def mix_array(x: Keys) -> Keys:
    """`mix` of each element of a uint64 array."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def root_keys(seed: int, replication: int, stream: int, n: int) -> Keys:
    """`root_key` for index 0 to n - 1, as uint64 of shape (n,)."""
    ordinals = np.arange(1, n + 1, dtype=np.uint64)
    return mix_array(
        np.uint64(stream_key(seed, replication, stream)) + ordinals * np.uint64(GOLDEN)
    )


def uniform_array(keys: Keys, purpose: int) -> npt.NDArray[np.float64]:
    """`uniform` of each key, as float64 of the same shape."""
    bits = mix_array(keys ^ np.uint64(purpose)) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) * UNIT
