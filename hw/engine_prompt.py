"""Causal attention of prompt pieces over paged context, by torch: siblings that share a context gather it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hw.engine_model import turned
from hw.engine_step import Tick, groups
from hw.reference import HEAD_DIM


@dataclass(frozen=True, slots=True)
class Context:
    """`start` tokens on the pages `table`, and the rows [group, width] of the batch that come after them.

    Shorter pieces of a group are padded at their end with their first row, where causality hides them; `real`
    lists the places [group * width] of rows that are no padding.
    """

    start: int
    table: Any
    rows: Any
    real: Any


def contexts(tick: Tick, to_device: Callable[[np.ndarray[Any, Any]], Any]) -> list[Context]:
    """The contexts of a tick's pieces, as tensors."""
    firsts = np.cumsum([len(tick.tokens), *(len(piece.tokens) for piece in tick.pieces)])
    found = []
    for group in groups(tick.pieces):
        lengths = np.array([len(tick.pieces[i].tokens) for i in group])
        at = np.arange(lengths.max())
        real = at < lengths[:, None]
        rows = firsts[group][:, None] + np.where(real, at, 0)
        first = tick.pieces[group[0]]
        found.append(
            Context(
                first.start,
                to_device(first.context.astype(np.int64)),
                to_device(rows),
                to_device(np.flatnonzero(real)),
            )
        )
    return found


def attend(
    context: Context, pool: Any, keys: Any, values: Any, asked: Any, turn: Any, out: Any
) -> None:
    """One layer: queries `asked` [rows, heads, 128] (not yet turned) of a context's rows, into `out`.

    pool [pages, 2, kv_heads, page, 128]; keys, values [rows, kv_heads, 128] of the batch itself.
    """
    import torch
    from torch.nn.attention.bias import causal_lower_right

    g, width = context.rows.shape
    heads, kv_heads = asked.shape[1], keys.shape[1]
    flat = context.rows.reshape(-1)
    q = torch.empty((g * width, heads, HEAD_DIM), dtype=asked.dtype, device=asked.device)
    turned(asked[flat], (turn[0][flat], turn[1][flat]), q)
    both: list[Any] = []
    found = pool[context.table]
    for side, own in ((0, keys), (1, values)):
        mine = own[flat].view(g, width, kv_heads, HEAD_DIM).transpose(1, 2)
        if context.start:
            seen = found[:, side].transpose(0, 1).reshape(1, kv_heads, -1, HEAD_DIM)
            mine = torch.cat([seen[:, :, : context.start].expand(g, -1, -1, -1), mine], 2)
        both.append(mine)
    result = torch.nn.functional.scaled_dot_product_attention(
        q.view(g, width, heads, HEAD_DIM).transpose(1, 2),
        both[0],
        both[1],
        attn_mask=causal_lower_right(width, context.start + width),
        enable_gqa=heads != kv_heads,
    )
    rows = result.transpose(1, 2).reshape(-1, heads, HEAD_DIM)
    out[flat[context.real]] = rows[context.real]
