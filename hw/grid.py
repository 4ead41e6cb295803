"""What is measured: the grid of one expansion's operations, and points off the grid that no fit ever sees."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from hw.transformer import Transformer

HOLDOUT_SEED = 20261123
"""Points of the Sobol sequence that are skipped before the holdout begins: committed, so that the holdout is frozen."""

LINEAR = ("qkv", "o", "gate_up", "down", "lm_head")
ROWS = ("norm", "activation", "embedding", *LINEAR, "sample", "sample_top_p")  # told by m alone
WHOLE = ("layer", "decode_step", "expansion")
# The tile edges of a GEMM, from one row to a large prefill.
_M = (
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    17,
    32,
    33,
    64,
    65,
    96,
    128,
    129,
    192,
    256,
    384,
    512,
    1024,
    2048,
    4096,
)


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to time: an operation of hw.floors (or LINEAR, ROWS, WHOLE) of a model, and its load.

    `branches`, `prefix` (shared tokens), `suffix` (own tokens of a branch, or their mean where `ragged`); `rows`: m, of
    fork_copy the tail tokens of each child, of prefill_attention and expansion the new tokens of each sequence;
    `parts`: of merge, the parts of a branch; `layers`: of whole steps, how many are built and timed. An expansion's
    prefix is whole pages and its suffix the tail that its children copy, less than a page.
    """

    op: str
    model: str
    page: int = 0
    branches: int = 0
    prefix: int = 0
    suffix: int = 0
    rows: int = 0
    parts: int = 0
    layers: int = 1
    variant: str = ""
    ragged: bool = False
    holdout: bool = False

    @property
    def seed(self) -> int:
        """Of the point's random data: a function of what the point is."""
        return zlib.crc32(repr(sorted(asdict(self).items())).encode())


@dataclass(frozen=True, slots=True)
class Axes:
    """Where the grid has lines; an attention line beyond `most_tokens` KV tokens in all is left out."""

    branches: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    m: tuple[int, ...]
    new: tuple[int, ...]  # tokens of a sequence that a verifier reads
    pages: tuple[int, ...]
    holdout: int
    step_layers: int  # of whole steps: at most so many layers
    most_tokens: int
    most_new: int = 16384  # tokens that a verifier's sequences bring in together


FULL = Axes(
    branches=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    prefix=(512, 1024, 2048, 4096, 8192, 16384, 32768),
    suffix=(16, 64, 256, 1024, 4096),
    m=_M,
    new=(32, 128, 512, 2048),
    pages=(16, 64),
    holdout=150,
    step_layers=1000,
    most_tokens=1 << 22,
)
QUICK = Axes(
    branches=(1, 4, 16, 64),
    prefix=(512, 2048, 8192),
    suffix=(16, 128, 1024),
    m=(1, 4, 16, 64, 256),
    new=(32, 128, 512),
    pages=(16,),
    holdout=18,
    step_layers=2,
    most_tokens=1 << 16,
    most_new=2048,
)


def grid(models: Sequence[Transformer], axes: Axes) -> tuple[Point, ...]:
    """Every point of the grid and of its holdout, in a fixed order, each once.

    Attention is measured once for each distinct (heads, kv heads): models that share it share the rows. Raises
    ValueError for a model whose attention the kernels do not compute.
    """
    for shape in models:
        why = unfit(shape)
        if why:
            raise ValueError(why)
    found: dict[Point, None] = {}
    seen: set[tuple[int, int]] = set()
    for number, shape in enumerate(models):
        found.update(dict.fromkeys(_rows(shape, axes)))
        if (shape.heads, shape.kv_heads) not in seen:
            seen.add((shape.heads, shape.kv_heads))
            found.update(dict.fromkeys(_attention(shape, axes, first=number == 0)))
        if number == 0:
            found.update(dict.fromkeys(_whole(shape, axes)))
    found.update(dict.fromkeys(holdout(models[0], axes)))
    return tuple(found)


def unfit(shape: Transformer) -> str:
    """Why the kernels do not compute this model's attention; empty where they do."""
    if shape.kv_lora or shape.head_dim != 128 or shape.windowed_layers or shape.experts:
        return (
            f"{shape.name}: the kernels compute dense models of head_dim 128 without latent or windowed attention; "
            "for others import a profile that somebody measured"
        )
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > 16:
        return f"{shape.name}: heads must be a multiple of kv_heads, at most 16 times as many"
    return ""


def holdout(shape: Transformer, axes: Axes) -> Iterator[Point]:
    """Points between the grid's lines, of the operations that a step's cost is composed of, in turn.

    Source: an unscrambled Sobol sequence in three log axes (Joe and Kuo, SIAM J. Sci. Comput. 30, 2008).
    """
    from scipy.stats.qmc import Sobol

    sequence = Sobol(d=3, scramble=False)
    sequence.fast_forward(HOLDOUT_SEED % 4096)
    ops = ("prefix_attention", "suffix_attention", "attention", *LINEAR, "naive_attention",
           "prefill_attention", "fork_copy", "decode_step")  # fmt: skip
    made: set[Point] = set()
    while len(made) < axes.holdout:
        x, y, z = sequence.random(1)[0].tolist()
        op = ops[len(made) % len(ops)]
        b, p = _between(axes.branches, x), _between(axes.prefix, y)
        s, m, new = _between(axes.suffix, z), _between(axes.m, x), _between(axes.new, z)
        point = Point(op, shape.name, axes.pages[0], holdout=True)
        if op in LINEAR:
            last = axes.branches[-1] if op == "lm_head" else axes.m[-1]
            off = [n for n in range(1, last) if n not in axes.m]
            point = replace(point, rows=off[int(np.abs(np.array(off) - m).argmin())], page=0)
        elif op == "prefix_attention":
            point = replace(point, branches=max(2, b), prefix=p, suffix=axes.pages[0])
        elif op == "suffix_attention":
            point = replace(point, branches=b, suffix=s)
        elif op == "prefill_attention":
            point = replace(
                point, branches=_between(_sequences(axes), x), prefix=p, rows=new, page=0
            )
        elif op == "fork_copy":
            point = replace(point, branches=b, prefix=p, rows=1 + int(z * (axes.pages[0] - 1)),
                            layers=shape.layers)  # fmt: skip
        else:
            variant = "private_pages" if op == "naive_attention" else ""
            layers = min(shape.layers, axes.step_layers) if op == "decode_step" else 1
            point = replace(point, branches=b, prefix=p, suffix=s, variant=variant, layers=layers)
        if fits(point, axes) and point not in made:
            made.add(point)
            yield point


def digest(points: Sequence[Point]) -> str:
    """SHA-256 of a plan: the same points in the same order, the same digest."""
    return hashlib.sha256("\n".join(map(repr, points)).encode()).hexdigest()


def _between(line: Sequence[int], at: float) -> int:
    """A whole number at `at` in [0, 1) between the ends of a log axis."""
    low, high = np.log(line[0]), np.log(line[-1])
    return round(float(np.exp(low + at * (high - low))))


def _sequences(axes: Axes) -> tuple[int, ...]:
    """How many sequences a verifier reads at once."""
    return tuple(b for b in axes.branches if b <= 64)


def fits(point: Point, axes: Axes) -> bool:
    """Whether a point holds no more tokens than the axes allow."""
    new = point.branches * point.rows if point.op in ("prefill_attention", "expansion") else 0
    return _tokens(point) <= axes.most_tokens and new <= axes.most_new


def _tokens(point: Point) -> int:
    """KV tokens that a point's input sets hold, each."""
    if point.op == "prefill_attention":
        return point.branches * (point.prefix + point.rows)
    private = point.variant == "private_pages"
    return point.prefix * (point.branches if private else 1) + point.branches * point.suffix


def _rows(shape: Transformer, axes: Axes) -> Iterator[Point]:
    for op in ROWS:
        if op == "embedding" and shape.score_head:
            continue
        sampled = op == "lm_head" or op.startswith("sample")
        if op.startswith("sample") and shape.score_head:
            continue
        for m in axes.m:
            if not sampled or m <= axes.branches[-1]:
                yield Point(op, shape.name, rows=m)


def _attention(shape: Transformer, axes: Axes, first: bool) -> Iterator[Point]:
    for page in axes.pages:
        # Page sizes and all that depends little on the head shape: on the first model alone.
        if page != axes.pages[0] and not first:
            continue
        base = Point("", shape.name, page)
        many = [b for b in axes.branches if b > 1]
        coarse = page == axes.pages[0]
        points = [
            *(replace(base, op="prefix_attention", branches=b, prefix=p, suffix=page)
              for b in (many if coarse else many[::2]) for p in axes.prefix[:: 1 if coarse else 2]),
            *(replace(base, op="suffix_attention", branches=b, suffix=s)
              for b in axes.branches[:: 1 if coarse else 2] for s in axes.suffix),
            *(replace(base, op="attention", branches=b, prefix=p, suffix=s)
              for b in axes.branches[1::2] for p in axes.prefix[::2] for s in axes.suffix[::2]),
        ]  # fmt: skip
        if first and coarse:
            points += [
                *(replace(base, op="suffix_attention", branches=b, suffix=s, ragged=True)
                  for b in many[::2] for s in axes.suffix[1:]),
                *(replace(base, op="merge", branches=b, parts=n, page=0)
                  for b in axes.branches for n in (2, 4, 8)),
                *(replace(base, op="naive_attention", branches=b, prefix=p, suffix=axes.suffix[1], variant=v)
                  for b in axes.branches for p in axes.prefix for v in ("shared_pages", "private_pages")),
                *(replace(base, op="prefill_attention", branches=b, prefix=p, rows=n, page=0)
                  for b in _sequences(axes) for p in (0, *axes.prefix) for n in axes.new),
                *(replace(base, op="kv_append", branches=b, prefix=axes.prefix[0]) for b in axes.branches),
                *(replace(base, op="fork_copy", branches=b, prefix=p, rows=r, layers=shape.layers)
                  for b in axes.branches for p in axes.prefix[::3] for r in (1, page // 2, page - 1)),
                *(replace(base, op="prune", branches=b, prefix=p, suffix=s)
                  for b in axes.branches for p in axes.prefix[::3] for s in axes.suffix[::2]),
            ]  # fmt: skip
        yield from (point for point in points if fits(point, axes))


def _whole(shape: Transformer, axes: Axes) -> Iterator[Point]:
    layers = min(shape.layers, axes.step_layers)
    for b in axes.branches[::2]:
        for p in axes.prefix[::2]:
            s = axes.suffix[1]
            base = Point("", shape.name, axes.pages[0], b, p, s)
            for point in (
                replace(base, op="layer"),
                replace(base, op="decode_step", layers=layers),
                replace(
                    base, op="expansion", layers=layers, rows=axes.new[0], suffix=base.page // 2
                ),
            ):
                if fits(point, axes):
                    yield point
