"""AdamW whose two running means take one byte a weight instead of four.

For a model of N weights AdamW keeps 8N bytes of state in float32, more than the weights themselves. Dettmers et al.
(2022, arXiv:2110.02861) keep 2N: each number as the index of the nearest of 256 values between −1 and 1, times the
largest magnitude of its block of 256 numbers. So one outlier spoils the precision of its own block alone.

**The 256 values** (§1.2 there, dynamic tree quantization) must serve numbers from 1 to 10⁻⁷ of the block's largest.
They lie in seven decades, 10^−e for e = 0 … 6, the largest decade cut into the most steps: for m, which has a sign,
2^(6 − e) steps to each side, for v, which has none, 2^(7 − e). Zero and one are among them.

    m, v = value[code] · scale(block)      →  one AdamW step in float32  →  code = nearest(m / max|m|), scale = max|m|

The nearest value is found by bisection in the 255 midpoints, eight comparisons. A CPU has a table instead: for the
first 17 bits of a number, how many midpoints lie below all numbers that begin so, and the one midpoint that may lie
among them. The step itself is that of adamw.py.

Legend: N weights of a tensor, in blocks of 256; ROWS blocks in a program.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from luthier.kernels.launch import Impl, LaunchError, check_floats, check_together, jit, launch, narrow, tl, use_triton

__all__ = [
    "BLOCK",
    "adamw_8bit_step",
    "adamw_8bit_step_reference",
    "code_values",
    "cost",
    "dequantize",
    "empty_state",
    "quantize",
]

EXAMPLE = {"weights": 2**27}
BLOCK = 256
ROWS = 8
PIECE = 256  # blocks of a piece on a CPU


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
    blocks = _blocks(x.to(torch.promote_types(x.dtype, torch.float32)))
    scale = blocks.abs().amax(1)
    unit = (blocks / torch.where(scale == 0, 1.0, scale)[:, None]).float()
    return torch.bucketize(unit, _midpoints(signed, x.device)[:-1]).to(torch.uint8), scale.float()


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


def adamw_8bit_step_reference(
    p: Tensor, g: Tensor, state: dict[str, Tensor], *, step: int, lr: float, betas: tuple[float, float], eps: float,
    weight_decay: float,
) -> None:  # fmt: skip
    """The formula for one tensor, in float32 or wider, in place."""
    wide = torch.promote_types(p.dtype, torch.float32)
    g_blocks = _blocks(g.to(wide))
    m = dequantize(state["m"], state["m_scale"], True)
    v = dequantize(state["v"], state["v_scale"], False)
    m = m + (1 - betas[0]) * (g_blocks - m)
    v = betas[1] * v + (1 - betas[1]) * g_blocks * g_blocks
    w = p.to(wide) * (1 - lr * weight_decay)
    update = m / ((v / (1 - betas[1] ** step)).sqrt() + eps)
    p.copy_(w - lr / (1 - betas[0] ** step) * update.view(-1)[: p.numel()].view(p.shape))
    for name, value, signed in (("m", m, True), ("v", v, False)):
        codes, scale = quantize(value, signed)
        state[name].copy_(codes)
        state[f"{name}_scale"].copy_(scale)


# ---------------------------------------------------------------- a CPU


@cache
def _by_bits(signed: bool) -> tuple[Tensor, Tensor]:
    """For each beginning of a float32 (sign, exponent, 8 digits): how many midpoints lie below all numbers that begin
    so (uint8), and the next midpoint (float32). No two midpoints lie among such numbers."""
    first = torch.arange(2**17, dtype=torch.int64) << 15
    first = torch.where(first < 2**31, first, first - 2**32)  # as a signed number of 32 bits
    low, high = ((first + rest).int().view(torch.float32) for rest in (0, 2**15 - 1))
    below = torch.bucketize(torch.minimum(low, high).nan_to_num(nan=1.0), _midpoints(signed)[:-1])
    return below.to(torch.uint8), _midpoints(signed)[below]


class _Room:
    """Places for what is made of a piece on the way, so that nothing is allocated and most of it stays in the cache."""

    def __init__(self, numbers: int) -> None:
        self.m, self.v, self.other, self.unit = (torch.empty(numbers) for _ in range(4))
        self.index = torch.empty(numbers, dtype=torch.int32)
        self.past = torch.empty(numbers, dtype=torch.bool)


def _read(codes: Tensor, scale: Tensor, signed: bool, index: Tensor, out: Tensor) -> None:
    """`dequantize` into out [blocks · 256]."""
    torch.index_select(code_values(signed), 0, index.copy_(codes), out=out)
    out.view(-1, BLOCK).mul_(scale[:, None])


def _write(x: Tensor, codes: Tensor, scale: Tensor, signed: bool, room: _Room) -> None:
    """`quantize` of x [blocks · 256] into codes and scale."""
    below, following = _by_bits(signed)
    torch.amax((torch.abs(x, out=room.unit) if signed else x).view(-1, BLOCK), 1, out=scale)
    torch.div(x.view(-1, BLOCK), scale.masked_fill(scale == 0, 1.0)[:, None], out=room.unit.view(-1, BLOCK))
    index = torch.bitwise_right_shift(room.unit.view(torch.int32), 15, out=room.index).bitwise_and_(2**17 - 1)
    torch.gt(room.unit, torch.index_select(following, 0, index, out=room.other), out=room.past)
    torch.index_select(below, 0, index, out=codes).add_(room.past)


def _step_on_cpu(
    p: Tensor, g: Tensor, state: dict[str, Tensor], step: int, lr: float, betas: tuple[float, float], eps: float,
    decay: float,
) -> None:  # fmt: skip
    """One tensor, piece by piece."""
    flat = p.reshape(-1)
    codes = [state[name].view(-1).split(PIECE * BLOCK) for name in ("m", "v")]
    scales = [state[name].split(PIECE) for name in ("m_scale", "v_scale")]
    pieces = zip(flat.split(PIECE * BLOCK), g.reshape(-1).split(PIECE * BLOCK), *codes, *scales, strict=True)
    room = None
    for w, slope, m_codes, v_codes, m_scale, v_scale in pieces:
        if room is None or len(room.m) != len(m_codes):
            room = _Room(len(m_codes))
        m, v = room.m, room.v
        _read(m_codes, m_scale, True, room.index, m)
        _read(v_codes, v_scale, False, room.index, v)
        slope = _blocks(slope.float()).view(-1) if len(slope) % BLOCK else slope.float()
        m.lerp_(slope, 1 - betas[0])
        v.mul_(betas[1]).addcmul_(slope, slope, value=1 - betas[1])
        root = torch.div(v, 1 - betas[1] ** step, out=room.other).sqrt_().add_(eps)
        wide = w.float().mul_(1 - lr * decay)
        wide.addcdiv_(m[: len(w)], root[: len(w)], value=-lr / (1 - betas[0] ** step))
        if w.dtype != torch.float32:
            w.copy_(wide)
        _write(m, m_codes, m_scale, True, room)
        _write(v, v_codes, v_scale, False, room)
    if flat.data_ptr() != p.data_ptr():
        p.copy_(flat.view(p.shape))


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


@jit
def _update(
    P, G, M, Ms, V, Vs, ValuesM, ValuesV, MidM, MidV, row, at, N, rows, lr, beta1, beta2, eps, decay, fix1, fix2,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """The formula for the blocks `row`, numbers `at`. WHOLE blocks need no mask, so that a thread reads 16 bytes."""
    stored = (row < rows)[:, None]
    if WHOLE:
        g, p = tl.load(G + at).to(tl.float32), tl.load(P + at).to(tl.float32)
    else:
        g = tl.load(G + at, at < N, other=0.0).to(tl.float32)
        p = tl.load(P + at, at < N, other=0.0).to(tl.float32)
    m = tl.load(ValuesM + tl.load(M + at, stored, other=0)) * tl.load(Ms + row, row < rows, other=0.0)[:, None]
    v = tl.load(ValuesV + tl.load(V + at, stored, other=0)) * tl.load(Vs + row, row < rows, other=0.0)[:, None]
    m, v = m + (1 - beta1) * (g - m), beta2 * v + (1 - beta2) * g * g
    p = narrow(p * (1 - lr * decay) - lr / fix1 * (m / (tl.sqrt(v / fix2) + eps)), P.dtype.element_ty)
    if WHOLE:
        tl.store(P + at, p)
    else:
        tl.store(P + at, p, at < N)
    _keep(m, M, Ms, MidM, row, at, rows)
    _keep(v, V, Vs, MidV, row, at, rows)


@jit(lengths=("N", "rows"))
def _kernel(
    P, G, M, Ms, V, Vs, ValuesM, ValuesV, MidM, MidV, N, rows, lr, beta1, beta2, eps, decay, fix1, fix2,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    at = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    if (first + ROWS) * BLOCK <= N:
        _update(P, G, M, Ms, V, Vs, ValuesM, ValuesV, MidM, MidV, row, at, N, rows, lr, beta1, beta2, eps, decay, fix1,
                fix2, True)  # fmt: skip
    else:
        _update(P, G, M, Ms, V, Vs, ValuesM, ValuesV, MidM, MidV, row, at, N, rows, lr, beta1, beta2, eps, decay, fix1,
                fix2, False)  # fmt: skip


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
    options: Any = {"step": step, "lr": lr, "betas": betas, "eps": eps}
    if use_triton("adamw_8bit_step", impl, p):
        check_floats("adamw_8bit_step", p=p, g=g)
        for name, x in (("p", p), ("g", g)):
            if not x.is_contiguous():
                raise LaunchError(f"adamw_8bit_step: {name} has strides {x.stride()}; it must be contiguous")
        _step_on_card(p, g, state, decay=weight_decay, **options)
    elif p.device.type == "cpu" and torch.float64 not in (p.dtype, g.dtype):
        _step_on_cpu(p, g, state, decay=weight_decay, **options)
    else:
        adamw_8bit_step_reference(p, g, state, weight_decay=weight_decay, **options)
