"""What the kernels' tests share: numbers, and the error budget.

The budget: |ours − truth| ≤ 2 × |the plain formula in the same dtype − truth| + 1e-5, for the output and for every
gradient; the truth is the plain formula in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

FLOOR = 1e-5


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def results(f: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype, seed: int = 9) -> list[Tensor]:
    """The output, and the gradient of its product with fixed numbers for every input."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out = f(*inputs)
    out.backward(_random(*out.shape, seed=seed, dtype=out.dtype))
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


def _within_budget(ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    dtype = inputs[0].dtype
    truth = results(plain, inputs, torch.float64)
    found, reference = results(ours, inputs, dtype), results(plain, inputs, dtype)
    for name, t, o, r in zip(["out", *(f"gradient {i}" for i in range(9))], truth, found, reference, strict=False):
        assert o.shape == t.shape and o.dtype == dtype
        budget = 2 * float((r - t).abs().max()) + FLOOR if t.numel() else 0.0
        worst = float((o - t).abs().max()) if t.numel() else 0.0
        assert worst <= budget, f"{name}: off by {worst}, allowed {budget}; {o.flatten()[:5]} {t.flatten()[:5]}"


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """A function of shape, seed and dtype that gives normal numbers."""
    return _random


@pytest.fixture
def within_budget() -> Callable[..., None]:
    """A function of ours, the plain formula and the inputs that asserts the budget."""
    return _within_budget
