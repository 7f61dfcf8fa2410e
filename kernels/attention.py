"""Attention with shared key heads, and documents that do not see each other.

    weights = softmax(q kᵀ / √D + mask),   out = weights · v        (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)

The mask is −∞ where query i must not see key j. Every mask of this project has one form: query i sees the keys from
`first[i]` to i. Zero gives plain causal attention; a document's first token gives packed documents; the end of the
padding gives prompts padded on the left; i − window + 1 gives a sliding window (Jiang et al. 2023, arXiv:2310.06825).

    first = 0 0 0 0      first = 0 0 2 2      Grouped queries (Ainslie et al. 2023, arXiv:2305.13245): H query heads
            ■ . . .              ■ . . .      share K < H key and value heads; head h reads key head h // (H/K).
            ■ ■ . .              ■ ■ . .
            ■ ■ ■ .              . . ■ .
            ■ ■ ■ ■              . . ■ ■

On a CPU whole texts in float32 go to causal_attention.py or tiled_attention.py, by the processor (processor.py), and
everything else to PyTorch's fused attention, which shares key heads by itself. Packed rows of the decoder go to
document_attention.py, where documents of about equal length share a call. What comes here packed gets the mask: on one
core, forward and backward of 16 rows of 4 documents of 64 tokens (H 6, K 2, D 32) take 124 ms with the mask, 178 ms
with a call for each document, and 122 ms as plain causal rows.

**On a card: tiles and the online softmax** (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691). The T × S
scores are never stored. A program keeps BM queries and walks over the keys, BN at a time. Of each row it holds the
largest score so far m, the sum l of e^(s − m), and acc, the sum of e^(s − m)·v. A larger score m′ multiplies what was
summed by e^(m − m′); at the end out = acc / l, and lse = m + ln l, the logarithm of the sum of all e^s, is all that the
backward pass needs to make the weights again: p = e^(s − lse). Powers of two are what the hardware has, so everything
is scaled by log₂ e.

With δ = Σ_d dout·out (Dao 2022, appendix B.2; an incoming gradient of lse is taken off it):

    dv = pᵀ dout,    dp = dout vᵀ,    ds = p ⊙ (dp − δ),    dq = ds k / √D,    dk = dsᵀ q / √D

Two kernels (attention_backward.py) walk over the tiles, one for dq with a tile of queries in hand, one for dk and dv
with a tile of keys, which also sums over the query heads that share it. That makes the scores twice (7 products instead
of 5), but nobody adds to another's sum: the backward pass gives the same bits every time, with no slower
"deterministic" mode. What a tile sees, and how large it is, stands in attention_tiles.py.

A tile of queries sees keys from the first key of its first row to the last of its last; between them lies a stretch
that all its rows see, where no mask is made. So a window or short documents save work in proportion.

A soft cap replaces s by cap·tanh(s / cap) (Gemma 2, arXiv:2408.00118, §2). A head_dim that is no power of two is
computed as the next one, with zeros.

Legend: B batch, T queries, S keys (S ≥ T: the queries are the last T of them), H heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import tiled_attention
from luthier.kernels.attention_backward import backward
from luthier.kernels.attention_tiles import LOG2E, key_range, scores, sees, tile, tiles
from luthier.kernels.causal_attention import causal_attention, fits
from luthier.kernels.launch import (
    Impl,
    LaunchError,
    check_floats,
    check_together,
    dot,
    jit,
    launch,
    narrow,
    power,
    tl,
    use_triton,
)

__all__ = ["attention", "attention_reference", "cost", "document_starts", "visible"]

EXAMPLE = {"batch": 1, "tokens": 8192, "heads": 32, "key_heads": 8, "head_dim": 128}


def document_starts(document_BT: Tensor) -> Tensor:
    """For each token the place of its document's first token, [B, T] int64. A document is a run of equal numbers."""
    place = torch.arange(document_BT.shape[1], device=document_BT.device).expand(document_BT.shape)
    begins = torch.ones_like(document_BT, dtype=torch.bool)
    begins[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    return torch.where(begins, place, 0).cummax(dim=1).values


def visible(first_BT: Tensor, keys: int) -> Tensor:
    """Which keys each query sees, bool [B, T, S], from the first one; the queries are the last T of S keys."""
    T = first_BT.shape[1]
    key = torch.arange(keys, device=first_BT.device)
    return (key >= first_BT[:, :, None]) & (key <= key[keys - T :, None])


def attention_reference(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    mask_BTS: Tensor | None = None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    return_lse: bool = False,
) -> Any:
    """The formula, one operation at a time; returns out [B, T, H, D], and lse [B, H, T] if wanted."""
    T, H, D = q_BTHD.shape[1:]
    S, K = k_BSKD.shape[1:3]
    k_BSHD, v_BSHD = (x.repeat_interleave(H // K, dim=2) for x in (k_BSKD, v_BSKD))
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BSHD) * (D**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores_BHTS = soft_cap * torch.tanh(scores_BHTS / soft_cap)
    if mask_BTS is None:
        mask_BTS = visible(torch.zeros(1, T, dtype=torch.int64, device=q_BTHD.device), S)
    scores_BHTS = scores_BHTS.masked_fill(~mask_BTS[:, None], -math.inf)
    out_BTHD = torch.einsum("bhts,bshd->bthd", scores_BHTS.softmax(dim=-1), v_BSHD)
    return (out_BTHD, scores_BHTS.logsumexp(dim=-1)) if return_lse else out_BTHD


def cost(
    batch: int, tokens: int, heads: int, key_heads: int, head_dim: int, itemsize: int, *, causal: bool = True
) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations, forward and backward.

    A product of [m, k] and [k, n] counts 2·m·k·n operations; forward makes two of them, backward five; causal attention
    counts half. That is how papers count; what our backward pass computes twice is not counted.
    """
    q, kv = (batch * tokens * n * head_dim * itemsize for n in (heads, key_heads))
    product = 2 * batch * heads * tokens * tokens * head_dim // (2 if causal else 1)
    lse = 4 * batch * heads * tokens
    return {"forward": (2 * q + 2 * kv + lse, 2 * product), "backward": (4 * q + 4 * kv + 2 * lse, 5 * product)}


# ---------------------------------------------------------------- Triton


@jit
def _attend(
    acc, l, m, q, K, V, start, end, place, lo, hi, S, kt, vt, scale, cap, window,
    D: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, RANGES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """One query tile over the key tiles from start to end: the online softmax of the lecture."""
    for j in tl.range(start, end, BN):
        k = tile(K, j, S, kt, BN, D, WIDE, MASK)
        v = tile(V, j, S, vt, BN, D, WIDE, MASK)
        s, factor = scores(q, k, scale, cap, CAP)
        if MASK:
            key = j + tl.arange(0, BN)
            seen = sees(place[:, None], key[None, :], lo[:, None], hi[:, None], S, window, CAUSAL, RANGES, WINDOW)
            s = tl.where(seen, s, -float("inf"))
        top = tl.maximum(m, tl.max(s, 1) * factor)
        safe = tl.where(top == -float("inf"), 0.0, top) if MASK else top  # a row that has seen nothing yet
        p = tl.exp2(s * factor - safe[:, None])
        shrink = tl.exp2(m - safe)
        l = l * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + dot(narrow(p, v.dtype), v)
        m = top
    return acc, l, m


@jit(lengths=("T", "S", "window"))
def _forward(
    Q, K, V, Out, Lse, Lo, Hi, T, S, window, scale, cap, qb, qt, qh, kb, kt, kh, vb, vt, vh,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, RANGES: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM  # causal: the longest rows begin first
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
    acc, l = tl.zeros((BM, WIDE), tl.float32), tl.zeros((BM,), tl.float32)
    m = tl.full((BM,), -float("inf"), tl.float32)
    if RANGES or WINDOW:
        acc, l, m = _attend(acc, l, m, q, K, V, begin, full, place, lo, hi, S, kt, vt, scale, cap, window,
                            D, WIDE, BN, CAUSAL, RANGES, WINDOW, CAP, True)  # fmt: skip
    acc, l, m = _attend(acc, l, m, q, K, V, full, full_end, place, lo, hi, S, kt, vt, scale, cap, window,
                        D, WIDE, BN, CAUSAL, RANGES, WINDOW, CAP, False)  # fmt: skip
    acc, l, m = _attend(acc, l, m, q, K, V, full_end, end, place, lo, hi, S, kt, vt, scale, cap, window,
                        D, WIDE, BN, CAUSAL, RANGES, WINDOW, CAP, True)  # fmt: skip
    out = acc / tl.where(l == 0, 1.0, l)[:, None]
    d = tl.arange(0, WIDE)[None, :]
    at = Out + ((b * T + row[:, None]) * H + h) * D + d
    tl.store(at, narrow(out, Out.dtype.element_ty), (row < T)[:, None] & (d < D))
    tl.store(Lse + (b * H + h) * T + row, (m + tl.log2(l)) / LOG2E, row < T)


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, lo: Tensor | None, hi: Tensor | None, window: int,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """q [B, T, H, D], k and v [B, S, K, D] with components side by side; lo, hi int32; see `_ranges`."""
        B, T, H, D = q.shape
        S, K = k.shape[1:3]
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        out = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device)
        lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
        ctx.numbers = (T, S, window, options["scale"], options["cap"])
        ctx.shape = {"H": H, "G": H // K, "D": D, "WIDE": max(16, power(D)), "CAUSAL": options["causal"]}
        ctx.shape |= {"RANGES": lo is not None, "WINDOW": window > 0, "CAP": options["cap"] > 0}
        s = tiles("forward", q)
        tables = (q, q) if lo is None else (lo, hi)
        strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        grid = (-(-T // s["BM"]), H, B)
        launch(_forward, grid, q, k, v, out, lse, *tables, *ctx.numbers, *strides, **ctx.shape, **s)
        ctx.save_for_backward(q, k, v, out, lse, lo, hi)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        dout, dlse = gradients
        q, k, v, out, lse, lo, hi = ctx.saved_tensors
        ranges = None if lo is None else (lo, hi)
        dq, dk, dv = backward(q, k, v, out, lse, ranges, dout, dlse, ctx.numbers, ctx.shape)
        return dq, dk, dv, None, None, None, None


def trial(
    tokens: int, dtype: torch.dtype = torch.bfloat16, head_dim: int = EXAMPLE["head_dim"], packed: bool = False
) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    shapes = [(1, tokens, EXAMPLE[heads], head_dim) for heads in ("heads", "key_heads", "key_heads")]
    options = {"scale": 0.1, "cap": 0.0, "causal": True}
    ends = torch.zeros(1, tokens, dtype=torch.int32) if packed else None
    q, k, v = (torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    out, lse = _TritonAttention.apply(q, k, v, ends, ends, 0, options)  # pyright: ignore[reportGeneralTypeIssues]
    torch.autograd.backward([out, lse], [out, lse])


# ---------------------------------------------------------------- public


def _ranges(
    T: int, S: int, first_BT: Tensor | None, cu_seqlens: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """The first key of each query, int32 [B, T], and the end of the queries that see a key [B, S].

    For documents (T = S) these are the document's ends for both: full attention reads them so.
    """
    if cu_seqlens is not None:
        ends = cu_seqlens.to(device=device, dtype=torch.int64)
        document = torch.bucketize(torch.arange(T, device=device), ends, right=True)
        return ends[document - 1].int()[None], ends[document].int()[None]
    if first_BT is None:
        return None
    key = torch.arange(S, device=device).expand(len(first_BT), S).contiguous()
    end_BS = torch.searchsorted(first_BT.contiguous().to(key.dtype), key, right=True)
    return first_BT.int().contiguous(), end_BS.int()


def _mask(
    q: Tensor, S: int, causal: bool, window: int | None, first_BT: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor | None:
    """What `_ranges` means, as a bool tensor [B or 1, T, S] for PyTorch; None where no mask is needed."""
    T, device = q.shape[1], q.device
    if window is None and first_BT is None and cu_seqlens is None and (T == S or T == 1 or not causal):
        return None
    place, key = torch.arange(T, device=device)[:, None] + (S - T), torch.arange(S, device=device)
    mask_BTS = ((key <= place) if causal else torch.ones(T, S, dtype=torch.bool, device=device))[None]
    if window is not None:
        mask_BTS = mask_BTS & (key > place - window) & (key < place + window)
    ranges = _ranges(T, S, first_BT, cu_seqlens, device)
    if ranges is not None:
        mask_BTS = mask_BTS & (key >= ranges[0][:, :, None])
        if not causal:
            mask_BTS = mask_BTS & (key < ranges[1][:, :, None])
    return mask_BTS


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    mask_BTS: Tensor | None = None,
    *,
    causal: bool = True,
    first_BT: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Any:
    """Attention of the queries [B, T, H, D] over keys and values [B, S, K, D]; returns [B, T, H, D].

    What a query sees: all keys up to its own place (`causal`; the queries are the last T of the S keys) or all keys;
    of them those from `first_BT` on (integers [B, T] that never fall along a row); those of its own document, where one
    row (B = 1) holds documents from cu_seqlens[i] to cu_seqlens[i+1]; those less than `window` places away. Or what
    `mask_BTS` (bool, [B or 1, T, S], True at least once a row) says, instead of all these: then PyTorch does the work.

    `scale` is 1/√D unless given. With return_lse also the log-sum-exp of each query's scores, float32 [B, H, T]. The
    gradients are the same bits every time. They are first derivatives by autograd only: torch.func and `create_graph`
    need PyTorch's own attention. Raises ValueError for what does not fit.
    """
    _check(q_BTHD, k_BSKD, v_BSKD, causal, mask_BTS, first_BT, cu_seqlens, window, soft_cap, scale)
    T, S = q_BTHD.shape[1], k_BSKD.shape[1]
    scale = 1 / math.sqrt(q_BTHD.shape[-1]) if scale is None else scale
    if mask_BTS is None and use_triton("attention", impl, q_BTHD):
        _check_kernel(q_BTHD, k_BSKD, v_BSKD)
        lo, hi = _ranges(T, S, first_BT, cu_seqlens, q_BTHD.device) or (None, None)
        options = {"scale": scale, "cap": soft_cap or 0.0, "causal": causal}
        out: Any = _TritonAttention.apply(q_BTHD, k_BSKD, v_BSKD, lo, hi, window or 0, options)
        return out if return_lse else out[0]
    if mask_BTS is not None and impl == "triton":
        raise LaunchError(
            "attention: the kernel takes no mask_BTS; say what is seen by first_BT, cu_seqlens and window"
        )
    if mask_BTS is None:
        mask_BTS = _mask(q_BTHD, S, causal, window, first_BT, cu_seqlens)
        causal = causal and mask_BTS is None and T > 1
    else:
        causal = False
    if soft_cap is not None or return_lse:
        if mask_BTS is None and not causal:
            mask_BTS = torch.ones(1, T, S, dtype=torch.bool, device=q_BTHD.device)
        options = {"scale": scale, "soft_cap": soft_cap, "return_lse": return_lse}
        return attention_reference(q_BTHD, k_BSKD, v_BSKD, mask_BTS, **options)
    if causal and tiled_attention.fits(q_BTHD, k_BSKD):
        return tiled_attention.tiled_attention(q_BTHD, k_BSKD, v_BSKD, scale=scale)
    if causal and fits(q_BTHD, k_BSKD):
        return causal_attention(q_BTHD, k_BSKD, v_BSKD, scale=scale)
    return F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BSKD.transpose(1, 2),
        v_BSKD.transpose(1, 2),
        attn_mask=None if mask_BTS is None else mask_BTS[:, None],
        is_causal=causal,
        scale=scale,
        enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
    ).transpose(1, 2)


def _check(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, first: Tensor | None, cu_seqlens: Tensor | None,
    window: int | None, soft_cap: float | None, scale: float | None,
) -> None:  # fmt: skip
    """Raises ValueError, naming the argument, for what does not fit together."""
    check_together("attention", q=q, k=k, v=v)
    if not torch.is_autocast_enabled(q.device.type):  # which makes PyTorch's inputs equal
        _check_dtypes(q, k, v)
    if q.dim() != 4 or k.dim() != 4:
        raise ValueError(f"attention: q, k and v must be [B, T, H, D]; found q {tuple(q.shape)}, k {tuple(k.shape)}")
    (B, T, H, D), (S, K) = q.shape, k.shape[1:3]
    if k.shape != v.shape or k.shape != (B, S, K, D) or K == 0 or H % K or (causal and S < T):
        raise ValueError(
            f"attention: q has shape {tuple(q.shape)}, so k and v must be [{B}, S{f' ≥ {T}' if causal else ''}, "
            f"a divisor of {H}, {D}]; found k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if mask is not None and not (first is None and cu_seqlens is None and window is None):
        raise ValueError("attention: mask_BTS stands instead of first_BT, cu_seqlens and window; give one or the other")
    if mask is not None and (mask.dtype != torch.bool or mask.dim() != 3 or mask.shape not in ((B, T, S), (1, T, S))):
        raise ValueError(
            f"attention: mask_BTS must be bool [{B} or 1, {T}, {S}]; found {mask.dtype} {tuple(mask.shape)}"
        )
    if first is not None and (first.is_floating_point() or first.device != q.device):
        raise ValueError(f"attention: first_BT must be integers on {q.device}; found {first.dtype} on {first.device}")
    if first is not None and (cu_seqlens is not None or not causal or first.shape not in ((B, T), (1, T))):
        raise ValueError(
            f"attention: first_BT must be [{B}, {T}] with causal=True and no cu_seqlens; found {tuple(first.shape)}"
        )
    for name, value in (("window", window), ("soft_cap", soft_cap), ("scale", scale)):
        if value is not None and not value > 0:
            raise ValueError(f"attention: {name} is {value}; it must be more than 0")
    if window is not None and not causal and S != T:
        raise ValueError(f"attention: a window without causal=True needs as many keys as queries; found {S} and {T}")
    if cu_seqlens is not None:
        if cu_seqlens.is_floating_point() or cu_seqlens.dim() != 1:
            raise ValueError(
                f"attention: cu_seqlens must be integers in one dimension; found {cu_seqlens.dtype} "
                f"{tuple(cu_seqlens.shape)}"
            )
        ends = cu_seqlens.tolist()
        rises = all(a < b for a, b in pairwise(ends))
        if B != 1 or T != S or len(ends) < 2 or ends[0] != 0 or ends[-1] != T or not rises:
            raise ValueError(
                f"attention: cu_seqlens must rise from 0 to the number of tokens in one row (B = 1, {T} queries, {S} "
                f"keys); found {str(ends)[:60]}"
            )


def _check_dtypes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not q.dtype == k.dtype == v.dtype:
        raise LaunchError(f"attention: q is {q.dtype}, k is {k.dtype}, v is {v.dtype}; they must be equal")


def _check_kernel(q: Tensor, k: Tensor, v: Tensor) -> None:
    """What the Triton kernels can take."""
    check_floats("attention", q=q, k=k, v=v)
    _check_dtypes(q, k, v)
    if not 1 <= q.shape[-1] <= 256:
        raise LaunchError(f"attention: head_dim is {q.shape[-1]}; the kernel takes 1 to 256, impl='torch' any")
