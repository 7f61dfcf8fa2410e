"""Causal attention of a CPU with AVX-512, in tiles of registers: loops in Python, compiled by Numba.

                       32 columns
    C [12, 32]  +=  Σ_k a_k [12] ⊗ b_k [32]          12 × 2 registers hold C; a step of k loads two registers of B, and
                                                     each number of A, spread over a register, meets both: 24 fused
                                                     multiply-adds for 14 loads

All seven products of attention are that one loop, `_product`, for A may stand any way in memory: P and Pᵀ are the
same numbers read by other strides. B is packed into panels of 32 columns beforehand, so that it streams from the cache.

Forward, for 12 queries and the n keys up to the last of them: S = (scale·q) kᵀ lies in the first-level cache, is turned
into P = softmax(S) there and multiplied with V. Nothing is online, nothing beyond the diagonal's tile is made.
Backward, for 24 queries: P again from the log-sum-exp that was kept, dP = do vᵀ, ds = P ⊙ (dP − Σ P ⊙ dP), then

    dq = scale·ds k,    dk += scale·dsᵀ q,    dv += Pᵀ do

dk and dv of a key head are added up over the queries of the heads that share it, so a key head of a text is one task,
and tasks can be split among threads without a change of a bit.

Exponentials are powers of two, as in attention.py. To add 1.5·2²³ to a float32 rounds it to a whole number n, which
then stands in its lowest bits, so 2ⁿ is a shift of them into the exponent, and 2^r for |r| ≤ ½ a polynomial (Moshier's
Cephes, exp2f).

All of it is in one file, because Numba compiles anew what it kept only where a function's own file has changed.

Legend: N tokens in all, H heads, K key/value heads, G = H/K, D head_dim, a multiple of 16 (`full`: the next one of 32);
`texts` [n, 2], where each text begins and its length, the longest T; n keys that a tile sees, `end` the next multiple
of 32. All other arrays contiguous float32.
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
E1, E2, E3 = f(6.931472028550421e-1), f(2.402264791363012e-1), f(5.550332471162809e-2)
E4, E5, E6 = f(9.618437357674640e-3), f(1.339887440266574e-3), f(1.535336188319500e-4)

plain: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})


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

    def store(self, value: Any, address: Any) -> None:
        self.to.store(value, self.at(address, self.register)).align = 4

    def same(self, x: float, kind: Any = None) -> Any:
        """A constant in all places of a register."""
        kind = kind or self.register
        return self.ir.Constant(kind, [x] * REGISTER)

    def part(self, row: Any, i: Any, w: int) -> Any:
        """The address of 16 numbers of a row, from number i + 16 w on."""
        return self.to.add(row, self.to.mul(self.to.add(i, self.fixed(REGISTER * w)), self.fixed(4)))

    def before(self, i: Any, w: int, seen: Any) -> Any:
        """Which of the same 16 places come before `seen`."""
        ir = self.ir
        whole = ir.VectorType(ir.IntType(32), REGISTER)
        left = self.to.trunc(self.to.sub(seen, i), ir.IntType(32))
        void = ir.Constant(whole, ir.Undefined)
        first = self.to.insert_element(void, left, ir.Constant(ir.IntType(32), 0))
        left = self.to.shuffle_vector(first, void, ir.Constant(whole, [0] * REGISTER))
        return self.to.icmp_signed(">", left, ir.Constant(whole, list(range(REGISTER * w, REGISTER * (w + 1)))))

    def mixed(self, a: Any, b: Any, places: list[int]) -> Any:
        """Numbers of two registers: 0 … 15 are the first one's."""
        whole = self.ir.VectorType(self.ir.IntType(32), REGISTER)
        return self.to.shuffle_vector(a, b, self.ir.Constant(whole, places))

    def larger(self, a: Any, b: Any) -> Any:
        return self.to.select(self.to.fcmp_ordered(">", a, b), a, b)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.to.call(self.function("llvm.fma.v16f32", self.register, [self.register] * 3), [a, b, c])

    def sum(self, a: Any, b: Any) -> Any:
        """Of all numbers of two registers, in an order of LLVM's."""
        add = self.function("llvm.vector.reduce.fadd.v16f32", self.number, [self.number, self.register])
        return self.to.call(add, [self.ir.Constant(self.number, -0.0), self.to.fadd(a, b)], fastmath=["reassoc"])

    def exp2(self, x: Any) -> Any:
        """2^x for x ≤ 0."""
        whole, low = self.ir.VectorType(self.ir.IntType(32), REGISTER), self.same(float(LOWEST))
        x = self.to.select(self.to.fcmp_ordered("<", x, low), low, x)  # in this order what is not a number stays so
        rounded = self.to.fadd(x, self.same(float(ROUNDS)))
        r = self.to.fsub(x, self.to.fsub(rounded, self.same(float(ROUNDS))))
        exponent = self.to.add(self.to.bitcast(rounded, whole), self.same(127, whole))
        power = self.to.bitcast(self.to.shl(exponent, self.same(23, whole)), self.register)
        value = self.same(float(E6))
        for factor in (E5, E4, E3, E2, E1, ONE):
            value = self.fma(value, r, self.same(float(factor)))
        return self.to.fmul(value, power)

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
        twice = builder.add(a_row, a_row)
        thirds = [builder.add(a, builder.mul(a_row, say.fixed(r))) for r in range(0, ROWS, 3)]
        zeros = [say.same(0.0)] * (2 * ROWS)

        def step(_: Any, values: list[Any]) -> list[Any]:
            line, *rest = values
            at, total = rest[: len(thirds)], rest[len(thirds) :]
            both = [say.load(builder.add(line, say.fixed(4 * REGISTER * w)), say.register) for w in range(2)]
            for r in range(ROWS):  # three rows from each address: x86 adds a register, or twice one, for nothing
                place = at[r // 3] if r % 3 == 0 else builder.add(at[r // 3], a_row if r % 3 == 1 else twice)
                spread = say.spread(say.load(place, say.number))
                for w in range(2):
                    total[2 * r + w] = say.fma(spread, both[w], total[2 * r + w])
            return [builder.add(line, b_k), *(builder.add(x, a_k) for x in at), *total]

        total = say.loop(count, 1, [b, *thirds, *zeros], step)[1 + len(thirds) :]
        for n, value in enumerate(total):
            to = builder.add(builder.add(c, builder.mul(c_row, say.fixed(n // 2))), say.fixed(4 * REGISTER * (n % 2)))
            if add:
                value = builder.fadd(value, say.load(to, say.register))
            say.store(value, to)
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
def _top_intrinsic(typing: Any, row: Any, seen: Any) -> Any:
    """The largest of the first numbers of a row, of which there is one at least."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        row, seen = args
        low = say.same(float(HIDDEN))

        def step(i: Any, tops: list[Any]) -> list[Any]:
            values = [
                builder.select(say.before(i, w, seen), say.load(say.part(row, i, w), say.register), low)
                for w in range(2)
            ]
            return [say.larger(top, value) for top, value in zip(tops, values, strict=True)]

        tops = say.loop(seen, WIDE, [low, low], step)
        largest = say.function("llvm.vector.reduce.fmax.v16f32", say.number, [say.register])
        return builder.call(largest, [say.larger(*tops)])

    return types.float32(types.int64, types.int64), code


@intrinsic
def _weights_intrinsic(typing: Any, row: Any, seen: Any, end: Any, top: Any) -> Any:
    """2^(s − top) in place of the scores that are seen, 0 in place of those up to `end`, and the sum."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        row, seen, end, top = args
        top, none = say.spread(top), say.same(0.0)

        def step(i: Any, totals: list[Any]) -> list[Any]:
            following = []
            for w, total in enumerate(totals):
                place = say.part(row, i, w)
                e = say.exp2(builder.fsub(say.load(place, say.register), top))
                e = builder.select(say.before(i, w, seen), e, none)
                say.store(e, place)
                following.append(builder.fadd(total, e))
            return following

        return say.sum(*say.loop(end, WIDE, [none, none], step))

    return types.float32(types.int64, types.int64, types.int64, types.float32), code


@intrinsic
def _again_intrinsic(typing: Any, row: Any, other: Any, seen: Any, end: Any, lse: Any) -> Any:
    """P in place of a row's scores as in `_weights`, and Σ P ⊙ dP, dP being the other row."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        row, other, seen, end, lse = args
        lse, none = say.spread(lse), say.same(0.0)

        def step(i: Any, totals: list[Any]) -> list[Any]:
            following = []
            for w, total in enumerate(totals):
                place, inside = say.part(row, i, w), say.before(i, w, seen)
                e = builder.select(inside, say.exp2(builder.fsub(say.load(place, say.register), lse)), none)
                say.store(e, place)
                d = builder.select(inside, say.load(say.part(other, i, w), say.register), none)
                following.append(say.fma(e, d, total))
            return following

        return say.sum(*say.loop(end, WIDE, [none, none], step))

    return types.float32(types.int64, types.int64, types.int64, types.int64, types.float32), code


@intrinsic
def _slopes_intrinsic(typing: Any, row: Any, other: Any, seen: Any, end: Any, delta: Any) -> Any:
    """P ⊙ (dP − delta) in place of dP."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        row, other, seen, end, delta = args
        delta, none = say.spread(delta), say.same(0.0)

        def step(i: Any, _: list[Any]) -> list[Any]:
            for w in range(2):
                place = say.part(other, i, w)
                d = builder.fsub(say.load(place, say.register), delta)
                d = builder.fmul(say.load(say.part(row, i, w), say.register), d)
                say.store(builder.select(say.before(i, w, seen), d, none), place)
            return []

        say.loop(end, WIDE, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.float32), code


@intrinsic
def _scaled_intrinsic(typing: Any, source: Any, to: Any, count: Any, factor: Any) -> Any:
    """`count` numbers, a multiple of 16, times a factor."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        source, to, count, factor = args
        factor = say.spread(factor)

        def step(i: Any, _: list[Any]) -> list[Any]:
            say.store(builder.fmul(say.load(say.part(source, i, 0), say.register), factor), say.part(to, i, 0))
            return []

        say.loop(count, REGISTER, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), code


@intrinsic
def _turned_intrinsic(typing: Any, source: Any, row: Any, rows: Any, to: Any, line: Any) -> Any:
    """16 × 16 numbers turned: the rows of `source`, `row` bytes apart, become columns of `to`, whose lines are `line`
    bytes apart. Of fewer than 16 rows the last is read again."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        source, row, rows, to, line = args
        last, found = builder.sub(rows, say.fixed(1)), []
        for i in range(REGISTER):
            here = builder.select(builder.icmp_signed("<", last, say.fixed(i)), last, say.fixed(i))
            found.append(say.load(builder.add(source, builder.mul(here, row)), say.register))
        for bit in (1, 2, 4, 8):  # rows i and i + bit exchange the columns in which one is not the other's
            for i in range(REGISTER):
                if not i & bit:
                    a, b = found[i], found[i | bit]
                    low = [REGISTER + (c ^ bit) if c & bit else c for c in range(REGISTER)]
                    high = [REGISTER + c if c & bit else c | bit for c in range(REGISTER)]
                    found[i], found[i | bit] = say.mixed(a, b, low), say.mixed(a, b, high)
        for i, value in enumerate(found):
            say.store(value, builder.add(to, builder.mul(line, say.fixed(i))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), code


_product: Any = _set_intrinsic
_add_product: Any = _add_intrinsic
_top: Any = _top_intrinsic
_weights: Any = _weights_intrinsic
_again: Any = _again_intrinsic
_slopes: Any = _slopes_intrinsic
_scaled: Any = _scaled_intrinsic
_turned: Any = _turned_intrinsic


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
            _scaled(_at(x, begin + s, kv) + w * PANEL, _at(out, w, s), min(WIDE, x.shape[2] - w * WIDE), ONE)


@plain
def _all_turned(x, begin, length, kv, out):
    """The same turned, as panels of 32 tokens: [T/32, D, 32]."""
    _, K, D = x.shape
    for s in range(0, length, REGISTER):
        for d in range(0, D, REGISTER):
            to = _at(out, s // WIDE, d) + s % WIDE * 4
            _turned(_at(x, begin + s, kv) + d * 4, K * D * 4, length - s, to, PANEL)


@plain
def _queries(x, begin, h, rows, factor, out):
    """factor·x[begin:begin + rows, h] [rows, D]; zeros below."""
    for i in range(rows):
        _scaled(_at(x, begin + i, h), out.ctypes.data + i * out.shape[1] * 4, x.shape[2], factor)
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
        _all_turned(k, begin, length, kv, keys)
        _lines(v, begin, length, kv, values)
        for h in range(kv * (H // K), (kv + 1) * (H // K)):
            for start in range(0, length, ROWS):
                rows = min(ROWS, length - start)
                n = start + rows
                end = (n + 31) // 32 * 32
                _queries(q, begin + start, h, rows, scale * LOG2E, some)
                for j in range(0, n, WIDE):
                    _product(at_q, line, 4, at_k + 4 * j * D, PANEL, at_p + 4 * j, wide, D)
                for i in range(rows):
                    row, seen = at_p + i * wide, start + i + 1
                    largest = _top(row, seen)
                    total[i] = _weights(row, seen, end, largest)
                    lse[begin + start + i, h] = largest + np.log2(total[i])
                for w in range(0, full, WIDE):
                    _product(at_p, wide, 4, at_v + 4 * w * T, PANEL, at_o + 4 * w, line, n)
                for i in range(rows):
                    _scaled(at_o + i * line, _at(out, begin + start + i, h), D, ONE / total[i])
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
        _all_turned(k, begin, length, kv, keys_T)
        _all_turned(v, begin, length, kv, values_T)
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
                        _product(at_q + g * line, line, 4, at_kT + 4 * j * D, PANEL, at_p + to, wide, D)
                        _product(at_do + g * line, line, 4, at_vT + 4 * j * D, PANEL, at_dp + to, wide, D)
                for i in range(BACK):
                    seen, number = (start + i + 1, lse[begin + start + i, h]) if i < rows else (0, ZERO)
                    row, other = at_p + i * wide, at_dp + i * wide
                    _slopes(row, other, seen, end, _again(row, other, seen, end, number))
                for w in range(0, full, WIDE):
                    for j in range(0, n, ROWS):
                        to = j * line + 4 * w
                        _add_product(at_p + 4 * j, 4, wide, at_do + 4 * w, line, at_sv + to, line, BACK)
                        _add_product(at_dp + 4 * j, 4, wide, at_q + 4 * w, line, at_sk + to, line, BACK)
                    for g in range(0, BACK, ROWS):
                        to = g * line + 4 * w
                        _product(at_dp + g * wide, wide, 4, at_k + 4 * w * T, PANEL, at_o + to, line, n)
                for i in range(rows):
                    _scaled(at_o + i * line, _at(dq, begin + start + i, h), D, scale)
        for s in range(length):
            _scaled(at_sk + s * line, _at(dk, begin + s, kv), D, LN2)  # the queries were multiplied by scale·log₂ e
            _scaled(at_sv + s * line, _at(dv, begin + s, kv), D, ONE)
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
