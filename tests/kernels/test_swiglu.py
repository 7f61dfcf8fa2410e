"""SwiGLU against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.swiglu import swiglu, swiglu_reference

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
