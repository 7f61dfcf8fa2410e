"""RMSNorm against float64, PyTorch's own and a worked example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.rms_norm import rms_norm, rms_norm_reference

ROWS = [(1, 1), (1, 63), (123, 63), (781, 1823), (0, 64), (3, 5, 123)]


@pytest.mark.parametrize("shape", ROWS)
def test_rms_norm(shape: tuple[int, ...], within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    weight = 1 + random(shape[-1], seed=1) / 4
    within_budget(
        lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: rms_norm_reference(x, w, 1e-6), [random(*shape), weight]
    )


def test_rms_norm_of_three_and_four() -> None:
    """mean(3², 4²) = 12.5, so (3, 4) / √12.5 = (0.848528, 1.131371); its root mean square is 1."""
    found = rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), 0.0)
    assert found.tolist() == pytest.approx([3 / math.sqrt(12.5), 4 / math.sqrt(12.5)], rel=1e-6)


def test_rms_norm_is_torchs_own(random: Callable[..., Tensor]) -> None:
    x, w = random(7, 33, dtype=torch.float64), random(33, seed=1, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, w, 1e-5), torch.nn.functional.rms_norm(x, (33,), w, 1e-5))
    half = x.bfloat16()
    assert rms_norm(half, w.bfloat16()).dtype == torch.bfloat16


def test_derivatives(random: Callable[..., Tensor]) -> None:
    x, w = (random(*s, dtype=torch.float64).requires_grad_() for s in ((3, 4), (4,)))
    check: Any = torch.autograd.gradcheck
    assert check(lambda x, w: rms_norm(x, w, 1e-5), (x, w))


def test_a_weight_of_another_size_is_named() -> None:
    with pytest.raises(ValueError, match="weight"):
        rms_norm(torch.ones(2, 3), torch.ones(4))
