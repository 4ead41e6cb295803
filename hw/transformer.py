"""Transformer shapes: from a config.json to weights, KV bytes and the work of each linear layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hw.device import CatalogError, Device, Source, catalog, unknown

# mxfp4: 4-bit values and one 8-bit scale for each 32. Source: OCP Microscaling Formats (MX) v1.0, 2023.
BYTES = {
    "bfloat16": 2.0,
    "float16": 2.0,
    "float32": 4.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "mxfp4": 4.25 / 8,
    "int4_wo": 4.5 / 8,  # 4-bit values, a 16-bit scale for each 32
}
_CONFIG_BYTES_LIMIT = 1_000_000
_GIVEN = Source("config.json given in the scenario", "scenario")


@dataclass(frozen=True, slots=True)
class Transformer:
    """The shape of one decoder: what decides its weights, its KV cache and its arithmetic.

    Units: counts, bytes per parameter. A dense model has experts = 0; a model with latent attention
    (MLA) has kv_lora > 0. `windowed_layers` keep at most a short window of KV, which is not counted.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    dtype: str = "bfloat16"  # of attention and dense layers
    expert_dtype: str = "bfloat16"
    tied: bool = False  # embedding and LM head are one matrix
    score_head: bool = False  # a process reward model: no LM head
    windowed_layers: int = 0
    dense_layers: int = 0  # of a model with experts: the first layers without
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    expert_ffn: int = 0
    q_lora: int = 0
    kv_lora: int = 0
    qk_nope: int = 0
    qk_rope: int = 0
    v_dim: int = 0
    source: Source = _GIVEN

    def weight_bytes(self, tensor_parallel: int = 1) -> float:
        """Bytes of weights that each of `tensor_parallel` devices holds, the embedding included."""
        table = 0.0 if self.tied else self.vocab * self.hidden * 2.0 / tensor_parallel
        return table + sum(w.full_bytes for w in linear_work(self, tensor_parallel))

    def weights_read_bytes(self, tokens: int = 1, tensor_parallel: int = 1) -> float:
        """Bytes of weights that one step of `tokens` tokens reads on each device."""
        return sum(w.weight_bytes(tokens) for w in linear_work(self, tensor_parallel))

    def kv_bytes_per_token(self, tensor_parallel: int = 1) -> float:
        """Bytes of KV cache that one token takes on each device, over all layers.

        KV heads are split among devices and repeated where there are fewer heads than devices;
        the latent of MLA is held whole by each device.
        """
        return self.kv_layer_bytes(tensor_parallel) * (self.layers - self.windowed_layers)

    def kv_layer_bytes(self, tensor_parallel: int = 1) -> float:
        """Bytes of KV cache of one token in one layer on each device (bf16)."""
        if self.kv_lora:
            return 2.0 * (self.kv_lora + self.qk_rope)
        return 4.0 * self.head_dim * math.ceil(self.kv_heads / tensor_parallel)

    def attention_flops(self, tensor_parallel: int = 1) -> float:
        """FLOP of one query token reading one KV token in one layer on each device.

        Source: 2 for each multiply-add; QK and PV. MLA in its absorbed form: 2 H (2 latent + rope).
        """
        heads = self.heads / tensor_parallel
        if self.kv_lora:
            return 2.0 * heads * (2 * self.kv_lora + self.qk_rope)
        return 4.0 * heads * self.head_dim

    def check_split(self, tensor_parallel: int) -> None:
        """Raises CatalogError when the heads cannot be split among so many devices."""
        if tensor_parallel < 1 or self.heads % tensor_parallel:
            fits = [n for n in range(1, 17) if self.heads % n == 0]
            raise CatalogError(
                f"{self.name} has {self.heads} attention heads, which {tensor_parallel} devices "
                f"cannot share equally: choose tensor_parallel among {', '.join(map(str, fits))}."
            )


@dataclass(frozen=True, slots=True)
class Work:
    """One linear operation of a step over all its calls, as a function of its rows (tokens).

    Units: bytes, FLOP. The weights that `rows` tokens touch: all of `fixed_bytes`, and of the experts
    (`expert_bytes` together) the distinct ones that the tokens choose.
    """

    name: str
    calls: int
    fixed_bytes: float = 0.0
    flops_per_row: float = 0.0
    bytes_per_row: float = 0.0
    n: int = 0  # of the matrix, for profile look-up
    k: int = 0
    sampled: bool = False  # rows are sampled tokens, not all tokens
    dtype: str = "bfloat16"
    expert_bytes: float = 0.0
    experts: int = 0
    top_k: int = 0
    whole_ways: int = 1  # devices that hold other experts, rather than a part of each
    link: bool = False  # bytes go over the link between devices

    @property
    def full_bytes(self) -> float:
        """Bytes of weights held."""
        return self.fixed_bytes + self.expert_bytes

    def weight_bytes(self, rows: float) -> float:
        """Bytes of weights read. Expected distinct experts E(1 - (1 - k/E)^rows): uniform routing."""
        if not self.experts:
            return self.fixed_bytes
        chosen = 1.0 - math.pow(1.0 - self.top_k / self.experts, rows)
        return self.fixed_bytes + self.expert_bytes * chosen

    def floor_s(self, device: Device, rows: float) -> float:
        """Seconds that no execution on this device undercuts: the larger of moving and computing."""
        if rows <= 0:
            return 0.0
        moved = self.weight_bytes(rows) + self.bytes_per_row * rows
        if self.link:
            return moved / device.link_bytes_per_s + self.calls * device.link_latency_s
        fp8 = self.dtype.startswith("fp8")
        rate = device.gemm_flops_fp8 if fp8 else device.gemm_flops_bf16
        return max(moved / device.copy_bytes_per_s, self.flops_per_row * rows / rate)


def linear_work(
    shape: Transformer, tensor_parallel: int = 1, expert_parallel: int = 1
) -> tuple[Work, ...]:
    """Every operation of a step but attention, on each of `tensor_parallel` devices.

    Activations between operations are taken to stay in cache (a floor); norms and the KV append move
    them through memory. Experts are split into parts, or `expert_parallel` ways into whole ones: the bytes
    are the same, the matrices are not. Raises CatalogError for an impossible split.
    """
    shape.check_split(tensor_parallel)
    tp, layers, hidden = tensor_parallel, shape.layers, shape.hidden
    qkv, out = _attention_params(shape, tp)

    def gemm(name: str, calls: int, n: float, k: float, dtype: str, sampled: bool = False) -> Work:
        bytes_, flops = calls * n * k * BYTES[dtype], 2.0 * calls * n * k
        return Work(
            name, calls, bytes_, flops, n=round(n), k=round(k), dtype=dtype, sampled=sampled
        )

    works = [
        Work("embedding", 1, bytes_per_row=4.0 * hidden),
        Work("norm", 2 * layers, bytes_per_row=2 * layers * 4 * 2.0 * hidden),
        Work("kv_append", layers, bytes_per_row=layers * shape.kv_layer_bytes(tp)),
        gemm("qkv", layers, qkv / hidden, hidden, shape.dtype),
        gemm("o", layers, hidden, out / hidden, shape.dtype),
    ]
    dense = layers if not shape.experts else shape.dense_layers
    if dense:
        works.append(gemm("gate_up", dense, 2 * shape.ffn / tp, hidden, shape.dtype))
        works.append(gemm("down", dense, hidden, shape.ffn / tp, shape.dtype))
    if shape.experts:
        works.extend(_expert_work(shape, tp, expert_parallel))
    if tp > 1:
        # A ring all-reduce moves 2 (tp-1)/tp of the message over each link, after o and after down.
        moved = 2 * layers * 2 * (tp - 1) / tp * hidden * 2.0
        works.append(Work("all_reduce", 2 * layers, bytes_per_row=moved, link=True))
    if shape.score_head:
        works.append(gemm("lm_head", 1, hidden + 2, hidden, "bfloat16", sampled=True))
    else:
        works.append(gemm("lm_head", 1, shape.vocab / tp, hidden, "bfloat16", sampled=True))
        works.append(Work("sample", 1, bytes_per_row=4.0 * shape.vocab / tp, sampled=True))
    return tuple(works)


def transformer(name: str) -> Transformer:
    """The catalogue's shape of that name; raises CatalogError with the nearest name."""
    known = transformers()
    if name not in known:
        raise CatalogError(unknown("model", name, known))
    return known[name]


def transformer_named(path: str, precision: str = "") -> Transformer:
    """The catalogue's shape of a Hugging Face path such as nvidia/Llama-3.1-8B-Instruct-FP8.

    The owner, case and suffixes that leave the shape alone do not matter; `precision` fp8 or fp8_block (or a
    suffix) gives a dense model's linear layers such weights. Raises CatalogError.
    """
    name = path.rpartition("/")[2].lower().removeprefix("meta-")
    fp8 = precision if precision in ("fp8", "fp8_block") else "fp8" if name.endswith("-fp8") else ""
    for suffix in ("-fp8", "-instruct", "-chat", "-hf"):
        name = name.removesuffix(suffix)
    found = transformer({"deepseek-v3": "deepseek-r1"}.get(name, name))  # one shape
    if not fp8 or found.dtype != "bfloat16" or found.experts:
        return found
    return replace(found, name=f"{found.name}-{fp8.replace('_', '-')}", dtype=fp8, expert_dtype=fp8)


def transformers() -> dict[str, Transformer]:
    """Every model shape of the catalogue, by name."""
    return dict(_transformers())


def from_config(config: str | Path | Mapping[str, Any], name: str | None = None) -> Transformer:
    """The shape in a Hugging Face config.json (a path, or its content); raises CatalogError."""
    if isinstance(config, Mapping):
        return _from_mapping(config, name or str(config.get("model_type", "inline model")))
    path = Path(config)
    try:
        if path.stat().st_size > _CONFIG_BYTES_LIMIT:
            raise CatalogError(f"{path} is over 1 MB: not a config.json of a model.")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogError(f"cannot read the model config {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CatalogError(f"{path} is not JSON: {error}.") from error
    if not isinstance(loaded, dict):
        raise CatalogError(f"{path} must hold a JSON object, not a {type(loaded).__name__}.")
    return _from_mapping(loaded, name or path.parent.name or path.stem)


@cache
def _transformers() -> Mapping[str, Transformer]:
    found = {}
    for name, row in catalog()["models"].items():
        source = Source(row["source"]["text"], str(row["source"]["as_of"]))
        found[name] = _from_mapping(row["config"], name, source)
    return found


def _from_mapping(given: Mapping[str, Any], name: str, source: Source | None = None) -> Transformer:
    def count(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = given.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**9:
                raise CatalogError(f"model `{name}`: {key} must be a whole number, not {value!r}.")
            return value
        if default is None:
            raise CatalogError(f"model `{name}`: config.json lacks `{keys[0]}`.")
        return default

    hidden, heads = count("hidden_size"), count("num_attention_heads")
    layers, ffn = count("num_hidden_layers"), count("intermediate_size")
    if not (hidden and heads and layers and ffn):
        raise CatalogError(f"model `{name}`: sizes and counts must be at least 1.")
    experts = count("n_routed_experts", "num_local_experts", "num_experts", default=0)
    dtype, expert_dtype = _dtypes(given, name)
    kinds = given.get("layer_types") or []
    shape = Transformer(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=count("num_key_value_heads", default=heads),
        head_dim=count("head_dim", default=hidden // heads),
        ffn=ffn,
        vocab=count("vocab_size"),
        dtype=dtype,
        expert_dtype=expert_dtype,
        tied=bool(given.get("tie_word_embeddings", False)),
        score_head="ProcessReward" in " ".join(map(str, given.get("architectures") or [])),
        windowed_layers=sum(kind == "sliding_attention" for kind in kinds),
        experts=experts,
        experts_per_token=count("num_experts_per_tok") if experts else 0,
        shared_experts=count("n_shared_experts", default=0),
        expert_ffn=count("moe_intermediate_size", "intermediate_size") if experts else 0,
        dense_layers=count("first_k_dense_replace", default=0) if experts else 0,
        q_lora=count("q_lora_rank", default=0),
        kv_lora=count("kv_lora_rank", default=0),
        qk_nope=count("qk_nope_head_dim", default=0),
        qk_rope=count("qk_rope_head_dim", default=0),
        v_dim=count("v_head_dim", default=0),
        source=source or _GIVEN,
    )
    if shape.experts and not 0 < shape.experts_per_token <= shape.experts:
        raise CatalogError(f"model `{name}`: num_experts_per_tok must be 1 to {shape.experts}.")
    if not shape.kv_lora and not (shape.kv_heads and shape.head_dim):
        raise CatalogError(f"model `{name}`: num_key_value_heads and head_dim must be at least 1.")
    return shape


def _dtypes(given: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The dtypes of dense and of expert weights."""
    quantisation = given.get("quantization_config") or {}
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else quantisation
    dtype = str(given.get("torch_dtype") or given.get("dtype") or "bfloat16")
    if method not in (None, "fp8", "mxfp4", "int4_wo") or dtype not in BYTES:
        raise CatalogError(
            f"model `{name}`: cannot cost weights of dtype {dtype!r}, quantisation {method!r}. "
            f"Known: {', '.join(BYTES)}."
        )
    if method in ("mxfp4", "int4_wo"):
        return dtype, method
    if (
        method == "fp8"
        and isinstance(quantisation, Mapping)
        and quantisation.get("weight_block_size")
    ):
        method = "fp8_block"  # scales of their own for blocks of weights: other kernels
    return (method or dtype), (method or dtype)


def _attention_params(shape: Transformer, tp: int) -> tuple[float, float]:
    """Parameters of one layer's projections into and out of attention, on each device."""
    heads = shape.heads / tp
    if not shape.kv_lora:
        kv_heads = math.ceil(shape.kv_heads / tp)
        into = shape.hidden * (heads + 2 * kv_heads) * shape.head_dim
        return into, heads * shape.head_dim * shape.hidden
    query = shape.qk_nope + shape.qk_rope
    first = shape.hidden * (shape.q_lora + shape.kv_lora + shape.qk_rope)
    second = (shape.q_lora or shape.hidden) * heads * query
    absorbed = shape.kv_lora * heads * (shape.qk_nope + shape.v_dim)
    return first + second + absorbed, heads * shape.v_dim * shape.hidden


def _expert_work(shape: Transformer, tp: int, ways: int = 1) -> list[Work]:
    layers = shape.layers - shape.dense_layers
    one = 3.0 * shape.hidden * shape.expert_ffn / tp
    size = BYTES[shape.expert_dtype]
    shared = shape.shared_experts * one
    router = 1.0 * shape.hidden * shape.experts
    found = [
        Work(
            "router",
            layers,
            layers * router * 2.0,
            2.0 * layers * router,
            n=shape.experts,
            k=shape.hidden,
        ),
        Work(
            "experts",
            2 * layers,
            flops_per_row=2.0 * layers * shape.experts_per_token * one,
            n=round(3 * shape.expert_ffn / tp),
            k=shape.hidden,
            dtype=shape.expert_dtype,
            expert_bytes=layers * shape.experts * one * size,
            experts=shape.experts,
            top_k=shape.experts_per_token,
            whole_ways=ways,
        ),
    ]
    if shared:
        found.append(
            Work(
                "shared_experts",
                2 * layers,
                layers * shared * size,
                2.0 * layers * shared,
                n=round(3 * shape.expert_ffn / tp),
                k=shape.hidden,
                dtype=shape.expert_dtype,
            )
        )
    return found
