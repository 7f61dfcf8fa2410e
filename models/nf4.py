"""Weights in four bits: NormalFloat, for a base that stays as it is while adapters learn (QLoRA).

A trained matrix's numbers look normally distributed. Sixteen levels serve such numbers best where each is used equally
often: at quantiles of the normal distribution, not at equal distances (Dettmers et al. 2023, arXiv:2305.14314, §3):

    levels    7 quantiles below zero, 0 itself, 8 above (appendix E), divided by the largest: −1 … 1

    −1    −.70 −.53 −.39 −.28 −.18 −.09  0  .08 .16 .25 .34 .44 .56 .72    1
    |       |    |    |   |   |   |     |   |   |   |   |   |    |   |     |        dense where weights are many

Weights go in blocks of 64. A block keeps its largest absolute value a, and each weight w the level nearest to w / a:

    w ≈ a · level[code]                  a code is 4 bits, two to a byte

**Double quantisation.** The a's would add 32/64 = 0.5 bits a weight. They are positive and alike, so their mean is
taken off and the rest is kept as 8-bit floats, 256 to a common step:   4 + 8/64 + 32/(64·256) = 4.13 bits a weight.

The product makes the weight again from its codes, forward and once more backward, and keeps it in neither: at no time
is more than one layer's matrix there in full.

Legend: N outputs, C inputs, n = N·C numbers, 64 to a block, 256 blocks to a group.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Nf4Linear", "dequantize", "nf4_levels", "quantize"]

BLOCK, GROUP = 64, 256
LARGEST = 448.0  # the largest number of float8_e4m3fn


def nf4_levels() -> Tensor:
    """The sixteen levels, ascending, float32: by the formula rather than from a table."""
    end = 1 - (1 / 32 + 1 / 30) / 2  # midway between the last quantiles of 15 and of 16 steps
    above = torch.special.ndtri(torch.linspace(end, 0.5, 9, dtype=torch.float64)[:-1])
    below = torch.special.ndtri(torch.linspace(end, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([above, torch.zeros(1, dtype=torch.float64), -below]).sort().values
    return (levels / levels.abs().max()).float()


@lru_cache(maxsize=4)
def _levels(device: torch.device) -> tuple[Tensor, Tensor]:
    """The levels and the places midway between them, where the nearest level changes."""
    with torch.inference_mode(False):
        levels = nf4_levels()
        return levels.to(device), ((levels[1:] + levels[:-1]) / 2).to(device)


# ---------------------------------------------------------------- there and back


def quantize(weight: Tensor) -> dict[str, Tensor]:
    """A weight's `codes` (uint8, two weights each), `scales` (8-bit floats, one a block) and `steps` (float32: the
    scales' mean, then one a group), as integers, so that a change of the model's dtype leaves them alone."""
    _, midway = _levels(weight.device)
    blocks = F.pad(weight.detach().float().flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    codes = torch.bucketize(blocks / largest.clamp(min=1e-38)[:, None], midway).to(torch.uint8).view(-1, 2)
    mean = largest.mean()
    groups = F.pad(largest - mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
    steps = groups.abs().amax(1) / LARGEST
    scales = (groups / steps.clamp(min=1e-38)[:, None]).to(torch.float8_e4m3fn).flatten()[: len(largest)]
    return {
        "codes": codes[:, 0] * 16 + codes[:, 1],
        "scales": scales.view(torch.uint8),
        "steps": torch.cat([mean[None], steps]).view(torch.int32),
    }


def dequantize(codes: Tensor, scales: Tensor, steps: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight [N, C] that the codes stand for."""
    levels, _ = _levels(codes.device)
    numbers = steps.view(torch.float32)
    groups = F.pad(scales.view(torch.float8_e4m3fn).float(), (0, -len(scales) % GROUP)).view(-1, GROUP)
    largest = ((groups * numbers[1:, None]).flatten()[: len(scales)] + numbers[0])[:, None]
    pairs = torch.stack([codes >> 4, codes & 15], dim=1)
    blocks = levels[pairs.view(-1, BLOCK).int()] * largest
    return blocks.flatten()[: shape[0] * shape[1]].view(shape).to(dtype)


class _Product(torch.autograd.Function):
    """x · Wᵀ for a frozen W that is made twice instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, steps: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(codes, scales, steps)
        ctx.shape = shape
        return F.linear(x, dequantize(codes, scales, steps, shape, x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        codes, scales, steps = ctx.saved_tensors
        return dy @ dequantize(codes, scales, steps, ctx.shape, dy.dtype), None, None, None, None


class Nf4Linear(nn.Module):
    """A frozen linear layer whose weight is kept in four bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.shape = (linear.out_features, linear.in_features)
        self.bias = linear.bias
        for name, value in quantize(linear.weight).items():
            self.register_buffer(name, value)

    @property
    def weight(self) -> Tensor:
        """The weight as it is used, [N, C]; made anew at each look."""
        dtype = torch.float32 if self.bias is None else self.bias.dtype
        return dequantize(self.codes, self.scales, self.steps, self.shape, dtype)  # pyright: ignore[reportArgumentType]

    def product(self, x: Tensor) -> Tensor:
        """x · Wᵀ, without the bias."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Any = _Product.apply(x, self.codes, self.scales, self.steps, self.shape)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias
