"""LayerNorm: give a vector mean 0 and deviation 1, then scale and shift each component.

    y = x̂ ⊙ g + b,    x̂ = (x − μ) · r,    r = 1 / √(var(x) + ε)                 (Ba et al. 2016, arXiv:1607.06450)

The variance is that of the row itself (divided by C, not C − 1), taken about the mean in a second pass over registers:
mean(x²) − μ² would cancel where μ is large. Backward, with d = dy ⊙ g:

    db = Σ_rows dy,    dg = Σ_rows dy ⊙ x̂,    dx = r · (d − mean(d) − x̂ · mean(d ⊙ x̂))

As in rms_norm.py a program holds whole rows, numbers are read once, and each program of the backward pass keeps its own
sums of dg and db, added at the end in a fixed order. On a CPU one pass over memory does the same (row_loops.py), or
PyTorch's own fused kernel. `add_layer_norm` takes the addition before the norm along, h = x + residual, on a CPU in the
same pass.

Legend: N rows (any number of leading dimensions), C components; R rows and BLOCK ≥ C components in a program.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.launch import (
    Impl,
    check_floats,
    check_together,
    jit,
    launch,
    multiprocessors,
    narrow,
    tl,
    use_triton,
)
from luthier.kernels.processor import closed_loops, copied, in_one_pass, rows
from luthier.kernels.rms_norm import settings

__all__ = ["add_layer_norm", "cost", "layer_norm", "layer_norm_reference"]

EXAMPLE = {"rows": 8192, "columns": 4096}


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The formula, one operation at a time. x: [..., C], weight and bias: [C]."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight
    return y if bias is None else y + bias


def cost(rows: int, columns: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations, forward and backward."""
    numbers = rows * columns
    return {"forward": (2 * numbers * itemsize, 7 * numbers), "backward": (3 * numbers * itemsize, 12 * numbers)}


# ---------------------------------------------------------------- Numba


class _Loops(torch.autograd.Function):
    """By row_loops.py: y, and h = x + residual where there is one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        x, other = x.contiguous(), None if residual is None else residual.contiguous()
        b = torch.zeros_like(weight) if bias is None else bias
        y, h, known = (_closed if torch.compiler.is_compiling() else _in_one_pass)(x, other, weight, b, eps)
        ctx.save_for_backward(x if residual is None else h, weight, known)
        ctx.set_materialize_grads(False)
        ctx.add, ctx.shifts = residual is not None, bias is not None
        return (y, h) if ctx.add else y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        h, weight, known = ctx.saved_tensors
        dy, dh = gradients if ctx.add else (*gradients, None)
        dy = torch.zeros_like(h) if dy is None else dy.contiguous()  # of h alone something was asked
        dh = None if dh is None else dh.contiguous()
        run = _closed_backward if torch.compiler.is_compiling() else _back_in_one_pass
        dx, dg, db = run(h, weight, known, dy, dh)
        return dx, dx if ctx.add else None, dg, db if ctx.shifts else None, None


def _in_one_pass(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h, which is empty where there is no residual, and mean and r [2, N]."""
    y, h = torch.empty_like(x), x.new_empty(0) if residual is None else torch.empty_like(x)
    known = x.new_empty(2, x.numel() // x.shape[-1])
    other, sum_ = (None, rows(x)) if residual is None else (rows(residual), rows(h))
    whole = (copied(weight), copied(bias), np.float32(eps))
    in_one_pass("layer_norm", whole, (rows(x), other, sum_, rows(y), *known.numpy()))
    return y, h, known


def _back_in_one_pass(
    h: Tensor, weight: Tensor, known: Tensor, dy: Tensor, dh: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dg and db."""
    dx = torch.empty_like(h)
    arrays = (None if t is None else rows(t) for t in (dy, dh, dx))
    dg, db = in_one_pass("layer_norm_back", (copied(weight),), (rows(h), *known.numpy(), *arrays), sums=2)
    return dx, dg, db


# Operations of their own, into which torch.compile does not look
@torch.library.custom_op("luthier::layer_norm", mutates_args=())
def _closed(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _in_one_pass(x, residual, weight, bias, eps)


@torch.library.custom_op("luthier::layer_norm_backward", mutates_args=())
def _closed_backward(
    h: Tensor, weight: Tensor, known: Tensor, dy: Tensor, dh: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _back_in_one_pass(h, weight, known, dy, dh)


@_closed.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    h = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), h, x.new_empty(2, x.numel() // x.shape[-1])


@_closed_backward.register_fake
def _(h: Tensor, weight: Tensor, known: Tensor, dy: Tensor, dh: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(h), weight.new_empty(len(weight)), weight.new_empty(len(weight))


# ---------------------------------------------------------------- Triton


@jit(lengths=("N",))
def _forward(
    X, G, Bias, Y, Mean, Rms, N, eps, C: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, BLOCK)
    at = row[:, None] * C + column[None, :]
    inside = (row < N)[:, None] & (column < C)[None, :]
    x = tl.load(X + at, inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    x = tl.where(inside, x - mean[:, None], 0.0)
    r = tl.rsqrt(tl.sum(x * x, 1) / C + eps)
    y = x * r[:, None] * tl.load(G + column, column < C, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        y += tl.load(Bias + column, column < C, other=0.0).to(tl.float32)[None, :]
    tl.store(Y + at, narrow(y, Y.dtype.element_ty), inside)
    tl.store(Mean + row, mean, row < N)
    tl.store(Rms + row, r, row < N)


@jit(lengths=("N",))
def _backward(X, G, Mean, Rms, Dy, Dx, Dg, Db, N, C: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    g = tl.load(G + column, column < C, other=0.0).to(tl.float32)[None, :]
    dg = tl.zeros((R, BLOCK), tl.float32)
    db = tl.zeros((R, BLOCK), tl.float32)
    for start in range(tl.program_id(0) * R, N, tl.num_programs(0) * R):
        row = start + tl.arange(0, R).to(tl.int64)
        at = row[:, None] * C + column[None, :]
        inside = (row < N)[:, None] & (column < C)[None, :]
        mean = tl.load(Mean + row, row < N, other=0.0)[:, None]
        r = tl.load(Rms + row, row < N, other=0.0)[:, None]
        x_hat = (tl.load(X + at, inside, other=0.0).to(tl.float32) - mean) * r
        dy = tl.load(Dy + at, inside, other=0.0).to(tl.float32)
        dg += dy * x_hat
        db += dy
        d = dy * g
        dx = r * (d - tl.sum(d, 1)[:, None] / C - x_hat * (tl.sum(d * x_hat, 1)[:, None] / C))
        tl.store(Dx + at, narrow(dx, Dx.dtype.element_ty), inside)
    tl.store(Dg + tl.program_id(0) * C + column, tl.sum(dg, 0), column < C)
    tl.store(Db + tl.program_id(0) * C + column, tl.sum(db, 0), column < C)


class _TritonLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        C = x.shape[-1]
        x2 = x.reshape(-1, C).contiguous()
        y = torch.empty_like(x2)
        mean, rms = (torch.empty(len(x2), dtype=torch.float32, device=x.device) for _ in range(2))
        s, b = settings(C), weight if bias is None else bias
        grid = (-(-len(x2) // s["R"]),)
        launch(_forward, grid, x2, weight, b, y, mean, rms, len(x2), eps, C=C, BIAS=bias is not None, **s)
        ctx.save_for_backward(x2, weight, mean, rms)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor | None, None]:
        (dy,) = gradients
        x, weight, mean, rms = ctx.saved_tensors
        (N, C), s = x.shape, settings(x.shape[-1])
        programs = min(4 * multiprocessors(x), -(-N // s["R"]))
        dx, sums = torch.empty_like(x), torch.empty(2, programs, C, dtype=torch.float32, device=x.device)
        dy2 = dy.reshape(-1, C).contiguous()
        launch(_backward, (programs,), x, weight, mean, rms, dy2, dx, sums[0], sums[1], N, C=C, **s)
        dg, db = sums.sum(1)
        return dx.view(dy.shape), dg.to(weight.dtype), None if ctx.bias_dtype is None else db.to(ctx.bias_dtype), None


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    C = EXAMPLE["columns"]
    x = torch.zeros(tokens, C, dtype=dtype, requires_grad=True)
    weight, bias = (torch.ones(C, dtype=dtype, requires_grad=True) for _ in range(2))
    y: Any = _TritonLayerNorm.apply(x, weight, bias, 1e-5)
    y.backward(y)


# ---------------------------------------------------------------- public


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, *, impl: Impl = "auto"
) -> Tensor:
    """Normalise the last dimension of x [..., C], scale by weight [C], shift by bias [C]; same dtype out as in.

    Raises ValueError where the sizes differ.
    """
    check_together("layer_norm", x=x, weight=weight, bias=bias)
    for name, one in (("weight", weight), ("bias", bias)):
        if one is not None and one.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm: {name} has shape {tuple(one.shape)}, x needs {tuple(x.shape[-1:])}")
    if use_triton("layer_norm", impl, x):
        check_floats("layer_norm", x=x, weight=weight, **({} if bias is None else {"bias": bias}))
        return _TritonLayerNorm.apply(x, weight, bias, eps)  # pyright: ignore[reportReturnType]
    if closed_loops(x, weight, *(() if bias is None else (bias,))):
        return _Loops.apply(x, None, weight, bias, eps)  # pyright: ignore[reportReturnType]
    wide = torch.promote_types(x.dtype, torch.float32)  # in half precision the sums of dg and db would be, too
    bias = None if bias is None else bias.to(wide)
    return F.layer_norm(x.to(wide), weight.shape, weight.to(wide), bias, eps).to(x.dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The norm of h = x + residual, and h, both [..., C]. Raises ValueError where they do not fit."""
    check_together("add_layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"add_layer_norm: residual is {residual.dtype} {tuple(residual.shape)}, x is {x.dtype} {tuple(x.shape)}; "
            "they must be equal"
        )
    shaped = all(one is None or one.shape == x.shape[-1:] for one in (weight, bias))
    if shaped and closed_loops(x, residual, weight, *(() if bias is None else (bias,))):
        return _Loops.apply(x, residual, weight, bias, eps)  # pyright: ignore[reportReturnType]
    h = x + residual
    return layer_norm(h, weight, bias, eps), h
