"""What a tile of attention is: rows of q, k or v in a program, what sees what in it, its scores, and how large it is.

A program of attention.py or attention_backward.py holds a tile of queries (or of keys) and walks over tiles of the
others. Of the tiles on its way it must know three stretches: those at the beginning that some of its rows see in part,
those that all of its rows see, where no mask is made, and those at the end that are seen in part again:

        begin        full                    full_end      end
          │ masked    │ no mask               │ masked      │

Legend: T queries, S keys, the queries the last T of them, so query i is at place i + S − T; D head_dim in WIDE ≥ D
columns, a power of two; `lo`, `hi` the first key of a query and the end of its keys where documents are packed.
"""

from __future__ import annotations

import math

from torch import Tensor

from luthier.kernels.launch import arch, constant, dot, jit, power, tl
from luthier.kernels.tables import chosen, key_of

__all__ = ["LOG2E", "key_range", "scores", "sees", "settings", "tile", "tiles"]

LOG2E = constant(math.log2(math.e))


@jit
def tile(X, first, limit, stride, ROWS: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, EDGE: tl.constexpr):
    """Rows first … first + ROWS of X, zeros beyond D; EDGE also gives zeros for rows from `limit` on."""
    row, d = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDE)[None, :]
    at = X + tl.cast(first, tl.int64) * stride + (row * stride + d)
    if EDGE:
        return tl.load(at, (first + row < limit) & (d < D), other=0.0)
    elif D < WIDE:
        return tl.load(at, d < D, other=0.0)
    else:
        return tl.load(at)


@jit
def sees(place, key, lo, hi, S, window, CAUSAL: tl.constexpr, RANGES: tl.constexpr, WINDOW: tl.constexpr):
    """Which queries (at `place` among the keys, their keys from lo to hi) see which keys."""
    seen = (key < S) & (place >= 0)
    if CAUSAL:
        seen = seen & (key <= place)
    if WINDOW:
        seen = seen & (key > place - window)
        if not CAUSAL:
            seen = seen & (key < place + window)
    if RANGES:
        seen = seen & (key >= lo)
        if not CAUSAL:
            seen = seen & (key < hi)
    return seen


@jit
def scores(q, k, scale, cap, CAP: tl.constexpr):
    """q kᵀ, or its tanh, and the factor that is still to come so that 2^(score · factor) = e^(score of the formula)."""
    s = dot(q, tl.trans(k))
    if CAP:
        return 2 * tl.sigmoid(s * (2 * scale / cap)) - 1, cap * LOG2E
    else:
        return s, scale * LOG2E


@jit
def key_range(m0, place, lo, hi, S, window, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
               RANGES: tl.constexpr, WINDOW: tl.constexpr):  # fmt: skip
    """Multiples of BN: begin of the keys a query tile sees, begin and end of those all its rows see; and the end."""
    last = tl.max(place, 0)
    first = tl.min(tl.where(place >= 0, place, last), 0)
    begin, full, full_end, end = 0, 0, S, S
    if CAUSAL:
        full_end, end = first + 1, tl.minimum(S, last + 1)
    if WINDOW:
        begin, full = tl.maximum(first - window + 1, 0), tl.maximum(last - window + 1, 0)
        if not CAUSAL:
            full_end, end = tl.minimum(S, first + window), tl.minimum(S, last + window)
    if RANGES:
        exists = place >= 0
        begin = tl.maximum(begin, tl.min(tl.where(exists, lo, S), 0))
        full = tl.maximum(full, tl.max(tl.where(exists, lo, 0), 0))
        if not CAUSAL:
            full_end = tl.minimum(full_end, tl.min(tl.where(exists, hi, S), 0))
            end = tl.minimum(end, tl.max(tl.where(exists, hi, 0), 0))
    begin = begin // BN * BN
    full = tl.maximum((full + BN - 1) // BN * BN, begin)
    full_end = full_end // BN * BN
    full = tl.minimum(full, (end + BN - 1) // BN * BN)
    return begin, full, tl.maximum(full, full_end), end


def settings(head_dim: int, itemsize: int, chip: int, part: str) -> dict[str, int]:
    """Tile sizes, warps and stages of "forward", "query" and "key" for a chip.

    What bounds them: a thread has 255 registers, of which the accumulators take ROWS·D/threads each; and a chip has
    99 KB of shared memory for a block (8.6, 8.9, 12.0) or 163 KB and more, which hold the tiles in flight.
    """
    wide, small = max(16, power(head_dim)), chip in (86, 89, 120)
    if itemsize == 4:
        BM, BN = (64, 32) if wide <= 64 else (32, 32) if wide <= 128 else (16, 16)
        BM, BN = (BN, BM) if part == "key" else (BM, BN)
        return {"BM": BM, "BN": BN, "num_warps": 4, "num_stages": 1 if wide > 64 or small else 2}
    warps = 8 if wide >= 128 or part == "key" else 4
    if wide > 128:
        BM, BN = {"forward": (128, 32), "query": (64, 32), "key": (32, 64)}[part]
        BM, BN, warps = (64, 32, 4) if small and part == "forward" else (BM, BN, 4 if part == "query" else 8)
        BM, BN, warps = (32, 32, 4) if small and part == "key" else (BM, BN, warps)
        return {"BM": BM, "BN": BN, "num_warps": warps, "num_stages": 1 if small else 2}
    BM, BN = {"forward": (128, 64), "query": (128, 32), "key": (32, 128)}[part]
    if chip == 100 and part == "key":  # more rows or stages spill
        return {"BM": 32, "BN": 128, "num_warps": warps, "num_stages": 1}
    if wide == 128 and chip not in (90, 100) and part == "forward":
        BN = 32
    if small and part == "query":
        BM, warps = 64, 4
    return {"BM": BM, "BN": BN, "num_warps": warps, "num_stages": (1 if small else 2) + (part == "forward")}


def tiles(part: str, q: Tensor) -> dict[str, int]:
    """The settings of a launch for queries q [B, T, H, D]: the card's table, or the rule above."""
    D = q.shape[-1]
    key = key_of(f"attention {part}", q.dtype, f"D {max(16, power(D))}")
    return chosen(key, settings(D, q.element_size(), arch(), part), q)
