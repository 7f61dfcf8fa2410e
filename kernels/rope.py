"""Rotary positions: a query and a key are turned by an angle that grows with their place in the text.

Component i of a head and component i + D/2 form a pair, turned by θ = position · ω_i:

    (a, b) → (a·cos θ − b·sin θ,  b·cos θ + a·sin θ),    ω_i = base^(−2i/D),  i = 0 … D/2 − 1
                                                                     (Su et al. 2021, arXiv:2104.09864, eq. 15 and 34)

Turning both q (at place m) and k (at place n) leaves q·k a function of m − n alone. Which components are paired is free
as long as q and k agree; the halves (i, i + D/2) are what Llama's published weights in Hugging Face's layout expect,
not the neighbours (2i, 2i + 1) of the paper.

The backward pass of a rotation is the rotation by −θ, so nothing of x is kept.

**Longer contexts.** Llama 3.1 slows the low frequencies down so that a model trained on short texts can be tuned on
long ones (Grattafiori et al. 2024, arXiv:2407.21783, §3.4, and the reference code of Llama 3.1). With wavelength
λ_i = 2π/ω_i and the old context L: ω_i stays where λ_i < L / high, becomes ω_i / factor where λ_i > L / low, and is
mixed in between with weight (L/λ_i − low) / (high − low).

YaRN (Peng et al. 2023, arXiv:2309.00071, §3.2) mixes by the pair's number i instead, between the pair that turns `fast`
times within the old context and the one that turns `slow` times, and sharpens attention by √(1/t) = 0.1·ln(factor) + 1,
which cos and sin are multiplied with (eq. 22).

**On a card** a program turns all heads of one token, so that its angles are read once. The result may take x's place:
`rope_` saves the memory of a second q and k.

Legend: B batch, T tokens, H heads, D head_dim (even); HEADS ≥ H and HALF ≥ D/2 in a program.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.kernels.launch import (
    Impl,
    LaunchError,
    check_floats,
    check_together,
    jit,
    launch,
    narrow,
    power,
    tl,
    use_triton,
)
from luthier.kernels.openmp import in_shares
from luthier.kernels.processor import compiled, row_loops, together

__all__ = ["cost", "frequencies", "llama3_frequencies", "rope", "rope_", "rope_reference", "rope_table"]
__all__ += ["yarn_frequencies", "yarn_scale"]

EXAMPLE = {"tokens": 8192, "heads": 32, "head_dim": 128}


def frequencies(head_dim: int, base: float) -> Tensor:
    """ω [D/2] in float64, radians a position."""
    return base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def llama3_frequencies(omega: Tensor, *, factor: float, low: float, high: float, context: int) -> Tensor:
    """ω [D/2] with its low frequencies slowed by `factor`; `context` is the length of the original training, tokens."""
    turns = context * omega / (2 * math.pi)  # L/λ: how often a pair turns within the old context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * omega + (1 - keep) * omega / factor


def yarn_frequencies(
    omega: Tensor, *, factor: float, context: int, fast: float = 32.0, slow: float = 1.0, whole: bool = True
) -> Tensor:
    """ω [D/2] for a context `factor` times as long as the original `context`; `whole` rounds the two pairs outward."""
    base = float(omega[0] / omega[1]) if len(omega) > 1 else math.e  # ω falls by the same ratio from pair to pair
    first, last = (math.log(context / (turns * 2 * math.pi)) / math.log(base) for turns in (fast, slow))
    if whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * len(omega) - 1)
    pair = torch.arange(len(omega), dtype=omega.dtype, device=omega.device)
    slowed = ((pair - first) / max(last - first, 0.001)).clamp(0, 1)
    return slowed * omega / factor + (1 - slowed) * omega


def yarn_scale(factor: float) -> float:
    """What YaRN multiplies cos and sin with."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def cost(tokens: int, heads: int, head_dim: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations, forward and backward; the tables are left out."""
    numbers = tokens * heads * head_dim
    return dict.fromkeys(("forward", "backward"), (2 * numbers * itemsize, 3 * numbers))


def rope_table(
    omega: Tensor, positions: int, dtype: torch.dtype = torch.float32, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """scale · cos θ and scale · sin θ [positions, D/2], in float64, rounded once: float32 angles of 10⁴ err by 10⁻³."""
    theta = torch.arange(positions, dtype=torch.float64, device=omega.device)[:, None] * omega
    return (scale * theta.cos()).to(dtype), (scale * theta.sin()).to(dtype)


def rope_reference(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula. x: [B, T, H, D]; cos, sin: [T, D/2] or [B, T, D/2]."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # the same for every head
    a, b = x_BTHD.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The reference in three passes over memory; contiguous, and of x's dtype, whatever x and the tables are."""
    a, b = x.chunk(2, dim=-1)
    out = (x.contiguous() * torch.cat((cos, cos), dim=-1)).to(x.dtype)
    left, right = out.chunk(2, dim=-1)
    left.addcmul_(b, sin, value=-1)
    right.addcmul_(a, sin)
    return out


def _in_one_pass(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """The same by row_loops.py."""
    *rows, H, D = x.shape
    cos, sin = (t if t.dim() == 2 else t.expand(*rows, D // 2) for t in (cos, sin))
    tables = [t.contiguous().view(-1, D // 2).numpy() for t in (cos, sin)]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    x3, out3 = x.contiguous().view(-1, H, D).numpy(), out.view(-1, H, D).numpy()
    whole, loop = (*tables, np.float32(-1 if back else 1)), compiled("row_loops").rope
    in_shares(len(x3), together(x3), lambda first, last, _: loop(*whole, first, x3[first:last], out3[first:last]))
    return out


# ---------------------------------------------------------------- Triton


@jit(lengths=("T",))
def _kernel(
    X, Cos, Sin, Out, T, xb, xt, xh, ob, ot, oh, cb,
    H: tl.constexpr, D2: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    b, t = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64)
    head, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    cos = tl.load(Cos + b * cb + t * D2 + i, i < D2, other=0.0).to(tl.float32)
    sin = tl.load(Sin + b * cb + t * D2 + i, i < D2, other=0.0).to(tl.float32)
    if BACK:
        sin = -sin
    inside = (head < H) & (i < D2)
    x, out = X + b * xb + t * xt + head * xh + i, Out + b * ob + t * ot + head * oh + i
    left = tl.load(x, inside, other=0.0).to(tl.float32)
    right = tl.load(x + D2, inside, other=0.0).to(tl.float32)
    tl.store(out, narrow(left * cos - right * sin, Out.dtype.element_ty), inside)
    tl.store(out + D2, narrow(right * cos + left * sin, Out.dtype.element_ty), inside)


def _turn_on_card(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, back: bool) -> Tensor:
    """Turn x [B, T, H, D] into `out`, which may be x itself; cos and sin [T or B, T, D/2], contiguous."""
    B, T, H, D = x.shape
    sizes = {"HEADS": power(H), "HALF": power(D // 2)}
    table = T * D // 2 if cos.dim() == 3 and len(cos) > 1 else 0
    strides = (*x.stride()[:3], *out.stride()[:3], table)
    warps = min(8, max(1, sizes["HEADS"] * sizes["HALF"] // 512))
    launch(_kernel, (T, B), x, cos, sin, out, T, *strides, H=H, D2=D // 2, BACK=back, num_warps=warps, **sizes)
    return out


# ---------------------------------------------------------------- autograd


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, triton: bool, in_place: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.triton = triton
        if in_place:
            ctx.mark_dirty(x)
        return _into(x if in_place else None, x, cos, sin, triton, back=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _into(None, gradients[0], cos, sin, ctx.triton, back=True), None, None, None, None


def _into(out: Tensor | None, x: Tensor, cos: Tensor, sin: Tensor, triton: bool, *, back: bool) -> Tensor:
    """The turned x, in `out` or in new memory."""
    if not triton and out is None and row_loops(x, cos, sin):
        return _in_one_pass(x.detach(), cos, sin, back)
    if not triton:
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        turned = _turn(x, cos, -sin if back else sin)
        return turned if out is None else out.copy_(turned)
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    return _turn_on_card(x, cos, sin, out, back)


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    heads, D = EXAMPLE["heads"], EXAMPLE["head_dim"]
    x = torch.zeros(1, tokens, heads, D, dtype=dtype, requires_grad=True)
    y: Any = _Rope.apply(x, *rope_table(frequencies(D, 1e4), tokens), True, False)
    y.backward(y)


# ---------------------------------------------------------------- public


def rope(x_BTHD: Tensor, cos: Tensor, sin: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Turn x [B, T, H, D] by the angles whose cos and sin [T, D/2] or [B, T, D/2] are given, in x's dtype.

    Raises ValueError for an odd D or tables of another size.
    """
    triton = _check("rope", x_BTHD, cos, sin, impl)
    if not torch.is_grad_enabled():  # a node costs more than turning a single token
        return _into(None, x_BTHD, cos, sin, triton, back=False)
    return _Rope.apply(x_BTHD, cos, sin, triton, False)  # pyright: ignore[reportReturnType]


def rope_(x_BTHD: Tensor, cos: Tensor, sin: Tensor, *, impl: Impl = "auto") -> Tensor:
    """As `rope`, in x's own memory; returns x. The gradient flows as through any operation in place."""
    triton = _check("rope_", x_BTHD, cos, sin, impl)
    if triton and x_BTHD.stride(-1) != 1:
        raise LaunchError(f"rope_: x has strides {x_BTHD.stride()}; its components must lie side by side (stride 1)")
    return _Rope.apply(x_BTHD, cos, sin, triton, True)  # pyright: ignore[reportReturnType]


def _check(name: str, x: Tensor, cos: Tensor, sin: Tensor, impl: Impl) -> bool:
    """Whether Triton takes the work. Raises ValueError for what does not fit."""
    check_together(name, x=x, cos=cos, sin=sin)
    if x.dim() < 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; it must be [B, T, H, D]")
    D, expected = x.shape[-1], (x.shape[-3], x.shape[-1] // 2)
    if D % 2 or cos.shape[-2:] != expected or sin.shape != cos.shape:
        raise ValueError(
            f"{name}: x has shape {tuple(x.shape)}, so cos and sin must end in {expected} and head_dim be even; "
            f"found cos {tuple(cos.shape)}, sin {tuple(sin.shape)}"
        )
    if not use_triton(name, impl, x):
        return False
    check_floats(name, x=x, cos=cos, sin=sin)
    if x.dim() != 4 or cos.dim() > 3 or (cos.dim() == 3 and len(cos) not in (1, len(x))):
        raise LaunchError(
            f"{name}: the kernel takes x [B, T, H, D] and tables [T, D/2] or [B, T, D/2]; found x {tuple(x.shape)}, "
            f"cos {tuple(cos.shape)}"
        )
    if not (cos.is_contiguous() and sin.is_contiguous()):
        raise LaunchError(f"{name}: cos and sin must be contiguous; found strides {cos.stride()} and {sin.stride()}")
    return True
