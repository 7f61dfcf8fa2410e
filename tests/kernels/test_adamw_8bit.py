"""AdamW with states of one byte: the codes, the step, and how near it stays to the whole thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luthier.kernels import adamw_8bit
from luthier.kernels.adamw import adamw_step
from luthier.kernels.adamw_8bit import (
    adamw_8bit_step,
    adamw_8bit_step_reference,
    code_values,
    dequantize,
    empty_state,
    quantize,
)


@pytest.mark.parametrize("signed", [True, False])
def test_the_values(signed: bool) -> None:
    values = code_values(signed)
    assert len(values) == 256 and bool((values.diff() > 0).all())
    assert float(values[-1]) == 1 and bool((values == 0).any())
    assert float(values[0]) < -0.98 if signed else float(values[0]) == 0


@pytest.mark.parametrize("signed", [True, False])
def test_quantize_finds_the_nearest(signed: bool, random: Callable[..., Tensor]) -> None:
    x = random(700) ** 3
    x = x if signed else x.abs()
    codes, scale = quantize(x, signed)
    unit = torch.nn.functional.pad(x, (0, 68)).view(-1, 256) / scale[:, None]
    nearest = (unit[..., None] - code_values(signed)).abs().amin(-1)
    torch.testing.assert_close((code_values(signed)[codes.long()] - unit).abs(), nearest)
    back = dequantize(codes, scale, signed).view(-1)[:700]
    assert float((back - x).norm() / x.norm()) < 0.02
    assert dequantize(*quantize(torch.zeros(5), signed), signed).abs().max() == 0


@pytest.mark.parametrize("signed", [True, False])
def test_the_table_of_a_cpu_says_what_the_midpoints_say(signed: bool, random: Callable[..., Tensor]) -> None:
    """Also for the numbers next to each midpoint, and where numbers begin otherwise."""
    middles = adamw_8bit._midpoints(signed)[:-1]
    beside = [torch.nextafter(middles, middles + side) for side in (-1, 1)]
    begins = (torch.arange(2**17) << 15).int().view(torch.float32)
    unit = torch.cat([random(100_000), random(100_000) * 1e-5, middles, *beside, begins[begins.abs() <= 1]])
    unit = unit[(unit.abs() <= 1) & (signed | (unit >= 0))].sort().values
    unit = torch.nn.functional.pad(unit, (256 - len(unit) % 256, 0))  # a multiple of 256, the last number 1
    x, codes, scale = unit.clone(), torch.empty(len(unit), dtype=torch.uint8), torch.empty(len(unit) // 256)
    x[::256] = 1  # so that each block's scale is 1
    adamw_8bit._write(x, codes, scale, signed, adamw_8bit._Room(len(x)))
    assert torch.equal(codes.long(), torch.bucketize(x, middles)) and bool((scale == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (63, 5), (300, 512), (0,)])
def test_a_cpu_steps_as_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, random: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adamw_8bit, "PIECE", 7)
    plain, ours = (random(*shape, dtype=dtype) for _ in range(2))
    if len(shape) == 2:
        ours = ours.T.contiguous().T  # in another order of memory
    states = empty_state(plain), empty_state(ours)
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    for step in (1, 2, 3):
        g = random(*shape, seed=step, dtype=dtype) * 10.0**-step
        adamw_8bit_step_reference(plain, g, states[0], step=step, **options)
        adamw_8bit_step(ours, g, states[1], step=step, **options)
    for name in ("m", "v"):
        codes = [s[name].int() for s in states]
        assert int((codes[0] - codes[1]).abs().sum()) <= 0.001 * codes[0].numel()  # a tie rounded otherwise
        torch.testing.assert_close(states[1][f"{name}_scale"], states[0][f"{name}_scale"])
    torch.testing.assert_close(ours, plain)


def test_a_gradient_that_is_no_number_is_not_hidden() -> None:
    p, g = torch.ones(600), torch.ones(600)
    g[300] = float("nan")
    state = empty_state(p)
    for step in (1, 2):
        adamw_8bit_step(p, g, state, step=step, lr=0.1)
    assert not p[256:512].isfinite().any() and p[:256].isfinite().all()


def test_it_stays_near_adamw(random: Callable[..., Tensor]) -> None:
    """A quadratic bowl: both walk from the same start; after 50 steps they are 5% of the way apart."""
    start, goal = random(1000), random(1000, seed=1)
    eight, whole = start.clone(), start.clone()
    state, m, v = empty_state(eight), torch.zeros(1000), torch.zeros(1000)
    for step in range(1, 51):
        adamw_8bit_step(eight, eight - goal, state, step=step, lr=0.02)
        adamw_step([whole], [whole - goal], [m], [v], step=step, lr=0.02)
    assert float((eight - whole).norm() / (whole - start).norm()) < 0.1
    assert sum(x.numel() * x.itemsize for x in state.values()) < 2.1 * 1024


def test_wrong_arguments_are_named() -> None:
    p = torch.ones(3)
    with pytest.raises(ValueError, match="g is"):
        adamw_8bit_step(p, torch.ones(4), empty_state(p), step=1, lr=0.1)
    with pytest.raises(ValueError, match="state has 1 blocks"):
        adamw_8bit_step(torch.ones(300), torch.ones(300), empty_state(p), step=1, lr=0.1)
    with pytest.raises(ValueError, match="step is 0"):
        adamw_8bit_step(p, p, empty_state(p), step=0, lr=0.1)


# ---------------------------------------------------------------- the Triton kernel, on a card or interpreted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (63, 5), (2, 1600), (0,)])
def test_triton(shape: tuple[int, ...], dtype: torch.dtype, card: torch.device, random: Callable[..., Tensor]) -> None:
    plain, ours = (random(*shape, dtype=dtype).to(card) for _ in range(2))
    states = empty_state(plain), empty_state(ours)
    for step in (1, 2):
        g = random(*shape, seed=step, dtype=dtype).to(card)
        adamw_8bit_step(plain, g, states[0], step=step, lr=0.01, impl="torch")
        adamw_8bit_step(ours, g, states[1], step=step, lr=0.01, impl="triton")
    for name in ("m", "v"):
        codes = [s[name].int() for s in states]
        assert int((codes[0] - codes[1]).abs().sum()) <= 0.001 * codes[0].numel()  # a tie rounded otherwise
        torch.testing.assert_close(states[1][f"{name}_scale"], states[0][f"{name}_scale"])
    torch.testing.assert_close(ours, plain)
