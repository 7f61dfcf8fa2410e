"""Cross entropy of logits against float64, PyTorch's own and a worked example."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.cross_entropy import (
    cross_entropy,
    cross_entropy_reference,
    log_probs,
    reduce,
    row_losses,
    row_slopes,
)

OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"label_smoothing": 0.3, "z_loss": 0.1},
]


def some_labels(N: int, V: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[torch.rand(N, generator=generator) >= 0.7] = -100
    return labels


def plain(labels: Tensor, reduction: Any, **options: Any) -> Callable[[Tensor], Tensor]:
    def formula(z: Tensor) -> Tensor:
        loss = reduce(cross_entropy_reference(z, labels, **options), labels, None, reduction)
        return loss.to(torch.promote_types(z.dtype, torch.float32))

    return formula


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_cross_entropy(
    options: dict[str, Any], reduction: Any, within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    labels = some_labels(63, 123)
    ours = partial(cross_entropy, labels=labels, reduction=reduction, **options)
    # The unit in the last place of a sum near 350 is 3e-5.
    within_budget(ours, plain(labels, reduction, **options), [3 * random(63, 123)], floor=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_formula_is_torchs_own(smoothing: float, random: Callable[..., Tensor]) -> None:
    z, labels = random(9, 7, dtype=torch.float64), some_labels(9, 7)
    expected = F.cross_entropy(z, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy_reference(z, labels, label_smoothing=smoothing), expected)


def test_a_fair_coin() -> None:
    """Equal logits of two classes: −log 1/2 = 0.6931 a label; ℓ = ln 2, so z-loss adds ζ·0.4805."""
    z, labels = torch.zeros(3, 2), torch.tensor([0, 1, -100])
    assert float(cross_entropy(z, labels)) == pytest.approx(2 * math.log(2))
    assert float(cross_entropy(z, labels, reduction="mean", z_loss=0.1)) == pytest.approx(
        math.log(2) + 0.1 * math.log(2) ** 2
    )
    assert log_probs(z, labels).tolist() == pytest.approx([-math.log(2), -math.log(2), 0])
    weighted = cross_entropy(z, labels, weights=torch.tensor([3.0, 1.0, 9.0]), reduction="mean")
    assert float(weighted) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"labels": torch.tensor([0, 3])}, "label 3"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be int64"),
        ({"labels": torch.tensor([0])}, "labels must be int64"),
        ({"weights": torch.ones(3)}, "weights must be"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"reduction": "max"}, "reduction is 'max'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        cross_entropy(torch.zeros(2, 3), **{"labels": torch.tensor([0, 1]), **options})


# ---------------------------------------------------------------- the Triton kernels, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_triton(
    options: dict[str, Any],
    dtype: torch.dtype,
    card: torch.device,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    for N, V in ((1, 1), (7, 63), (3, 5000)):
        labels = some_labels(N, V).to(card)
        z = (3 * random(N, V)).to(card, dtype)
        ours = partial(cross_entropy, labels=labels, reduction="none", impl="triton", **options)
        within_budget(ours, plain(labels, "none", **options), [z])


@pytest.mark.gpu
def test_triton_hides_no_label_outside_the_vocabulary(card: torch.device) -> None:
    z = torch.zeros(4, 3, device=card)
    labels = torch.tensor([2, 3, -100, -7], device=card)
    loss, lse = row_losses(z, labels, 0.0, 0.0)
    slopes = row_slopes(z, torch.empty_like(z), labels, lse, torch.ones(4, device=card), 0.0, 0.0)
    for found in (loss, slopes.sum(1)):
        assert found.isnan().tolist() == [False, True, False, True]
    assert float(loss[2]) == 0 and not slopes[2].any()


@pytest.mark.gpu
def test_triton_takes_large_logits_and_minus_infinity(card: torch.device) -> None:
    z = torch.tensor([[1e4, 0.0, -math.inf], [-math.inf, 0.0, -math.inf]], device=card)
    labels = torch.tensor([1, 1], device=card)
    assert cross_entropy(z, labels, reduction="none", impl="triton").tolist() == pytest.approx([1e4, 0.0])
