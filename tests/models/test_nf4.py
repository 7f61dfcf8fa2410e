"""NF4: the paper's sixteen levels, each weight the nearest of them, and a product that keeps no full weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from luthier.models.nf4 import BLOCK, Nf4Linear, dequantize, nf4_levels, quantize

# Dettmers et al. 2023, appendix E.
PAPER = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
PAPER += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
PAPER += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def back(weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    q = quantize(weight)
    return dequantize(q["codes"], q["scales"], q["steps"], (weight.shape[0], weight.shape[1]), dtype)


def test_the_levels_are_the_papers() -> None:
    assert (nf4_levels() - torch.tensor(PAPER)).abs().max() < 2e-7


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 64), (96, 200), (512, 300)])
def test_every_weight_is_the_nearest_level_of_its_block(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02
    found = back(weight)
    flat, back_ = weight.flatten(), found.flatten()
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        nearest = (block[:, None] / block.abs().max() - torch.tensor(PAPER)).abs().argmin(1)
        exact = torch.tensor(PAPER)[nearest] * block.abs().max()
        assert (back_[start : start + BLOCK] - exact).abs().max() <= 0.065 * block.abs().max()  # 8-bit scales
    assert (found - weight).norm() / weight.norm() < 0.11  # 16 levels: about 9 % of a normal weight's spread


def test_zeros_and_constants() -> None:
    assert (back(torch.zeros(5, 40)) == 0).all()
    same = torch.full((4, 64), 0.3)
    assert torch.allclose(back(same), same, rtol=1e-6)
    assert torch.isfinite(back(torch.tensor([[1e-30, 0.0, -1e30]]))).all()


def test_bits_a_weight() -> None:
    stored = quantize(torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)))
    assert abs(sum(t.nbytes for t in stored.values()) * 8 / 2**20 - (4 + 8 / 64 + 32 / (64 * 256))) < 1e-4


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_the_product_with_its_weight(bias: bool) -> None:
    random = torch.Generator().manual_seed(3)
    linear = torch.nn.Linear(48, 40, bias=bias)
    x = torch.randn(2, 5, 48, generator=random, requires_grad=True)
    layer = Nf4Linear(linear)
    y = layer(x)
    y.square().sum().backward()
    mine, x.grad = x.grad, None
    plain = F.linear(x, layer.weight, linear.bias)
    plain.square().sum().backward()
    assert mine is not None and x.grad is not None
    assert torch.equal(y, plain) and (mine - x.grad).abs().max() <= 1e-6 * x.grad.abs().max()


def test_a_change_of_dtype_leaves_codes_and_scales_alone() -> None:
    layer = Nf4Linear(torch.nn.Linear(64, 64))
    before = layer.weight
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight, before.to(torch.bfloat16))
    assert layer(torch.ones(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_equal_to_bitsandbytes() -> None:
    """The codes of another implementation (without the second quantisation, whose 8-bit format is its own)."""
    other = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 192, generator=torch.Generator().manual_seed(5))
    codes, state = other.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    assert (quantize(weight)["codes"] == codes.flatten()).float().mean() > 0.9999
    theirs = other.dequantize_4bit(codes, state)
    assert (back(weight) - theirs).norm() / theirs.norm() < 0.03
