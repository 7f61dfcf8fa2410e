"""Loss and gradients by blocks against float64, plain autograd and a worked example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.cross_entropy import cross_entropy_reference, reduce
from luthier.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_log_probs,
)


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
    monkeypatch.setattr("luthier.kernels.linear_cross_entropy.BLOCK_ROWS", 1)
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


def test_a_label_whose_probability_is_nothing() -> None:
    """Logits 0 and 200, the label is the first: the loss is 200 (e⁻²⁰⁰ is no float32), the slopes −1 and 1."""
    x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [200.0, 0.0]], requires_grad=True)
    loss, _ = linear_cross_entropy(x, w, torch.tensor([0]))
    loss.backward()
    assert float(loss) == pytest.approx(200.0)
    assert w.grad is not None and w.grad.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_a_tied_weight_gets_both_gradients(random: Callable[..., Tensor]) -> None:
    """The embedding is the head too: its gradient is the sum of both uses, as plain autograd has it."""
    ids, labels = torch.tensor([1, 2, 3, 1]), torch.tensor([2, 3, 1, -100])

    def tied(head: Callable[..., Tensor]) -> Tensor:
        weight = random(5, 8, dtype=torch.float64).requires_grad_()
        (head(weight[ids].tanh(), weight, labels) * 0.5).backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(tied(lambda *a: linear_cross_entropy(*a)[0]), tied(linear_cross_entropy_reference))


def test_a_second_pass_back_gives_the_same(random: Callable[..., Tensor]) -> None:
    x, w = random(9, 4).requires_grad_(), random(7, 4, seed=1).requires_grad_()
    loss = linear_cross_entropy(x, w, torch.arange(9) % 7)[0] * 3
    once = torch.autograd.grad(loss, (x, w), retain_graph=True)
    kept = [g.clone() for g in once]
    again = torch.autograd.grad(loss, (x, w))
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a, b)


def test_derivatives(random: Callable[..., Tensor]) -> None:
    x, w = (random(n, 4, seed=n, dtype=torch.float64).requires_grad_() for n in (3, 5))
    labels = torch.tensor([1, -100, 4])
    check: Any = torch.autograd.gradcheck
    assert check(lambda x, w: linear_cross_entropy(x, w, labels)[0] / 2, (x, w))


@pytest.mark.parametrize(("C", "label", "named"), [(3, 0, "weight"), (4, 5, "label 5"), (4, -1, "label -1")])
def test_wrong_arguments_are_named(C: int, label: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        linear_cross_entropy(torch.ones(2, C), torch.ones(5, 4), torch.tensor([0, label]))


def some_labels(N: int, V: int, labelled: float = 0.7) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[torch.rand(N, generator=generator) >= labelled] = -100
    return labels


EVERYTHING: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"label_smoothing": 0.2, "z_loss": 0.01, "reduction": "mean", "weighted": True},
    {"reduction": "none"},
    {"reduction": "none", "label_smoothing": 0.1, "z_loss": 0.02, "weighted": True},
]


def both(options: dict[str, Any], labels: Tensor, **how: Any) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Ours and the plain formula with the same options."""
    kept = dict(options)
    weights = torch.rand(len(labels), generator=torch.Generator().manual_seed(1)) if kept.pop("weighted", 0) else None
    weights = None if weights is None else weights.to(labels.device)
    reduction = kept.pop("reduction", "sum")

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, labels, weights=weights, reduction=reduction, **kept, **how)[0]

    def plain(x: Tensor, w: Tensor) -> Tensor:
        loss = cross_entropy_reference(x @ w.T, labels, **kept)
        return reduce(loss, labels, weights, reduction).to(torch.promote_types(x.dtype, torch.float32))

    return ours, plain


@pytest.mark.parametrize("options", EVERYTHING)
def test_every_option(
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    monkeypatch.setattr("luthier.kernels.linear_cross_entropy.BLOCK_NUMBERS", 100 * 33)
    monkeypatch.setattr("luthier.kernels.linear_cross_entropy.BLOCK_ROWS", 1)
    within_budget(*both(options, some_labels(130, 33)), [random(130, 8), random(33, 8, seed=1)])


def test_log_probs(random: Callable[..., Tensor]) -> None:
    x, w, labels = random(2, 5, 8), random(11, 8, seed=1), some_labels(10, 11).view(2, 5)
    expected = (x @ w.T).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    torch.testing.assert_close(linear_log_probs(x, w, labels), expected)


# ---------------------------------------------------------------- the Triton kernels, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("options", EVERYTHING)
def test_triton_every_option(
    options: dict[str, Any], card: torch.device, within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    labels = some_labels(9, 33).to(card)
    inputs = [random(9, 8).to(card), random(33, 8, seed=1).to(card)]
    within_budget(*both(options, labels, impl="triton"), inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("N", "C", "V"), [(1, 1, 1), (9, 16, 4100), (130, 8, 9), (0, 8, 10)])
def test_triton(
    N: int,
    C: int,
    V: int,
    dtype: torch.dtype,
    card: torch.device,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    inputs = [random(N, C, dtype=dtype).to(card), random(V, C, seed=1, dtype=dtype).to(card)]
    labels = some_labels(N, V).to(card)
    within_budget(*both({"reduction": "none"}, labels, impl="triton"), inputs)
    # A sum over few rows, each off by the rounding of its logits, may be right by luck.
    within_budget(*both({}, labels, impl="triton"), inputs, floor=1e-5 if dtype.itemsize == 4 else 0.1)


def test_several_blocks_under_autocast() -> None:
    """Autocast casts some operations and not those in place: no further from float64 than PyTorch's own under it."""
    x, weight, labels = torch.randn(600, 32), torch.randn(9000, 32, requires_grad=True), torch.arange(600)

    def slope(loss: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float64):
            return torch.autograd.grad(loss(x.to(dtype), weight.to(dtype), labels), weight)[0]

    def theirs(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ weight.T, labels, reduction="sum")

    exact = slope(theirs, torch.float64)
    ours = slope(lambda *given: linear_cross_entropy(*given)[0], torch.float32) - exact
    peer = slope(theirs, torch.float32) - exact
    assert 0 < float(ours.norm()) < 1.1 * float(peer.norm())
    assert float(ours.abs().max()) < 1.5 * float(peer.abs().max())
