"""Attention of one or few new tokens over a long cache of keys and values: what generation does at every step.

    out = softmax(q kᵀ / √D) · v,    T new queries (the last T places), S keys in the cache

There is almost nothing to compute and much to read: every key and value once, 4·S·K·D bytes in bf16. Two things keep a
card from reading at full speed, and both are answered here (Dao et al. 2023, "Flash-Decoding"; Dao 2023,
arXiv:2307.08691):

- a batch of B rows and K key heads gives B·K programs, far fewer than multiprocessors. So the cache is *split*: each
  program reads a piece of the keys and gives back its own out and lse, and a second kernel adds the pieces up,
  out = Σ_i e^(lse_i − lse) · out_i  with  lse = ln Σ_i e^(lse_i);
- the H/K query heads that share a key head are rows of one tile, so that each key is read once, not H/K times, and
  the products have enough rows for the tensor cores.

The cache may be contiguous, [B, S, K, D], or *paged* (Kwon et al. 2023, arXiv:2309.06180): pages [P, page, K, D] of a
common pool, and for each row a table of the pages that hold its text, in order. A row's memory then grows page by page,
and rows of different length waste none.

Legend: B batch, T new tokens, S places in the cache, H query heads, K key/value heads, G = H/K, D head_dim; BM ≥ G·T
rows in a tile, BN keys at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.kernels.attention import attention, attention_reference
from luthier.kernels.attention_tiles import LOG2E
from luthier.kernels.launch import (
    Impl,
    LaunchError,
    check_floats,
    check_together,
    dot,
    jit,
    launch,
    multiprocessors,
    narrow,
    power,
    tl,
    use_triton,
)
from luthier.kernels.tables import chosen, key_of

__all__ = ["cost", "decode_attention", "decode_attention_reference"]

EXAMPLE = {"batch": 16, "keys": 8192, "heads": 32, "key_heads": 8, "head_dim": 128}


def decode_attention_reference(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    lengths_B: Tensor,
    first_B: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The formula: query t of a row sees its keys from first to length − T + t."""
    mask_BTS = _mask(q_BTHD.shape[1], k_BSKD.shape[1], lengths_B, first_B)
    return attention_reference(q_BTHD, k_BSKD, v_BSKD, mask_BTS, scale=scale)


def _mask(T: int, S: int, lengths_B: Tensor, first_B: Tensor | None) -> Tensor:
    """Which keys each of the T newest queries sees, bool [B, T, S]."""
    key = torch.arange(S, device=lengths_B.device)
    place_BT = lengths_B[:, None] - T + torch.arange(T, device=lengths_B.device)
    mask_BTS = key <= place_BT[:, :, None]
    return mask_BTS if first_B is None else mask_BTS & (key >= first_B[:, None, None])


def cost(batch: int, keys: int, heads: int, key_heads: int, head_dim: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations of one step."""
    cache, query = (batch * n * head_dim * itemsize for n in (2 * keys * key_heads, 2 * heads))
    return {"forward": (cache + query, 4 * batch * keys * heads * head_dim)}


# ---------------------------------------------------------------- Triton


@jit(lengths=("B", "T", "pages", "step"))
def _split(
    Q, K, V, Part, Lse, Lengths, First, Table, B, T, pages, step, scale, qb, qt, qh, kb, kt, kh, vb, vt, vh,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PAGE: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Piece i of the keys of row b for the G·T queries of key head kv."""
    i, kv, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(Lengths + b)
    begin = tl.load(First + b) if FIRST else 0
    row, d, n = tl.arange(0, BM), tl.arange(0, WIDE), tl.arange(0, BN)
    t, h = row // G, kv * G + row % G
    place = length - T + t
    q_at = Q + b * qb + t[:, None] * qt + h[:, None] * qh + d[None, :]
    q = tl.load(q_at, (t < T)[:, None] & (d < D)[None, :], other=0.0)
    acc, l = tl.zeros((BM, WIDE), tl.float32), tl.zeros((BM,), tl.float32)
    m = tl.full((BM,), -float("inf"), tl.float32)
    for j in range(i * step, tl.minimum((i + 1) * step, length), BN):
        key = j + n
        if PAGE > 0:
            page = tl.load(Table + b * pages + key // PAGE, key < length, other=0).to(tl.int64)
            k_at, v_at = page * kb + (key % PAGE) * kt, page * vb + (key % PAGE) * vt
        else:
            k_at, v_at = b * kb + key.to(tl.int64) * kt, b * vb + key.to(tl.int64) * vt
        inside = (key < length)[:, None] & (d < D)[None, :]
        k = tl.load(K + kv * kh + k_at[:, None] + d[None, :], inside, other=0.0)
        v = tl.load(V + kv * vh + v_at[:, None] + d[None, :], inside, other=0.0)
        seen = (key[None, :] <= place[:, None]) & (key >= begin)[None, :]
        s = tl.where(seen, dot(q, tl.trans(k)) * (scale * LOG2E), -float("inf"))
        top = tl.maximum(m, tl.max(s, 1))
        safe = tl.where(top == -float("inf"), 0.0, top)
        p, shrink = tl.exp2(s - safe[:, None]), tl.exp2(m - safe)
        l = l * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + dot(narrow(p, v.dtype), v)
        m = top
    out = acc / tl.where(l == 0, 1.0, l)[:, None]
    flat = ((i * B + b) * T + t) * H + h
    tl.store(Part + flat[:, None] * D + d[None, :], out, (t < T)[:, None] & (d < D)[None, :])
    tl.store(Lse + flat, m + tl.log2(l), t < T)


@jit(lengths=("pieces", "N"))
def _join(Part, Lse, Out, pieces, N, D: tl.constexpr, WIDE: tl.constexpr):
    """Add up the pieces of one query and head."""
    n, d = tl.program_id(0).to(tl.int64), tl.arange(0, WIDE)
    top = tl.full((), -float("inf"), tl.float32)
    total, acc = tl.zeros((), tl.float32), tl.zeros((WIDE,), tl.float32)
    for i in range(pieces):
        lse = tl.load(Lse + i * N + n)
        higher = tl.maximum(top, lse)
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        old, new = tl.exp2(top - safe), tl.exp2(lse - safe)
        part = tl.load(Part + (i * N + n) * D + d, d < D, other=0.0)
        acc, total, top = acc * old + part * new, total * old + new, higher
    tl.store(Out + n * D + d, narrow(acc / tl.where(total == 0, 1.0, total), Out.dtype.element_ty), d < D)


def settings(rows: int, head_dim: int, itemsize: int, page: int) -> dict[str, int]:
    """Tile sizes, warps and stages; a tile's keys lie on whole pages or within one."""
    wide = max(16, power(head_dim))
    BN = 64 if wide * itemsize <= 256 else 32 if wide * itemsize <= 512 else 16
    return {"BM": max(16, power(rows)), "BN": BN, "PAGE": page, "WIDE": wide, "num_warps": 4, "num_stages": 2}


def _run(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, first: Tensor | None, table: Tensor | None, scale: float
) -> Tensor:
    """Launch both kernels."""
    (B, T, H, D), K = q.shape, k.shape[2]
    page = 0 if table is None else k.shape[1]
    pages = 0 if table is None else table.shape[1]
    longest = k.shape[1] if table is None else page * pages
    s = settings(H // K * T, D, q.element_size(), page)
    s = chosen(key_of("decode_attention split", q.dtype, f"D {s['WIDE']}", f"{s['BM']} rows"), s, q)
    pieces = max(1, min(-(-longest // 256), 2 * multiprocessors(q) // max(1, B * K)))
    step = max(1, -(-longest // (pieces * s["BN"]))) * s["BN"]  # whole tiles
    pieces = max(1, -(-longest // step))
    part = torch.empty(pieces, B, T, H, D, dtype=torch.float32, device=q.device)
    lse = torch.empty(pieces, B, T, H, dtype=torch.float32, device=q.device)
    out = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    given = (lengths, lengths if first is None else first, lengths if table is None else table)
    shape = {"H": H, "G": H // K, "D": D, "FIRST": first is not None}
    launch(_split, (pieces, K, B), q, k, v, part, lse, *given, B, T, pages, step, scale, *strides, **shape, **s)
    launch(_join, (B * T * H,), part, lse, out, pieces, B * T * H, D=D, WIDE=s["WIDE"], num_warps=1)
    return out


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    H, K, D = (EXAMPLE[n] for n in ("heads", "key_heads", "head_dim"))
    q, lengths = torch.zeros(2, 1, H, D, dtype=dtype), torch.ones(2, dtype=torch.int32)
    cache, pool = torch.zeros(2, tokens, K, D, dtype=dtype), torch.zeros(8, 16, K, D, dtype=dtype)
    _run(q, cache, cache, lengths, None, None, 0.1)
    _run(q, pool, pool, lengths, None, torch.zeros(2, tokens, dtype=torch.int32), 0.1)


# ---------------------------------------------------------------- public


def decode_attention(
    q_BTHD: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_B: Tensor,
    *,
    first_B: Tensor | None = None,
    table_BP: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attention of the last T tokens of each row over a cache; returns [B, T, H, D]. Without gradients.

    k and v are [B, S, K, D], or with `table_BP` (int32, the row's pages in order) a pool of pages [P, page, K, D].
    `lengths_B` (int32) says how many keys of each row are there, its T newest included, `first_B` (int32) where its
    text begins, after padding. Raises ValueError for what does not fit; what the tables hold is not looked at.
    """
    check_together("decode_attention", q=q_BTHD, k=k, v=v)
    if q_BTHD.dim() != 4 or k.dim() != 4:
        raise ValueError(
            f"decode_attention: q, k and v must have four dimensions; found q {tuple(q_BTHD.shape)}, k {tuple(k.shape)}"
        )
    (B, T, H, D), K = q_BTHD.shape, k.shape[2]
    if (
        k.shape != v.shape
        or k.shape[3] != D
        or K == 0
        or H % K
        or (table_BP is None and (len(k) != B or k.shape[1] < T))
    ):
        where = f"[{B}, S ≥ {T}" if table_BP is None else "[pages, page"
        raise ValueError(
            f"decode_attention: q has shape {tuple(q_BTHD.shape)}, so k and v must be {where}, a divisor of {H}, {D}]; "
            f"found k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    for name, one, shape in (("lengths_B", lengths_B, 1), ("first_B", first_B, 1), ("table_BP", table_BP, 2)):
        if one is not None and (
            one.dim() != shape or len(one) != B or one.dtype != torch.int32 or one.device != k.device
        ):
            raise ValueError(
                f"decode_attention: {name} must be int32 [{B}{', pages a row' if shape == 2 else ''}] on "
                f"{k.device}; found {one.dtype} {tuple(one.shape)} on {one.device}"
            )
    factor = D**-0.5 if scale is None else scale
    if use_triton("decode_attention", impl, q_BTHD):
        _check_kernel(q_BTHD, k, v)
        first_B, table_BP = (None if x is None else x.contiguous() for x in (first_B, table_BP))
        return _run(q_BTHD, k, v, lengths_B.contiguous(), first_B, table_BP, factor)
    if table_BP is not None:
        k, v = (x[table_BP.long()].flatten(1, 2) for x in (k, v))
    return attention(q_BTHD, k, v, _mask(T, k.shape[1], lengths_B, first_B), scale=scale, impl="torch")


def _check_kernel(q: Tensor, k: Tensor, v: Tensor) -> None:
    """What the Triton kernels can take."""
    check_floats("decode_attention", q=q, k=k, v=v)
    if not q.dtype == k.dtype == v.dtype:
        raise LaunchError(f"decode_attention: q is {q.dtype}, k is {k.dtype}, v is {v.dtype}; they must be equal")
    rows = q.shape[1] * q.shape[2] // k.shape[2]
    if q.shape[-1] > 256 or rows > 128:
        raise LaunchError(
            f"decode_attention: head_dim is {q.shape[-1]} and {rows} queries share a key head; the kernel takes 256 "
            "and 128, `attention` more queries"
        )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(-1) != 1:
            raise LaunchError(
                f"decode_attention: {name} has strides {x.stride()}; its components must lie side by side"
            )
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise LaunchError("decode_attention: the kernel has no gradient; take torch.no_grad(), or `attention`")
