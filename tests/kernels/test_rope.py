"""Rotary positions against float64 and by what must hold: lengths stay, products depend on the distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.rope import frequencies, llama3_frequencies, rope, rope_reference, rope_table


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 63, 3, 16), (1, 123, 5, 80), (0, 4, 2, 8)])
def test_rope(shape: tuple[int, ...], within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    def with_tables(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: f(x, *rope_table(frequencies(shape[-1], 1e4), shape[1], x.dtype))

    within_budget(with_tables(rope), with_tables(rope_reference), [random(*shape)])
    strided = random(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)  # non-contiguous
    within_budget(with_tables(rope), with_tables(rope_reference), [strided])


def test_rope_depends_on_the_distance_only(random: Callable[..., Tensor]) -> None:
    """q at place m and k at place n give the same product for equal m − n, and rotation keeps lengths."""
    cos, sin = rope_table(frequencies(32, 1e4), 100, torch.float64)
    q, k = (random(1, 1, 1, 32, seed=s, dtype=torch.float64).expand(1, 100, 1, 32) for s in (1, 2))
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    products = q[0, :, 0] @ k[0, :, 0].T
    for distance in (0, 1, 50):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    torch.testing.assert_close(q.norm(dim=-1), q[:, :1].norm(dim=-1).expand(1, 100, 1))


def test_llama3_keeps_fast_pairs_and_slows_slow_ones() -> None:
    omega = frequencies(64, 5e5)
    slowed = llama3_frequencies(omega, factor=8.0, low=1.0, high=4.0, context=8192)
    wavelength = 2 * math.pi / omega
    assert torch.equal(slowed[wavelength < 8192 / 4], omega[wavelength < 8192 / 4])
    torch.testing.assert_close(slowed[wavelength > 8192], omega[wavelength > 8192] / 8)
    assert bool((slowed.diff() < 0).all())


def test_derivatives(random: Callable[..., Tensor]) -> None:
    tables = rope_table(frequencies(4, 10.0), 3, torch.float64)
    check: Any = torch.autograd.gradcheck
    assert check(lambda x: rope(x, *tables), (random(2, 3, 2, 4, dtype=torch.float64).requires_grad_(),))


@pytest.mark.parametrize(("D", "T", "half", "named"), [(3, 2, 1, "head_dim be even"), (4, 3, 2, "cos")])
def test_tables_that_do_not_fit_are_named(D: int, T: int, half: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        rope(torch.ones(1, 2, 1, D), torch.ones(T, half), torch.ones(T, half))
