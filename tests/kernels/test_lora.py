"""The adapters' product against float64 and by what it must equal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from luthier.kernels.lora import lora_linear, lora_linear_reference


@pytest.mark.parametrize(("M", "C", "N", "r"), [(1, 1, 1, 1), (63, 40, 123, 4), (0, 8, 8, 2)])
def test_lora(
    M: int, C: int, N: int, r: int, within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    inputs = [random(M, C), random(N, C, seed=1), random(r, C, seed=2), random(N, r, seed=3)]
    within_budget(partial(lora_linear, scale=2.0), partial(lora_linear_reference, scale=2.0), inputs)


def test_it_is_the_layer_of_the_merged_weight(random: Callable[..., Tensor]) -> None:
    x, w, a, b = (random(*s, seed=i, dtype=torch.float64) for i, s in enumerate([(2, 3, 8), (5, 8), (2, 8), (5, 2)]))
    torch.testing.assert_close(lora_linear(x, w, a, b, scale=0.5), x @ (w + 0.5 * b @ a).T)


@pytest.mark.parametrize(
    ("x", "a", "b"), [((2, 7), (2, 8), (5, 2)), ((2, 8), (2, 7), (5, 2)), ((2, 8), (2, 8), (5, 3))]
)
def test_wrong_shapes_are_named(x: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="weight has shape"):
        lora_linear(torch.ones(x), torch.ones(5, 8), torch.ones(a), torch.ones(b), scale=1.0)


# ---------------------------------------------------------------- the Triton kernel, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("M", "C", "N", "r"), [(1, 1, 1, 1), (63, 140, 150, 4), (130, 16, 33, 40), (0, 8, 8, 2)])
def test_triton(
    M: int,
    C: int,
    N: int,
    r: int,
    dtype: torch.dtype,
    card: torch.device,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    w = (random(N, C, seed=1) / C**0.5).to(card, dtype)
    a, b = (random(r, C, seed=2) / C**0.5).to(card, dtype), random(N, r, seed=3, dtype=dtype).to(card)
    x = random(M, C, dtype=dtype).to(card)
    within_budget(
        lambda x, a, b: lora_linear(x, w.to(x.dtype), a, b, scale=2.0, impl="triton"),
        lambda x, a, b: lora_linear_reference(x, w.to(x.dtype), a, b, 2.0),
        [x, a, b],
    )


@pytest.mark.gpu
def test_triton_refuses(card: torch.device) -> None:
    x, w, a, b = (torch.ones(2, 2, device=card) for _ in range(4))
    with pytest.raises(ValueError, match="frozen weight"):
        lora_linear(x, w.requires_grad_(), a, b, scale=1.0, impl="triton")
