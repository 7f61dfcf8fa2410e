"""Causal attention on an Intel processor with AVX-512: scores live and die in the first-level cache.

PyTorch's fused attention of a CPU calls a library for its products, which are too small for it; here a tile of 12
queries and 32 keys lies in registers (tiled_loops.py, which also says how). One core of an Intel Xeon (Sapphire
Rapids), forward and backward, ms:

    16 × 256 tokens, H 8, K 4, D 32    here 19, fused 31, in bands (causal_attention.py) 47
     2 × 512, H 8, K 4, D 64           here 14, fused 25, 29
     2 × 512, H 8, K 4, D 48           here 12, fused 18
     1 × 1024, H 8, K 4, D 64          here 24, fused 36, 52

What is kept for the backward pass is q, k, v and a number a query; out and dout are not multiplied again, because
Σ_d dout·out = Σ_keys p ⊙ dp.

Two threads take every other key head each (openmp.py); more of them take PyTorch's attention.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luthier.kernels.openmp import on_all_threads, openmp, thread_functions
from luthier.kernels.processor import few_threads, tiled_loops

__all__ = ["fits", "tiled_attention"]

FEWEST, MOST = 128, 4096  # tokens: with fewer the fused kernel is as fast, with more a tile's scores leave the cache


def fits(q_BTHD: Tensor, k_BTKD: Tensor, longest: int | None = None) -> bool:
    """Whether this is the faster way: whole texts in float32 on a CPU of Intel's, outside autocast. `longest`: the
    tokens of the longest text where rows hold several, for which there is no fused kernel."""
    return (
        q_BTHD.device.type == "cpu"
        and q_BTHD.dtype == torch.float32
        and q_BTHD.shape[1] == k_BTKD.shape[1]
        and (FEWEST <= q_BTHD.shape[1] <= MOST if longest is None else longest <= MOST)
        and q_BTHD.shape[3] % 16 == 0
        and q_BTHD.numel() > 0
        and tiled_loops() is not None
        and _threads_fit()
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def _shares() -> tuple[int, int] | None:
    """The addresses of both loops for PyTorch's threads, or None where they are not to be had."""
    there = tiled_loops() is not None and openmp() is not None
    return tiled_loops().shares(*thread_functions()) if there else None


def _threads_fit() -> bool:
    return torch.get_num_threads() == 1 or (few_threads() and _shares() is not None)


setattr(_threads_fit, "_dynamo_marked_constant", True)  # noqa: B010


def _run(back: bool, texts: npt.NDArray[np.int64], given: list[Tensor], scale: float, made: list[Tensor]) -> None:
    """The loop over all key heads of all texts; on two threads every other one each."""
    q, k = given[1:3] if back else given[:2]
    (N, H, D), K = q.shape, k.shape[1]
    shares = _shares() if torch.get_num_threads() > 1 and len(texts) * K > 1 else None
    if shares is None:
        loop = tiled_loops().backward if back else tiled_loops().forward
        loop(texts, *(x.numpy() for x in given), np.float32(scale), *(x.numpy() for x in made), 0, 1)
        return
    number = np.array([scale], np.float32)
    addresses = [texts.ctypes.data, number.ctypes.data, *(x.data_ptr() for x in (*given, *made))]
    data = np.array([len(texts), N, H, K, D, *addresses], np.int64)
    on_all_threads(shares[back], data)


def _rows(q: Tensor, texts_n2: Tensor | None) -> tuple[npt.NDArray[np.int64], Any]:
    """The texts, by default each row of q, and what makes room for what is known of them: of tokens in none, zeros."""
    B, T = q.shape[:2]
    if texts_n2 is None:
        return np.array([[b * T, T] for b in range(B)], np.int64), q.new_empty
    return np.ascontiguousarray(texts_n2.numpy(), np.int64), q.new_zeros


def _flat(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().flatten(0, 1).contiguous() for x in tensors]


def _forward(q: Tensor, k: Tensor, v: Tensor, texts_n2: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    texts, room = _rows(q, texts_n2)
    out, lse = room(q.shape), room(q.shape[:3])
    _run(False, texts, _flat(q, k, v), scale, _flat(out, lse))
    return out, lse


def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, texts_n2: Tensor | None, scale: float
) -> tuple[Tensor, ...]:
    texts, room = _rows(q, texts_n2)
    slopes = tuple(room(x.shape) for x in (q, k, v))
    _run(True, texts, _flat(dout, q, k, v, lse), scale, _flat(*slopes))
    return slopes


# Operations of their own, into which torch.compile does not look
@torch.library.custom_op("luthier::tiled_attention", mutates_args=())
def _closed(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _forward(q, k, v, None, scale)


@torch.library.custom_op("luthier::tiled_attention_backward", mutates_args=())
def _closed_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _backward(dout, q, k, v, lse, None, scale)
    return dq, dk, dv


@_closed.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3])


@_closed_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, texts_n2: Tensor | None, scale: float) -> Tensor:
        closed = torch.compiler.is_compiling()
        out, lse = _closed(q, k, v, scale) if closed else _forward(q, k, v, texts_n2, scale)
        ctx.save_for_backward(q, k, v, lse)
        ctx.texts_n2, ctx.scale = texts_n2, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        q, k, v, lse = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return *_closed_backward(gradients[0], q, k, v, lse, ctx.scale), None, None
        return *_backward(gradients[0], q, k, v, lse, ctx.texts_n2, ctx.scale), None, None


def tiled_attention(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, scale: float, texts_n2: Tensor | None = None
) -> Tensor:
    """Attention of each query over the keys up to its own place, [B, T, H, D]; first derivatives only.

    Within each row, or within each text of `texts_n2` int64: where it begins among the B·T tokens, and its length; what
    belongs to no text gets 0. torch.compile takes whole rows only.
    """
    if torch.compiler.is_compiling():  # which takes no function of one tensor twice
        k_BTKD, v_BTKD = k_BTKD.view_as(k_BTKD), v_BTKD.view_as(v_BTKD)
    return _Tiled.apply(q_BTHD, k_BTKD, v_BTKD, texts_n2, scale)  # pyright: ignore[reportReturnType]
