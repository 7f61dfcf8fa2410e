"""Bands of queries give what all scores under a mask give: outputs, gradients, and the way that is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luthier.kernels import attention as module
from luthier.kernels import causal_attention as bands
from luthier.kernels.attention import attention, attention_reference
from luthier.kernels.causal_attention import causal_attention, fits


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the processors where bands are the faster way."""
    monkeypatch.setattr(bands, "amd_avx512", lambda: True)


@pytest.mark.parametrize(
    ("B", "T", "H", "K", "D"), [(1, 1, 1, 1, 2), (3, 63, 4, 2, 16), (1, 123, 6, 1, 80), (2, 130, 3, 3, 8)]
)
def test_equal_to_the_formula(
    B: int, T: int, H: int, K: int, D: int, within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    within_budget(
        lambda q, k, v: causal_attention(q, k, v, scale=0.3),
        lambda q, k, v: attention_reference(q, k, v, scale=0.3),
        [random(B, T, H, D), random(B, T, K, D, seed=1), random(B, T, K, D, seed=2)],
    )


def test_in_shares_of_the_batch_and_from_any_layout(
    monkeypatch: pytest.MonkeyPatch, within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(bands, "SCORES", 2 * 4 * 32 * 70)  # two rows of the batch at a time
    within_budget(
        lambda q, k, v: causal_attention(
            q.mT.contiguous().mT, k.transpose(1, 2).contiguous().transpose(1, 2), v, scale=0.3
        ),
        lambda q, k, v: attention_reference(q, k, v, scale=0.3),
        [random(5, 70, 4, 16), random(5, 70, 2, 16, seed=1), random(5, 70, 2, 16, seed=2)],
    )


def test_the_bands_of_a_long_text(within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    """From 1024 tokens on a band is wider; what is made above the diagonal stays hidden."""
    within_budget(
        lambda q, k, v: causal_attention(q, k, v, scale=1.0)[:, ::97],
        lambda q, k, v: attention_reference(q, k, v, scale=1.0)[:, ::97],
        [random(1, 1100, 1, 4), random(1, 1100, 1, 4, seed=1), random(1, 1100, 1, 4, seed=2)],
    )


def test_what_comes_later_spoils_nothing(random: Callable[..., Tensor]) -> None:
    q, k, v = (random(1, 150, 2, 8, seed=s).float() for s in range(3))
    expected = causal_attention(q, k, v, scale=0.3)
    k[:, 100] = torch.nan
    assert torch.equal(causal_attention(q, k, v, scale=0.3)[:, :100], expected[:, :100])


def test_the_same_bits_twice(random: Callable[..., Tensor]) -> None:
    def slopes() -> list[Tensor | None]:
        q, k, v = (random(2, 150, 4, 16, seed=s).requires_grad_() for s in range(3))
        causal_attention(q, k, v, scale=0.3).square().sum().backward()
        return [x.grad for x in (q, k, v)]

    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(slopes(), slopes(), strict=True))


@pytest.mark.usefixtures("amd")
def test_taken_for_whole_texts_alone(monkeypatch: pytest.MonkeyPatch, random: Callable[..., Tensor]) -> None:
    """Not for short texts, other dtypes, last queries, a mask or a window: these are PyTorch's fused attention."""
    calls: list[int] = []
    monkeypatch.setattr(
        module, "causal_attention", lambda q, k, v, scale: (calls.append(1), causal_attention(q, k, v, scale=scale))[1]
    )
    q, k = random(1, 130, 2, 8), random(1, 130, 2, 8, seed=1)
    attention(q, k, k)
    assert calls == [1]
    attention(q[:, :100], k[:, :100], k[:, :100])
    attention(q.double(), k.double(), k.double())
    attention(q[:, -5:], k, k)
    attention(q, k, k, window=7)
    attention(q, k, k, causal=False)
    with torch.autocast("cpu", torch.bfloat16):
        attention(q, k, k)
        assert not fits(q, k)
    assert calls == [1] and not fits(q.to("meta"), k.to("meta"))
    monkeypatch.setattr(bands, "amd_avx512", lambda: False)
    assert not fits(q, k)


@pytest.mark.usefixtures("amd")
def test_compiled(random: Callable[..., Tensor]) -> None:
    """In one graph, with the same bits."""
    given = [random(2, 130, 4, 8).requires_grad_(), *(random(2, 130, 2, 8, seed=s).requires_grad_() for s in (1, 2))]

    def slopes(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(*given).square().sum(), given)

    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(slopes(compiled), slopes(attention), strict=True))


@pytest.mark.usefixtures("amd")
def test_one_tensor_as_queries_keys_and_values(random: Callable[..., Tensor]) -> None:
    """Compiled in one graph, too: its gradient is the sum of the three."""
    x = random(2, 130, 2, 8).requires_grad_()
    expected = torch.autograd.grad(attention(x, x, x).square().sum(), x)[0]
    compiled = torch.compile(lambda y: attention(y, y, y), backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x).square().sum(), x)[0]
    torch.testing.assert_close(found, expected)  # the three are added in another order
    assert torch.equal(torch.compile(attention, backend="aot_eager", fullgraph=True)(x, x, x), attention(x, x, x))
