"""A linear layer with a low-rank correction: the product of adapters.

    y = x Wᵀ + s·(x Aᵀ) Bᵀ                                                   (Hu et al. 2021, arXiv:2106.09685, §4.1)

W [N, C] stays as it is, A [r, C] and B [N, r] are learned, s = α/r. Backward, with u = x Aᵀ and t = s·dy B [M, r]:

    dx = dy W + t A,    dA = tᵀ x,    dB = s·dyᵀ u

The low-rank products cost next to nothing to compute; what they cost is passes over memory. Written as five operations
y is written, read and written again, and so is dx. But both have one form, a large product plus a thin one,

    out = P Q + U V        forward P = x, Q = Wᵀ, U = s·u, V = Bᵀ;   backward P = dy, Q = W, U = t, V = A

and one kernel makes it: when a tile's large product is done, the thin one is added in registers, before the tile is
written once. dA, dB and u are thin products of cuBLAS. W gets no gradient; where it is trained too, take the plain sum.

Legend: M rows (any number of leading dimensions), C inputs, N outputs, r rank; tiles of BM × BN.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
from luthier.kernels.tables import chosen, key_of

__all__ = ["cost", "lora_linear", "lora_linear_reference"]

EXAMPLE = {"rows": 8192, "inputs": 4096, "outputs": 4096, "rank": 16}
WIDEST_RANK = 256


def lora_linear_reference(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The formula. x: [..., C], weight: [N, C], a: [r, C], b: [N, r]."""
    return F.linear(x, weight) + scale * F.linear(F.linear(x, a), b)


def cost(rows: int, inputs: int, outputs: int, rank: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations, forward and backward (W without a gradient)."""
    base, thin = 2 * rows * inputs * outputs, 2 * rows * rank * (inputs + outputs)
    moved = (rows * (inputs + outputs) + inputs * outputs) * itemsize
    return {"forward": (moved + rows * inputs * itemsize, base + thin), "backward": (2 * moved, base + 2 * thin)}


# ---------------------------------------------------------------- Triton


@jit(lengths=("M",))
def _product(
    P, Q, U, V, Out, M, N, K, pm, qk, qn, vr, vn,
    RANK: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Out [M, N] = P [M, K] · Q [K, N] + U [M, RANK] · V [RANK, N]."""
    # Programs that run together take neighbouring tiles, GROUP rows of them, so that what they read stays in the cache.
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    band = tl.program_id(0) // (GROUP * tiles_n)
    rows = tl.minimum(tiles_m - band * GROUP, GROUP)
    inner = tl.program_id(0) % (GROUP * tiles_n)
    m0, n0 = ((band * GROUP + inner % rows) * BM).to(tl.int64), inner // rows * BN
    i, j, k, r = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, WIDE)
    m, n = m0 + i, n0 + j
    p_at = P + m0 * pm + (i[:, None] * pm + k[None, :])  # far places are numbers of 64 bits, those in a tile of 32
    q_at = Q + n0.to(tl.int64) * qn + (k[:, None] * qk + j[None, :] * qn)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        rest = start + k < K
        p = tl.load(p_at, (m < M)[:, None] & rest[None, :], other=0.0)
        acc += dot(p, tl.load(q_at, rest[:, None] & (n < N)[None, :], other=0.0))
        p_at += BK
        q_at += BK * qk
    u = tl.load(U + m0 * RANK + (i[:, None] * RANK + r[None, :]), (m < M)[:, None] & (r < RANK)[None, :], other=0.0)
    v = tl.load(V + r[:, None] * vr + n[None, :] * vn, (r < RANK)[:, None] & (n < N)[None, :], other=0.0)
    acc += dot(u, v)
    at = Out + m0 * N + n0 + (i[:, None] * N + j[None, :])
    tl.store(at, narrow(acc, Out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])


def settings(itemsize: int, rank: int) -> dict[str, int]:
    """Tile sizes, warps and stages."""
    wide = max(16, power(rank))
    if itemsize == 4:
        return {"WIDE": wide, "BM": 64, "BN": 64, "BK": 32, "GROUP": 8, "num_warps": 4, "num_stages": 2}
    stages = 2 if wide <= 64 else 1
    return {"WIDE": wide, "BM": 128, "BN": 128, "BK": 64, "GROUP": 8, "num_warps": 8, "num_stages": stages}


def _plus_thin(p: Tensor, q: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """p [M, K] · q [K, N] + u [M, r] · v [r, N]; q and v of any strides."""
    (M, K), N, s = p.shape, q.shape[1], settings(p.element_size(), len(v))
    s = chosen(key_of("lora product", p.dtype, f"rank {s['WIDE']}"), s, p)
    out = torch.empty(M, N, dtype=p.dtype, device=p.device)
    grid = (-(-M // s["BM"]) * -(-N // s["BN"]),)
    strides = (p.stride(0), *q.stride(), *v.stride())
    launch(_product, grid, p, q, u, v, out, M, N, K, *strides, RANK=len(v), **s)
    return out


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        x2 = x.reshape(-1, x.shape[-1]).contiguous()
        u = x2 @ a.T
        ctx.save_for_backward(x2, weight, a, b, u)
        ctx.scale = scale
        return _plus_thin(x2, weight.T, (scale * u).contiguous(), b.T).view(*x.shape[:-1], len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight, a, b, u = ctx.saved_tensors
        dy = gradients[0].reshape(-1, len(weight)).contiguous()
        t = (ctx.scale * (dy @ b)).contiguous()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _plus_thin(dy, weight, t, a).view(*gradients[0].shape[:-1], x.shape[1])
        return dx, None, t.T @ x, ctx.scale * (dy.T @ u), None


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    x, w = torch.zeros(tokens, 64, dtype=dtype, requires_grad=True), torch.zeros(128, 64, dtype=dtype)
    a, b = (torch.zeros(*shape, dtype=dtype, requires_grad=True) for shape in ((16, 64), (128, 16)))
    y: Any = _Lora.apply(x, w, a, b, 2.0)
    y.backward(y)


# ---------------------------------------------------------------- public


def lora_linear(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *, scale: float, impl: Impl = "auto") -> Tensor:
    """x·Wᵀ + scale·(x·Aᵀ)·Bᵀ for x [..., C], W [N, C], A [r, C], B [N, r]; [..., N] in x's dtype.

    Triton serves a frozen W (no gradient for it); a W that is trained goes to PyTorch by "auto". Raises ValueError for
    shapes that do not fit.
    """
    check_together("lora_linear", x=x, weight=weight, a=a, b=b)
    if x.dim() == 0 or any(m.dim() != 2 for m in (weight, a, b)):
        raise ValueError("lora_linear: x must be [..., C], weight [N, C], a [r, C] and b [N, r]")
    (N, C), r = weight.shape, len(a)
    if x.shape[-1] != C or a.shape != (r, C) or b.shape != (N, r):
        raise ValueError(
            f"lora_linear: weight has shape {(N, C)} and a {len(a)} rows, so x must be [..., {C}], a [r, {C}] and "
            f"b [{N}, {r}]; found x {tuple(x.shape)}, a {tuple(a.shape)}, b {tuple(b.shape)}"
        )
    trained = weight.requires_grad and torch.is_grad_enabled()
    if not (trained and impl == "auto") and use_triton("lora_linear", impl, x):
        check_floats("lora_linear", x=x, weight=weight, a=a, b=b)
        if len({x.dtype, weight.dtype, a.dtype, b.dtype}) > 1:
            raise LaunchError(f"lora_linear: x, weight, a, b are {x.dtype}, {weight.dtype}, {a.dtype}, {b.dtype}")
        if trained or r > WIDEST_RANK:
            raise LaunchError(f"lora_linear: the kernel takes a frozen weight and a rank to {WIDEST_RANK}; found {r}")
        return _Lora.apply(x, weight, a, b, scale)  # pyright: ignore[reportReturnType]
    return torch.add(F.linear(x, weight), F.linear(F.linear(x, a), b), alpha=scale)
