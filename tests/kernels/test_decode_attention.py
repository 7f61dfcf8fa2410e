"""Attention over a cache against the formula, contiguous and paged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.attention import attention
from luthier.kernels.decode_attention import decode_attention, decode_attention_reference


def paged(k_BSKD: Tensor, page: int) -> tuple[Tensor, Tensor]:
    """The same keys in pages of a pool in a scrambled order, and the table."""
    B, S = k_BSKD.shape[:2]
    pages = k_BSKD.reshape(B * S // page, page, *k_BSKD.shape[2:])
    order = torch.randperm(len(pages), generator=torch.Generator().manual_seed(0)).to(k_BSKD.device)
    return pages[order], order.argsort().int().view(B, S // page)


def test_the_last_tokens_are_those_of_attention(random: Callable[..., Tensor]) -> None:
    q, k, v = random(2, 20, 4, 8), random(2, 20, 2, 8, seed=1), random(2, 20, 2, 8, seed=2)
    for T in (1, 3):
        found = decode_attention(q[:, -T:], k, v, torch.full((2,), 20, dtype=torch.int32))
        torch.testing.assert_close(found, attention(q, k, v)[:, -T:])


def test_pages_hold_the_same(random: Callable[..., Tensor]) -> None:
    q, k, v = random(3, 2, 4, 8), random(3, 24, 2, 8, seed=1), random(3, 24, 2, 8, seed=2)
    lengths = torch.tensor([24, 2, 17], dtype=torch.int32)
    (pages, table), (values, _) = paged(k, 8), paged(v, 8)
    expected = decode_attention(q, k, v, lengths)
    torch.testing.assert_close(decode_attention(q, pages, values, lengths, table_BP=table), expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k": torch.ones(2, 8, 3, 4)}, "divisor of 4"),
        ({"lengths_B": torch.tensor([8, 8])}, "lengths_B must be int32"),
        ({"first_B": torch.zeros(3, dtype=torch.int32)}, "first_B must be int32"),
        ({"table_BP": torch.zeros(2, dtype=torch.int32)}, "table_BP must be int32"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], named: str) -> None:
    k = torch.ones(2, 8, 2, 4)
    given = {"k": k, "v": k, "lengths_B": torch.tensor([8, 8], dtype=torch.int32), **change}
    with pytest.raises(ValueError, match=named):
        decode_attention(torch.ones(2, 1, 4, 4), **given)


# ---------------------------------------------------------------- the Triton kernels, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T", "H", "K", "D", "S"), [(1, 4, 1, 16, 520), (3, 2, 1, 80, 64), (1, 1, 1, 96, 8)])
def test_triton(
    T: int, H: int, K: int, D: int, S: int, dtype: torch.dtype, card: torch.device, random: Callable[..., Tensor]
) -> None:
    q, k, v = (random(2, n, h, D, seed=s, dtype=dtype).to(card) for s, (n, h) in enumerate([(T, H), (S, K), (S, K)]))
    lengths = torch.tensor([S, max(T, S // 3)], dtype=torch.int32, device=card)
    first = torch.tensor([S // 2, 0], dtype=torch.int32, device=card)
    (pages, table), (values, _) = paged(k, 8), paged(v, 8)
    for begin in (None, first):
        truth = decode_attention_reference(q.double(), k.double(), v.double(), lengths, begin)
        plain = decode_attention_reference(q, k, v, lengths, begin)
        budget = 2 * float((plain - truth).abs().max()) + 1e-5
        for found in (
            decode_attention(q, k, v, lengths, first_B=begin, impl="triton"),
            decode_attention(q, pages, values, lengths, first_B=begin, table_BP=table, impl="triton"),
        ):
            assert float((found - truth).abs().max()) <= budget


@pytest.mark.gpu
def test_triton_refuses(card: torch.device) -> None:
    q, k, n = torch.ones(1, 200, 1, 8, device=card), torch.ones(1, 200, 1, 8, device=card), torch.tensor([200]).int()
    with pytest.raises(ValueError, match="200 queries share a key head"):
        decode_attention(q, k, k, n.to(card), impl="triton")
    with pytest.raises(ValueError, match="no gradient"):
        decode_attention(q[:, :1].clone().requires_grad_(), k, k, n.to(card), impl="triton")
