"""RMSNorm against float64, PyTorch's own and a worked example."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.launch import INTERPRETED
from luthier.kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference

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


# ---------------------------------------------------------------- the Triton kernels, on a card or interpreted

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (123, 63), (7, 1823), (0, 64), (3, 5, 123)])
def test_triton(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    card: torch.device,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    weight = (1 + random(shape[-1], seed=1) / 4).to(card, dtype)
    x, residual = (random(*shape, seed=s, dtype=dtype).to(card) for s in (0, 2))
    eps: Any = {"eps": 1e-6}
    on: Any = {"eps": 1e-6, "impl": "triton"}
    within_budget(partial(rms_norm, **on), partial(rms_norm_reference, **eps), [x, weight])
    within_budget(partial(add_rms_norm, **on), partial(add_rms_norm_reference, **eps), [x, residual, weight])


@pytest.mark.gpu
def test_triton_takes_strided_rows(card: torch.device, random: Callable[..., Tensor]) -> None:
    x, w = random(16, 64).to(card), random(64, seed=1).to(card)
    torch.testing.assert_close(rms_norm(x.t().contiguous().t(), w, impl="triton"), rms_norm(x, w, impl="torch"))
    torch.testing.assert_close(rms_norm(x[::2], w, impl="triton"), rms_norm(x[::2], w, impl="torch"))


@pytest.mark.gpu
def test_triton_refuses(card: torch.device) -> None:
    with pytest.raises(ValueError, match=r"weight is torch.float64"):
        rms_norm(torch.ones(2, 3, device=card), torch.ones(3, device=card, dtype=torch.float64), impl="triton")
    with pytest.raises(ValueError, match="more than a program can hold"):
        rms_norm(torch.ones(1, 65537, device=card), torch.ones(65537, device=card), impl="triton")


def test_adding_first(within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    within_budget(
        partial(add_rms_norm, eps=1e-6),
        partial(add_rms_norm_reference, eps=1e-6),
        [random(5, 63), random(5, 63, seed=1), random(63, seed=2)],
    )


def test_what_cannot_run_here_says_what_auto_would_do() -> None:
    if INTERPRETED:
        pytest.skip("the interpreter takes CPU tensors")
    with pytest.raises(ValueError, match="impl='auto' would take PyTorch"):
        rms_norm(torch.ones(2, 3), torch.ones(3), impl="triton")
    with pytest.raises(ValueError, match="impl is 'cuda'"):
        rms_norm(torch.ones(2, 3), torch.ones(3), impl="cuda")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="residual"):
        add_rms_norm(torch.ones(2, 3), torch.ones(3), torch.ones(3))
