"""Attention against float64 and a worked example, with packed documents and with a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.attention import attention, attention_reference, document_starts, visible


@pytest.mark.parametrize(("H", "K"), [(1, 1), (6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize(("B", "T", "D"), [(1, 1, 2), (2, 63, 16), (1, 123, 80), (3, 17, 32)])
@pytest.mark.parametrize("packed", [False, True])
def test_attention(
    B: int,
    T: int,
    D: int,
    H: int,
    K: int,
    packed: bool,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    inputs = [random(B, T, H, D), random(B, T, K, D, seed=1), random(B, T, K, D, seed=2)]
    mask = None
    if packed:
        lengths = torch.randint(0, 4, (B, T), generator=torch.Generator().manual_seed(3)) == 0
        mask = visible(document_starts(lengths.cumsum(1)), T)
    within_budget(lambda q, k, v: attention(q, k, v, mask), lambda q, k, v: attention_reference(q, k, v, mask), inputs)


@pytest.mark.parametrize("T", [1, 5])
def test_attention_of_the_last_queries_is_that_of_all(T: int, random: Callable[..., Tensor]) -> None:
    q, k, v = random(2, 20, 4, 8), random(2, 20, 2, 8, seed=1), random(2, 20, 2, 8, seed=2)
    torch.testing.assert_close(attention(q[:, -T:], k, v), attention_reference(q, k, v)[:, -T:])


def test_one_row_of_attention() -> None:
    """q = (ln 3)·√1 along one axis, keys 1 and 0: scores ln 3 and 0, weights 3/4 and 1/4, out = 3/4·8 + 1/4·4 = 7."""
    q = torch.tensor([[[[0.0]], [[math.log(3)]]]])
    k, v = torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[8.0]], [[4.0]]]])
    assert attention(q, k, v).flatten().tolist() == pytest.approx([8.0, 7.0])


def test_the_masks_of_the_lecture() -> None:
    starts = document_starts(torch.tensor([[5, 5, -1, -1], [1, 2, 2, 1]]))
    assert starts.tolist() == [[0, 0, 2, 2], [0, 1, 1, 3]]
    assert visible(starts, 4)[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_derivatives(random: Callable[..., Tensor]) -> None:
    q, k, v = (random(1, 3, n, 4, seed=n, dtype=torch.float64).requires_grad_() for n in (2, 1, 1))
    check: Any = torch.autograd.gradcheck
    assert check(attention, (q, k, v))


@pytest.mark.parametrize(("K", "S", "named"), [(2, 2, "divisor of 3"), (3, 1, "S ≥ 2")])
def test_shapes_that_do_not_fit_are_named(K: int, S: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        attention(torch.ones(1, 2, 3, 4), torch.ones(1, S, K, 4), torch.ones(1, S, K, 4))
