"""Causal attention on a CPU: bands of queries by plain products, so that the upper triangle is hardly ever made.

    keys ─────────────▶      out = softmax(scale · q kᵀ) v      of a band of R queries, over the keys up to its end
    q  ██ ·  ·  ·
    u  ██ ██ ·  ·            Of T² scores T(T + R)/2 are made. R is small against T, yet the heads that share a key head
    e  ██ ██ ██ ·            lie side by side in one product, so that it has G·R rows: enough for the library to be near
    ▼  ██ ██ ██ ██           its best.

A row of scores lies whole in the cache, so its softmax is PyTorch's, not an online one, and its gradient is PyTorch's:

    dv += pᵀ do,    dp = do vᵀ,    ds = p ⊙ (dp − Σ_keys dp ⊙ p),    dq = scale · ds k,    dk += scale · dsᵀ q

p is made again in the backward pass: one product of five, and nothing is kept but q, k and v.

PyTorch's fused attention (Dao 2022 on a CPU) holds fewer numbers at a time and pays for it at lengths like these where
its exponential is slow: on AMD's processors (processor.py). One core of an AMD EPYC, forward and backward, ms:

    2 × 512 tokens, H 8, K 4, D 64    here 32, fused 50        16 × 256, H 8, K 4, D 32    here 48, fused 56
    1 × 1024, H 8, K 4, D 64          here 59, fused 72        4 × 64, H 4, K 2, D 32      here 0.9, fused 0.6

Legend: B rows, T tokens, H heads, K key/value heads, G = H/K, D head_dim, R queries in a band; n rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from luthier.kernels.processor import amd_avx512

__all__ = ["causal_attention", "fits"]

FEWEST = 128  # tokens; with fewer the fused kernel is the faster one
SCORES = 2**19  # held at a time by each core, where one row of the batch allows it
slope: Any = torch.ops.aten._softmax_backward_data.out


def fits(q_BTHD: Tensor, k_BTKD: Tensor) -> bool:
    """Whether this is the faster way: whole texts in float32 on a CPU of AMD's, outside autocast."""
    return (
        amd_avx512()
        and q_BTHD.device.type == "cpu"
        and q_BTHD.dtype == torch.float32
        and q_BTHD.shape[1] == k_BTKD.shape[1] >= FEWEST
        and q_BTHD.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _rows(T: int) -> int:
    """Queries in a band: more of them where a call costs more than the triangle."""
    return 64 if T >= 1024 or torch.get_num_threads() > 1 else 32


def _bands(T: int) -> Iterator[slice]:
    R = _rows(T)
    return (slice(start, min(start + R, T)) for start in range(0, T, R))


def _shares(q_BTHD: Tensor) -> Iterator[slice]:
    """Rows of the batch that are worked on together."""
    B, T, H, _ = q_BTHD.shape
    n = max(1, SCORES * torch.get_num_threads() // (H * _rows(T) * T))
    return (slice(b, b + n) for b in range(0, B, n))


def _by_head(x: Tensor, K: int) -> Tensor:
    """x [n, R, H, D] as [n·K, G·R, D]: heads that share a key head one below the other."""
    n, R, H, D = x.shape
    return x.unflatten(2, (K, H // K)).permute(0, 2, 3, 1, 4).reshape(n * K, H // K * R, D)


def _put(out: Tensor, x: Tensor, K: int) -> None:
    """x [n·K, G·R, D] into out [n, R, H, D]."""
    n, R, H, D = out.shape
    out.unflatten(2, (K, H // K)).copy_(x.view(n, K, H // K, R, D).permute(0, 3, 1, 2, 4))


def _weights(q: Tensor, k: Tensor, start: int, scale: float) -> Tensor:
    """p [n·K, G·R, S]: how much each query of the band that begins at `start` looks at each key up to its end."""
    S = k.shape[1]
    p = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
    future = q.new_ones((S - start, S - start), dtype=torch.bool).triu_(1)
    p.view(len(p), -1, S - start, S)[..., start:].masked_fill_(future, -torch.inf)
    return torch.softmax(p, -1, out=p)


def _add(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """total += scale · aᵀ b. In place it is product after product, which is the faster way for one core alone."""
    if torch.get_num_threads() == 1:
        total.baddbmm_(a.mT, b, alpha=scale)
    else:
        total.add_(a.mT @ b, alpha=scale)


# Operations of their own, into which torch.compile does not look: PyTorch's softmax has the faster exponential
@torch.library.custom_op("luthier::causal_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    K, out = k.shape[2], q.new_empty(q.shape)
    for share in _shares(q):
        k_all, v_all = _by_head(k[share], K), _by_head(v[share], K)
        for band in _bands(q.shape[1]):
            p = _weights(_by_head(q[share, band], K), k_all[:, : band.stop], band.start, scale)
            _put(out[share, band], p @ v_all[:, : band.stop], K)
    return out


@torch.library.custom_op("luthier::causal_attention_backward", mutates_args=())
def _backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    K, (dq, dk, dv) = k.shape[2], (x.new_empty(x.shape) for x in (q, k, v))
    for share in _shares(q):
        k_all, v_all = _by_head(k[share], K), _by_head(v[share], K)
        dk_all, dv_all = torch.zeros_like(k_all), torch.zeros_like(v_all)
        for band in _bands(q.shape[1]):
            q_band, do, seen = _by_head(q[share, band], K), _by_head(dout[share, band], K), slice(band.stop)
            p = _weights(q_band, k_all[:, seen], band.start, scale)
            _add(dv_all[:, seen], p, do)
            ds = do @ v_all[:, seen].mT
            slope(ds, p, -1, ds.dtype, grad_input=ds)
            _add(dk_all[:, seen], ds, q_band, scale)
            _put(dq[share, band], ds @ k_all[:, seen], K)
        _put(dk[share], dk_all, K)
        _put(dv[share], dv_all, K)
    return dq.mul_(scale), dk, dv


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape)


@_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return _forward(q, k, v, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return *_backward(*gradients, *ctx.saved_tensors, ctx.scale), None


def causal_attention(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, scale: float) -> Tensor:
    """Attention of each query over the keys up to its own place, [B, T, H, D]; first derivatives only."""
    if torch.compiler.is_compiling():  # which takes no function of one tensor twice
        k_BTKD, v_BTKD = k_BTKD.view_as(k_BTKD), v_BTKD.view_as(v_BTKD)
    return _Causal.apply(q_BTHD, k_BTKD, v_BTKD, scale)  # pyright: ignore[reportReturnType]
