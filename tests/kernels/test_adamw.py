"""The AdamW step against PyTorch's, a worked example, and what rounding by chance must keep."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.adamw import adamw_step, adamw_step_reference, random_bits, round_stochastically

SHAPES = [(1,), (63,), (5, 1000), (3, 0), (2, 4100)]


def test_one_step() -> None:
    """m = 0.1·2, v = 0.05·4; corrected 2 and 4; θ = 1·(1 − 0.1·0.5) − 0.1·2/√4 = 0.85."""
    p, g, m, v = ([torch.tensor([x])] for x in (1.0, 2.0, 0.0, 0.0))
    adamw_step(p, g, m, v, step=1, lr=0.1, betas=(0.9, 0.95), eps=0.0, weight_decay=0.5)
    assert (
        p[0].item() == pytest.approx(0.85) and m[0].item() == pytest.approx(0.2) and v[0].item() == pytest.approx(0.2)
    )


@pytest.mark.parametrize("strided", [False, True])
def test_all_at_once_is_the_formula_one_by_one(strided: bool, random: Callable[..., Tensor]) -> None:
    lists = [[random(*s, seed=10 * j + i).abs() for i, s in enumerate(SHAPES)] for j in range(4)]
    if strided:
        lists[1] = [g.T.contiguous().T if g.dim() == 2 else g for g in lists[1]]
    copies = [[x.clone() for x in xs] for xs in lists]
    options: Any = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    for step in (7, 8):
        adamw_step(*lists, step=step, **options)
        for row in zip(*copies, strict=True):
            adamw_step_reference(*row, step=step, **options)
    for ours, plain in zip(chain(*lists), chain(*copies), strict=True):
        torch.testing.assert_close(ours, plain)


def test_steps_are_torchs(random: Callable[..., Tensor]) -> None:
    ours = [random(*s, seed=i) for i, s in enumerate(SHAPES)]
    theirs = [torch.nn.Parameter(x.clone()) for x in ours]
    m, v = ([torch.zeros_like(x) for x in ours] for _ in range(2))
    optimizer = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, 4):
        grads = [random(*s, seed=10 * step + i) for i, s in enumerate(SHAPES)]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        expected = torch.nn.utils.clip_grad_norm_(theirs, 3.0)
        optimizer.step()
        norm = adamw_step(ours, grads, m, v, step=step, lr=0.01, max_norm=3.0)
        assert norm is not None and float(norm) == pytest.approx(float(expected))
    for x, p in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, p.detach())


def test_rounding_by_chance_is_right_on_average() -> None:
    x = torch.full((100_000,), 1 + 2**-7 / 4)
    rounded = round_stochastically(x, 3).float()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-7}
    assert float((rounded - 1).mean()) * 4 * 2**7 == pytest.approx(1, abs=0.03)  # 7 deviations
    assert torch.equal(round_stochastically(x, 3), round_stochastically(x, 3))
    assert not torch.equal(random_bits(100, 3), random_bits(100, 4))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"step": 0}, "step is 0"),
        ({"m": []}, "m has 0 tensors"),
        ({"grads": [torch.ones(3)]}, r"grads\[0\] is \(3,\)"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"params": [torch.ones(2)], "grads": [torch.ones(2)], "m": [torch.ones(2)], "step": 1}
    with pytest.raises(ValueError, match=named):
        adamw_step(**{**given, "v": [torch.ones(2)], "lr": 0.1, **change})


# ---------------------------------------------------------------- the Triton kernels, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize(
    ("dtype", "state"),
    [(torch.float32, torch.float32), (torch.float16, torch.float16), (torch.bfloat16, torch.float32)],
)
def test_triton(
    dtype: torch.dtype, state: torch.dtype, max_norm: float | None, card: torch.device, random: Callable[..., Tensor]
) -> None:
    def fresh(kind: torch.dtype | None = None) -> list[list[Tensor]]:
        lists = [[random(*s, seed=10 * j + i) for i, s in enumerate(SHAPES)] for j in range(4)]
        lists[3] = [x.abs() for x in lists[3]]
        kinds = (dtype, dtype, state, state)
        return [[x.to(card, k).to(kind or k) for x in xs] for xs, k in zip(lists, kinds, strict=True)]

    options: Any = {"step": 3, "lr": 0.01, "max_norm": max_norm}
    truth, plain, ours = fresh(torch.float64), fresh(), fresh()
    adamw_step(*truth, impl="torch", **options)
    adamw_step(*plain, impl="torch", **options)
    adamw_step(*ours, impl="triton", **options)
    for t, r, o in zip(*(chain(*lists) for lists in (truth, plain, ours)), strict=True):
        if t.numel():
            assert float((o - t).abs().max()) <= 2 * float((r - t).abs().max()) + 1e-5


@pytest.mark.gpu
def test_triton_rounds_by_the_same_bits(card: torch.device, random: Callable[..., Tensor]) -> None:
    def one(impl: Any) -> Tensor:
        p, g, m, v = ([random(3, 1500, seed=s).to(card)] for s in range(4))
        p, v = [p[0].bfloat16()], [v[0].abs()]
        adamw_step(p, [g[0].bfloat16()], m, v, step=2, lr=1e-3, seed=7, impl=impl)
        return p[0]

    a, b = one("torch"), one("triton")
    assert float((a != b).float().mean()) < 1e-3  # a sum rounded otherwise may fall on the other side
    assert float((a.float() - b.float()).abs().max()) <= 2**-6


@pytest.mark.gpu
def test_triton_refuses(card: torch.device) -> None:
    x = torch.ones(4, 4, device=card)
    with pytest.raises(ValueError, match=r"grads\[0\] has strides"):
        adamw_step([x], [x.t()], [x], [x], step=1, lr=0.1, impl="triton")


def test_the_reference_is_the_list_version(random: Callable[..., Tensor]) -> None:
    lists = [[random(7, seed=s).abs()] for s in range(4)]
    alone = [x[0].clone() for x in lists]
    adamw_step(*lists, step=5, lr=0.1)
    adamw_step_reference(*alone, step=5, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for a, b in zip(alone, lists, strict=True):
        torch.testing.assert_close(a, b[0])
