"""A linear layer, y = x Wᵀ + b, by the library that multiplies fastest here.

    dx = dy W,    dW = dyᵀ x,    db = Σ_rows dy

PyTorch brings two libraries with it: MKL, which takes every product of float32, and oneDNN, which takes half precision.
On AMD's processors with AVX-512 oneDNN is the faster one in float32, too, for y and dx; dW, where both matrices stand
the wrong way, is MKL's in most shapes. GFLOP/s of one core of an AMD EPYC at 3.7 GHz (4096 rows, 256 → 688, 688 → 256):

    y     MKL 93, 94    oneDNN 105, 108          dx    MKL 86, 95    oneDNN 106, 107

So on such a processor products of many rows call oneDNN. On Intel's with AVX-512 MKL is no slower, but where there is
a bias it has to begin with a copy of it in every row: y = x Wᵀ + b, 4096 rows, 256 → 256, takes 2.99 ms, by oneDNN
2.70, by either without a bias 2.7. There oneDNN makes y where a bias is added. Everywhere else this is
`torch.nn.functional.linear`. It depends on the machine, the layers and the number of rows alone: the same machine gives
the same bits (processor.py).

Several layers that read the same x (`linears`: queries, keys and values; gate and up) have one gradient for it,
dx = Σ dy W. PyTorch makes a dx for each and adds them up; here each product is added to what is there.
oneDNN's product and `linears` have first derivatives only: for `create_graph=True` use `torch.nn.functional.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.processor import amd_avx512, closed_loops, intel_avx512

__all__ = ["linear", "linears", "onednn_is_faster", "product_and_bias"]

FEWEST_ROWS = 64  # with fewer the call costs more than the product gains


def onednn_is_faster(bias: bool = False) -> bool:
    """Whether oneDNN makes a product the faster way: on an AMD processor with AVX-512 under Linux, with a bias on an
    Intel one, too, if this PyTorch has it."""
    return (amd_avx512() or (bias and intel_avx512())) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


# What torch.compiler.assume_constant_result writes; calling it would load the compiler at import
setattr(onednn_is_faster, "_dynamo_marked_constant", True)  # noqa: B010


class _Linears(torch.autograd.Function):
    """y of each layer, of which `layers` are weight, bias, weight, bias, …"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Tensor | None) -> tuple[Tensor, ...]:
        weights: Any = layers[::2]
        biases = layers[1::2]
        # A frozen weight's gradient is not asked for: its input need not be kept
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1::2]) else None, *weights)
        return tuple(_multiply(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (x, *weights), (for_x, *for_layers) = ctx.saved_tensors, ctx.needs_input_grad
        dx, of_layers = None, []
        for n, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            dy = gradient.reshape(-1, len(weight))
            if for_x:
                dx = _add_product(dx, dy, weight)
            of_layers.append(dy.T @ x.reshape(-1, x.shape[-1]) if for_layers[2 * n] else None)
            # Products with ones take half the time of a sum over rows, and short ones are as exact
            ones = dy.new_ones(256)
            of_layers.append(sum(p.T @ ones[: len(p)] for p in dy.split(256)) if for_layers[2 * n + 1] else None)
        return None if dx is None else dx.view(*gradients[0].shape[:-1], -1), *of_layers


def _add_product(total: Tensor | None, dy: Tensor, weight: Tensor) -> Tensor:
    """total + dy weight."""
    if onednn_is_faster():
        product = _multiply(dy, weight.T, None)
        return product if total is None else total.add_(product)
    return dy @ weight if total is None else total.addmm_(dy, weight)


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
    if not onednn_is_faster(bias is not None):
        return F.linear(x, weight, bias)
    return (_closed if torch.compiler.is_compiling() else _product)(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., C] times weight [F, C] turned, plus bias [F]: [..., F]."""
    if not onednn_is_faster(bias is not None) or not _plain(x, weight, bias):
        return F.linear(x, weight, bias)
    return _Linears.apply(x, weight, bias)[0]  # pyright: ignore[reportOptionalSubscript]


def linears(x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    """layer(x) of each of several layers; of those that are no plain nn.Linear by calling them."""
    if all(_calls_nothing_else(layer) and _plain(x, layer.weight, layer.bias) for layer in layers):
        return _Linears.apply(x, *(t for layer in layers for t in (layer.weight, layer.bias)))  # pyright: ignore[reportReturnType]
    return tuple(layer(x) for layer in layers)


def _calls_nothing_else(layer: Any) -> bool:
    """Whether calling this layer is a product: it is nn.Linear or the decoder's own, and nobody has hooked it."""
    ours = type(layer) is torch.nn.Linear or (isinstance(layer, torch.nn.Linear) and hasattr(layer, "product"))
    return ours and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are many rows, in the dtype and the layouts that oneDNN takes, and nobody's but autograd's."""
    if x.numel() < FEWEST_ROWS * x.shape[-1]:
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
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return fits and not transformed and not torch.is_autocast_enabled("cpu")


def product_and_bias(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """layer(x), and the bias that is still to be added to it where what follows is a pass over memory anyway
    (row_loops.py): the product need not begin with a copy of the bias in every row then."""
    late = closed_loops(x) and not torch.is_autocast_enabled("cpu")
    return (layer.product(x), layer.bias) if late else (layer(x), None)
