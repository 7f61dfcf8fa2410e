"""RMSNorm: divide a vector by its root mean square, then scale each component.

    y = x · r · g,    r = 1 / √(mean(x²) + ε)                           (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4)

Unlike LayerNorm no mean is subtracted and no bias is added. With x̂ = x · r and the incoming gradient dy, the chain rule
gives

    dg = Σ_rows dy ⊙ x̂
    dx = r · (dy ⊙ g − x̂ · mean(dy ⊙ g ⊙ x̂))

so the backward pass needs x and one number a row, r. Written as eight autograd nodes the same costs about twice the
time on a CPU (4096×192: 9.1 ms against 5.2 ms forward and backward on one core), because every node is a pass over
memory; here it is one node. Where Numba is there, one pass over memory, too (row_loops.py).

**On a card** the formula is nothing but memory traffic: 2 numbers a component forward, 3 backward. A program holds
whole rows in registers, so that each number is read once. dg is a sum over all rows: every program of the backward pass
walks over many rows and keeps its own sum; the few hundred sums are added at the end, in the same order every time.

**Residual stream.** In a transformer each norm follows an addition, h = x + residual. `add_rms_norm` does both in one
pass and gives back h too; what flows back into h joins dx in the same pass (∂h/∂x = ∂h/∂residual = 1).

Legend: N rows (any number of leading dimensions), C components; R rows and BLOCK ≥ C components in a program.
"""

from __future__ import annotations

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
    multiprocessors,
    narrow,
    power,
    tl,
    use_triton,
)
from luthier.kernels.processor import closed_loops, copied, in_one_pass, rows

__all__ = ["add_rms_norm", "add_rms_norm_reference", "cost", "rms_norm", "rms_norm_reference"]

EXAMPLE = {"rows": 8192, "columns": 4096}
WIDEST = 65536  # components that a program can hold: 128 registers for each of 512 threads


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula, one operation at a time. x: [..., C], weight: [C]."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of h = x + residual, and h."""
    h = x + residual
    return rms_norm_reference(h, weight, eps), h


def cost(rows: int, columns: int, itemsize: int, *, add: bool = False) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations, forward and backward."""
    numbers = rows * columns
    return {
        "forward": ((4 if add else 2) * numbers * itemsize, (5 if add else 4) * numbers),
        "backward": ((4 if add else 3) * numbers * itemsize, (10 if add else 9) * numbers),
    }


# ---------------------------------------------------------------- PyTorch


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y and r."""
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * r).mul_(weight), r


class _Loops(torch.autograd.Function):
    """By row_loops.py: y, and h = x + residual where there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor | tuple[Any, ...]:
        x, other = x.contiguous(), None if residual is None else residual.contiguous()
        y, h, r = (_closed if torch.compiler.is_compiling() else _in_one_pass)(x, other, weight, eps)
        ctx.save_for_backward(x if residual is None else h, weight, r)
        ctx.set_materialize_grads(False)
        ctx.add = residual is not None
        return (y, h) if ctx.add else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        h, weight, r = ctx.saved_tensors
        dy, dh = gradients if ctx.add else (*gradients, None)
        dy = torch.zeros_like(h) if dy is None else dy.contiguous()  # of h alone something was asked
        dh = None if dh is None else dh.contiguous()
        dx, dg = (_closed_backward if torch.compiler.is_compiling() else _back_in_one_pass)(h, weight, r, dy, dh)
        return dx, dx if ctx.add else None, dg, None


def _in_one_pass(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, h and r by row_loops.py; h is empty where there is no residual."""
    y, h = torch.empty_like(x), x.new_empty(0) if residual is None else torch.empty_like(x)
    r = x.new_empty(x.numel() // x.shape[-1])
    other, sum_ = (None, rows(x)) if residual is None else (rows(residual), rows(h))
    in_one_pass("rms_norm", (copied(weight), np.float32(eps)), (rows(x), other, sum_, rows(y), r.numpy()))
    return y, h, r


def _back_in_one_pass(h: Tensor, weight: Tensor, r: Tensor, dy: Tensor, dh: Tensor | None) -> tuple[Tensor, Tensor]:
    """dx and dg."""
    dx = torch.empty_like(h)
    arrays = (None if t is None else rows(t) for t in (dy, dh, dx))
    (dg,) = in_one_pass("rms_norm_back", (copied(weight),), (rows(h), r.numpy(), *arrays), sums=1)
    return dx, dg


# Operations of their own, into which torch.compile does not look
@torch.library.custom_op("luthier::rms_norm", mutates_args=())
def _closed(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _in_one_pass(x, residual, weight, eps)


@torch.library.custom_op("luthier::rms_norm_backward", mutates_args=())
def _closed_backward(h: Tensor, weight: Tensor, r: Tensor, dy: Tensor, dh: Tensor | None) -> tuple[Tensor, Tensor]:
    return _back_in_one_pass(h, weight, r, dy, dh)


@_closed.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    h = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), h, x.new_empty(x.numel() // x.shape[-1])


@_closed_backward.register_fake
def _(h: Tensor, weight: Tensor, r: Tensor, dy: Tensor, dh: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h), torch.empty_like(weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, r = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        (dy,) = gradients
        x, weight, r = ctx.saved_tensors
        x_hat = x * r
        product = (dy * x_hat).reshape(-1, x.shape[-1])  # [N, C]
        mean = (product @ weight).div_(-x.shape[-1]).view(r.shape)  # −mean(dy ⊙ g ⊙ x̂)
        return torch.addcmul(dy * weight, x_hat, mean).mul_(r), product.sum(0), None


# ---------------------------------------------------------------- Triton


@jit(lengths=("N",))
def _forward(X, Res, G, Y, H, Rms, N, eps, C: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, BLOCK)
    at = row[:, None] * C + column[None, :]
    inside = (row < N)[:, None] & (column < C)[None, :]
    x = tl.load(X + at, inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(Res + at, inside, other=0.0).to(tl.float32)
        h = narrow(x, H.dtype.element_ty)
        tl.store(H + at, h, inside)
        x = h.to(tl.float32)  # what the stream holds is what is normalised
    r = tl.rsqrt(tl.sum(x * x, 1) / C + eps)
    g = tl.load(G + column, column < C, other=0.0).to(tl.float32)
    tl.store(Y + at, narrow(x * r[:, None] * g[None, :], Y.dtype.element_ty), inside)
    tl.store(Rms + row, r, row < N)


@jit(lengths=("N",))
def _backward(X, G, Rms, Dy, Dh, Dx, Dg, N, C: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    column = tl.arange(0, BLOCK)
    g = tl.load(G + column, column < C, other=0.0).to(tl.float32)[None, :]
    dg = tl.zeros((R, BLOCK), tl.float32)
    for start in range(tl.program_id(0) * R, N, tl.num_programs(0) * R):
        row = start + tl.arange(0, R).to(tl.int64)
        at = row[:, None] * C + column[None, :]
        inside = (row < N)[:, None] & (column < C)[None, :]
        r = tl.load(Rms + row, row < N, other=0.0)[:, None]
        x_hat = tl.load(X + at, inside, other=0.0).to(tl.float32) * r
        dy = tl.load(Dy + at, inside, other=0.0).to(tl.float32)
        dg += dy * x_hat
        mean = tl.sum(dy * g * x_hat, 1)[:, None] / C
        dx = r * (dy * g - x_hat * mean)
        if ADD:
            dx += tl.load(Dh + at, inside, other=0.0).to(tl.float32)
        tl.store(Dx + at, narrow(dx, Dx.dtype.element_ty), inside)
    tl.store(Dg + tl.program_id(0) * C + column, tl.sum(dg, 0), column < C)


def settings(C: int) -> dict[str, int]:
    """Rows and components in a program, and its warps: 8 to 32 numbers a thread, 16 bytes a load."""
    if C > WIDEST:
        raise LaunchError(f"a row of {C:,} components is more than a program can hold ({WIDEST:,}); impl='torch' can")
    BLOCK = max(power(C), 16)
    R = max(1, 2048 // BLOCK)
    return {"R": R, "BLOCK": BLOCK, "num_warps": min(16, max(4, R * BLOCK // 1024))}


class _TritonRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        C = x.shape[-1]
        x2 = x.reshape(-1, C).contiguous()
        y, rms = torch.empty_like(x2), torch.empty(len(x2), dtype=torch.float32, device=x.device)
        h = x2 if residual is None else torch.empty_like(x2)
        other = x2 if residual is None else residual.reshape(-1, C).contiguous()
        s = settings(C)
        grid = (-(-len(x2) // s["R"]),)
        launch(_forward, grid, x2, other, weight, y, h, rms, len(x2), eps, C=C, ADD=residual is not None, **s)
        ctx.save_for_backward(h, weight, rms)
        ctx.add = residual is not None
        if residual is None:
            h = x.new_empty(0)
            ctx.mark_non_differentiable(h)
            return y.view(x.shape), h
        return y.view(x.shape), h.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, Tensor, None]:
        dy, dh = gradients
        h, weight, rms = ctx.saved_tensors
        (N, C), s = h.shape, settings(h.shape[-1])
        programs = min(4 * multiprocessors(h), -(-N // s["R"]))
        dx, dg = torch.empty_like(h), torch.empty(programs, C, dtype=torch.float32, device=h.device)
        dy2 = dy.reshape(-1, C).contiguous()
        dh2 = dh.reshape(-1, C).contiguous() if ctx.add else dy2
        launch(_backward, (programs,), h, weight, rms, dy2, dh2, dx, dg, N, C=C, ADD=ctx.add, **s)
        dx = dx.view(dy.shape)
        return dx, dx if ctx.add else None, dg.sum(0).to(weight.dtype), None


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    x, residual = (torch.zeros(tokens, EXAMPLE["columns"], dtype=dtype, requires_grad=True) for _ in range(2))
    weight = torch.ones(EXAMPLE["columns"], dtype=dtype, requires_grad=True)
    for other in (None, residual):
        y, h = _TritonRMSNorm.apply(x, other, weight, 1e-5)  # pyright: ignore[reportGeneralTypeIssues]
        torch.autograd.backward([y] if other is None else [y, h], [y] if other is None else [y, h])


# ---------------------------------------------------------------- public


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5, *, impl: Impl = "auto") -> Tensor:
    """Normalise the last dimension of x [..., C] and scale it by weight [C]; same dtype out as in.

    fp16 and bf16 are normalised in fp32 and rounded once, as Llama's own code does. Raises ValueError where the sizes
    differ.
    """
    check_together("rms_norm", x=x, weight=weight)
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: weight has shape {tuple(weight.shape)}, x needs {tuple(x.shape[-1:])}")
    if use_triton("rms_norm", impl, x):
        check_floats("rms_norm", x=x, weight=weight)
        return _TritonRMSNorm.apply(x, None, weight, eps)[0]  # pyright: ignore[reportOptionalSubscript]
    if x.dtype in (torch.float16, torch.bfloat16):
        return rms_norm_reference(x.float(), weight.float(), eps).to(x.dtype)
    if closed_loops(x, weight):
        return _Loops.apply(x, None, weight, eps)  # pyright: ignore[reportReturnType]
    if not torch.is_grad_enabled():  # a node costs more than the norm of a single token
        return _normed(x, weight, eps)[0]
    return _RMSNorm.apply(x, weight, eps)  # pyright: ignore[reportReturnType]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5, *, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """The norm of h = x + residual, and h, both [..., C] in x's dtype. Raises ValueError where they do not fit."""
    check_together("add_rms_norm", x=x, residual=residual, weight=weight)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"add_rms_norm: residual is {residual.dtype} {tuple(residual.shape)}, x is {x.dtype} {tuple(x.shape)}; "
            "they must be equal"
        )
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"add_rms_norm: weight has shape {tuple(weight.shape)}, x needs {tuple(x.shape[-1:])}")
    if use_triton("add_rms_norm", impl, x):
        check_floats("add_rms_norm", x=x, weight=weight, residual=residual)
        return _TritonRMSNorm.apply(x, residual, weight, eps)  # pyright: ignore[reportReturnType]
    if closed_loops(x, residual, weight):
        return _Loops.apply(x, residual, weight, eps)  # pyright: ignore[reportReturnType]
    h = x + residual
    return rms_norm(h, weight, eps, impl="torch"), h
