"""Muon's inner loop: the nearest matrix whose singular values are all about 1.

    X₀ = G / ‖G‖,    A = X Xᵀ,    B = bA + cA²,    X ← aX + BX                        five times
                                              (Jordan et al. 2024, kellerjordan.github.io/posts/muon: a = 3.4445,
                                                                                 b = −4.7750, c = 2.0315)

Each singular value s of X goes to a·s + b·s³ + c·s⁵ and the singular vectors stay, so X tends to U Vᵀ of G = U S Vᵀ.
The coefficients are steepest at zero, so that small values grow fastest; the end lies between 0.7 and 1.2.

**The symmetric product.** A and B are symmetric: two of the three products of each turn need only the tiles on and
below the diagonal; the rest is their mirror image, written by the same program. For a matrix [R, C] with R ≤ C (a tall
one is turned on its side first) a turn takes 2R²C/2 + 2R³/2 + 2R²C operations instead of 2R²C + 2R³ + 2R²C: for a
square one 4R³ instead of 6R³, a third less. The last product is cuBLAS's.

Legend: N matrices of equal shape, R rows, C columns; tiles of BM × BM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.kernels.launch import (
    Impl,
    LaunchError,
    check_floats,
    check_together,
    dot,
    jit,
    launch,
    narrow,
    tl,
    use_triton,
)
from luthier.kernels.tables import chosen, key_of

__all__ = ["QUINTIC", "cost", "newton_schulz", "newton_schulz_reference", "symmetric_product"]

QUINTIC = (3.4445, -4.7750, 2.0315)
EXAMPLE = {"matrices": 1, "rows": 4096, "columns": 4096}


def newton_schulz_reference(updates: Tensor, steps: int = 5) -> Tensor:
    """The formula for matrices [N, R, C], one operation at a time."""
    a, b, c = QUINTIC
    x = updates / updates.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def cost(matrices: int, rows: int, columns: int, itemsize: int, *, steps: int = 5) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations of the whole iteration, the symmetry used."""
    R, C = min(rows, columns), max(rows, columns)
    moved = R * C + R * R + 2 * R * R + (R * R + 2 * R * C)
    return {"step": (matrices * steps * moved * itemsize, matrices * steps * (R * R * C + R**3 + 2 * R * R * C))}


# ---------------------------------------------------------------- Triton


@jit(lengths=("R",))
def _symmetric(
    X, Add, Out, R, C, xn, xr, xc, b, c, BM: tl.constexpr, BK: tl.constexpr, ADD: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """c·X Xᵀ + b·Add for one tile on or below the diagonal, and its mirror image. Add, Out: [N, R, R], contiguous.

    EVEN: R is a multiple of 16, so that a thread writes 16 bytes at once."""
    if EVEN:
        R = R // 16 * 16  # so the compiler knows
    n, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    i = tl.floor((tl.sqrt(8.0 * tile + 1.0) - 1.0) / 2.0).to(tl.int32)  # tile = i(i + 1)/2 + j, j ≤ i
    i = tl.where(i * (i + 1) // 2 > tile, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= tile, i + 1, i)
    j = tile - i * (i + 1) // 2
    r, k = tl.arange(0, BM), tl.arange(0, BK)
    row, column = i * BM + r, j * BM + r
    within = r[:, None] * xr + k[None, :] * xc  # far places are numbers of 64 bits, places within a tile of 32
    left, right = X + n * xn + i.to(tl.int64) * BM * xr + within, X + n * xn + j.to(tl.int64) * BM * xr + within
    acc = tl.zeros((BM, BM), tl.float32)
    for start in range(0, C, BK):
        rest = (start + k < C)[None, :]
        a = tl.load(left, (row < R)[:, None] & rest, other=0.0)
        acc += dot(a, tl.trans(tl.load(right, (column < R)[:, None] & rest, other=0.0)))
        left += BK * xc
        right += BK * xc
    at = (n * R + i * BM) * R + j * BM + (r[:, None] * R + r[None, :])
    inside = (row < R)[:, None] & (column < R)[None, :]
    acc = c * acc
    if ADD:
        acc += b * tl.load(Add + at, inside, other=0.0).to(tl.float32)
    out = narrow(acc, Out.dtype.element_ty)
    tl.store(Out + at, out, inside)
    mirror = (n * R + j * BM) * R + i * BM + (r[:, None] * R + r[None, :])
    end = tl.where(i == j, 0, R)  # on the diagonal there is nothing to mirror
    tl.store(Out + mirror, tl.trans(out), (column < end)[:, None] & (row < R)[None, :])


def settings(itemsize: int) -> dict[str, int]:
    """Tile sizes, warps and stages."""
    if itemsize == 4:
        return {"BM": 64, "BK": 32, "num_warps": 4, "num_stages": 2}
    return {"BM": 128, "BK": 64, "num_warps": 8, "num_stages": 3}


def _symmetric_on_card(x: Tensor, add: Tensor | None, b: float, c: float) -> Tensor:
    """c·X Xᵀ + b·add [N, R, R] for x [N, R, C] of any strides."""
    N, R, C = x.shape
    s = chosen(key_of("muon symmetric", x.dtype), settings(x.element_size()), x)
    out = torch.empty(N, R, R, dtype=x.dtype, device=x.device)
    tiles = -(-R // s["BM"])
    grid = (tiles * (tiles + 1) // 2, N)
    shape = {"ADD": add is not None, "EVEN": R % 16 == 0}
    launch(_symmetric, grid, x, out if add is None else add, out, R, C, *x.stride(), b, c, **shape, **s)
    return out


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    for rows in (16 * tokens, 16 * tokens + 1):
        x = torch.zeros(1, rows, 128, dtype=dtype)
        _symmetric_on_card(x, _symmetric_on_card(x, None, 0.0, 1.0), 1.0, 1.0)


# ---------------------------------------------------------------- public


def symmetric_product(
    x: Tensor, add: Tensor | None = None, *, b: float = 1.0, c: float = 1.0, impl: Impl = "auto"
) -> Tensor:
    """c·X Xᵀ + b·add for matrices x [N, R, C] and symmetric matrices add [N, R, R]; [N, R, R] in x's dtype."""
    check_together("symmetric_product", x=x, add=add)
    N, R = x.shape[:2] if x.dim() == 3 else (0, 0)
    if x.dim() != 3 or (add is not None and (add.shape != (N, R, R) or add.dtype != x.dtype)):
        found = "none" if add is None else f"{add.dtype} {tuple(add.shape)}"
        raise ValueError(f"symmetric_product: x is {x.dtype} {tuple(x.shape)}, [N, R, C]; add [N, R, R] is {found}")
    if use_triton("symmetric_product", impl, x):
        check_floats("symmetric_product", x=x, **({} if add is None else {"add": add}))
        if add is not None and not add.is_contiguous():
            raise LaunchError(f"symmetric_product: add has strides {add.stride()}; it must be contiguous")
        return _symmetric_on_card(x, add, b, c)
    if add is None:
        return x @ x.mT if c == 1 else c * (x @ x.mT)
    return torch.baddbmm(add, x, x.mT, beta=b, alpha=c)


@torch.no_grad()
def newton_schulz(updates: Tensor, *, steps: int = 5, dtype: torch.dtype | None = None, impl: Impl = "auto") -> Tensor:
    """About U Vᵀ for each matrix U S Vᵀ of the batch `updates` [N, rows, columns].

    `dtype` of the iteration: None is bfloat16 on a GPU and float32 on a CPU, most of which have no fast bf16.
    """
    check_together("newton_schulz", updates=updates)
    if updates.dim() != 3:
        raise ValueError(f"newton_schulz: updates must be matrices [N, rows, columns]; found {tuple(updates.shape)}")
    a, b, c = QUINTIC
    x = updates.to(dtype or (torch.bfloat16 if updates.is_cuda else torch.float32))
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = symmetric_product(x, impl=impl)
        x = torch.baddbmm(x, symmetric_product(gram, gram, b=b, c=c, impl=impl), x, beta=a)
    return x.mT if tall else x
