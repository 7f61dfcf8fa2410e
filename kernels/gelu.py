"""GELU, the bend between the two products of GPT-2's feed-forward (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    gelu(x) = x · Φ(x)                                     Φ: how likely a normal number is below x
            ≈ x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))   what GPT-2 was trained with

    d gelu / dx = Φ(x) + x · φ(x),    φ(x) = e^(−x²/2) / √(2π)

On a CPU the bias of the product before it is added in the same pass over memory, which otherwise is first written into
the product's output and read again, and summed over the rows on the way back (row_loops.py). On a card the product adds
it and PyTorch bends; with a gate: swiglu.py.

Legend: N rows (any number of leading dimensions), F components.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from luthier.kernels.launch import check_together
from luthier.kernels.processor import closed_loops, copied, in_one_pass, rows

__all__ = ["gelu", "gelu_reference"]


def gelu_reference(x: Tensor, bias: Tensor | None = None, approximate: str = "tanh") -> Tensor:
    """The formula, one operation at a time. x: [..., F], bias: [F]."""
    x = x if bias is None else x + bias
    if approximate == "tanh":
        return x * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + torch.erf(x * 0.5**0.5))


def _forward_loop(x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    y = torch.empty_like(x)
    in_one_pass("gelu", (_shift(x, bias), tanh), (rows(x), rows(y)))
    return y


def _backward_loop(x: Tensor, bias: Tensor | None, dy: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x)
    (dbias,) = in_one_pass("gelu_back", (_shift(x, bias), tanh), (rows(x), rows(dy), rows(dx)), sums=1)
    return dx, dbias


# Operations of their own, into which torch.compile does not look
@torch.library.custom_op("luthier::gelu", mutates_args=())
def _closed(x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    return _forward_loop(x, bias, tanh)


@torch.library.custom_op("luthier::gelu_backward", mutates_args=())
def _closed_backward(x: Tensor, bias: Tensor | None, dy: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return _backward_loop(x, bias, dy, tanh)


@_closed.register_fake
def _(x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    return torch.empty_like(x)


@_closed_backward.register_fake
def _(x: Tensor, bias: Tensor | None, dy: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[-1])


class _Loops(torch.autograd.Function):
    """By row_loops.py."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, bias)
        ctx.tanh = tanh
        return (_closed if torch.compiler.is_compiling() else _forward_loop)(x, bias, tanh)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        run = _closed_backward if torch.compiler.is_compiling() else _backward_loop
        dx, dbias = run(x, bias, gradients[0].contiguous(), ctx.tanh)
        return dx, None if bias is None else dbias, None


def _shift(x: Tensor, bias: Tensor | None) -> Any:
    return x.new_zeros(x.shape[-1]).numpy() if bias is None else copied(bias)


def gelu(x: Tensor, bias: Tensor | None = None, *, approximate: Literal["tanh", "none"] = "tanh") -> Tensor:
    """gelu(x + bias) for x [..., F] and bias [F]; `approximate` by tanh, or "none" for the formula itself. First
    derivatives only where row_loops.py does the work. Raises ValueError for a bias of another size."""
    check_together("gelu", x=x, bias=bias)
    if approximate not in ("tanh", "none"):
        raise ValueError(f"gelu: approximate is {approximate!r}; it may be 'tanh' or 'none'")
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(f"gelu: bias has shape {tuple(bias.shape)}, x needs {tuple(x.shape[-1:])}")
    if closed_loops(x, *(() if bias is None else (bias,))):
        return _Loops.apply(x, bias, approximate == "tanh")  # pyright: ignore[reportReturnType]
    return torch_f.gelu(x if bias is None else x + bias, approximate=approximate)
