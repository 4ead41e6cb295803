"""What answers: a pool of replicas, its engine, its KV memory and where its step costs come from."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from scenarios import units
from scenarios.fields import Share, Strict, Text, Whole, wrong


class Latency(Strict):
    """Where step costs come from: `auto` is the best profile for the device, else the roofline."""

    kind: Literal["auto", "roofline", "profile"] = "auto"
    profile: Text | None = None

    @model_validator(mode="after")
    def _profile_given(self) -> Self:
        if self.kind == "profile" and self.profile is None:
            raise wrong(
                "kind: profile names no profile", "add profile: NAME, or write kind: roofline"
            )
        if self.kind == "roofline" and self.profile is not None:
            raise wrong("kind: roofline reads no profile", "remove profile, or write kind: profile")
        return self


class Engine(Strict):
    """The engine's own settings, by vLLM's names.

    Defaults are vLLM's, but for async_scheduling (on since 0.14) and scheduler_reserve_full_isl (on in
    0.19). What each does to a tick: docs/engine.md.
    """

    max_num_seqs: Whole = 256
    max_num_batched_tokens: Whole = 8192
    gpu_memory_utilization: Annotated[Share, Field(gt=0, le=1)] = 0.90
    block_size: Whole = 16
    num_gpu_blocks: Whole | None = None
    max_active_searches: Whole | None = None
    async_scheduling: bool = False
    enable_prefix_caching: bool = True
    scheduler_reserve_full_isl: bool = False
    enforce_eager: bool = False

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise wrong(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is less than "
                f"max_num_seqs ({self.max_num_seqs}), so a full batch could not decode",
                f"write max_num_batched_tokens: {self.max_num_seqs} or more",
            )
        return self


class Kv(Strict):
    """What branches of one query share in KV memory, and what happens when it is full."""

    sharing: Literal["tree", "per_branch"] = "tree"
    attention: Literal["shared", "naive"] = "shared"
    fork: Literal["copy_tail", "recompute_tail"] = "copy_tail"
    on_pressure: Literal["recompute"] = "recompute"
    reclaim: Literal["youngest", "lru"] = "youngest"


_SUFFIXES: Final[tuple[tuple[str, units.Quantity], ...]] = (
    ("bytes_per_s", "bandwidth"),
    ("bytes", "bytes"),
    ("usd_per_hour", "money_rate"),
    ("_s", "time"),
)


def _model_or_config(value: object) -> object:
    if isinstance(value, dict) and (
        set(value) != {"config"} or not isinstance(value["config"], str)
    ):
        raise wrong("a model in place is {config: PATH}", "write {config: path/to/config.json}")
    return _name_or_mapping(value, "a model", "llama-3.1-8b")


def _name_or_mapping(value: object, what: str, example: str) -> object:
    if isinstance(value, dict) or (isinstance(value, str) and value):
        return value
    raise wrong(f"{units.quoted(value)} does not name {what}", f"write for example {example}")


def _inline_device(value: object) -> object:
    """A device in place, with every quantity that has a unit (memory_bytes: 141GB) as its SI number."""
    if not isinstance(value, dict):
        return _name_or_mapping(value, "a device", "h200-sxm-141gb")
    device: dict[str, Any] = dict(value)
    for key, item in value.items():
        kind = next((q for end, q in _SUFFIXES if str(key).endswith(end)), None)
        kind = "flops" if str(key).startswith("flops") else kind
        if kind is not None and isinstance(item, str):
            try:
                device[key] = units.parse(item, kind)
            except units.UnitError as error:
                raise wrong(f"{key}: {error.message}", error.hint) from None
    return device


class Pool(Strict):
    """Replicas of one model on one kind of device: a policy that thinks, or a verifier that scores."""

    role: Literal["policy", "verifier"] = "policy"
    model: Annotated[Text | dict[str, Any], BeforeValidator(_model_or_config)]
    device: Annotated[Text | dict[str, Any], BeforeValidator(_inline_device)]
    replicas: Whole = 1
    tensor_parallel: Whole = 1
    latency: Latency = Latency()
    engine: Engine = Engine()
    kv: Kv = Kv()
    router: Literal["least_loaded", "round_robin", "random"] = "least_loaded"
