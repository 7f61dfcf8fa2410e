"""The backward pass of attention: attention.py has the formulas and the forward pass.

    p = e^(s − lse),   δ = Σ_d dout·out − dlse,   ds = p ⊙ (dout vᵀ − δ)
    dv = pᵀ dout,      dk = dsᵀ q / √D,           dq = ds k / √D

Three launches. `_delta` makes δ, one number a query and head. `_backward_key` holds a tile of keys and walks over the
queries that see it, of all query heads that share it: dk and dv. `_backward_query` holds a tile of queries and walks
over the keys: dq. Each makes p again from q, k and the forward pass's lse. No two programs write to the same place and
each adds in a fixed order, so the gradients are the same bits every time.

`_backward_key` works with the transpose, sᵀ = k qᵀ [BN, BM], so that dv = pᵀ dout and dk = dsᵀ q are plain products of
what it has in hand.

Legend: B batch, T queries, S keys, H heads, K key/value heads, G = H/K, D head_dim; tiles of BM queries and BN keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.kernels.attention_tiles import LOG2E, key_range, scores, sees, tile, tiles
from luthier.kernels.launch import dot, jit, launch, narrow, tl

__all__ = ["backward"]


@jit(lengths=("T",))
def _delta(Out, Do, Dlse, Delta, T, H: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr,
           DLSE: tl.constexpr):  # fmt: skip
    """Σ_d dout · out for every query and head, less the gradient of its log-sum-exp."""
    row, h, b = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = tl.arange(0, WIDE)[None, :]
    at = ((b * T + row[:, None]) * H + h) * D + d
    inside = (row < T)[:, None] & (d < D)
    out = tl.load(Out + at, inside, other=0.0).to(tl.float32)
    delta = tl.sum(out * tl.load(Do + at, inside, other=0.0).to(tl.float32), 1)
    flat = (b * H + h) * T + row
    if DLSE:
        delta -= tl.load(Dlse + flat, row < T, other=0.0)
    tl.store(Delta + flat, delta, row < T)


@jit
def _weights(q, k, lse, scale, cap, CAP: tl.constexpr):
    """exp(score − lse) [BM, BN] and what the soft cap makes of a score's gradient. lse: [BM, 1], in powers of 2."""
    s, factor = scores(q, k, scale, cap, CAP)
    return tl.exp2(s * factor - lse), 1 - s * s if CAP else s


@jit
def _into_query(
    dq, q, do, lse, delta, K, V, start, end, place, lo, hi, S, kt, vt, scale, cap, window,
    D: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, RANGES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    for j in tl.range(start, end, BN):
        k = tile(K, j, S, kt, BN, D, WIDE, MASK)
        v = tile(V, j, S, vt, BN, D, WIDE, MASK)
        p, slope = _weights(q, k, lse[:, None], scale, cap, CAP)
        if MASK:
            key = j + tl.arange(0, BN)
            seen = sees(place[:, None], key[None, :], lo[:, None], hi[:, None], S, window, CAUSAL, RANGES, WINDOW)
            p = tl.where(seen, p, 0.0)
        ds = p * (dot(do, tl.trans(v)) - delta[:, None])
        if CAP:
            ds *= slope
        dq += dot(narrow(ds, k.dtype), k)
    return dq


@jit(lengths=("T", "S", "window"))
def _backward_query(
    Q, K, V, Do, Lse, Delta, Dq, Lo, Hi, T, S, window, scale, cap, qb, qt, qh, kb, kt, kh, vb, vt, vh,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, RANGES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    Q, K, V = Q + b * qb + h * qh, K + b * kb + h // G * kh, V + b * vb + h // G * vh
    row = m0 + tl.arange(0, BM)
    place = tl.where(row < T, row + tl.maximum(S - T, 0), -1)
    lo, hi = place, place
    if RANGES:
        lo = tl.load(Lo + b * T + row, row < T, other=0)
        if not CAUSAL:
            hi = tl.load(Hi + b * T + row, row < T, other=0)
    begin, full, full_end, end = key_range(m0, place, lo, hi, S, window, BM, BN, CAUSAL, RANGES, WINDOW)
    q = tile(Q, m0, T, qt, BM, D, WIDE, True)
    do = tile(Do + (b * T * H + h) * D, m0, T, H * D, BM, D, WIDE, True)
    lse = tl.load(Lse + (b * H + h) * T + row, row < T, other=0.0) * LOG2E
    delta = tl.load(Delta + (b * H + h) * T + row, row < T, other=0.0)
    dq = tl.zeros((BM, WIDE), tl.float32)
    if RANGES or WINDOW:
        dq = _into_query(dq, q, do, lse, delta, K, V, begin, full, place, lo, hi, S, kt, vt, scale, cap, window,
                         D, WIDE, BN, CAUSAL, RANGES, WINDOW, CAP, True)  # fmt: skip
    dq = _into_query(dq, q, do, lse, delta, K, V, full, full_end, place, lo, hi, S, kt, vt, scale, cap, window,
                     D, WIDE, BN, CAUSAL, RANGES, WINDOW, CAP, False)  # fmt: skip
    dq = _into_query(dq, q, do, lse, delta, K, V, full_end, end, place, lo, hi, S, kt, vt, scale, cap, window,
                     D, WIDE, BN, CAUSAL, RANGES, WINDOW, CAP, True)  # fmt: skip
    d = tl.arange(0, WIDE)[None, :]
    at = Dq + ((b * T + row[:, None]) * H + h) * D + d
    tl.store(at, narrow(dq * scale, Dq.dtype.element_ty), (row < T)[:, None] & (d < D))


@jit
def _into_key(
    dk, dv, k, v, Q, Do, Lse, Delta, Lo, Hi, start, end, n0, T, S, qt, scale, cap, window,
    H: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, RANGES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    key = n0 + tl.arange(0, BN)
    for i in tl.range(start, end, BM):
        row = i + tl.arange(0, BM)
        q = tile(Q, i, T, qt, BM, D, WIDE, MASK)
        do = tile(Do, i, T, H * D, BM, D, WIDE, MASK)
        lse = tl.load(Lse + row, row < T, other=0.0) * LOG2E
        delta = tl.load(Delta + row, row < T, other=0.0)
        p, slope = _weights(k, q, lse[None, :], scale, cap, CAP)  # transposed: [BN, BM]
        if MASK:
            place = tl.where(row < T, row + tl.maximum(S - T, 0), -1)
            lo, hi = place, place
            if RANGES:
                lo = tl.load(Lo + row, row < T, other=0)
                if not CAUSAL:
                    hi = tl.load(Hi + row, row < T, other=0)
            seen = sees(place[None, :], key[:, None], lo[None, :], hi[None, :], S, window, CAUSAL, RANGES, WINDOW)
            p = tl.where(seen, p, 0.0)
        dv += dot(narrow(p, do.dtype), do)
        ds = p * (dot(v, tl.trans(do)) - delta[None, :])
        if CAP:
            ds *= slope
        dk += dot(narrow(ds, q.dtype), q)
    return dk, dv


@jit
def _query_range(Lo, Hi, n0, b, key, T, S, window, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
                 RANGES: tl.constexpr, WINDOW: tl.constexpr):  # fmt: skip
    """Multiples of BM: begin of the queries that see some key of a tile, begin and end of those that see all its keys;
    and the end. A query's place among the keys is its number plus S − T."""
    last = tl.minimum(n0 + BN, S) - 1
    begin, full, full_end, end = 0, 0, T, T
    if CAUSAL:
        begin, full = tl.maximum(n0 - (S - T), 0), tl.maximum(last - (S - T), 0)
    if WINDOW:
        full_end, end = tl.minimum(T, n0 - (S - T) + window), tl.minimum(T, last - (S - T) + window)
        if not CAUSAL:
            begin = tl.maximum(begin, n0 - (S - T) - window + 1)
            full = tl.maximum(full, last - (S - T) - window + 1)
    if RANGES:
        hi = tl.load(Hi + b * S + key, key < S, other=0)
        end = tl.minimum(end, tl.max(hi, 0))
        full_end = tl.minimum(full_end, tl.min(tl.where(key < S, hi, T), 0))
        if not CAUSAL:
            lo = tl.load(Lo + b * S + key, key < S, other=T)
            begin = tl.maximum(begin, tl.min(lo, 0))
            full = tl.maximum(full, tl.max(tl.where(key < S, lo, 0), 0))
    begin = begin // BM * BM
    full = tl.maximum((full + BM - 1) // BM * BM, begin)
    full = tl.minimum(full, tl.maximum((end + BM - 1) // BM * BM, begin))
    full_end = tl.maximum(full, tl.maximum(full_end, 0) // BM * BM)
    return begin, full, full_end, end


@jit(lengths=("T", "S", "window"))
def _backward_key(
    Q, K, V, Do, Lse, Delta, Dk, Dv, Lo, Hi, T, S, window, scale, cap, qb, qt, qh, kb, kt, kh, vb, vt, vh,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, RANGES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    n0, kv, b = tl.program_id(0) * BN, tl.program_id(1), tl.program_id(2).to(tl.int64)
    key = n0 + tl.arange(0, BN)
    begin, full, full_end, end = _query_range(Lo, Hi, n0, b, key, T, S, window, BM, BN, CAUSAL, RANGES, WINDOW)
    K, V, Lo, Hi = K + b * kb + kv * kh, V + b * vb + kv * vh, Lo + b * T, Hi + b * T
    k, v = tile(K, n0, S, kt, BN, D, WIDE, True), tile(V, n0, S, vt, BN, D, WIDE, True)
    dk, dv = tl.zeros((BN, WIDE), tl.float32), tl.zeros((BN, WIDE), tl.float32)
    for g in range(G):
        h = kv * G + g
        q, do = Q + b * qb + h * qh, Do + (b * T * H + h) * D
        lse, delta = Lse + (b * H + h) * T, Delta + (b * H + h) * T
        dk, dv = _into_key(dk, dv, k, v, q, do, lse, delta, Lo, Hi, begin, full, n0, T, S, qt, scale, cap, window,
                           H, D, WIDE, BM, BN, CAUSAL, RANGES, WINDOW, CAP, True)  # fmt: skip
        dk, dv = _into_key(dk, dv, k, v, q, do, lse, delta, Lo, Hi, full, full_end, n0, T, S, qt, scale, cap, window,
                           H, D, WIDE, BM, BN, CAUSAL, RANGES, WINDOW, CAP, False)  # fmt: skip
        dk, dv = _into_key(dk, dv, k, v, q, do, lse, delta, Lo, Hi, full_end, end, n0, T, S, qt, scale, cap, window,
                           H, D, WIDE, BM, BN, CAUSAL, RANGES, WINDOW, CAP, True)  # fmt: skip
    d = tl.arange(0, WIDE)[None, :]
    at = ((b * S + key[:, None]) * (H // G) + kv) * D + d
    inside = (key < S)[:, None] & (d < D)
    tl.store(Dk + at, narrow(dk * scale, Dk.dtype.element_ty), inside)
    tl.store(Dv + at, narrow(dv, Dv.dtype.element_ty), inside)


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ranges: tuple[Tensor, Tensor] | None, dout: Tensor,
    dlse: Tensor, numbers: tuple[Any, ...], shape: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv of what the forward pass made: `numbers` and `shape` are those that it was launched with."""
    (B, T, H, D), (S, K) = q.shape, k.shape[1:3]
    dout, dlse, delta = dout.contiguous(), dlse.contiguous(), torch.empty_like(lse)
    rows = {"H": H, "D": D, "WIDE": shape["WIDE"], "BM": 64, "DLSE": True, "num_warps": 4}
    launch(_delta, (-(-T // 64), H, B), out, dout, dlse, delta, T, **rows)
    dq = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty(B, S, K, D, dtype=q.dtype, device=q.device) for _ in range(2))
    rest = (*(ranges or (q, q)), *numbers, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    s = tiles("key", q)
    launch(_backward_key, (-(-S // s["BN"]), K, B), q, k, v, dout, lse, delta, dk, dv, *rest, **shape, **s)
    s = tiles("query", q)
    launch(_backward_query, (-(-T // s["BM"]), H, B), q, k, v, dout, lse, delta, dq, *rest, **shape, **s)
    return dq, dk, dv
