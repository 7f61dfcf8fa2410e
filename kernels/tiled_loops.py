"""Causal attention of a CPU with AVX-512, in tiles of registers: loops in Python, compiled by Numba.

                       32 columns
    C [12, 32]  +=  Σ_k a_k [12] ⊗ b_k [32]          12 × 2 registers hold C; a step of k loads two registers of B, and
                                                     each number of A, spread over a register, meets both: 24 fused
                                                     multiply-adds for 14 loads

All seven products of attention are that one loop (registers.py), for A may stand any way in memory: P and Pᵀ are the
same numbers read by other strides. B is packed into panels of 32 columns beforehand, so that it streams from the cache.

Forward, for 12 queries and the n keys up to the last of them: S = (scale·q) kᵀ lies in the first-level cache, is turned
into P = softmax(S) there and multiplied with V. Nothing is online, nothing beyond the diagonal's tile is made.
Backward, for 24 queries: P again from the log-sum-exp that was kept, dP = do vᵀ, ds = P ⊙ (dP − Σ P ⊙ dP), then

    dq = scale·ds k,    dk += scale·dsᵀ q,    dv += Pᵀ do

dk and dv of a key head are added up over the queries of the heads that share it, so a key head of a text is one task,
and tasks can be split among threads without a change of a bit. Exponentials are powers of two, as in
attention.py.

Legend: N tokens in all, H heads, K key/value heads, G = H/K, D head_dim, a multiple of 16 (`full`: the next one of 32);
`texts` [n, 2], where each text begins and its length, the longest T; n keys that a tile sees, `end` the next multiple
of 32. All other arrays contiguous float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from luthier.kernels.registers import (
    REGISTER,
    ROWS,
    WIDE,
    add_product,
    again,
    product,
    scaled,
    slopes,
    top,
    turned,
    weights,
)

__all__ = ["backward", "forward", "shares"]

f = np.float32
BACK = 2 * ROWS  # queries at a time in the backward pass, where they are the short side of a product
PANEL = 4 * WIDE  # bytes of a line of a panel
LOG2E, LN2 = f(1.4426950408889634), f(0.6931471805599453)
ZERO, ONE = f(0), f(1)

plain: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


# ---------------------------------------------------------------- packing


@plain
def _at(x, token, head):
    """The address of a token's row [D] of x [N, H, D]."""
    return x.ctypes.data + (token * x.shape[1] + head) * x.shape[2] * 4


@plain
def _lines(x, begin, length, kv, out):
    """A text's tokens of head kv as panels of 32 components: [D/32, T, 32]; what a last half leaves is not written."""
    for s in range(length):
        for w in range(len(out)):
            scaled(_at(x, begin + s, kv) + w * PANEL, _at(out, w, s), min(WIDE, x.shape[2] - w * WIDE), ONE)


@plain
def _turned(x, begin, length, kv, out):
    """The same turned, as panels of 32 tokens: [T/32, D, 32]."""
    _, K, D = x.shape
    for s in range(0, length, REGISTER):
        for d in range(0, D, REGISTER):
            to = _at(out, s // WIDE, d) + s % WIDE * 4
            turned(_at(x, begin + s, kv) + d * 4, K * D * 4, length - s, to, PANEL)


@plain
def _queries(x, begin, h, rows, factor, out):
    """factor·x[begin:begin + rows, h] [rows, D]; zeros below."""
    for i in range(rows):
        scaled(_at(x, begin + i, h), out.ctypes.data + i * out.shape[1] * 4, x.shape[2], factor)
    out[rows:] = ZERO


@plain
def _held(arrays):
    """Keeps arrays alive until here: their addresses alone do not."""
    return len(arrays)


@plain
def _longest(texts):
    longest = 0
    for i in range(len(texts)):
        longest = max(longest, texts[i, 1])
    return longest


@plain
def _widths(T, D):
    """Numbers of a row of whole panels, and bytes of a row of scores: no power of two, for such rows share lines."""
    return (D + WIDE - 1) // WIDE * WIDE, 4 * ((T + ROWS + WIDE - 1) // WIDE * WIDE + REGISTER)


# ---------------------------------------------------------------- the loops


@plain
def forward(texts, q, k, v, scale, out, lse, first, step):
    """out [N, H, D] and lse [N, H], in powers of two, of the tasks first, first + step, … of all texts' key heads."""
    (_, H, D), K, T = q.shape, k.shape[1], _longest(texts)
    full, wide = _widths(T, D)
    keys, values = np.zeros(((T + 31) // 32, D, WIDE), f), np.zeros((full // WIDE, T, WIDE), f)
    p, some, made = np.zeros((ROWS, wide // 4), f), np.zeros((ROWS, full), f), np.zeros((ROWS, full), f)
    total, line = np.zeros(ROWS, f), 4 * full
    at_k, at_v, at_p = keys.ctypes.data, values.ctypes.data, p.ctypes.data
    at_q, at_o = some.ctypes.data, made.ctypes.data
    for task in range(first, len(texts) * K, step):
        (begin, length), kv = texts[task // K], task % K
        _turned(k, begin, length, kv, keys)
        _lines(v, begin, length, kv, values)
        for h in range(kv * (H // K), (kv + 1) * (H // K)):
            for start in range(0, length, ROWS):
                rows = min(ROWS, length - start)
                n = start + rows
                end = (n + 31) // 32 * 32
                _queries(q, begin + start, h, rows, scale * LOG2E, some)
                for j in range(0, n, WIDE):
                    product(at_q, line, 4, at_k + 4 * j * D, PANEL, at_p + 4 * j, wide, D)
                for i in range(rows):
                    row, seen = at_p + i * wide, start + i + 1
                    largest = top(row, seen)
                    total[i] = weights(row, seen, end, largest)
                    lse[begin + start + i, h] = largest + np.log2(total[i])
                for w in range(0, full, WIDE):
                    product(at_p, wide, 4, at_v + 4 * w * T, PANEL, at_o + 4 * w, line, n)
                for i in range(rows):
                    scaled(at_o + i * line, _at(out, begin + start + i, h), D, ONE / total[i])
    _held((p, some, made))


@plain
def backward(texts, dout, q, k, v, lse, scale, dq, dk, dv, first, step):
    """The gradients of q, k and v of the same tasks."""
    (_, H, D), K, T = q.shape, k.shape[1], _longest(texts)
    full, wide = _widths(T, D)
    keys_T, values_T = np.zeros(((T + 31) // 32, D, WIDE), f), np.zeros(((T + 31) // 32, D, WIDE), f)
    keys = np.zeros((full // WIDE, T, WIDE), f)
    p, dp = np.zeros((BACK, wide // 4), f), np.zeros((BACK, wide // 4), f)
    some, do, made = np.zeros((BACK, full), f), np.zeros((BACK, full), f), np.zeros((BACK, full), f)
    sum_k, sum_v = np.zeros((T + ROWS, full), f), np.zeros((T + ROWS, full), f)
    at_kT, at_vT, at_k = keys_T.ctypes.data, values_T.ctypes.data, keys.ctypes.data
    at_p, at_dp, at_q, at_do, at_o = p.ctypes.data, dp.ctypes.data, some.ctypes.data, do.ctypes.data, made.ctypes.data
    at_sk, at_sv, line = sum_k.ctypes.data, sum_v.ctypes.data, 4 * full
    for task in range(first, len(texts) * K, step):
        (begin, length), kv = texts[task // K], task % K
        _turned(k, begin, length, kv, keys_T)
        _turned(v, begin, length, kv, values_T)
        _lines(k, begin, length, kv, keys)
        sum_k[: length + ROWS] = ZERO
        sum_v[: length + ROWS] = ZERO
        for h in range(kv * (H // K), (kv + 1) * (H // K)):
            for start in range(0, length, BACK):
                rows = min(BACK, length - start)
                n = start + rows
                end = ((n + ROWS - 1) // ROWS * ROWS + 31) // 32 * 32  # the tiles of twelve keys read so far
                _queries(q, begin + start, h, rows, scale * LOG2E, some)
                _queries(dout, begin + start, h, rows, ONE, do)
                for g in range(0, BACK, ROWS):
                    for j in range(0, n, WIDE):
                        to = g * wide + 4 * j
                        product(at_q + g * line, line, 4, at_kT + 4 * j * D, PANEL, at_p + to, wide, D)
                        product(at_do + g * line, line, 4, at_vT + 4 * j * D, PANEL, at_dp + to, wide, D)
                for i in range(BACK):
                    seen, number = (start + i + 1, lse[begin + start + i, h]) if i < rows else (0, ZERO)
                    row, other = at_p + i * wide, at_dp + i * wide
                    slopes(row, other, seen, end, again(row, other, seen, end, number))
                for w in range(0, full, WIDE):
                    for j in range(0, n, ROWS):
                        to = j * line + 4 * w
                        add_product(at_p + 4 * j, 4, wide, at_do + 4 * w, line, at_sv + to, line, BACK)
                        add_product(at_dp + 4 * j, 4, wide, at_q + 4 * w, line, at_sk + to, line, BACK)
                    for g in range(0, BACK, ROWS):
                        to = g * line + 4 * w
                        product(at_dp + g * wide, wide, 4, at_k + 4 * w * T, PANEL, at_o + to, line, n)
                for i in range(rows):
                    scaled(at_o + i * line, _at(dq, begin + start + i, h), D, scale)
        for s in range(length):
            scaled(at_sk + s * line, _at(dk, begin + s, kv), D, LN2)  # the queries were multiplied by scale·log₂ e
            scaled(at_sv + s * line, _at(dv, begin + s, kv), D, ONE)
    _held((p, dp, some, do, made))


# ---------------------------------------------------------------- a thread's share, as OpenMP calls it


@intrinsic
def _memory_intrinsic(typing: Any, address: Any) -> Any:
    """An address as what `carray` takes."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), code


_memory: Any = _memory_intrinsic
_thread: Any = types.ExternalFunction("omp_get_thread_num", types.int32())
_threads: Any = types.ExternalFunction("omp_get_num_threads", types.int32())  # one, where no second is to be had


def _forward_share(data):
    """`data`: texts, N, H, K, D and the addresses of the texts, scale, q, k, v, out, lse."""
    x = carray(data, (12,), np.int64)
    n, N, H, K, D = x[0], x[1], x[2], x[3], x[4]
    texts, scale = carray(_memory(x[5]), (n, 2), np.int64), carray(_memory(x[6]), (1,), f)[0]
    q, out = carray(_memory(x[7]), (N, H, D), f), carray(_memory(x[10]), (N, H, D), f)
    k, v = carray(_memory(x[8]), (N, K, D), f), carray(_memory(x[9]), (N, K, D), f)
    forward(texts, q, k, v, scale, out, carray(_memory(x[11]), (N, H), f), _thread(), _threads())


def _backward_share(data):
    """The same with texts, scale, dout, q, k, v, lse, dq, dk, dv."""
    x = carray(data, (15,), np.int64)
    n, N, H, K, D = x[0], x[1], x[2], x[3], x[4]
    texts, scale = carray(_memory(x[5]), (n, 2), np.int64), carray(_memory(x[6]), (1,), f)[0]
    dout, q = carray(_memory(x[7]), (N, H, D), f), carray(_memory(x[8]), (N, H, D), f)
    k, v = carray(_memory(x[9]), (N, K, D), f), carray(_memory(x[10]), (N, K, D), f)
    lse, dq = carray(_memory(x[11]), (N, H), f), carray(_memory(x[12]), (N, H, D), f)
    dk, dv = carray(_memory(x[13]), (N, K, D), f), carray(_memory(x[14]), (N, K, D), f)
    backward(texts, dout, q, k, v, lse, scale, dq, dk, dv, _thread(), _threads())


def shares(thread_number: int, thread_count: int) -> tuple[int, int]:
    """The addresses of `forward` and `backward` for the threads of the OpenMP whose omp_get_thread_num and
    omp_get_num_threads stand there."""
    from llvmlite import binding

    binding.add_symbol("omp_get_thread_num", thread_number)
    binding.add_symbol("omp_get_num_threads", thread_count)
    made: list[Any] = [cfunc(types.void(types.voidptr), cache=True)(one) for one in (_forward_share, _backward_share)]
    _kept.extend(made)  # the code lives as long as they do
    return made[0].address, made[1].address


_kept: list[Any] = []
