"""A product of two matrices on a CPU, by whoever makes it fastest there.

PyTorch brings two libraries with it: MKL, which takes every product of float32, and oneDNN, which takes half precision.
GFLOP/s of one core, 1024 rows, 512 → 1376 (Intel Xeon with AMX, Sapphire Rapids), and 4096 rows, 256 → 688 (AMD EPYC
at 3.7 GHz); y = x Wᵀ, dx = dy W, dW = dyᵀ x:

    Intel    MKL 189, 196, 192    here, in parts 277, 280, 277
    AMD      MKL  93,  86         oneDNN 105, 106                 dW is MKL's in most shapes

**In parts.** An Intel processor with AMX multiplies bfloat16 sixteen times as fast as float32, so that it pays to take
each number of float32 apart into three of bfloat16 (split_loops.py). Results are nearer to float64's than MKL's are
(1024 × 1376 sums of 512 products of normal numbers: off by 4.2·10⁻⁶, MKL 6.5·10⁻⁶). At the ends of the range they are
not: infinity, numbers above 3.39·10³⁸ and sums that overflow become NaN, numbers below 2⁻¹⁰² (2·10⁻³¹) keep 16 bits,
those below 2⁻¹¹⁸ 8, and what is below 2⁻¹²⁶, products too, is 0. So are the small parts of numbers whose products are
below 10⁻³⁴ or so, which loses digits; a sum of a handful of products may be off by twice as much as MKL's.

**oneDNN** takes y and dx on AMD's processors with AVX-512. On Intel's without AMX MKL is no slower, but where there is
a bias it has to begin with a copy of it in every row: y = x Wᵀ + b, 4096 rows, 256 → 256, takes 2.99 ms, by oneDNN
2.70, by either without a bias 2.7. There oneDNN makes y where a bias is added.

Everything else is PyTorch's own. Who it is depends on the machine, the shapes and the layouts alone: the same machine
gives the same bits (processor.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from luthier.kernels.openmp import on_all_threads, openmp, thread_functions
from luthier.kernels.processor import amd_avx512, few_threads, intel_avx512, split_loops

__all__ = ["onednn_is_faster", "plain", "product", "splits"]

NARROWEST, FEWEST = 128, 2**25  # rows and columns, and multiplications of a thread: with fewer MKL is as fast
FEWEST_ROWS = 64  # with fewer the call of oneDNN costs more than the product gains


def onednn_is_faster(bias: bool = False) -> bool:
    """Whether oneDNN makes a product the faster way: on an AMD processor with AVX-512 under Linux, with a bias on an
    Intel one, too, if this PyTorch has it."""
    return (amd_avx512() or (bias and intel_avx512())) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _shared() -> int | None:
    """The address of a thread's share of a product in parts, or None where PyTorch's threads are not to be had."""
    there = split_loops() is not None and openmp() is not None
    return split_loops().share(*thread_functions()) if there else None


def _threads_fit() -> bool:
    return torch.get_num_threads() == 1 or (few_threads() and _shared() is not None)


def _fewest() -> int:
    return FEWEST * torch.get_num_threads()


# What torch.compiler.assume_constant_result writes; calling it would load the compiler at import
for function in (onednn_is_faster, _threads_fit, _fewest):
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are float32 on a CPU and nobody's but autograd's: no transform's, no counter's of operations."""
    if any(
        type(t) not in (Tensor, torch.nn.Parameter) or t.dtype != torch.float32 or t.device.type != "cpu"
        for t in tensors
        if t is not None
    ):
        return False
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
    ):
        return False
    return not torch.is_autocast_enabled("cpu")


def splits(a: Tensor, b: Tensor) -> bool:
    """Whether a [M, K] and b [K, N], if they are plain, are multiplied in parts."""
    (M, K), N = a.shape, b.shape[1]
    if min(M, N) < NARROWEST or K < 2 or _fewest() > M * N * K:
        return False
    able = a.dtype == torch.float32 and a.device.type == "cpu" and split_loops() is not None and _threads_fit()
    return able and all(1 in t.stride() for t in (a, b))


def _layout(x: Tensor) -> tuple[int, int, bool]:
    """Address, bytes of a row, and whether columns lie one after the other instead of rows."""
    turned = x.stride(1) != 1
    return x.data_ptr(), 4 * x.stride(0 if not turned else 1), turned


def _split(a: Tensor, b: Tensor, c: Tensor, base: Tensor | None) -> Tensor:
    """c [M, N] = a b + base; base [M, N] is c itself, or [N]."""
    add = (0, 0) if base is None else (base.data_ptr(), 4 * base.stride(0) if base.dim() == 2 else 0)
    given = np.array([len(a), *b.T.shape, *_layout(a), *_layout(b), *_layout(c)[:2], *add], np.int64)
    if torch.get_num_threads() == 1:
        split_loops().multiply(given, 0, 1)
    else:
        on_all_threads(_shared() or 0, given)
    return c


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.T, bias, "none", [], "")


def _made(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return _split(a, b, a.new_empty(len(a), b.shape[1]), bias) if splits(a, b) else _onednn(a, b, bias)


# Operations of their own, into which torch.compile does not look: it takes oneDNN's for one with a frozen weight
@torch.library.custom_op("luthier::product", mutates_args=())
def _closed(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return _made(a, b, bias)


@_closed.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(len(a), b.shape[1])


@torch.library.custom_op("luthier::product_into", mutates_args=("out",))
def _closed_into(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    _split(a, b, out, out if add else None)


def product(
    a: Tensor, b: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None, add: bool = False
) -> Tensor:
    """a [M, K] · b [K, N] plus bias [N]; into `out` [M, N], or with `add` added to it. Where a gradient is asked
    for it is PyTorch's."""
    in_parts = splits(a, b)
    learned = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (a, b, bias, out))
    if not learned and (in_parts or _for_onednn(a, b, bias)) and _match(a, b, bias, out) and plain(a, b, bias, out):
        compiling = torch.compiler.is_compiling()
        if in_parts and out is not None and bias is None:
            if compiling:
                _closed_into(a, b, out, add)
            else:
                _split(a, b, out, out if add else None)
                torch.autograd.graph.increment_version(out)
            return out
        y = (_closed if compiling else _made)(a, b, bias)
        return y if out is None else out.add_(y) if add else out.copy_(y)
    if out is not None:
        return out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def _for_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN is faster and takes these: many rows, one after the other."""
    fits = onednn_is_faster(bias is not None) and len(a) >= FEWEST_ROWS and a.stride(0) != 1
    return fits and (b.is_contiguous() or b.mT.is_contiguous()) and b.numel() > 0


def _match(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor | None) -> bool:
    """Whether shapes and strides are what loops may rely on that see addresses; else PyTorch says what is wrong."""
    (M, K), N = a.shape, b.shape[1]
    added = bias is None or (bias.shape == (N,) and bias.is_contiguous())
    return (
        len(b) == K and added and (out is None or (out.shape == (M, N) and out.stride(1) == 1 and out.stride(0) >= N))
    )
