"""A linear layer, y = x Wᵀ + b, by the library that multiplies fastest here.

    dx = dy W,    dW = dyᵀ x,    db = Σ_rows dy

PyTorch brings two libraries with it: MKL, which takes every product of float32, and oneDNN, which takes half precision.
On AMD's processors with AVX-512 oneDNN is the faster one in float32, too, for y and dx; dW, where both matrices stand
the wrong way, is MKL's in most shapes. GFLOP/s of one core of an AMD EPYC at 3.7 GHz (4096 rows, 256 → 688, 688 → 256):

    y     MKL 93, 94    oneDNN 105, 108          dx    MKL 86, 95    oneDNN 106, 107

So on such a processor products of many rows call oneDNN; everywhere else this is `torch.nn.functional.linear`. It
depends on the machine and the number of rows alone: the same machine gives the same bits (processor.py). On Intel's
processors MKL is the faster one, 178 and 153 for the first of these products.
oneDNN's product has first derivatives only: for `create_graph=True` and torch.func use `torch.nn.functional.linear`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.processor import amd_avx512

__all__ = ["linear", "onednn_is_faster"]

FEWEST_ROWS = 64  # with fewer the call costs more than the product gains


def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512 under Linux, and this PyTorch has oneDNN's product."""
    return _look()


# What torch.compiler.assume_constant_result writes; calling it would load the compiler at import
setattr(onednn_is_faster, "_dynamo_marked_constant", True)  # noqa: B010


@cache
def _look() -> bool:
    return amd_avx512() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A frozen weight's gradient is not asked for: its input need not be kept
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        dy = gradients[0].reshape(-1, len(weight))
        dx = _multiply(dy, weight.T, None).view(*gradients[0].shape[:-1], weight.shape[1]) if for_x else None
        dW = dy.T @ x.reshape(-1, x.shape[-1]) if for_weight else None
        # Products with ones take half the time of a sum over rows, and short ones are as exact
        db = sum(part.T @ part.new_ones(len(part)) for part in dy.split(256)) if for_bias else None
        return dx, dW, db  # pyright: ignore[reportReturnType]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


# torch.compile takes oneDNN's operation for one with a frozen weight and fails; into one of ours it does not look
@torch.library.custom_op("luthier::linear", mutates_args=())
def _closed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _product(x, weight, bias)


@_closed.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return (_closed if torch.compiler.is_compiling() else _product)(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., C] times weight [F, C] turned, plus bias [F]: [..., F]."""
    if not _by_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.numel() < FEWEST_ROWS * x.shape[-1] or not onednn_is_faster():
        return False
    plain = all(
        type(t) in (Tensor, torch.nn.Parameter) and t.dtype == torch.float32 and t.device.type == "cpu"
        for t in (x, weight, bias)
        if t is not None
    )
    dense = weight.is_contiguous() or weight.mT.is_contiguous()
    fits = plain and dense and len(weight) > 0 and weight.shape[1] == x.shape[-1] > 0
    # oneDNN looks at neither shape nor strides of a bias
    fits = fits and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
    return fits and not torch.is_autocast_enabled("cpu")
