"""Loss and gradients by blocks against float64, plain autograd and a worked example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


@pytest.mark.parametrize(("N", "C", "V"), [(1, 1, 1), (63, 16, 123), (781, 24, 1823), (0, 8, 10)])
@pytest.mark.parametrize("labelled", [1.0, 0.3, 0.0])
def test_linear_cross_entropy(
    N: int,
    C: int,
    V: int,
    labelled: float,
    monkeypatch: pytest.MonkeyPatch,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    monkeypatch.setattr("luthier.kernels.linear_cross_entropy.BLOCK_NUMBERS", 100 * V)  # several blocks, a short last
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[torch.rand(N, generator=generator) >= labelled] = -100
    inputs = [random(N, C), random(V, C, seed=1)]
    within_budget(
        lambda x, w: linear_cross_entropy(x, w, labels)[0],
        lambda x, w: linear_cross_entropy_reference(x, w, labels),
        inputs,
    )
    assert int(linear_cross_entropy(inputs[0], inputs[1], labels)[1]) == int((labels != -100).sum())


def test_linear_cross_entropy_of_a_fair_coin() -> None:
    """Equal logits of two classes: −log 1/2 = 0.6931 a label."""
    loss, count = linear_cross_entropy(torch.zeros(3, 4), torch.ones(2, 4), torch.tensor([0, 1, -100]))
    assert float(loss) == pytest.approx(2 * math.log(2)) and int(count) == 2


def test_linear_cross_entropy_takes_large_logits() -> None:
    x, w = torch.tensor([[1e4, 0.0]]), torch.eye(2)
    assert float(linear_cross_entropy(x, w, torch.tensor([1]))[0]) == pytest.approx(1e4)


def test_a_tied_weight_gets_both_gradients(random: Callable[..., Tensor]) -> None:
    """The embedding is the head too: its gradient is the sum of both uses, as plain autograd has it."""
    ids, labels = torch.tensor([1, 2, 3, 1]), torch.tensor([2, 3, 1, -100])

    def tied(head: Callable[..., Tensor]) -> Tensor:
        weight = random(5, 8, dtype=torch.float64).requires_grad_()
        (head(weight[ids].tanh(), weight, labels) * 0.5).backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(tied(lambda *a: linear_cross_entropy(*a)[0]), tied(linear_cross_entropy_reference))


def test_derivatives(random: Callable[..., Tensor]) -> None:
    x, w = (random(n, 4, seed=n, dtype=torch.float64).requires_grad_() for n in (3, 5))
    labels = torch.tensor([1, -100, 4])
    check: Any = torch.autograd.gradcheck
    assert check(lambda x, w: linear_cross_entropy(x, w, labels)[0] / 2, (x, w))


@pytest.mark.parametrize(("C", "label", "named"), [(3, 0, "weight"), (4, 5, "label 5"), (4, -1, "label -1")])
def test_wrong_arguments_are_named(C: int, label: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        linear_cross_entropy(torch.ones(2, C), torch.ones(5, 4), torch.tensor([0, label]))
