"""Rotary positions against float64 and by what must hold: lengths stay, products depend on the distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.rope import (
    frequencies,
    llama3_frequencies,
    rope,
    rope_,
    rope_reference,
    rope_table,
    yarn_frequencies,
    yarn_scale,
)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 63, 3, 16), (1, 123, 5, 80), (0, 4, 2, 8)])
def test_rope(shape: tuple[int, ...], within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    def with_tables(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: f(x, *rope_table(frequencies(shape[-1], 1e4), shape[1], x.dtype))

    within_budget(with_tables(rope), with_tables(rope_reference), [random(*shape)])
    strided = random(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)  # non-contiguous
    within_budget(with_tables(rope), with_tables(rope_reference), [strided])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_in_float32_leave_the_dtype(dtype: torch.dtype, random: Callable[..., Tensor]) -> None:
    """As under autocast, where weights, and so the tables, are in float32."""
    x, tables = random(2, 9, 3, 16, dtype=dtype), rope_table(frequencies(16, 1e4), 9)
    turned, exact = rope(x, *tables), rope_reference(x.double(), *tables)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


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


@pytest.mark.parametrize(("D", "base", "factor", "context"), [(64, 1e6, 4.0, 32768), (128, 1e4, 16.0, 4096)])
def test_yarn_is_that_of_transformers(D: int, base: float, factor: float, context: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context, "rope_theta": base}
    config = transformers.LlamaConfig(
        hidden_size=2 * D, num_attention_heads=2, max_position_embeddings=int(factor * context), rope_theta=base,
        rope_scaling=scaling,
    )  # fmt: skip
    omega, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    ours = yarn_frequencies(frequencies(D, base), factor=factor, context=context)
    torch.testing.assert_close(ours.float(), omega, rtol=1e-5, atol=0)
    assert yarn_scale(factor) == pytest.approx(scale)


def test_in_place_is_the_same(random: Callable[..., Tensor]) -> None:
    tables = rope_table(frequencies(8, 1e4), 5)
    x = random(2, 5, 3, 8).requires_grad_()
    kept = x * 1
    turned = rope_(kept, *tables)
    assert turned.data_ptr() == kept.data_ptr() and torch.equal(turned, rope(x, *tables))
    (gradient,) = torch.autograd.grad((turned**3).sum(), x)
    (expected,) = torch.autograd.grad((rope(x, *tables) ** 3).sum(), x)
    torch.testing.assert_close(gradient, expected)


# ---------------------------------------------------------------- the Triton kernel, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 16), (1, 3, 5, 80), (0, 4, 2, 8)])
def test_triton(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    card: torch.device,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    tables = [t.to(card) for t in rope_table(frequencies(shape[-1], 1e4), shape[1], dtype)]

    def with_tables(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: f(x, *(t.to(x.dtype) for t in tables))

    x = random(*shape, dtype=dtype).to(card)
    within_budget(with_tables(lambda *a: rope(*a, impl="triton")), with_tables(rope_reference), [x])
    within_budget(with_tables(lambda x, *a: rope_(x * 1, *a, impl="triton")), with_tables(rope_reference), [x])
    strided = random(shape[0], shape[2], shape[1], shape[3], dtype=dtype).to(card).transpose(1, 2)
    within_budget(with_tables(lambda *a: rope(*a, impl="triton")), with_tables(rope_reference), [strided])


@pytest.mark.gpu
def test_triton_with_a_position_for_each_row(card: torch.device, random: Callable[..., Tensor]) -> None:
    cos, sin = (t.to(card) for t in rope_table(frequencies(8, 1e4), 50))
    places = torch.tensor([[0, 1, 2], [40, 41, 0]], device=card)
    x = random(2, 3, 2, 8).to(card)
    ours = rope(x, cos[places], sin[places], impl="triton")
    torch.testing.assert_close(ours, rope_reference(x, cos[places], sin[places]))


@pytest.mark.gpu
def test_triton_refuses(card: torch.device) -> None:
    x, table = torch.ones(1, 2, 1, 4, device=card), torch.ones(2, 2, device=card)
    with pytest.raises(ValueError, match="cos and sin must be contiguous"):
        rope(x, table.t(), table.t(), impl="triton")
    with pytest.raises(ValueError, match="stride 1"):
        rope_(torch.ones(1, 2, 4, 4, device=card).transpose(2, 3), table, table, impl="triton")
    with pytest.raises(ValueError, match=r"sin is torch.float64"):
        rope(x, table, table.double(), impl="triton")
