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

Legend: B batch, T tokens, H heads, D head_dim (even).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["frequencies", "llama3_frequencies", "rope", "rope_reference", "rope_table"]


def frequencies(head_dim: int, base: float) -> Tensor:
    """ω [D/2] in float64, radians a position."""
    return base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def llama3_frequencies(omega: Tensor, *, factor: float, low: float, high: float, context: int) -> Tensor:
    """ω [D/2] with its low frequencies slowed by `factor`; `context` is the length of the original training, tokens."""
    turns = context * omega / (2 * math.pi)  # L/λ: how often a pair turns within the old context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * omega + (1 - keep) * omega / factor


def rope_table(omega: Tensor, positions: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """cos θ and sin θ [positions, D/2]; made in float64 and rounded once: float32 angles of 10⁴ err by 10⁻³."""
    theta = torch.arange(positions, dtype=torch.float64, device=omega.device)[:, None] * omega
    return theta.cos().to(dtype), theta.sin().to(dtype)


def rope_reference(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula. x: [B, T, H, D]; cos, sin: [T, D/2] or [B, T, D/2]."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # the same for every head
    a, b = x_BTHD.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The reference in three passes over memory."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)  # contiguous whatever x is
    torch.mul(x, torch.cat((cos, cos), dim=-1), out=out)
    out[..., :half].addcmul_(b, sin, value=-1)
    out[..., half:].addcmul_(a, sin)
    return out


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradients[0], cos, -sin), None, None


def rope(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [B, T, H, D] by the angles whose cos and sin [T, D/2] or [B, T, D/2] are given, in x's dtype.

    Raises ValueError for an odd D or tables of another size.
    """
    D, expected = x_BTHD.shape[-1], (x_BTHD.shape[-3], x_BTHD.shape[-1] // 2)
    if D % 2 or cos.shape[-2:] != expected or sin.shape != cos.shape:
        raise ValueError(
            f"rope: x has shape {tuple(x_BTHD.shape)}, so cos and sin must end in {expected} and head_dim be even; "
            f"found cos {tuple(cos.shape)}, sin {tuple(sin.shape)}"
        )
    return _Rope.apply(x_BTHD, cos.unsqueeze(-2), sin.unsqueeze(-2))  # pyright: ignore[reportReturnType]
