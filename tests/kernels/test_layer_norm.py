"""LayerNorm against float64, PyTorch's own and a worked example."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.layer_norm import layer_norm, layer_norm_reference

ROWS = [(1, 1), (1, 63), (123, 63), (781, 1823), (0, 64), (3, 5, 123)]


@pytest.mark.parametrize("shape", ROWS)
def test_layer_norm(shape: tuple[int, ...], within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    weight, bias = 1 + random(shape[-1], seed=1) / 4, random(shape[-1], seed=2)
    within_budget(
        layer_norm,
        partial(layer_norm_reference, eps=1e-5),
        [random(*shape), weight, bias],
        floor=1e-4,  # PyTorch's own adds the rows of dg and db one after the other
    )


def test_layer_norm_of_three_and_five() -> None:
    """Mean 4, deviation 1: (3, 5) becomes (−1, 1), then 2·(−1, 1) + 10 = (8, 12)."""
    found = layer_norm(torch.tensor([3.0, 5.0]), torch.full((2,), 2.0), torch.full((2,), 10.0), 0.0)
    assert found.tolist() == pytest.approx([8.0, 12.0])


def test_derivatives(random: Callable[..., Tensor]) -> None:
    x, w, b = (random(*s, dtype=torch.float64).requires_grad_() for s in ((3, 4), (4,), (4,)))
    check: Any = torch.autograd.gradcheck
    assert check(layer_norm, (x, w, b))


@pytest.mark.parametrize(("weight", "bias", "named"), [(4, 3, "weight"), (3, 4, "bias")])
def test_wrong_sizes_are_named(weight: int, bias: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        layer_norm(torch.ones(2, 3), torch.ones(weight), torch.ones(bias))


# ---------------------------------------------------------------- the Triton kernels, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (123, 63), (7, 1823), (0, 64), (3, 5, 123)])
def test_triton(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    card: torch.device,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    weight, bias = (random(shape[-1], seed=s, dtype=dtype).to(card) for s in (1, 2))
    x, eps = (3 + random(*shape)).to(card, dtype), 1e-2  # the plain formula in fp16 overflows with less
    ours, plain = partial(layer_norm, eps=eps, impl="triton"), partial(layer_norm_reference, eps=eps)
    within_budget(ours, plain, [x, weight, bias])
    within_budget(ours, partial(plain, bias=None), [x, weight])
