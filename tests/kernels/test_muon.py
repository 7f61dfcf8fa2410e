"""Newton–Schulz against singular values and the plain formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luthier.kernels.muon import newton_schulz, newton_schulz_reference, symmetric_product


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 16, 40), (3, 63, 33)])
def test_singular_values_come_near_one(shape: tuple[int, ...], random: Callable[..., Tensor]) -> None:
    turned = newton_schulz(random(*shape))
    assert turned.shape == shape
    values = torch.linalg.svdvals(turned)
    assert float(values.min()) > 0.3 and float(values.max()) < 1.25
    torch.testing.assert_close(turned, newton_schulz_reference(random(*shape)), rtol=1e-3, atol=1e-4)


def test_wrong_shapes_are_named(random: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="updates must be matrices"):
        newton_schulz(random(3, 3))
    with pytest.raises(ValueError, match="add"):
        symmetric_product(random(1, 3, 4), random(1, 4, 4))


# ---------------------------------------------------------------- the Triton kernel, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 123), (1, 150, 40), (1, 144, 40), (0, 4, 4)])
def test_triton(shape: tuple[int, ...], dtype: torch.dtype, card: torch.device, random: Callable[..., Tensor]) -> None:
    x = random(*shape, dtype=dtype).to(card)
    add = symmetric_product(random(shape[0], shape[1], shape[1], seed=1), impl="torch").to(card, dtype)
    for matrices in (x, x.mT.contiguous().mT):
        for other in (None, add):
            found = symmetric_product(matrices, other, b=-2.0, c=0.5, impl="triton")
            wide = None if other is None else other.double()
            truth = symmetric_product(matrices.double(), wide, b=-2.0, c=0.5, impl="torch")
            plain = symmetric_product(matrices, other, b=-2.0, c=0.5, impl="torch")
            assert found.dtype == dtype
            torch.testing.assert_close(found, found.mT)
            if found.numel():
                assert float((found - truth).abs().max()) <= 2 * float((plain - truth).abs().max()) + 1e-5


@pytest.mark.gpu
def test_triton_turns_a_matrix(card: torch.device, random: Callable[..., Tensor]) -> None:
    updates = random(1, 40, 20).to(card)
    found = newton_schulz(updates, dtype=torch.float32, impl="triton")
    torch.testing.assert_close(found, newton_schulz(updates, dtype=torch.float32, impl="torch"), rtol=1e-3, atol=1e-4)
