"""A small transformer over a Countdown state, in torch: it picks a move, or says how likely a state is to be solved.

The environment does the arithmetic: the policy sees what each move would give. Weights are a dict of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.countdown.task import LARGEST, MOVES, OPERATIONS, PAIRS, SLOTS, Ints, results

Weights = dict[str, Any]
Floats = npt.NDArray[np.float32]
_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Size:
    """Width (a multiple of `heads`), layers, heads of the network."""

    width: int = 64
    layers: int = 2
    heads: int = 4


def new(size: Size, seed: int, device: str = "cpu") -> Weights:
    """Fresh weights, normal with the usual scale of 1 / sqrt(inputs)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    d = size.width
    shapes: dict[str, tuple[int, ...]] = {
        "value": (LARGEST + 1, d), "role": (2, d), "move": (len(OPERATIONS), d),
        "large": (d, d), "small": (d, d), "goal": (d, d), "gives": (d, d), "pick": (d, 1),
        "judge_in": (d, d), "judge_out": (d, 1),
    }  # fmt: skip
    for i in range(size.layers):
        shapes |= {
            f"{i}.qkv": (d, 3 * d),
            f"{i}.out": (d, d),
            f"{i}.up": (d, 4 * d),
            f"{i}.down": (4 * d, d),
        }
    made = {
        name: (torch.randn(shape, generator=generator) * shape[0] ** -0.5).to(device)
        for name, shape in shapes.items()
    }
    for name in ("value", "role", "move"):
        made[name] *= (shapes[name][0] ** 0.5) * 0.5  # tables, not matrices: rows of size 1/2
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def trunk(w: Weights, states: Any, targets: Any, heads: int) -> Any:
    """Hidden states [n, SLOTS + 1, width] of the numbers and, last, of the target."""
    import torch
    from torch.nn import functional

    tokens = torch.cat([states, targets[:, None]], 1)
    x = w["value"][tokens] + w["role"][torch.arange(SLOTS + 1, device=tokens.device) // SLOTS]
    n, length, d = x.shape
    mask = torch.cat([states > 0, torch.ones_like(targets[:, None], dtype=torch.bool)], 1)
    mask = mask[:, None, None, :]
    layers = sum(name.endswith(".qkv") for name in w)
    for i in range(layers):
        y = functional.layer_norm(x, (d,)) @ w[f"{i}.qkv"]
        q, k, v = y.view(n, length, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + seen.transpose(1, 2).reshape(n, length, d) @ w[f"{i}.out"]
        x = x + functional.gelu(functional.layer_norm(x, (d,)) @ w[f"{i}.up"]) @ w[f"{i}.down"]
    return functional.layer_norm(x, (d,))


def move_logits(w: Weights, states: Any, targets: Any, gives: Any, heads: int) -> Any:
    """Logits of every move [n, MOVES], minus infinity where `gives` (see task.results) is 0."""
    import torch
    from torch.nn import functional

    h = trunk(w, states, targets, heads)
    i, j = torch.tensor(PAIRS, device=states.device).T
    rows, moves = (gives > 0).nonzero(as_tuple=True)  # few moves are legal: only those are computed
    pair, operation = moves // len(OPERATIONS), moves % len(OPERATIONS)
    each = (h @ w["large"])[rows, i[pair]] + (h @ w["small"])[rows, j[pair]]
    each = each + (h[:, -1] @ w["goal"])[rows] + (w["value"] @ w["gives"])[gives[rows, moves]]
    scores = (functional.gelu(each + w["move"][operation]) @ w["pick"])[:, 0]
    logits = scores.new_full((len(states), MOVES), -torch.inf)
    return logits.index_put((rows, moves), scores)


def value_logits(w: Weights, states: Any, targets: Any, heads: int) -> Any:
    """Logits [n] of the chance that a state will be solved."""
    from torch.nn import functional

    goal = trunk(w, states, targets, heads)[:, -1]
    return (functional.gelu(goal @ w["judge_in"]) @ w["judge_out"])[:, 0]


def tensors(w: Weights, *arrays: Ints) -> list[Any]:
    """Whole numbers on the device of the weights."""
    import torch

    return [torch.as_tensor(array, device=w["value"].device) for array in arrays]


def log_policy(w: Weights, states: Ints, targets: Ints, heads: int) -> Floats:
    """Log probabilities of the moves [n, MOVES] as a host array, without gradients."""
    import torch

    found = []
    with torch.inference_mode():
        for some in _slices(len(states)):
            rows = states[some]
            given, goals, gives = tensors(w, rows, targets[some], results(rows))
            logits = move_logits(w, given, goals, gives, heads)
            found.append(logits.float().log_softmax(-1).cpu().numpy())
    return np.concatenate(found)


def chances(w: Weights, states: Ints, targets: Ints, heads: int) -> Floats:
    """The reward model's chances [n] in (0, 1) as a host array, without gradients."""
    import torch

    found = []
    with torch.inference_mode():
        for some in _slices(len(states)):
            given, goals = tensors(w, states[some], targets[some])
            found.append(value_logits(w, given, goals, heads).float().sigmoid().cpu().numpy())
    return np.concatenate(found)


def _slices(rows: int) -> list[slice]:
    """Rows at a time: every move of every row has a vector, which would fill a device."""
    return [slice(low, low + _ROWS) for low in range(0, max(rows, 1), _ROWS)]


def save(path: Path, size: Size, **models: Weights) -> None:
    """Write models to one .npz file of plain arrays."""
    arrays = {
        f"{model}/{name}": tensor.detach().cpu().numpy()
        for model, weights in models.items()
        for name, tensor in weights.items()
    }
    np.savez(path, size=np.array([size.width, size.layers, size.heads]), **arrays)


def load(path: Path) -> tuple[Size, dict[str, Weights]]:
    """Read what `save` wrote; nothing is unpickled. Raises ValueError for another file."""
    import torch

    with np.load(path, allow_pickle=False) as file:
        if "size" not in file.files:
            raise ValueError(f"{path} holds no Countdown models: it has no array named size.")
        size = Size(*(int(n) for n in file["size"]))
        models: dict[str, Weights] = {}
        for key in file.files:
            model, _, name = key.partition("/")
            if name:
                models.setdefault(model, {})[name] = torch.from_numpy(file[key])
    return size, models
