"""SwiGLU and GeGLU against float64 and PyTorch's own gelu."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.swiglu import geglu, geglu_reference, swiglu, swiglu_reference

ROWS = [(1, 1), (1, 63), (123, 63), (781, 1823), (0, 64), (3, 5, 123)]


@pytest.mark.parametrize("shape", ROWS)
def test_swiglu(shape: tuple[int, ...], within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    within_budget(swiglu, swiglu_reference, [random(*shape), random(*shape, seed=1)])


def test_derivatives(random: Callable[..., Tensor]) -> None:
    a, b = (random(3, 4, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1))
    check: Any = torch.autograd.gradcheck
    assert check(swiglu, (a, b))


def test_halves_of_different_shape_are_named() -> None:
    with pytest.raises(ValueError, match="gate"):
        swiglu(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_geglu(approximate: Any, within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    inputs = [3 * random(7, 63), random(7, 63, seed=1)]
    plain = partial(geglu_reference, approximate=approximate)
    within_budget(partial(geglu, approximate=approximate), plain, inputs)
    with pytest.raises(ValueError, match="approximate is 'erf'"):
        geglu(*inputs, approximate="erf")  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- the Triton kernels, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (33, 123), (3, 1, 2100), (0, 64)])
def test_triton(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    card: torch.device,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    inputs = [(3 * random(*shape)).to(card, dtype), random(*shape, seed=1, dtype=dtype).to(card)]
    within_budget(partial(swiglu, impl="triton"), swiglu_reference, inputs)
    within_budget(partial(geglu, impl="triton"), geglu_reference, inputs)
    exact: Any = {"approximate": "none"}
    within_budget(partial(geglu, impl="triton", **exact), partial(geglu_reference, **exact), inputs)


@pytest.mark.gpu
def test_triton_takes_halves_of_one_product(card: torch.device, random: Callable[..., Tensor]) -> None:
    both = random(5, 2, 64).to(card).requires_grad_()
    found = swiglu(*both.chunk(2, -1), impl="triton")
    torch.testing.assert_close(found, swiglu_reference(*both.chunk(2, -1)))
    (ours,) = torch.autograd.grad(found.sum(), both)
    (plain,) = torch.autograd.grad(swiglu_reference(*both.chunk(2, -1)).sum(), both)
    torch.testing.assert_close(ours, plain)
    with pytest.raises(ValueError, match=r"up is torch.float16"):
        swiglu(both, both.half(), impl="triton")
