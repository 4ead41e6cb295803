"""Step latency: what one iteration of a replica costs, in the few numbers that the simulator asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StepCost:
    """The cost of one iteration: a base for its tokens, and a price for each KV token read or copied.

    An iteration that decodes b branches beside c prefill tokens takes `base_s(b, c)`, plus `kv_s` for
    each KV token read by one to `saturation` branches, plus `context_s(chunk)` for each context token
    of a prefill chunk, plus `copy_s` for each KV token that a fork copies. Units: s. docs/engine.md
    defines how the terms add up.
    """

    step: Callable[[int, int], float]  # seconds of (b, c), pure; asked once per pair
    kv_s: float  # s per KV token read
    saturation: float  # branches reading the same KV token before compute is the limit
    copy_s: float  # s per KV token copied by a fork
    gpus: int = 1  # devices of the replica (tensor parallel)
    label: str = "linear (given)"
    source_kind: str = "roofline"  # measured | imported | roofline
    error: str | None = (
        None  # held-out error of the profile in words, None where nobody measured it
    )
    expand_s: float = float("inf")  # MLA: s to expand the latent of one context token for a chunk
    expanded_s: float = 0.0  # MLA: s per (context token, chunk token) of the expanded form
    _memo: dict[tuple[int, int], float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def linear(
        cls,
        base: float,
        per_decode: float = 0.0,
        per_prefill: float = 0.0,
        kv: float = 0.0,
        saturation: float = 1e18,
        copy: float = 0.0,
    ) -> StepCost:
        """A cost that is linear in b and c, for tests and for theory. Units: s, branches."""
        return cls(
            step=_Linear(base, per_decode, per_prefill), kv_s=kv, saturation=saturation, copy_s=copy
        )

    def base_s(self, b: int, c: int) -> float:
        """Seconds of an iteration with b decode and c prefill tokens, without reading any KV."""
        key = (b, c)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self.step(b, c)
        return found

    def context_s(self, c: int) -> float:
        """Seconds per context token of a prefill chunk of c tokens."""
        read = self.kv_s * max(1.0, c / self.saturation)
        return min(read, self.expand_s + self.expanded_s * c)


@dataclass(frozen=True, slots=True)
class _Linear:
    base: float
    per_decode: float
    per_prefill: float

    def __call__(self, b: int, c: int) -> float:
        return self.base + self.per_decode * b + self.per_prefill * c
