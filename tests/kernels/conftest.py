"""What the kernels' tests share: numbers, the error budget, and the device on which Triton runs.

The budget: |ours − truth| ≤ 2 × |the plain formula in the same dtype − truth| + 1e-5, for the output and for every
gradient; the truth is the plain formula in float64.

Tests marked `gpu` run Triton kernels: on a card, or in the interpreter under TRITON_INTERPRET=1, where
test_interpreter.py starts them; otherwise they are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.launch import INTERPRETED

FLOOR = 1e-5


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def results(f: Callable[..., Any], inputs: list[Tensor], dtype: torch.dtype, seed: int = 9) -> list[Tensor]:
    """The outputs, and the gradient of their product with fixed numbers (exact in every dtype) for every input."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    found = f(*inputs)
    outs = list(found) if isinstance(found, tuple) else [found]
    fixed = [_random(*out.shape, seed=seed + i, dtype=torch.bfloat16).to(out) for i, out in enumerate(outs)]
    torch.autograd.backward(outs, fixed)
    return [*(out.detach() for out in outs), *(x.grad for x in inputs if x.grad is not None)]


def _within_budget(
    ours: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor], floor: float = FLOOR
) -> None:
    dtype = inputs[0].dtype
    truth = results(plain, inputs, torch.float64)
    found, reference = results(ours, inputs, dtype), results(plain, inputs, dtype)
    assert len(found) == len(truth)
    for i, (t, o, r) in enumerate(zip(truth, found, reference, strict=True)):
        name = f"number {i} of {len(found) - len(inputs)} outputs and {len(inputs)} gradients"
        assert o.shape == t.shape and o.dtype == r.dtype
        budget = 2 * float((r - t).abs().max()) + floor if t.numel() else 0.0
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


@pytest.fixture
def card() -> torch.device:
    """Where Triton kernels run: the card, or the CPU in the interpreter. Skips where there is neither."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here; test_interpreter.py runs this without one")
    return torch.device("cuda")
