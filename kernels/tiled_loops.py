"""Causal attention of a CPU with AVX-512, in tiles of registers: loops in Python, compiled by Numba.

                       32 columns
    C [12, 32]  +=  Σ_k a_k [12] ⊗ b_k [32]          12 × 2 registers hold C; a step of k loads two registers of B, and
                                                     each number of A, spread over a register, meets both: 24 fused
                                                     multiply-adds for 14 loads

All seven products of attention are that one loop, `_product`, for A may stand any way in memory: P and Pᵀ are the same
numbers read by other strides. B is packed into panels of 32 columns beforehand, so that it streams from the cache.

Forward, for 12 queries and the n keys up to the last of them: S = (scale·q) kᵀ lies in the first-level cache, is turned
into P = softmax(S) there and multiplied with V. Nothing is online, nothing beyond the diagonal's tile is made.
Backward, for 24 queries: P again from the log-sum-exp that was kept, dP = do vᵀ, ds = P ⊙ (dP − Σ P ⊙ dP), then

    dq = scale·ds k,    dk += scale·dsᵀ q,    dv += Pᵀ do

dk and dv of a key head are added up over the queries of the heads that share it, so a key head of a text is one task,
and tasks can be split among threads without a change of a bit. Exponentials are powers of two, as in
attention.py.

Legend: N tokens in all, H heads, K key/value heads, G = H/K, D head_dim, a multiple of 32; `texts` [n, 2], where each
text begins and its length, the longest T; n keys that a tile sees, `end` the next multiple of 64. All other arrays
contiguous float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

__all__ = ["backward", "forward", "shares"]

f = np.float32
ROWS, WIDE, REGISTER = 12, 32, 16
BACK = 2 * ROWS  # queries at a time in the backward pass, where they are the short side of a product
PANEL = 4 * WIDE  # bytes of a line of a panel
LOG2E, LN2 = f(1.4426950408889634), f(0.6931471805599453)
ROUNDS, LOWEST, HIDDEN, ZERO, ONE = f(1.5 * 2**23), f(-126), f(-3.4028235e38), f(0), f(1)
# 2^r for |r| ≤ 1/2 (Moshier's Cephes, exp2f)
E1, E2, E3 = f(6.931472028550421e-1), f(2.402264791363012e-1), f(5.550332471162809e-2)
E4, E5, E6 = f(9.618437357674640e-3), f(1.339887440266574e-3), f(1.535336188319500e-4)

plain: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
sums: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})


# ---------------------------------------------------------------- in LLVM's own words


class _Words:
    """What the functions below say to LLVM: addresses in bytes, registers of 16 numbers."""

    def __init__(self, builder: Any) -> None:
        from llvmlite import ir

        self.ir, self.to = ir, builder
        self.whole, self.number = ir.IntType(64), ir.FloatType()
        self.register = ir.VectorType(self.number, REGISTER)

    def fixed(self, n: int) -> Any:
        return self.ir.Constant(self.whole, n)

    def at(self, address: Any, kind: Any) -> Any:
        return self.to.inttoptr(address, kind.as_pointer())

    def load(self, address: Any, kind: Any) -> Any:
        loaded = self.to.load(self.at(address, kind))
        loaded.align = 4
        return loaded

    def spread(self, number: Any) -> Any:
        """A number in all places of a register."""
        ir, void = self.ir, self.ir.Constant(self.register, self.ir.Undefined)
        first = self.to.insert_element(void, number, ir.Constant(ir.IntType(32), 0))
        same = ir.Constant(ir.VectorType(ir.IntType(32), REGISTER), [0] * REGISTER)
        return self.to.shuffle_vector(first, void, same)

    def function(self, name: str, result: Any, arguments: list[Any]) -> Any:
        return cgutils.get_or_insert_function(self.to.module, self.ir.FunctionType(result, arguments), name)

    def loop(self, count: Any, step: int, starts: list[Any], body: Any) -> list[Any]:
        """`body(i, values)` → their next values, for i = 0, step, … below count (at least once); the last values."""
        before, here = self.to.block, self.to.append_basic_block("loop")
        after = self.to.append_basic_block("after")
        self.to.branch(here)
        self.to.position_at_end(here)
        i, values = self.to.phi(self.whole), [self.to.phi(start.type) for start in starts]
        following = body(i, values)
        up = self.to.add(i, self.fixed(step))
        for value, start, then in zip([i, *values], [self.fixed(0), *starts], [up, *following], strict=True):
            value.add_incoming(start, before)
            value.add_incoming(then, here)
        self.to.cbranch(self.to.icmp_signed("<", up, count), here, after)
        self.to.position_at_end(after)
        return following


def _product_code(add: bool) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        a, a_row, a_k, b, b_k, c, c_row, count = args
        fma = say.function("llvm.fma.v16f32", say.register, [say.register] * 3)
        twice = builder.add(a_row, a_row)
        thirds = [builder.add(a, builder.mul(a_row, say.fixed(r))) for r in range(0, ROWS, 3)]
        zeros = [say.ir.Constant(say.register, [0.0] * REGISTER)] * (2 * ROWS)

        def step(_: Any, values: list[Any]) -> list[Any]:
            line, *rest = values
            at, total = rest[: len(thirds)], rest[len(thirds) :]
            both = [say.load(builder.add(line, say.fixed(4 * REGISTER * w)), say.register) for w in range(2)]
            for r in range(ROWS):  # three rows from each address: x86 adds a register, or twice one, for nothing
                place = at[r // 3] if r % 3 == 0 else builder.add(at[r // 3], a_row if r % 3 == 1 else twice)
                spread = say.spread(say.load(place, say.number))
                for w in range(2):
                    total[2 * r + w] = builder.call(fma, [spread, both[w], total[2 * r + w]])
            return [builder.add(line, b_k), *(builder.add(x, a_k) for x in at), *total]

        total = say.loop(count, 1, [b, *thirds, *zeros], step)[1 + len(thirds) :]
        for n, value in enumerate(total):
            to = builder.add(builder.add(c, builder.mul(c_row, say.fixed(n // 2))), say.fixed(4 * REGISTER * (n % 2)))
            if add:
                value = builder.fadd(value, say.load(to, say.register))
            builder.store(value, say.at(to, say.register)).align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), code


@intrinsic
def _set_intrinsic(typing: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, c: Any, c_row: Any, count: Any) -> Any:
    """C = Σ_k a_k ⊗ b_k: addresses, and bytes from a row and a step to the next."""
    return _product_code(add=False)


@intrinsic
def _add_intrinsic(typing: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, c: Any, c_row: Any, count: Any) -> Any:
    """The same, added to what C holds at the end: a sum of few long sums is the more exact one."""
    return _product_code(add=True)


@intrinsic
def _top_intrinsic(typing: Any, address: Any, end: Any) -> Any:
    """The largest of `end` numbers, a multiple of 32, or HIDDEN; Numba's own loop takes them one by one."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def step(i: Any, tops: list[Any]) -> list[Any]:
            line = builder.add(args[0], builder.mul(i, say.fixed(4)))
            places = [builder.add(line, say.fixed(4 * REGISTER * w)) for w in range(2)]
            return [larger(t, say.load(place, say.register)) for t, place in zip(tops, places, strict=True)]

        low = say.ir.Constant(say.register, [float(HIDDEN)] * REGISTER)
        tops = say.loop(args[1], WIDE, [low, low], step)
        largest = say.function("llvm.vector.reduce.fmax.v16f32", say.number, [say.register])
        return builder.call(largest, [larger(*tops)])

    return types.float32(types.int64, types.int64), code


@intrinsic
def _power_intrinsic(typing: Any, rounded: Any) -> Any:
    """2ⁿ, where `rounded` is n + 1.5·2²³ (row_loops.py)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from llvmlite import ir

        whole = ir.IntType(32)
        exponent = builder.add(builder.bitcast(args[0], whole), ir.Constant(whole, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(whole, 23)), ir.FloatType())

    return types.float32(types.float32), code


_product: Any = _set_intrinsic
_add_product: Any = _add_intrinsic
_top: Any = _top_intrinsic
_power: Any = _power_intrinsic


# ---------------------------------------------------------------- a row of scores


@plain
def _exp2(x):
    """2^x for x ≤ 0."""
    x = LOWEST if x < LOWEST else x  # in this order what is not a number stays so
    rounded = x + ROUNDS
    r = x - (rounded - ROUNDS)
    return (((((E6 * r + E5) * r + E4) * r + E3) * r + E2) * r + E1) * r * _power(rounded) + _power(rounded)


@plain
def _fill(p, i, begin, end, value):
    for j in range(begin, end):
        p[i, j] = value


@sums
def _weights(p, i, end, top):
    """e^(s − top) in place, and their sum."""
    total = ZERO
    for j in range(end):
        e = _exp2(p[i, j] - top)
        p[i, j] = e
        total += e
    return total


@plain
def _again(p, i, end, lse):
    for j in range(end):
        p[i, j] = _exp2(p[i, j] - lse)


@sums
def _dot(p, dp, i, end):
    total = ZERO
    for j in range(end):
        total += p[i, j] * dp[i, j]
    return total


@plain
def _slopes(p, dp, i, end, delta):
    for j in range(end):
        dp[i, j] = p[i, j] * (dp[i, j] - delta)


# ---------------------------------------------------------------- packing


@plain
def _lines(x, begin, length, kv, out):
    """A text's tokens of head kv as panels of 32 components: [D/32, T, 32]."""
    for s in range(length):
        for w in range(len(out)):
            for d in range(WIDE):
                out[w, s, d] = x[begin + s, kv, WIDE * w + d]


@plain
def _turned(x, begin, length, kv, out):
    """The same turned, as panels of 32 tokens: [T/32, D, 32]."""
    for s in range(length):
        for d in range(x.shape[2]):
            out[s // WIDE, d, s % WIDE] = x[begin + s, kv, d]


@plain
def _queries(x, begin, h, rows, factor, out):
    """factor·x[begin:begin + rows, h] [rows, D]; zeros below."""
    for i in range(len(out)):
        for d in range(out.shape[1]):
            out[i, d] = x[begin + i, h, d] * factor if i < rows else ZERO


@plain
def _longest(texts):
    longest = 0
    for i in range(len(texts)):
        longest = max(longest, texts[i, 1])
    return longest


# ---------------------------------------------------------------- the loops


@plain
def forward(texts, q, k, v, scale, out, lse, first, step):
    """out [N, H, D] and lse [N, H], in powers of two, of the tasks first, first + step, … of all texts' key heads."""
    (_, H, D), K, T = q.shape, k.shape[1], _longest(texts)
    wide = 4 * ((T + 63) // 64 * 64 + REGISTER)  # bytes of a row of scores; no power of two, which would share lines
    keys, values = np.zeros(((T + 31) // 32, D, WIDE), f), np.zeros((D // WIDE, T, WIDE), f)
    p, some, sums_ = np.zeros((ROWS, wide // 4), f), np.zeros((ROWS, D), f), np.zeros(ROWS, f)
    made = np.zeros((ROWS, D), f)
    at_k, at_v, at_p, at_q, at_o = (
        keys.ctypes.data,
        values.ctypes.data,
        p.ctypes.data,
        some.ctypes.data,
        made.ctypes.data,
    )
    for task in range(first, len(texts) * K, step):
        (begin, length), kv = texts[task // K], task % K
        _turned(k, begin, length, kv, keys)
        _lines(v, begin, length, kv, values)
        for h in range(kv * (H // K), (kv + 1) * (H // K)):
            for start in range(0, length, ROWS):
                rows = min(ROWS, length - start)
                n = start + rows
                end = (n + 63) // 64 * 64
                _queries(q, begin + start, h, rows, scale * LOG2E, some)
                for j in range(0, n, WIDE):
                    _product(at_q, 4 * D, 4, at_k + 4 * j * D, PANEL, at_p + 4 * j, wide, D)
                for i in range(rows):
                    _fill(p, i, start + i + 1, end, HIDDEN)
                    top = _top(at_p + i * wide, end)
                    sums_[i] = _weights(p, i, end, top)
                    _fill(p, i, start + i + 1, end, ZERO)
                    lse[begin + start + i, h] = top + np.log2(sums_[i])
                for w in range(0, D, WIDE):
                    _product(at_p, wide, 4, at_v + 4 * w * T, PANEL, at_o + 4 * w, 4 * D, n)
                for i in range(rows):
                    part = ONE / sums_[i]
                    for d in range(D):
                        out[begin + start + i, h, d] = made[i, d] * part


@plain
def backward(texts, dout, q, k, v, lse, scale, dq, dk, dv, first, step):
    """The gradients of q, k and v of the same tasks."""
    (_, H, D), K, T = q.shape, k.shape[1], _longest(texts)
    wide = 4 * ((T + 63) // 64 * 64 + REGISTER)
    keys_T, values_T = np.zeros(((T + 31) // 32, D, WIDE), f), np.zeros(((T + 31) // 32, D, WIDE), f)
    keys = np.zeros((D // WIDE, T, WIDE), f)
    p, dp = np.zeros((BACK, wide // 4), f), np.zeros((BACK, wide // 4), f)
    some, do, made = np.zeros((BACK, D), f), np.zeros((BACK, D), f), np.zeros((BACK, D), f)
    sum_k, sum_v = np.zeros((T + ROWS, D), f), np.zeros((T + ROWS, D), f)
    at_kT, at_vT, at_k = keys_T.ctypes.data, values_T.ctypes.data, keys.ctypes.data
    at_p, at_dp, at_q, at_do, at_o = p.ctypes.data, dp.ctypes.data, some.ctypes.data, do.ctypes.data, made.ctypes.data
    at_sk, at_sv, line = sum_k.ctypes.data, sum_v.ctypes.data, 4 * D
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
                end = (n + 63) // 64 * 64
                far = max(end, (n + ROWS - 1) // ROWS * ROWS)  # what the tiles of twelve keys read
                _queries(q, begin + start, h, rows, scale * LOG2E, some)
                _queries(dout, begin + start, h, rows, ONE, do)
                for g in range(0, BACK, ROWS):
                    for j in range(0, n, WIDE):
                        to = g * wide + 4 * j
                        _product(at_q + g * line, line, 4, at_kT + 4 * j * D, PANEL, at_p + to, wide, D)
                        _product(at_do + g * line, line, 4, at_vT + 4 * j * D, PANEL, at_dp + to, wide, D)
                for i in range(BACK):
                    seen = 0
                    if i < rows:
                        seen = start + i + 1
                        _again(p, i, end, lse[begin + start + i, h])
                    _fill(p, i, seen, far, ZERO)
                    _fill(dp, i, seen, far, ZERO)
                    _slopes(p, dp, i, end, _dot(p, dp, i, end))
                for w in range(0, D, WIDE):
                    for j in range(0, n, ROWS):
                        to = j * line + 4 * w
                        _add_product(at_p + 4 * j, 4, wide, at_do + 4 * w, line, at_sv + to, line, BACK)
                        _add_product(at_dp + 4 * j, 4, wide, at_q + 4 * w, line, at_sk + to, line, BACK)
                    for g in range(0, BACK, ROWS):
                        to = g * line + 4 * w
                        _product(at_dp + g * wide, wide, 4, at_k + 4 * w * T, PANEL, at_o + to, line, n)
                for i in range(rows):
                    for d in range(D):
                        dq[begin + start + i, h, d] = made[i, d] * scale
        for s in range(length):
            for d in range(D):
                dk[begin + s, kv, d] = sum_k[s, d] * LN2  # the queries were multiplied by scale·log₂ e
                dv[begin + s, kv, d] = sum_v[s, d]


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
