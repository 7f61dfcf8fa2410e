"""GELU with the bias before it: values, gradients, PyTorch's own, and where one pass does it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import processor
from luthier.kernels.gelu import gelu, gelu_reference

BOTH: tuple[Literal["tanh", "none"], ...] = ("tanh", "none")


@pytest.fixture(params=[0, 1 << 30], ids=["one pass", "PyTorch"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With loops for few numbers, too, and without them."""
    if not request.param:
        pytest.importorskip("luthier.kernels.row_loops", reason="Numba is not installed")
    monkeypatch.setattr(processor, "FEWEST", request.param)


@pytest.mark.parametrize("approximate", BOTH)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (123, 63), (4, 33, 781), (200, 16)])
def test_equal_to_the_formula(
    shape: tuple[int, ...],
    approximate: Literal["tanh", "none"],
    few: None,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    ours, plain = partial(gelu, approximate=approximate), partial(gelu_reference, approximate=approximate)
    x, bias = 3 * random(*shape), random(shape[-1], seed=1)
    within_budget(ours, plain, [x, bias])
    within_budget(ours, plain, [x])


@pytest.mark.parametrize("approximate", BOTH)
def test_from_end_to_end(approximate: Literal["tanh", "none"], monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass, every size of number beside float64's, and what is none; PyTorch's float32 fails at the ends."""
    pytest.importorskip("luthier.kernels.row_loops", reason="Numba is not installed")
    monkeypatch.setattr(processor, "FEWEST", 0)
    x = torch.cat([torch.linspace(-40, 40, 20_001), torch.tensor([0.0, -0.0, 1e-30, -1e30, 1e30, 3e38, torch.inf])])
    x.requires_grad_()
    y, right = gelu(x, approximate=approximate), F.gelu(x.double(), approximate=approximate)
    assert torch.allclose(y.double(), right, rtol=3e-7, atol=6e-7)
    (slope,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad(right.sum(), x)
    assert torch.allclose(slope[:-1], wanted[:-1], rtol=0, atol=4e-6) and slope[-1] == 1
    x = torch.tensor([[1.0, torch.nan, 2.0]], requires_grad=True)
    y = gelu(x, torch.zeros(3), approximate=approximate)
    y.sum().backward()
    assert x.grad is not None and x.grad.isnan().tolist() == y.isnan().tolist() == [[False, True, False]]


def test_the_bias_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sums of one sign keep their digits."""
    monkeypatch.setattr(processor, "FEWEST", 0)
    x, bias = torch.full((50_000, 8), 3.0), torch.zeros(8, requires_grad=True)
    gelu(x, bias, approximate="none").sum().backward()
    b = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    F.gelu(x.double() + b).sum().backward()
    torch.testing.assert_close(bias.grad, b.grad, rtol=5e-6, atol=0, check_dtype=False)


def test_in_half_precision(random: Callable[..., Tensor]) -> None:
    x, bias = random(64, 8).bfloat16(), random(8, seed=1).bfloat16()
    right = F.gelu(x.double() + bias.double(), approximate="tanh")
    assert gelu(x, bias).dtype == torch.bfloat16
    assert float((gelu(x, bias).double() - right).abs().max()) < 2**-6


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"bias": torch.zeros(2)}, r"bias has shape \(2,\), x needs \(3,\)"),
        ({"approximate": "erf"}, "approximate is 'erf'"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, "bias is torch.int64"),
    ],
)
def test_bad_input(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        gelu(torch.zeros(2, 3), **arguments)
