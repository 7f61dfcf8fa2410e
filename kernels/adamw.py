"""One AdamW step for all weights of a model in one launch.

    m = β₁ m + (1 − β₁) g          v = β₂ v + (1 − β₂) g²                (Loshchilov & Hutter 2019, arXiv:1711.05101,
    θ = θ (1 − lr·λ) − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)                                     algorithm 2)

A step reads θ, g, m, v and writes θ, m, v: 28 bytes a weight in float32, and next to no arithmetic. What costs beside
the memory is one launch for each of hundreds of tensors. So one launch serves them all: a table holds the addresses of
every tensor, a list says which piece of which tensor each program takes.

**Clipping.** g may be scaled so that the norm of all gradients together is at most `max_norm` (Pascanu et al. 2013,
arXiv:1211.5063). One launch adds up the squares, piece by piece and always in the same order; the factor stays on the
card, and the step reads it: nobody waits for a number to reach the processor.

**bf16 weights.** Near 1 neighbouring bf16 numbers are 2⁻⁷ apart, and an update of 10⁻³ would always be rounded away.
Rounding up with the probability of the remainder (stochastic rounding) is right on average: add 16 random bits below
the kept ones and cut. The bits come from a hash of the weight's number and the step (lowbias32, C. Wellons), the same
on every device, so that a run can be repeated.

Legend: N weights of a tensor, BLOCK weights of a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from luthier.kernels.launch import Impl, LaunchError, check_floats, jit, launch, narrow, tl, use_triton

__all__ = ["adamw_step", "adamw_step_reference", "cost", "random_bits", "round_stochastically"]

EXAMPLE = {"weights": 2**27}
BLOCK = 2048  # 8 weights a thread: more would take so many registers that too few programs run at a time
each: Any = torch  # the `_foreach_` operations are public in torch's documentation, but not to type checkers; the fused
# step is what torch.optim.AdamW(fused=True) calls


def cost(weights: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations of a step with weights, gradients and states of a size."""
    return {"step": (7 * weights * itemsize, 16 * weights), "norm": (weights * itemsize, 2 * weights)}


# ---------------------------------------------------------------- PyTorch


def random_bits(count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """16 random bits for each of `count` numbers: int32, a hash of the place and the seed."""
    x = (torch.arange(count, dtype=torch.int64, device=device) + (seed & 0xFFFFFFFF) * 0x9E3779B9 % 2**32) & 0xFFFFFFFF
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return ((x ^ (x >> 15)) & 0xFFFF).int()


def round_stochastically(x: Tensor, seed: int) -> Tensor:
    """float32 x as bf16, up with the probability of the remainder."""
    bits = x.contiguous().view(torch.int32) + random_bits(x.numel(), seed, x.device).view(x.shape)
    return (bits & -65536).view(torch.float32).bfloat16()


def adamw_step_reference(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, *, step: int, lr: float, betas: tuple[float, float], eps: float,
    weight_decay: float, factor: Tensor | float = 1.0, seed: int | None = None,
) -> None:  # fmt: skip
    """The formula for one tensor, in float32 or wider, in place. `factor` scales g; a seed rounds bf16 by chance."""
    w, g = _wide(p), _wide(g) * factor
    new_m = _wide(m).lerp(g, 1 - betas[0])
    new_v = _wide(v) * betas[1] + (1 - betas[1]) * g * g
    scale = (new_v / (1 - betas[1] ** step)).sqrt() + eps
    w = w * (1 - lr * weight_decay) - lr / (1 - betas[0] ** step) * new_m / scale
    m.copy_(new_m)
    v.copy_(new_v)
    p.copy_(round_stochastically(w, seed) if seed is not None and p.dtype == torch.bfloat16 else w)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _step_of_lists(
    p: list[Tensor], g: list[Tensor], m: list[Tensor], v: list[Tensor], *, step: int, lr: float,
    betas: tuple[float, float], eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """The formula for many tensors of one dtype in a few calls; on a CPU in one, a single pass over memory."""
    if all(x.is_contiguous() and x.device.type == "cpu" for xs in (p, g, m, v) for x in xs):
        steps = [torch.tensor(float(step))] * len(p)
        each._fused_adamw_(
            p, g, m, v, [], steps, lr=lr, beta1=betas[0], beta2=betas[1], weight_decay=weight_decay, eps=eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return
    each._foreach_lerp_(m, g, 1 - betas[0])
    each._foreach_mul_(v, betas[1])
    each._foreach_addcmul_(v, g, g, 1 - betas[1])
    scale = each._foreach_sqrt(v)
    each._foreach_div_(scale, (1 - betas[1] ** step) ** 0.5)
    each._foreach_add_(scale, eps)
    each._foreach_mul_(p, 1 - lr * weight_decay)
    each._foreach_addcdiv_(p, m, scale, -lr / (1 - betas[0] ** step))


# ---------------------------------------------------------------- Triton


@jit
def _address(Table, place, like, ALIGNED: tl.constexpr):
    """The pointer at `place` of the table, to numbers of the type that `like` points to."""
    pointer = tl.load(Table + place).to(like.dtype)
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@jit
def _read(X, i, size, WHOLE: tl.constexpr):
    """Numbers i as float32. A WHOLE piece needs no mask, so that a thread reads 16 bytes at once."""
    if WHOLE:
        return tl.load(X + i).to(tl.float32)
    else:
        return tl.load(X + i, i < size, other=0.0).to(tl.float32)


@jit
def _write(X, i, x, size, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(X + i, narrow(x, X.dtype.element_ty))
    else:
        tl.store(X + i, narrow(x, X.dtype.element_ty), i < size)


@jit
def _norm(Table, Pieces, LikeG, Squares, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    piece = tl.program_id(0)
    tensor, start = tl.load(Pieces + 2 * piece), tl.multiple_of(tl.load(Pieces + 2 * piece + 1), BLOCK)
    i, size = start + tl.arange(0, BLOCK), tl.load(Table + 5 * tensor + 4)
    G = _address(Table, 5 * tensor + 1, LikeG, ALIGNED)
    if start + BLOCK <= size:
        g = _read(G, i, size, True)
    else:
        g = _read(G, i, size, False)
    tl.store(Squares + piece, tl.sum(g * g, 0))


@jit
def _bits(i, seed):
    """`random_bits` of places i."""
    x = i.to(tl.uint32) + seed.to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return ((x ^ (x >> 15)) & 0xFFFF).to(tl.int32)


@jit
def _update(
    P, G, M, V, i, size, factor, seed, lr, beta1, beta2, eps, decay, fix1, fix2,
    STOCHASTIC: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The formula for numbers i of one tensor."""
    g, p = _read(G, i, size, WHOLE) * factor, _read(P, i, size, WHOLE)
    m, v = _read(M, i, size, WHOLE), _read(V, i, size, WHOLE)
    m, v = m + (1 - beta1) * (g - m), beta2 * v + (1 - beta2) * g * g
    p = p * (1 - lr * decay) - lr / fix1 * m / (tl.sqrt(v / fix2) + eps)
    if STOCHASTIC:
        bits = p.to(tl.int32, bitcast=True) + _bits(i, seed)
        p = (bits & -65536).to(tl.float32, bitcast=True)
    _write(P, i, p, size, WHOLE)
    _write(M, i, m, size, WHOLE)
    _write(V, i, v, size, WHOLE)


@jit(lengths=("seed",))
def _step(
    Table, Pieces, Factor, LikeP, LikeG, LikeM, seed, lr, beta1, beta2, eps, decay, fix1, fix2,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr, STOCHASTIC: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0)
    tensor, start = tl.load(Pieces + 2 * piece), tl.multiple_of(tl.load(Pieces + 2 * piece + 1), BLOCK)
    i, size, factor = start + tl.arange(0, BLOCK), tl.load(Table + 5 * tensor + 4), tl.load(Factor)
    P, G = _address(Table, 5 * tensor, LikeP, ALIGNED), _address(Table, 5 * tensor + 1, LikeG, ALIGNED)
    M, V = _address(Table, 5 * tensor + 2, LikeM, ALIGNED), _address(Table, 5 * tensor + 3, LikeM, ALIGNED)
    if start + BLOCK <= size:
        _update(P, G, M, V, i, size, factor, seed + tensor, lr, beta1, beta2, eps, decay, fix1, fix2, STOCHASTIC, True)
    else:
        _update(P, G, M, V, i, size, factor, seed + tensor, lr, beta1, beta2, eps, decay, fix1, fix2, STOCHASTIC, False)


@lru_cache(maxsize=64)
def _pieces(sizes: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    """Which tensor and from where each program takes its piece: int64 [programs, 2]."""
    counts = torch.tensor([-(-size // block) for size in sizes], dtype=torch.int64)
    tensor = torch.arange(len(sizes)).repeat_interleave(counts)
    begins = counts.cumsum(0) - counts
    start = (torch.arange(len(tensor)) - begins[tensor]) * block
    return torch.stack([tensor, start], dim=1).to(device)


def _table(*lists: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """Addresses of the tensors of four lists and their sizes, int64 [tensors, 5]; whether all are aligned."""
    rows = [[*(x.data_ptr() for x in row), row[0].numel()] for row in zip(*lists, strict=True)]
    aligned = all(address % 16 == 0 for row in rows for address in row[:4])
    return torch.tensor(rows, dtype=torch.int64).to(lists[0][0].device, non_blocking=True), aligned


def _step_on_card(
    p: Sequence[Tensor], g: Sequence[Tensor], m: Sequence[Tensor], v: Sequence[Tensor], *, step: int, lr: float,
    betas: tuple[float, float], eps: float, weight_decay: float, factor: Tensor, seed: int | None,
) -> None:  # fmt: skip
    table, aligned = _table(p, g, m, v)
    pieces = _pieces(tuple(x.numel() for x in p), BLOCK, p[0].device)
    numbers = (lr, *betas, eps, weight_decay, 1 - betas[0] ** step, 1 - betas[1] ** step)
    by_chance = seed is not None and p[0].dtype == torch.bfloat16
    shape = {"BLOCK": BLOCK, "ALIGNED": aligned, "STOCHASTIC": by_chance, "num_warps": 8}
    launch(_step, (len(pieces),), table, pieces, factor, p[0], g[0], m[0], seed or 0, *numbers, **shape)


def _squares_on_card(g: Sequence[Tensor]) -> Tensor:
    """Σ g² over all tensors, float32."""
    table, aligned = _table(g, g, g, g)
    pieces = _pieces(tuple(x.numel() for x in g), BLOCK, g[0].device)
    squares = torch.zeros(len(pieces), dtype=torch.float32, device=g[0].device)
    launch(_norm, (len(pieces),), table, pieces, g[0], squares, BLOCK=BLOCK, ALIGNED=aligned, num_warps=8)
    return squares.sum()


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    p, m = [torch.zeros(tokens, 16, dtype=dtype)], [torch.zeros(tokens, 16)]
    factor = (1 / _squares_on_card(p).sqrt()).reshape(1)
    options: Any = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "factor": factor}
    for step, seed in ((tokens, None), (tokens, tokens)):
        _step_on_card(p, p, m, m, step=step, seed=seed, **options)


# ---------------------------------------------------------------- public


@torch.no_grad()
def adamw_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    m: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    max_norm: float | None = None,
    seed: int | None = None,
    impl: Impl = "auto",
) -> Tensor | None:
    """One step (counted from 1) for all weights, in place. Returns the norm of all gradients where it clips.

    m and v are float32, or the weights' dtype. With a `seed` bf16 weights are rounded by chance. Raises ValueError for
    lists or tensors that do not belong together.
    """
    lists = {"params": params, "grads": grads, "m": m, "v": v}
    _check(lists, step)
    if not params:
        return None
    triton = use_triton("adamw_step", impl, params[0])
    if triton:
        _check_kernel(lists)
    options: Any = {"step": step, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    norm, factor = None, torch.ones(1, device=params[0].device)
    if max_norm is not None:
        squares = _squares_on_card(grads) if triton else sum(_wide(x).square().sum() for x in grads)
        norm = torch.as_tensor(squares).sqrt()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1).reshape(1)
    groups: dict[Any, list[int]] = {}
    for i, tensors in enumerate(zip(params, grads, m, v, strict=True)):
        groups.setdefault(tuple(t.dtype for t in tensors), []).append(i)
    for dtypes, places in groups.items():
        rows = [[x[i] for i in places] for x in (params, grads, m, v)]
        base = None if seed is None else (seed * 1_000_003 + step * 4099 + places[0] * 131_071) & 0x7FFFFFFF
        if triton:
            _step_on_card(*rows, factor=factor, seed=base, **options)
        elif len(set(dtypes)) == 1 and dtypes[0] in (torch.float32, torch.float64) and max_norm is None:
            _step_of_lists(*rows, **options)
        else:
            for i, row in enumerate(zip(*rows, strict=True)):
                adamw_step_reference(*row, factor=factor, seed=None if base is None else base + i, **options)
    return norm


def _check(lists: dict[str, Sequence[Tensor]], step: int) -> None:
    """Raises ValueError, naming the list, for what does not belong together."""
    params = lists["params"]
    for i, p in enumerate(params):
        if not p.is_floating_point():
            raise ValueError(f"adamw_step: params[{i}] is {p.dtype}; it must be a floating-point tensor")
    if step < 1:
        raise ValueError(f"adamw_step: step is {step}; steps are counted from 1")
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(f"adamw_step: {name} has {len(tensors)} tensors, params has {len(params)}")
        for i, (x, p) in enumerate(zip(tensors, params, strict=True)):
            if x.shape != p.shape or x.device != params[0].device:
                raise ValueError(
                    f"adamw_step: {name}[{i}] is {tuple(x.shape)} on {x.device}, params[{i}] is {tuple(p.shape)} on "
                    f"{params[0].device}"
                )


def _check_kernel(lists: dict[str, Sequence[Tensor]]) -> None:
    """What the kernel can take: floats without gaps, both states of one dtype."""
    for name, tensors in lists.items():
        for i, x in enumerate(tensors):
            check_floats("adamw_step", **{f"{name}[{i}]": x})
            if not x.is_contiguous():
                raise LaunchError(f"adamw_step: {name}[{i}] has strides {x.stride()}; it must be contiguous")
            if name == "v" and x.dtype != lists["m"][i].dtype:
                raise LaunchError(f"adamw_step: v[{i}] is {x.dtype}, m[{i}] is {lists['m'][i].dtype}; make them equal")
