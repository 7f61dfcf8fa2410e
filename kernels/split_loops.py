"""Products of float32 by a processor's AMX unit, which knows bfloat16 only: loops in Python, compiled by Numba.

A number of float32 is, to the last bit, a sum of three of bfloat16: the nearest one, the nearest of what is left, and
the rest, 8 of the 24 bits each (of numbers below 2⁻¹⁰² the rest is lost: the unit takes what is below 2⁻¹²⁶ for 0).
Of the nine products of the parts of x and y six are made,

    x y  ≈  x₁y₁ + x₁y₂ + x₁y₃ + x₂y₂ + x₂y₁ + x₃y₁

and what is left out, x₂y₃ + x₃y₂ + x₃y₃, is at most 2⁻²³ of the product, of either sign, 2⁻²⁶ as a rule (Henry, Tang
and Heinecke 2019, arXiv:1904.06376). AMX multiplies sixteen times as many numbers of bfloat16 as AVX-512 multiplies
of float32, so that six for one leave 2.7, less what it costs to take numbers apart. Sums are of float32; a sum over k
is made of shorter ones, of up to 512 each, so that it is more exact than one that goes through.

    B, 1024 columns × 512 of k                a tile is 16 rows of 64 bytes; 2 × 2 tiles hold C [32, 32], and a step
    A,  160 rows    × 512 of k                of 32 k loads 6 tiles of A and 10 of B for 24 products

A and B are taken apart a block at a time into panels of 32 rows or columns that lie as the unit reads them: a row of a
tile of A holds 16 pairs of k, for each of which one row of a tile of B holds the pairs of 16 columns. Which k make a
pair is free, as long as A and B agree: k and k + 16 do, so that 16 numbers of the one and 16 of the other, shifted into
the lower and the upper half, are a row, whichever of the two matrices they come from. Of a matrix that lies the other
way blocks of 16 × 16 are turned first.

Matrices are addresses of float32 and the bytes from one row to the next; `turned`: the matrix lies transposed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic
from numba.np.numpy_support import carray

__all__ = ["multiply", "share"]

told: Any = config
if told.DISABLE_JIT or told.CPU_NAME or told.CPU_FEATURES:
    raise ImportError("Numba was told not to compile, or to compile for another processor")

f = np.float32
SIDE, WIDE = 16, 32  # rows of a tile; rows and columns of C at a time, and k of a step
TILE, PARTS = 1024, 3  # bytes of a tile; parts of a number
STEP = PARTS * 2 * TILE  # bytes of a step of a panel
DOWN, ACROSS, DEEP = 160, 1024, 512  # rows, columns and k of a block
ROWS = 4  # of the next part of C, that a step asks for
SHAPE = np.array([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[SIDE] * 8, *[0] * 8], np.uint8)  # all eight tiles whole

plain: Any = njit(cache=True, nogil=True, error_model="numpy")


# ---------------------------------------------------------------- in LLVM's own words


class _Words:
    """What the functions below say to LLVM: addresses in bytes, registers of 16 numbers, tiles 0 … 7."""

    def __init__(self, builder: Any) -> None:
        from llvmlite import ir

        self.ir, self.to = ir, builder
        self.whole, self.byte, self.half = ir.IntType(64), ir.IntType(8), ir.IntType(32)
        self.register, self.bits = ir.VectorType(ir.FloatType(), SIDE), ir.VectorType(self.half, SIDE)

    def on(self, address: Any, count: Any) -> Any:
        """An address so many bytes on."""
        return self.to.add(address, self.whole(count) if isinstance(count, int) else count)

    def at(self, address: Any, kind: Any) -> Any:
        return self.to.inttoptr(address, kind.as_pointer())

    def load(self, address: Any) -> Any:
        loaded = self.to.load(self.at(address, self.register))
        loaded.align = 4
        return loaded

    def store(self, value: Any, address: Any, align: int = 4) -> None:
        self.to.store(value, self.at(address, value.type)).align = align

    def all(self, n: int) -> Any:
        """A whole number in all places of a register."""
        return self.bits([n] * SIDE)

    def call(self, name: str, *given: Any) -> None:
        """One of x86's instructions, or a prefetch."""
        kind = self.ir.FunctionType(self.ir.VoidType(), [x.type for x in given])
        self.to.call(cgutils.get_or_insert_function(self.to.module, kind, f"llvm.{name}"), given)

    def tile(self, what: str, n: int, address: Any, row: Any) -> None:
        """Load or store a tile."""
        self.call(f"x86.tile{what}64", self.byte(n), self.at(address, self.byte), row)

    def ask(self, address: Any) -> None:
        """Have a line brought near that will be written."""
        self.call("prefetch.p0", self.at(address, self.byte), *map(self.half, (1, 3, 1)))

    def loop(self, count: Any, starts: list[Any], body: Any) -> None:
        """`body(values)` → their next values, `count` times, at least once."""
        before, here = self.to.block, self.to.append_basic_block("loop")
        after = self.to.append_basic_block("after")
        self.to.branch(here)
        self.to.position_at_end(here)
        i, values = self.to.phi(self.whole), [self.to.phi(start.type) for start in starts]
        up, following = self.on(i, 1), body(values)
        for value, start, then in zip([i, *values], [self.whole(0), *starts], [up, *following], strict=True):
            value.add_incoming(start, before)
            value.add_incoming(then, here)
        self.to.cbranch(self.to.icmp_signed("<", up, count), here, after)
        self.to.position_at_end(after)


def _turn(say: _Words, rows: list[Any]) -> list[Any]:
    """16 × 16 numbers turned: rows i and i + bit exchange the columns in which one is not the other's."""
    for bit in (1, 2, 4, 8):
        for i in range(SIDE):
            if not i & bit:
                a, b = rows[i], rows[i | bit]
                low = [SIDE + (c ^ bit) if c & bit else c for c in range(SIDE)]
                high = [SIDE + c if c & bit else c | bit for c in range(SIDE)]
                rows[i], rows[i | bit] = (say.to.shuffle_vector(a, b, say.bits(places)) for places in (low, high))
    return rows


def _apart_code(turned: bool) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        first, second, row, to = args
        blocks = []
        for start in (first, second):
            rows = [say.load(say.on(start, builder.mul(row, say.whole(i)))) for i in range(SIDE)]
            blocks.append(_turn(say, rows) if turned else rows)
        for i, both in enumerate(zip(*blocks, strict=True)):
            rest = list(both)
            for part in range(PARTS):
                upper = [builder.bitcast(x, say.bits) for x in rest]
                if part < PARTS - 1:  # to the nearest; the last part is exact
                    upper = [builder.add(x, say.all(0x8000)) for x in upper]
                upper = [builder.and_(x, say.all(-0x10000)) for x in upper]
                pairs = builder.or_(builder.lshr(upper[0], say.all(16)), upper[1])
                say.store(pairs, say.on(to, 2 * part * TILE + 64 * i), align=64)
                rest = [builder.fsub(x, builder.bitcast(y, say.register)) for x, y in zip(rest, upper, strict=True)]
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code


@intrinsic
def _apart_intrinsic(typing: Any, first: Any, second: Any, row: Any, to: Any) -> Any:
    """The three parts of 16 rows of 16 numbers, which become the lower halves, and of 16 others, the upper ones."""
    return _apart_code(turned=False)


@intrinsic
def _turned_apart_intrinsic(typing: Any, first: Any, second: Any, row: Any, to: Any) -> Any:
    """The same, both blocks turned."""
    return _apart_code(turned=True)


@intrinsic
def _tiles_intrinsic(typing: Any, a: Any, b: Any, c: Any, row: Any, steps: Any, ahead: Any, ahead_row: Any) -> Any:
    """C [32, 32], `row` bytes from a row to the next, of a panel of A and one of B; `ahead`: the next part of C, which
    is brought near meanwhile."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        a, b, c, row, steps, ahead, ahead_row = args
        line, quarters = say.whole(64), [(r, k) for r in range(2) for k in range(2)]
        corners = [say.on(c, builder.mul(row, say.whole(SIDE * r))) for r in range(2)]
        for n in range(4):
            say.call("x86.tilezero", say.byte(n))

        def step(values: list[Any]) -> list[Any]:
            a, b, *rows = values
            for at in rows:
                say.ask(at)
                say.ask(say.on(at, 64))
            here = (-1, -1)
            for parts in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 0), (2, 0)):
                for tile, panel, part, was in zip((4, 6), (a, b), parts, here, strict=True):
                    for n in range(2) if part != was else ():
                        say.tile("loadd", tile + n, say.on(panel, (2 * part + n) * TILE), line)
                here = parts
                for n, (r, k) in enumerate(quarters):
                    say.call("x86.tdpbf16ps", *map(say.byte, (n, 4 + r, 6 + k)))
            return [say.on(a, STEP), say.on(b, STEP), *(say.on(at, below) for at in rows)]

        below = builder.mul(ahead_row, say.whole(ROWS))
        rows = [say.on(ahead, builder.mul(ahead_row, say.whole(i))) for i in range(ROWS)]
        say.loop(steps, [a, b, *rows], step)
        for n, (r, k) in enumerate(quarters):
            say.tile("stored", n, say.on(corners[r], 64 * k), row)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), code


@intrinsic
def _sum_intrinsic(typing: Any, some: Any, base: Any, base_row: Any, c: Any, c_row: Any) -> Any:
    """C [32, 32] = some [32, 32] + base."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        some, base, base_row, c, c_row = args

        def step(values: list[Any]) -> list[Any]:
            some, base, c = values
            for at in (0, 64):
                total = builder.fadd(say.load(say.on(some, at)), say.load(say.on(base, at)))
                say.store(total, say.on(c, at))
            return [say.on(some, 4 * WIDE), say.on(base, base_row), say.on(c, c_row)]

        say.loop(say.whole(WIDE), [some, base, c], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), code


@intrinsic
def _begin_intrinsic(typing: Any, shape: Any) -> Any:
    """Give the tiles their shape."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        say = _Words(builder)
        say.call("x86.ldtilecfg", say.at(args[0], say.byte))
        return context.get_dummy_value()

    return types.void(types.int64), code


@intrinsic
def _end_intrinsic(typing: Any) -> Any:
    """Give the unit back, so that the system need not store its tiles."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _Words(builder).call("x86.tilerelease")
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def _memory_intrinsic(typing: Any, address: Any) -> Any:
    """An address as what `carray` takes."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), code


_apart: Any = _apart_intrinsic
_turned_apart: Any = _turned_apart_intrinsic
_tiles: Any = _tiles_intrinsic
_sum: Any = _sum_intrinsic
_begin: Any = _begin_intrinsic
_end: Any = _end_intrinsic
_memory: Any = _memory_intrinsic


# ---------------------------------------------------------------- panels


@plain
def _numbers(address, count):
    return carray(_memory(address), (count,), f)


@plain
def _panels(of_a, turned, x, row, start, count, k, deep, edge, to):
    """Rows (of B columns) start … start + count of x, of each k … k + deep, as panels of 32 of them; zeros fill up."""
    steps, by_k = (deep + WIDE - 1) // WIDE, turned == of_a  # by_k: what has the same k lies in a row of memory
    sides = (count + WIDE - 1) // WIDE * 2
    for first in range(steps if by_k else sides):  # through memory as it lies
        for then in range(sides if by_k else steps):
            s, o = (first, then * SIDE) if by_k else (then, first * SIDE)
            far, near = start + o, k + s * WIDE
            source = x + (near * row + far * 4 if by_k else far * row + near * 4)
            outer, inner = min(SIDE, count - o), min(WIDE, deep - s * WIDE)
            line = row
            if outer < SIDE or inner < WIDE:
                edge[:] = 0
                for i in range(inner if by_k else outer):
                    some = _numbers(source + i * row, max(0, outer) if by_k else inner)
                    edge[i, : len(some)] = some
                source, line = edge.ctypes.data, 4 * WIDE
            second = source + (SIDE * line if by_k else 4 * SIDE)
            tile = to + (o // WIDE * steps + s) * STEP + o // SIDE % 2 * TILE
            if turned:
                _turned_apart(source, second, line, tile)
            else:
                _apart(source, second, line, tile)


# ---------------------------------------------------------------- the product


@plain
def _written(some, base, base_row, c, c_row, rows, columns):
    """The first rows and columns of some [32, 32], plus base if there is one, as C's."""
    for i in range(rows):
        to = _numbers(c + i * c_row, columns)
        if base:
            to[:] = some[i, :columns] + _numbers(base + i * base_row, columns)
        else:
            to[:] = some[i, :columns]


@plain
def _held(arrays):
    """Keeps arrays alive until here: their addresses alone do not."""
    return len(arrays)


@plain
def _part(n, thread, threads):
    """A thread's share of n rows or columns, whole panels: begin and end."""
    each = ((n + threads - 1) // threads + WIDE - 1) // WIDE * WIDE
    return min(n, thread * each), min(n, (thread + 1) * each)


@plain
def multiply(given, thread, threads):
    """C [M, N] = A [M, K] · B [K, N] + base, where base is [M, N], or with rows 0 bytes apart [N], or none (address 0).

    `given`, int64: M, N, K, then address, bytes of a row and whether it is turned of A and of B, then address and
    bytes of a row of C and base, which may be C. A thread makes its part of the longer side.
    """
    M, N, K, c, c_row, base, base_row = given[0], given[1], given[2], given[9], given[10], given[11], given[12]
    a, a_row, a_turned, b, b_row, b_turned = given[3], given[4], given[5] != 0, given[6], given[7], given[8] != 0
    (top, bottom), (left, right) = _part(M, thread, threads), (0, N)
    if N > M:
        (top, bottom), (left, right) = (0, M), _part(N, thread, threads)
    if top == bottom or left == right:
        return
    deepest = (min(DEEP, K) + WIDE - 1) // WIDE * STEP
    panels = ((min(DOWN, bottom - top) + WIDE - 1) // WIDE, (min(ACROSS, right - left) + WIDE - 1) // WIDE)
    room = np.empty(64 + (panels[0] + panels[1]) * deepest, np.uint8)
    edge, some = np.empty((WIDE, WIDE), f), np.empty((WIDE, WIDE), f)
    at_a = (room.ctypes.data + 63) // 64 * 64
    at_b = at_a + panels[0] * deepest
    _begin(SHAPE.ctypes.data)
    for k in range(0, K, DEEP):
        deep = min(DEEP, K - k)
        steps = (deep + WIDE - 1) // WIDE
        panel = steps * STEP
        if k > 0:
            base, base_row = c, c_row
        for q in range(left, right, ACROSS):
            columns = min(ACROSS, right - q)
            _panels(False, b_turned, b, b_row, q, columns, k, deep, edge, at_b)
            for m in range(top, bottom, DOWN):
                rows = min(DOWN, bottom - m)
                _panels(True, a_turned, a, a_row, m, rows, k, deep, edge, at_a)
                for n in range(0, columns, WIDE):
                    for i in range(0, rows, WIDE):
                        one, other = at_a + i // WIDE * panel, at_b + n // WIDE * panel
                        to, corner = c + (m + i) * c_row + (q + n) * 4, base + (m + i) * base_row + (q + n) * 4
                        ahead = to + WIDE * c_row if i + WIDE < rows else c + m * c_row + (q + n + WIDE) * 4
                        whole = rows - i >= WIDE and columns - n >= WIDE
                        if whole and base == 0:
                            _tiles(one, other, to, c_row, steps, ahead, c_row)
                            continue
                        _tiles(one, other, some.ctypes.data, 4 * WIDE, steps, ahead, c_row)
                        if whole:
                            _sum(some.ctypes.data, corner, base_row, to, c_row)
                        else:
                            corner = corner if base else 0
                            _written(some, corner, base_row, to, c_row, min(WIDE, rows - i), min(WIDE, columns - n))
    _end()
    _held((room, edge, some))


# ---------------------------------------------------------------- a thread's share, as OpenMP calls it

_thread: Any = types.ExternalFunction("omp_get_thread_num", types.int32())
_threads: Any = types.ExternalFunction("omp_get_num_threads", types.int32())  # one, where no second is to be had


def _share(data):
    multiply(carray(data, (13,), np.int64), _thread(), _threads())


def share(thread_number: int, thread_count: int) -> int:
    """The address of `multiply` for the threads of the OpenMP whose omp_get_thread_num and omp_get_num_threads stand
    there."""
    from llvmlite import binding

    binding.add_symbol("omp_get_thread_num", thread_number)
    binding.add_symbol("omp_get_num_threads", thread_count)
    made: Any = cfunc(types.void(types.voidptr), cache=True)(_share)
    _kept.append(made)  # the code lives as long as it does
    return made.address


_kept: list[Any] = []
