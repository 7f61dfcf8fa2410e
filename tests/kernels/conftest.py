"""What the kernels' tests share: numbers, the error budget, and the device on which Triton runs.

The budget is that of kernels/budget.py.

Tests marked `gpu` run Triton kernels: on a card, or in the interpreter under TRITON_INTERPRET=1, where
test_interpreter.py starts them; otherwise they are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.budget import FLOOR, violations
from luthier.kernels.launch import INTERPRETED


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _within_budget(
    ours: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor], floor: float = FLOOR
) -> None:
    wrong = violations(ours, plain, inputs, floor)
    assert not wrong, "\n".join(wrong)


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
