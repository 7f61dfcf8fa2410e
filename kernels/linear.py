"""A linear layer, y = x Wᵀ + b, and several of one input, by whoever multiplies fastest here (product.py).

    dx = dy W,    dW = dyᵀ x,    db = Σ_rows dy

Several layers that read the same x (`linears`: queries, keys and values; gate and up) have one gradient for it,
dx = Σ dy W. PyTorch makes a dx for each and adds them up; here each product is added to what is there.
What is made here has first derivatives only: for `create_graph=True` use `torch.nn.functional.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.processor import closed_loops
from luthier.kernels.product import onednn_is_faster, plain, product, splits

__all__ = ["linear", "linears", "product_and_bias"]

FEWEST_ROWS = 64  # with fewer the call costs more than the product gains


class _Linears(torch.autograd.Function):
    """y of each layer, of which `layers` are weight, bias, weight, bias, …"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Tensor | None) -> tuple[Tensor, ...]:
        weights: Any = layers[::2]
        biases = layers[1::2]
        # A frozen weight's gradient is not asked for: its input need not be kept
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1::2]) else None, *weights)
        flat = x.reshape(-1, x.shape[-1])
        made = (product(flat, weight.T, bias) for weight, bias in zip(weights, biases, strict=True))
        return tuple(y.view(*x.shape[:-1], -1) for y in made)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (x, *weights), (for_x, *for_layers) = ctx.saved_tensors, ctx.needs_input_grad
        dx, of_layers = None, []
        for n, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            dy = gradient.reshape(-1, len(weight))
            if for_x:
                dx = product(dy, weight, out=dx, add=True)
            of_layers.append(product(dy.T, x.reshape(-1, x.shape[-1])) if for_layers[2 * n] else None)
            # Products with ones take half the time of a sum over rows, and short ones are as exact
            ones = dy.new_ones(256)
            of_layers.append(sum(p.T @ ones[: len(p)] for p in dy.split(256)) if for_layers[2 * n + 1] else None)
        return None if dx is None else dx.view(*gradients[0].shape[:-1], -1), *of_layers


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., C] times weight [F, C] turned, plus bias [F]: [..., F]."""
    if _few(x) or not _fits(x, weight, bias) or not _gains(x, weight, bias):
        return F.linear(x, weight, bias)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))):
        return product(x.reshape(-1, x.shape[-1]), weight.T, bias).view(*x.shape[:-1], -1)
    return _Linears.apply(x, weight, bias)[0]  # pyright: ignore[reportOptionalSubscript]


def linears(x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    """layer(x) of each of several layers; of those that are no plain nn.Linear by calling them."""
    if not _few(x) and all(_calls_nothing_else(layer) and _fits(x, layer.weight, layer.bias) for layer in layers):
        return _Linears.apply(x, *(t for layer in layers for t in (layer.weight, layer.bias)))  # pyright: ignore[reportReturnType]
    return tuple(layer(x) for layer in layers)


def _calls_nothing_else(layer: Any) -> bool:
    """Whether calling this layer is a product: it is nn.Linear or the decoder's own, and nobody has hooked it."""
    ours = type(layer) is torch.nn.Linear or (isinstance(layer, torch.nn.Linear) and hasattr(layer, "product"))
    return ours and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def _few(x: Tensor) -> bool:
    """Whether these are too few rows: asked first, for a decoder that makes one token after the other."""
    return x.dim() == 0 or x.numel() < FEWEST_ROWS * x.shape[-1]


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these have the shapes of a layer, are float32 on a CPU and nobody's but autograd's."""
    shaped = weight.dim() == 2 and len(weight) > 0 and weight.shape[1] == x.shape[-1] > 0
    shaped = shaped and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
    return shaped and plain(x, weight, bias)


def _gains(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether one of the products is not PyTorch's own."""
    return onednn_is_faster(bias is not None) or splits(x.reshape(-1, x.shape[-1]), weight.T)


def product_and_bias(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """layer(x), and the bias that is still to be added to it where what follows is a pass over memory anyway
    (row_loops.py): the product need not begin with a copy of the bias in every row then."""
    late = closed_loops(x) and not torch.is_autocast_enabled("cpu")
    return (layer.product(x), layer.bias) if late else (layer(x), None)
