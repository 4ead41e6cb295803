"""A decoder with random weights of a real shape, in torch: what a step computes around attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hw.reference import HEAD_DIM
from hw.transformer import Transformer

INIT_STD = 0.02  # of the weights. Source: GPT-2 and Llama code initialise with 0.02, 2026-11-23
NORM_EPS = 1e-5  # Source: rms_norm_eps of Llama-3.1-8B's config.json, 2026-11-23
ROPE_BASE = 500_000.0  # Source: rope_theta of Llama-3.1-8B's config.json, 2026-11-23


class UnsupportedShapeError(ValueError):
    """A model that the mini-engine cannot run; the message says what it has that is missing here."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer, each [out, in]; norms [hidden]."""

    qkv: Any
    out: Any
    gate_up: Any
    down: Any
    norm_in: Any
    norm_mid: Any


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights. `head` [vocab, hidden], or for a process reward model [hidden, hidden] and `judge` [2, hidden]."""

    embedding: Any
    layers: tuple[Layer, ...]
    norm: Any
    head: Any
    judge: Any


def check_shape(shape: Transformer) -> None:
    """Raises UnsupportedShapeError for anything but a dense decoder with grouped heads of 128."""
    lacks = {
        "experts": shape.experts,
        "latent attention": shape.kv_lora,
        "windowed layers": shape.windowed_layers,
        f"heads of {shape.head_dim} (only {HEAD_DIM})": shape.head_dim != HEAD_DIM,
        "heads that kv heads do not divide": shape.heads % max(shape.kv_heads, 1),
        f"weights in {shape.dtype} (only bfloat16)": shape.dtype != "bfloat16",
    }
    for what, there in lacks.items():
        if there:
            raise UnsupportedShapeError(
                f"the mini-engine runs dense bf16 decoders with heads of {HEAD_DIM}; {shape.name} has {what}: "
                "choose llama-3.1-8b, qwen2.5-math-prm-7b or a shape like them"
            )


def random_weights(shape: Transformer, dtype: Any, device: Any, seed: int) -> Weights:
    """Normal weights; those that write into the residual are smaller with depth, so that nothing overflows.

    Raises UnsupportedShapeError.
    """
    import torch

    check_shape(shape)
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(rows: int, columns: int, std: float = INIT_STD) -> Any:
        made = torch.empty((rows, columns), dtype=dtype, device=device)
        return made.normal_(0.0, std, generator=generator)

    def ones() -> Any:
        return torch.ones(shape.hidden, dtype=dtype, device=device)

    hidden, queries = shape.hidden, shape.heads * HEAD_DIM
    residual = INIT_STD / (2 * shape.layers) ** 0.5
    layers = tuple(
        Layer(
            normal(queries + 2 * shape.kv_heads * HEAD_DIM, hidden),
            normal(hidden, queries, residual),
            normal(2 * shape.ffn, hidden),
            normal(hidden, shape.ffn, residual),
            ones(),
            ones(),
        )
        for _ in range(shape.layers)
    )
    embedding = normal(shape.vocab, hidden)
    head = normal(hidden if shape.score_head else shape.vocab, hidden)
    judge = normal(2, hidden) if shape.score_head else None
    return Weights(embedding, layers, ones(), head, judge)


def normed(x: Any, weight: Any) -> Any:
    """RMS norm over the last dimension. Source: Zhang and Sennrich, arXiv 1910.07467, equation 4."""
    import torch

    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, NORM_EPS)


def turns(positions: Any) -> tuple[Any, Any]:
    """Cosines and sines [rows, 1, 64] float32 of the rotary embedding. Source: Su et al., arXiv 2104.09864, 3.2.2."""
    import torch

    half = HEAD_DIM // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = positions.to(torch.float32)[:, None] * ROPE_BASE**-exponents
    return angles.cos()[:, None], angles.sin()[:, None]


def turned(x: Any, turn: tuple[Any, Any], out: Any) -> None:
    """Rotate heads [rows, heads, 128] by their positions, into `out` (halves, as Llama's code pairs them)."""
    cos, sin = turn
    low, high = x[..., : HEAD_DIM // 2].float(), x[..., HEAD_DIM // 2 :].float()
    out[..., : HEAD_DIM // 2] = low * cos - high * sin
    out[..., HEAD_DIM // 2 :] = high * cos + low * sin


def feed_forward(x: Any, layer: Layer) -> Any:
    """SwiGLU. Source: Shazeer, arXiv 2002.05202, equation 6."""
    import torch

    gate, up = torch.nn.functional.linear(x, layer.gate_up).chunk(2, -1)
    return torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, layer.down)
