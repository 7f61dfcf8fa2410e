"""What loops over registers of 16 numbers are made of: LLVM's own words, for Numba finds no such code by itself.

    product, add_product        C = Σ_k a_k ⊗ b_k of a tile of 12 × 32, which lies in registers throughout
    top, weights, again, slopes a row of scores: its largest, its softmax, the softmax made again, its gradient
    scaled, turned              how rows are brought to where they are wanted
    wide                        let LLVM use whole registers in a loop of Numba's, not halves

Addresses are numbers of bytes; a number is a float32. Formulas: tiled_loops.py.

**A power of two.** To add 1.5·2²³ to a float32 rounds it to a whole number n, which then stands in its lowest bits, so
2ⁿ is a shift of them into the exponent, and 2^r for |r| ≤ ½ a polynomial (Moshier's Cephes, exp2f).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "ROWS",
    "WIDE",
    "add_product",
    "again",
    "ahead",
    "product",
    "scaled",
    "slopes",
    "top",
    "turned",
    "weights",
    "wide",
]

f = np.float32
ROWS, WIDE, REGISTER = 12, 32, 16
ROUNDS, LOWEST, HIDDEN, ONE = f(1.5 * 2**23), f(-126), f(-3.4028235e38), f(1)
E1, E2, E3 = f(6.931472028550421e-1), f(2.402264791363012e-1), f(5.550332471162809e-2)
E4, E5, E6 = f(9.618437357674640e-3), f(1.339887440266574e-3), f(1.535336188319500e-4)


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


@intrinsic
def _ahead_intrinsic(typing: Any, address: Any, count: Any) -> Any:
    """Call for `count` numbers that will be read soon: where a loop computes much for each, it looks too few ahead."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        byte, whole = say.ir.IntType(8), say.ir.IntType(32)
        kind = say.ir.FunctionType(say.ir.VoidType(), [byte.as_pointer(), whole, whole, whole])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")

        def step(i: Any, _: list[Any]) -> list[Any]:
            place = say.at(say.part(args[0], i, 0), byte)
            builder.call(call, [place, *(say.ir.Constant(whole, n) for n in (0, 3, 1))])
            return []

        say.loop(args[1], REGISTER, [], step)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def _wide_intrinsic(typing: Any) -> Any:
    """Let LLVM use registers of 16 numbers in the function that calls this, where the processor has them."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite lists none that have a value
        return context.get_dummy_value()

    return types.void(), code


product: Any = _set_intrinsic
add_product: Any = _add_intrinsic
top: Any = _top_intrinsic
weights: Any = _weights_intrinsic
again: Any = _again_intrinsic
slopes: Any = _slopes_intrinsic
scaled: Any = _scaled_intrinsic
turned: Any = _turned_intrinsic
ahead: Any = _ahead_intrinsic
wide: Any = _wide_intrinsic
