"""Documents by themselves give what the mask gives: outputs, gradients, bits that stay the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luthier.kernels.attention import attention_reference, document_starts, visible
from luthier.kernels.document_attention import document_attention, document_groups, document_texts

ROWS = [
    [[5, 3], [4, 2, -2]],
    [[1, 1, 1, 1, 1, 1, 1, 1], [8]],
    [[2, 6], [7, -1]],
]


def documents(lengths: list[list[int]]) -> Tensor:
    """[B, T]: runs of these lengths; a negative one is padding."""
    runs = [[torch.full((abs(n),), i if n > 0 else -1) for i, n in enumerate(row)] for row in lengths]
    return torch.stack([torch.cat(row) for row in runs])


@pytest.mark.parametrize("lengths", ROWS)
@pytest.mark.parametrize(("H", "K"), [(4, 2), (3, 3)])
def test_equal_to_the_mask(
    lengths: list[list[int]], H: int, K: int, within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    document = documents(lengths)
    mask, real = visible(document_starts(document), 8), (document >= 0)[:, :, None, None]
    within_budget(
        lambda q, k, v: document_attention(q, k, v, document_texts(document)),
        lambda q, k, v: attention_reference(q, k, v, mask) * real,
        [random(2, 8, H, 16), random(2, 8, K, 16, seed=1), random(2, 8, K, 16, seed=2)],
    )


def test_every_token_is_in_one_group_and_padding_in_none() -> None:
    lengths = [[200, 20, 150, 140, 2], [512], [500, -12]]
    document = documents(lengths)
    groups = document_groups(document_texts(document))
    taken = torch.cat([group.take_nL[group.real_nL] for group in groups])
    assert torch.equal(taken.sort().values, (document.flatten() >= 0).nonzero()[:, 0])
    assert [sorted(group.real_nL.sum(1).tolist()) for group in groups] == [[500, 512], [150, 200], [140], [20], [2]]


def test_the_same_bits_twice(random: Callable[..., Tensor]) -> None:
    document = documents([[40, 30, 26], [50, -46]])

    def slopes() -> list[Tensor]:
        given = [random(2, 96, 4, 16, seed=s).requires_grad_() for s in range(3)]
        document_attention(given[0], given[1], given[2], document_texts(document)).square().sum().backward()
        return [x.grad for x in given if x.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(slopes(), slopes(), strict=True))


def test_shapes_that_do_not_fit() -> None:
    q, k = torch.zeros(1, 4, 4, 8), torch.zeros(1, 4, 3, 8)
    with pytest.raises(ValueError, match="K a divisor of 4"):
        document_attention(q, k, k, document_texts(torch.zeros(1, 4, dtype=torch.int64)))


def test_only_on_a_cpu() -> None:
    """On another device without Triton, PyTorch's attention with a mask does the work."""
    from luthier.models.config import preset
    from luthier.models.transformer import Transformer

    model, document_BT = Transformer(preset("demo", vocab_size=50)), torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    assert model._one_by_one(document_BT)
    assert not model._one_by_one(document_BT.to("meta"))
