"""Row-wise operations of a CPU in one pass over memory: loops in Python, compiled by Numba.

PyTorch walks over all of a tensor once for every operation of a formula: RMSNorm's gradient is nine walks. A loop that
does a row's whole formula reads and writes each number once, and where the formula has an exponential computes that
with 16 numbers at a time. One core of an Intel Xeon (Sapphire Rapids), 4096 rows, forward and backward, ms:

    add and RMSNorm, C = 256     here 1.5, PyTorch 4.5         RoPE, H 8, D 32 (forward)    here 0.5, PyTorch 1.0
    SwiGLU, F = 688              here 3.4, PyTorch 7.2         bias and GELU, F = 1024         here 4.5, PyTorch 5.8

Formulas and names are those of rms_norm.py, layer_norm.py, swiglu.py, gelu.py and rope.py. processor.py says when these
loops are taken.

**The exponential.** e^x = 2ⁿ·e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2. To add 1.5·2²³ to a float32 rounds it to
a whole number, which then stands in its lowest bits, so 2ⁿ is a shift of them into the exponent. ln 2 is taken off in
two parts so that no digit is lost, and e^r is a polynomial (Moshier's Cephes, expf): within 2 units of the last place.

**The normal distribution's tail.** Φ(−a) for a ≥ 0 is e^(−a²/2) · t · P(t) with t = 1 / (1 + 0.35 a): a polynomial of
degree 8, fitted by least squares, weighted until the largest relative error was smallest, 3·10⁻⁸ (the form: Abramowitz
& Stegun 1964, 7.1.26). GELU's slope needs the same exponential once more.

**Registers.** LLVM takes half of AVX-512's unless told otherwise (`_wide`); GELU: 2.5 ms, 1.9 by whole ones.

What belongs to all rows stands first among the arguments, then what has a line for each, then sums over them.

Legend: N rows, C or F components, H heads, D head_dim; all arrays contiguous float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "gelu",
    "gelu_back",
    "layer_norm",
    "layer_norm_back",
    "rms_norm",
    "rms_norm_back",
    "rope",
    "swiglu",
    "swiglu_back",
]

f = np.float32
ROUNDS = f(1.5 * 2**23)
PER_LN2, LN2_HIGH, LN2_LOW = f(1.44269504), f(0.693359375), f(-2.12194440e-4)
E2, E3, E4, E5 = f(5.0000001201e-1), f(1.6666665459e-1), f(4.1665795894e-2), f(8.3334519073e-3)
E6, E7 = f(1.3981999507e-3), f(1.9875691500e-4)
ZERO, HALF, ONE, TWO = f(0), f(0.5), f(1), f(2)
FAR = f(100)  # from where GELU is 0 or x
PER_ROOT_TAU = f(0.3989422804014327)  # 1 / √(2π)
TAIL, T0, T1, T2, T3 = f(0.35), f(0.1396214), f(0.13986189), f(0.11983271), f(0.10550863)
T4, T5, T6, T7, T8 = f(-0.02311135), f(0.15917638), f(-0.25571622), f(0.14397266), f(-0.02914613)
BEND, CUBE = f(0.7978845608028654), f(0.044715)  # of GELU by tanh
ROWS = 64  # whose shares of a weight's gradient are added before they join the sum: as exact as pairwise

plain: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
sums: Any = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})


@intrinsic
def _intrinsic_power(typing: Any, rounded: Any) -> Any:
    """2ⁿ, where `rounded` is n + 1.5·2²³."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from llvmlite import ir

        whole = ir.IntType(32)
        exponent = builder.add(builder.bitcast(args[0], whole), ir.Constant(whole, 127))
        return builder.bitcast(builder.shl(exponent, ir.Constant(whole, 23)), ir.FloatType())

    return types.float32(types.float32), code


@intrinsic
def _intrinsic_ahead(typing: Any, address: Any, count: Any) -> Any:
    """Call for `count` numbers that will be read soon: where a loop computes much for each, it looks too few ahead."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from llvmlite import ir

        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        start = builder.inttoptr(args[0], ir.FloatType().as_pointer())
        steps = [ir.Constant(args[1].type, n) for n in (0, 16)]
        with cgutils.for_range_slice(builder, steps[0], args[1], steps[1], intp=args[1].type) as (at, _):
            place = builder.bitcast(builder.gep(start, [at]), byte)
            builder.call(call, [place, *(ir.Constant(whole, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def _intrinsic_wide(typing: Any) -> Any:
    """Let LLVM use registers of 16 numbers in the function that calls this, where the processor has them."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite lists none that have a value
        return context.get_dummy_value()

    return types.void(), code


_power: Any = _intrinsic_power
_ahead: Any = _intrinsic_ahead
_wide: Any = _intrinsic_wide


@plain
def _exp(x):
    x = min(max(x, f(-87)), f(89))  # from 88.4 on it is infinite
    rounded = x * PER_LN2 + ROUNDS
    n = rounded - ROUNDS
    r = x - n * LN2_HIGH - n * LN2_LOW
    return ((((((E7 * r + E6) * r + E5) * r + E4) * r + E3) * r + E2) * r * r + r + ONE) * _power(rounded)


@plain
def swiglu(a, b, y):
    """y = silu(a) ⊙ b, all [N·F]."""
    _wide()
    for i in range(a.size):
        y[i] = a[i] / (ONE + _exp(-a[i])) * b[i]


@plain
def swiglu_back(a, b, dy, da, db):
    """da and db of the same."""
    _wide()
    for i in range(a.size):
        s = ONE / (ONE + _exp(-a[i]))
        db[i] = dy[i] * a[i] * s
        da[i] = dy[i] * b[i] * s * (ONE + a[i] * (ONE - s))


@plain
def _tail(a, e):
    """Φ(−a), where e = e^(−a²/2)."""
    t = ONE / (ONE + TAIL * a)
    return ((((((((T8 * t + T7) * t + T6) * t + T5) * t + T4) * t + T3) * t + T2) * t + T1) * t + T0) * t * e


@plain
def _sigmoid_of_bent(x):
    """½ (1 + tanh u) = σ(2u), u = √(2/π) (x + 0.044715 x³)."""
    return ONE / (ONE + _exp(-TWO * BEND * x * (ONE + CUBE * x * x)))


@plain
def gelu(bias, tanh, x, y):
    """y = gelu(x + bias), x and y [N, F]."""
    _wide()
    N, F = x.shape
    for n in range(N):
        _ahead(x.ctypes.data + (n + 1) * F * 4, F)
        if tanh:
            for c in range(F):
                v = x[n, c] + bias[c]
                near = max(min(v, FAR), -FAR)
                y[n, c] = v * _sigmoid_of_bent(near)
        else:
            for c in range(F):
                v = x[n, c] + bias[c]
                a = min(abs(v), FAR)
                y[n, c] = max(v, ZERO) - a * _tail(a, _exp(-HALF * a * a))


@plain
def gelu_back(bias, tanh, x, dy, dx, dbias):
    """dx and dbias, the sum over the rows."""
    _wide()
    N, F = x.shape
    part = np.zeros(F, np.float32)
    dbias[:] = ZERO
    for n in range(N):
        if tanh:
            for c in range(F):
                v = max(min(x[n, c] + bias[c], FAR), -FAR)
                s = _sigmoid_of_bent(v)
                d = dy[n, c] * (s + s * (ONE - s) * v * TWO * BEND * (ONE + f(3) * CUBE * v * v))
                dx[n, c] = d
                part[c] += d
        else:
            for c in range(F):
                v = max(min(x[n, c] + bias[c], FAR), -FAR)
                a = abs(v)
                e = _exp(-HALF * a * a)
                below = _tail(a, e)
                d = dy[n, c] * ((below if v < ZERO else ONE - below) + v * e * PER_ROOT_TAU)
                dx[n, c] = d
                part[c] += d
        if n % ROWS == ROWS - 1 or n == N - 1:
            dbias += part
            part[:] = ZERO


@sums
def layer_norm(g, b, eps, x, residual, h, y, mean, r):
    """h = x + residual, y its norm [N, C], mean and r [N]; without a residual (None) h is x and not written."""
    _wide()
    N, C = x.shape
    for n in range(N):
        total = ZERO
        for c in range(C):
            v = x[n, c]
            if residual is not None:  # decided when this is compiled
                v += residual[n, c]
                h[n, c] = v
            total += v
        middle, square = total / f(C), ZERO
        for c in range(C):
            v = h[n, c] - middle
            square += v * v
        root = ONE / np.sqrt(square / f(C) + eps)
        mean[n], r[n] = middle, root
        for c in range(C):
            y[n, c] = (h[n, c] - middle) * root * g[c] + b[c]


@sums
def layer_norm_back(g, h, mean, r, dy, dh, dx, dg, db):
    """dx with what flows back into h (None: nothing) added to it, and dg and db, the sums over the rows."""
    _wide()
    N, C = h.shape
    part_g, part_b = np.zeros(C, np.float32), np.zeros(C, np.float32)
    dg[:] = ZERO
    db[:] = ZERO
    for n in range(N):
        middle, root, sum_d, sum_dx = mean[n], r[n], ZERO, ZERO
        for c in range(C):
            v, d = (h[n, c] - middle) * root, dy[n, c]
            part_g[c] += d * v
            part_b[c] += d
            sum_d += d * g[c]
            sum_dx += d * g[c] * v
        mean_d, mean_dx = sum_d / f(C), sum_dx / f(C) * root
        for c in range(C):
            dx[n, c] = root * (dy[n, c] * g[c] - mean_d - (h[n, c] - middle) * mean_dx)
            if dh is not None:
                dx[n, c] += dh[n, c]
        if n % ROWS == ROWS - 1 or n == N - 1:
            dg += part_g
            db += part_b
            part_g[:] = ZERO
            part_b[:] = ZERO


@sums
def rms_norm(g, eps, x, residual, h, y, r):
    """h = x + residual, y its norm [N, C] and r [N]; without a residual (None) h is x and not written."""
    _wide()
    N, C = x.shape
    for n in range(N):
        total = ZERO
        for c in range(C):
            v = x[n, c]
            if residual is not None:  # decided when this is compiled
                v += residual[n, c]
                h[n, c] = v
            total += v * v
        root = ONE / np.sqrt(total / f(C) + eps)
        r[n] = root
        for c in range(C):
            y[n, c] = h[n, c] * root * g[c]


@sums
def rms_norm_back(g, h, r, dy, dh, dx, dg):
    """dx with what flows back into h (None: nothing) added to it, and dg, the sum over the rows."""
    _wide()
    N, C = h.shape
    part = np.zeros(C, np.float32)
    dg[:] = ZERO
    for n in range(N):
        root, total = r[n], ZERO
        for c in range(C):
            v = dy[n, c] * h[n, c] * root
            part[c] += v
            total += v * g[c]
        mean = total / f(C) * root
        for c in range(C):
            dx[n, c] = root * (dy[n, c] * g[c] - h[n, c] * mean)
            if dh is not None:
                dx[n, c] += dh[n, c]
        if n % ROWS == ROWS - 1 or n == N - 1:
            dg += part
            part[:] = ZERO


@plain
def rope(cos, sin, sign, first, x, out):
    """Turn x [N, H, D] by ±θ; cos and sin [M, D/2], and row n takes line (first + n) mod M of them."""
    _wide()
    N, H, D = x.shape
    half = D // 2
    for n in range(N):
        m = (first + n) % len(cos)
        for h in range(H):
            for i in range(half):
                a, b = x[n, h, i], x[n, h, i + half]
                c, s = cos[m, i], sin[m, i] * sign
                out[n, h, i] = a * c - b * s
                out[n, h, i + half] = b * c + a * s
