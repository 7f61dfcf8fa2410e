"""AdamW whose two running means take one byte a weight instead of four.

For a model of N weights AdamW keeps 8N bytes of state in float32, more than the weights themselves. Dettmers et al.
(2022, arXiv:2110.02861) keep 2N: each number as the index of the nearest of 256 values between −1 and 1, times the
largest magnitude of its block of 256 numbers. So one outlier spoils the precision of its own block alone.

**The 256 values** (§1.2 there, dynamic tree quantization) must serve numbers from 1 to 10⁻⁷ of the block's largest.
They lie in seven decades, 10^−e for e = 0 … 6, the largest decade cut into the most steps: for m, which has a sign,
2^(6 − e) steps to each side, for v, which has none, 2^(7 − e). Zero and one are among them.

    m, v = value[code] · scale(block)      →  one AdamW step in float32  →  code = nearest(m / max|m|), scale = max|m|

The nearest value is found by bisection in the 255 midpoints, eight comparisons. The step itself is that of adamw.py.

Legend: N weights of a tensor, in blocks of 256; ROWS blocks in a program.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from luthier.kernels.launch import Impl, LaunchError, check_floats, check_together, jit, launch, narrow, tl, use_triton

__all__ = ["BLOCK", "adamw_8bit_step", "code_values", "cost", "dequantize", "empty_state", "quantize"]

EXAMPLE = {"weights": 2**27}
BLOCK = 256
ROWS = 8


def cost(weights: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations of a step with weights and gradients of a size."""
    return {"step": (3 * weights * itemsize + 4 * weights + 16 * weights // BLOCK, 60 * weights)}


@cache
def code_values(signed: bool, device: torch.device | str = "cpu") -> Tensor:
    """The 256 values in rising order, float32, the last one 1."""
    values: list[float] = []
    for e in range(7):
        steps = 2 ** (6 - e) if signed else 2 ** (7 - e)
        edges = [0.1 + 0.9 * i / steps for i in range(steps + 1)]
        middles = [(a + b) / 2 * 10.0**-e for a, b in pairwise(edges)]
        values += middles + ([-x for x in middles] if signed else [])
    values += [0.0, 1.0]
    return torch.tensor(sorted(values), dtype=torch.float64).to(device=device, dtype=torch.float32)


@cache
def _midpoints(signed: bool, device: torch.device | str = "cpu") -> Tensor:
    """Between neighbouring values, float32, and infinity: 256 numbers."""
    values = code_values(signed, device)
    return torch.cat([(values[1:] + values[:-1]) / 2, values.new_full((1,), float("inf"))])


# ---------------------------------------------------------------- PyTorch


def _blocks(x: Tensor) -> Tensor:
    """A tensor as blocks [N / 256, 256], zeros at the end."""
    flat = x.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def quantize(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes uint8 [blocks, 256] and scales float32 [blocks] of a tensor."""
    blocks = _blocks(x.float())
    scale = blocks.abs().amax(1)
    unit = blocks / torch.where(scale == 0, 1.0, scale)[:, None]
    return torch.bucketize(unit, _midpoints(signed, x.device)[:-1]).to(torch.uint8), scale


def dequantize(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """The numbers [blocks, 256] again, float32."""
    return code_values(signed, codes.device)[codes.long()] * scale[:, None]


def empty_state(p: Tensor) -> dict[str, Tensor]:
    """The state of a weight before its first step: m and v are zero."""
    blocks = -(-p.numel() // BLOCK)
    state = {}
    for name, signed in (("m", True), ("v", False)):
        zero = int(torch.bucketize(torch.zeros(()), _midpoints(signed)[:-1]))
        state[name] = torch.full((blocks, BLOCK), zero, dtype=torch.uint8, device=p.device)
        state[f"{name}_scale"] = torch.zeros(blocks, device=p.device)
    return state


def _step(
    p: Tensor, g: Tensor, state: dict[str, Tensor], step: int, lr: float, betas: tuple[float, float], eps: float,
    decay: float,
) -> None:  # fmt: skip
    """The plain step of one tensor."""
    g_blocks = _blocks(g.float())
    m = dequantize(state["m"], state["m_scale"], True)
    v = dequantize(state["v"], state["v_scale"], False)
    m = m + (1 - betas[0]) * (g_blocks - m)
    v = betas[1] * v + (1 - betas[1]) * g_blocks * g_blocks
    w = p.float() * (1 - lr * decay)
    update = m / ((v / (1 - betas[1] ** step)).sqrt() + eps)
    p.copy_(w - lr / (1 - betas[0] ** step) * update.view(-1)[: p.numel()].view(p.shape))
    for name, value, signed in (("m", m, True), ("v", v, False)):
        codes, scale = quantize(value, signed)
        state[name].copy_(codes)
        state[f"{name}_scale"].copy_(scale)


# ---------------------------------------------------------------- Triton


@jit
def _nearest(x, Midpoints):
    """How many midpoints are less than x: the code of the nearest value, by bisection."""
    code = tl.zeros(x.shape, tl.int32)
    for half in tl.static_range(8):
        try_code = code + (128 >> half)
        code = tl.where(tl.load(Midpoints + try_code - 1) < x, try_code, code)
    return code


@jit
def _keep(x, Codes, Scale, Midpoints, row, at, rows):
    """Write x [ROWS, 256] as codes and scales."""
    scale = tl.max(tl.abs(x), 1)
    unit = x / tl.where(scale == 0, 1.0, scale)[:, None]
    tl.store(Codes + at, _nearest(unit, Midpoints).to(tl.uint8), (row < rows)[:, None])
    tl.store(Scale + row, scale, row < rows)


@jit(lengths=("N", "rows"))
def _kernel(
    P, G, M, Ms, V, Vs, ValuesM, ValuesV, MidM, MidV, N, rows, lr, beta1, beta2, eps, decay, fix1, fix2,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside, stored = at < N, (row < rows)[:, None]
    g = tl.load(G + at, inside, other=0.0).to(tl.float32)
    p = tl.load(P + at, inside, other=0.0).to(tl.float32)
    m = tl.load(ValuesM + tl.load(M + at, stored, other=0)) * tl.load(Ms + row, row < rows, other=0.0)[:, None]
    v = tl.load(ValuesV + tl.load(V + at, stored, other=0)) * tl.load(Vs + row, row < rows, other=0.0)[:, None]
    m, v = m + (1 - beta1) * (g - m), beta2 * v + (1 - beta2) * g * g
    p = p * (1 - lr * decay) - lr / fix1 * (m / (tl.sqrt(v / fix2) + eps))
    tl.store(P + at, narrow(p, P.dtype.element_ty), inside)
    _keep(m, M, Ms, MidM, row, at, rows)
    _keep(v, V, Vs, MidV, row, at, rows)


def _step_on_card(
    p: Tensor, g: Tensor, state: dict[str, Tensor], step: int, lr: float, betas: tuple[float, float], eps: float,
    decay: float,
) -> None:  # fmt: skip
    kept = (state["m"], state["m_scale"], state["v"], state["v_scale"])
    tables = [f(signed, p.device) for f in (code_values, _midpoints) for signed in (True, False)]
    rows = len(state["m"])
    numbers = (p.numel(), rows, lr, *betas, eps, decay, 1 - betas[0] ** step, 1 - betas[1] ** step)
    launch(_kernel, (-(-rows // ROWS),), p, g, *kept, *tables, *numbers, ROWS=ROWS, BLOCK=BLOCK, num_warps=4)


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    p = torch.zeros(tokens, 16, dtype=dtype)
    _step_on_card(p, p, empty_state(p), tokens, 1e-3, (0.9, 0.95), 1e-8, 0.1)


# ---------------------------------------------------------------- public


@torch.no_grad()
def adamw_8bit_step(
    p: Tensor,
    g: Tensor,
    state: dict[str, Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    impl: Impl = "auto",
) -> None:
    """One step (counted from 1) of a weight p with gradient g, in place; `state` is that of `empty_state(p)`.

    Raises ValueError for tensors that do not belong together.
    """
    if step < 1:
        raise ValueError(f"adamw_8bit_step: step is {step}; steps are counted from 1")
    check_together("adamw_8bit_step", p=p)
    if g.shape != p.shape or g.device != p.device:
        raise ValueError(
            f"adamw_8bit_step: g is {tuple(g.shape)} on {g.device}, p {tuple(p.shape)} on {p.device}; make them equal"
        )
    blocks = -(-p.numel() // BLOCK)
    if len(state["m"]) != blocks or state["m"].device != p.device:
        raise ValueError(
            f"adamw_8bit_step: state has {len(state['m'])} blocks on {state['m'].device}, p has {blocks} on {p.device}"
        )
    run = _step
    if use_triton("adamw_8bit_step", impl, p):
        check_floats("adamw_8bit_step", p=p, g=g)
        for name, x in (("p", p), ("g", g)):
            if not x.is_contiguous():
                raise LaunchError(f"adamw_8bit_step: {name} has strides {x.stride()}; it must be contiguous")
        run = _step_on_card
    arguments: Any = (p, g, state, step, lr, betas, eps, weight_decay)
    run(*arguments)
