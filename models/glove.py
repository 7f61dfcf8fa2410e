"""GloVe: vectors whose products are the logarithms of how often words stand together (Pennington et al. 2014).

Count first: X_ij is how often word j stands within `window` words of word i, a pair at distance d adding 1/d
(models/cooccurrence.py). Then fit

    J = Σ_ij f(X_ij) · ½ (w_i · c_j + b_i + b̃_j − log X_ij)²         f(x) = min(1, (x / x_max)^alpha)       (eq. 8, 9)

(the ½ is Stanford's, and only scales the rate). Why products: what tells ice from steam is not how often *solid* stands
near ice, but how much more often than near steam; a ratio of counts is a difference of logarithms, hence a direction.

AdaGrad (Duchi et al. 2011) gives each number its own rate, which falls with the sum of its squared gradients so far:

    step = r · gradient / √(1 + Σ (r · gradient)²)          r = eta for w and c, 1 for b and b̃

The rate r stands in the sum too, and is 1 for the biases, as in Stanford's program, not in the paper. It matters: with
eta outside of the sum all rates fall too early, J after 4 iterations is 12% higher and only a third as many analogies
come out right; biases that learn at once leave the vectors nothing of a word's frequency to tell.

    diff = w_i · c_j + b_i + b̃_j − log X_ij,  g = f·diff;   ∂w_i = g·c_j,  ∂c_j = g·w_i,  ∂b_i = ∂b̃_j = g

A word's final vector is w + c (§4.2): with a symmetric window the two tables differ by chance only.

Pairs are visited in one order by chance, drawn once, as by Stanford's program. Tile by tile, so that rows stay near the
core, they would go half again as fast, but that is no order by chance, and whole tiles cost analogies
(docs/vectors.md). What then takes time is fetching two rows for each pair: they are called for (prefetch) while the
pairs before it are computed.

A number and the sum of its squared gradients lie in the same row, and the processor's estimate of 1/√ with one Newton
step stands for a root and a division (the compiler makes it of `afn` and `arcp`).

`workers` threads share the tables without a lock; one thread gives the same bits for the same seed, also where it was
stopped and went on. A product that is no number, or beyond ±1e4, stops the training and names the pair.

Legend: V rows of the vocabulary, D vector size, P = D rounded up to 8 (the rest stays zero).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from luthier.models.cooccurrence import Cooccurrences
from luthier.models.vectors import Trained, VectorsError

__all__ = ["Diverged", "Progress", "adagrad", "adagrad_plain", "train_glove"]

PART = 1 << 16  # pairs that are dealt together and then shuffled: 1 MB
AHEAD = 4  # pairs before it is visited, a pair's rows are called for
ROUND = 1_000_000  # pairs a thread trains between two looks at the keyboard and the loss
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
LIMIT = 1e4  # log X is below 50 for any corpus; a product this far off will not come back


class Diverged(VectorsError):
    """Training left the range of numbers at the pair of rows `i`, `j` with count `x`."""

    def __init__(self, i: int, j: int, x: float, product: float) -> None:
        super().__init__(f"the product of rows {i} and {j} (count {x:g}) became {product:g}; lower eta")
        self.i, self.j, self.x, self.product = i, j, x, product


@dataclass
class Progress:
    """A training between two rounds, all that is needed to go on: the tables, the losses of the whole iterations, and
    of the one that was begun the pairs visited and their summed loss."""

    W: np.ndarray
    """float32 [V, 2P]: w, and the sums of its squared gradients."""
    C: np.ndarray
    """float32 [V, 2P]: c, and the sums of its squared gradients."""
    b: np.ndarray
    """float32 [V, 4]: b, b̃ and the sums of their squared gradients."""
    losses: list[float] = field(default_factory=list)
    visited: int = 0
    total: float = 0.0


# ---------------------------------------------------------------- the plain twin


def adagrad_plain(i, j, log_x, f, first, last, W, C, b, eta):
    """Visit pairs first … last − 1, the readable way; the arguments as in `adagrad`."""
    loss, P = 0.0, W.shape[1] // 2
    for n in range(first, last):
        row, column = i[n], j[n]
        w, c = W[row, :P].copy(), C[column, :P].copy()
        diff = w @ c + b[row, 0] + b[column, 1] - log_x[n]
        if not abs(diff) < LIMIT:
            return loss, n
        g = f[n] * diff
        loss += 0.5 * g * diff
        for value, squares, gradient in ((W[row, :P], W[row, P:], g * c), (C[column, :P], C[column, P:], g * w)):
            value -= eta * gradient / np.sqrt(squares)
            squares += (eta * gradient) ** 2
        for at in ((row, 0), (column, 1)):
            b[at] -= g / np.sqrt(b[at[0], at[1] + 2])
            b[at[0], at[1] + 2] += g * g
    return loss, -1


# ---------------------------------------------------------------- the fast twin


@intrinsic
def _prefetch(typingctx: Any, table: Any, row: Any) -> Any:
    """Call for a row that will be changed soon, a line of the cache (64 bytes) at a time."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        whole, small, byte = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, small, small, small])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        size = builder.extract_value(array.strides, 0)
        start = builder.gep(builder.bitcast(array.data, byte), [builder.mul(arguments[1], size)])
        with cgutils.for_range_slice(builder, whole(0), size, whole(64), intp=whole) as (at, _):
            builder.call(call, [builder.gep(start, [at]), small(1), small(3), small(1)])  # to be changed, kept, data
        return context.get_dummy_value()

    return types.void(table, types.int64), make


@njit(**_FAST, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "afn", "nsz"})
def adagrad(i, j, log_x, f, first, last, W, C, b, eta):
    """Visit pairs first … last − 1: rows i and j int32, log_x and f float32. The tables of `Progress` are changed in
    place; `eta` float32. Returns (Σ ½ f diff², −1), or the number of the pair whose product is no number of use."""
    loss, P, one = 0.0, W.shape[1] // 2, np.float32(1)
    for n in range(first, last):
        if n + AHEAD < last:
            _prefetch(W, i[n + AHEAD])  # pyright: ignore[reportCallIssue]
            _prefetch(C, j[n + AHEAD])  # pyright: ignore[reportCallIssue]
        row, column = np.uint64(i[n]), np.uint64(j[n])
        w, c = W[row], C[column]
        diff = b[row, 0] + b[column, 1] - log_x[n]
        for d in range(P):
            diff += w[d] * c[d]
        if not abs(diff) < LIMIT:
            return loss, n
        g = f[n] * diff
        loss += 0.5 * g * diff
        step = eta * g
        square = step * step
        for d in range(P):
            a, e, sa, se = w[d], c[d], w[P + d], c[P + d]
            w[d] = a - step * e * (one / np.sqrt(sa))
            c[d] = e - step * a * (one / np.sqrt(se))
            w[P + d] = sa + square * e * e
            c[P + d] = se + square * a * a
        b[row, 0] -= g / np.sqrt(b[row, 2])
        b[column, 1] -= g / np.sqrt(b[column, 3])
        b[row, 2] += g * g
        b[column, 3] += g * g
    return loss, -1


# ---------------------------------------------------------------- training


def train_glove(
    pairs: Cooccurrences,
    size: int,
    *,
    vector_size: int = 100,
    x_max: float = 100.0,
    alpha: float = 0.75,
    eta: float = 0.05,
    iterations: int = 15,
    seed: int = 0,
    workers: int = 1,
    kernel: Callable = adagrad,
    folder: Path | None = None,
    begun: Progress | None = None,
    report: Callable[[int, float], object] = lambda pairs, loss: None,
    keep: Callable[[Progress], object] = lambda progress: None,
) -> Trained:
    """Learn vectors [size, vector_size] from counts. Names as in the paper and in Stanford's program; `kernel` is
    `adagrad` or its plain twin. The pairs in the order of training (16 bytes each) lie in files of `folder`, or in
    memory. `report(pairs, loss)` is called now and then with the loss of the iteration so far, `keep(progress)` after
    each round: what it stores can be given as `begun`, to go on, with all other arguments the same.

    The losses are J divided by the number of pairs, each pair's share as it was when visited. Raises VectorsError for
    settings that cannot be, Diverged naming the pair."""
    for name, value in {"vector_size": vector_size, "iterations": iterations, "workers": workers}.items():
        if value < 1:
            raise VectorsError(f"{name} = {value}: expected at least 1")
    for name, value in {"x_max": x_max, "eta": eta}.items():
        if not value > 0:
            raise VectorsError(f"{name} = {value}: expected more than 0")
    if not len(pairs.x):
        raise VectorsError("no two words stand within a window of each other: nothing to learn vectors from")
    rng = np.random.default_rng(seed)
    progress = begun or _start(size, vector_size, rng)
    lined = _in_order(pairs, x_max, alpha, np.random.default_rng([seed, 1]), folder)
    with ThreadPoolExecutor(workers) as pool:
        while len(progress.losses) < iterations:
            while progress.visited < len(lined.i):
                before = progress.visited
                bad = _round(pool, workers, kernel, lined, progress, np.float32(eta))
                if bad >= 0:
                    raise _diverged(pairs, lined, bad, progress)
                report(progress.visited - before, progress.total / progress.visited)
                keep(progress)
            progress.losses.append(progress.total / len(lined.i))
            progress.visited, progress.total = 0, 0.0
    W, C = progress.W[:, :vector_size], progress.C[:, :vector_size]
    return Trained(W + C, C.copy(), progress.losses, len(lined.i))


def _start(size: int, vector_size: int, rng: np.random.Generator) -> Progress:
    P = -(-vector_size // 8) * 8
    W, C, b = np.ones((size, 2 * P), np.float32), np.ones((size, 2 * P), np.float32), np.ones((size, 4), np.float32)
    W[:, vector_size:P] = C[:, vector_size:P] = 0
    for table in (W[:, :vector_size], C[:, :vector_size], b[:, :2]):
        table[:] = (rng.random(table.shape, np.float32) - 0.5) / (vector_size + 1)
    return Progress(W, C, b)


def _round(
    pool: ThreadPoolExecutor, workers: int, kernel: Callable, lined: Lined, progress: Progress, eta: np.float32
) -> int:
    """Train the next pairs; returns the number of the pair that went wrong, or −1."""
    start = progress.visited
    stop = min(start + ROUND * workers, len(lined.i))
    cuts = np.linspace(start, stop, workers + 1).astype(int).tolist()
    tables = (progress.W, progress.C, progress.b, eta)
    results = [pool.submit(kernel, *lined, *cut, *tables) for cut in pairwise(cuts)]
    for loss, bad in [r.result() for r in results]:
        if bad >= 0:
            return bad
        progress.total += float(loss)
    progress.visited = stop
    return -1


def _diverged(pairs: Cooccurrences, lined: Lined, n: int, progress: Progress) -> Diverged:
    i, j = int(lined.i[n]), int(lined.j[n])
    P = progress.W.shape[1] // 2
    product = float(progress.W[i, :P] @ progress.C[j, :P] + progress.b[i, 0] + progress.b[j, 1])
    return Diverged(i, j, float(pairs.x[(pairs.i == i) & (pairs.j == j)][0]), product)


# ---------------------------------------------------------------- the order


class Lined(NamedTuple):
    """The pairs in the order of training: rows int32, log X and f(X) float32."""

    i: np.ndarray
    j: np.ndarray
    log_x: np.ndarray
    f: np.ndarray


def _in_order(pairs: Cooccurrences, x_max: float, alpha: float, rng: np.random.Generator, folder: Path | None) -> Lined:
    """The pairs in an order by chance: dealt into parts, each of which then fits into the cache to be shuffled."""
    state, counts = np.uint64(rng.integers(2**63)), np.zeros(-(-len(pairs.x) // PART), np.int64)
    _count_parts(len(pairs.x), state, counts)
    ends = np.concatenate([[0], np.cumsum(counts)])
    lined = Lined(*(_array(len(pairs.x), dtype, folder, n) for n, dtype in zip(Lined._fields, "iiff", strict=True)))
    _deal(*pairs, state, ends[:-1].copy(), lined.i, lined.j, lined.log_x)
    _shuffle(ends, np.uint64(rng.integers(2**63)), lined.i, lined.j, lined.log_x)
    for start in range(0, len(pairs.x), ROUND):
        part = slice(start, start + ROUND)
        lined.f[part] = np.minimum(1, (lined.log_x[part] / np.float32(x_max)) ** np.float32(alpha))
        lined.log_x[part] = np.log(lined.log_x[part])
    return lined


def _array(length: int, dtype: str, folder: Path | None, name: str) -> np.ndarray:
    return np.empty(length, dtype) if folder is None else np.memmap(folder / f"lined.{name}", dtype, "w+", shape=length)


# Chance is Knuth's 64-bit congruential generator (MMIX); the upper half is the number.


@njit(**_FAST)
def _next(state):
    return state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)


@njit(**_FAST)
def _below(state, room):
    """A number below `room` from the state."""
    return np.int64(((state >> np.uint64(32)) * np.uint64(room)) >> np.uint64(32))


@njit(**_FAST)
def _count_parts(length, state, counts):
    """How many pairs each part is dealt."""
    for _ in range(length):
        state = _next(state)
        counts[_below(state, len(counts))] += 1


@njit(**_FAST)
def _deal(i, j, x, state, ends, to_i, to_j, to_x):
    """Each pair to the end of its part, dealt as in `_count_parts`."""
    for n in range(len(i)):
        state = _next(state)
        part = _below(state, len(ends))
        at = ends[part]
        to_i[at], to_j[at], to_x[at] = i[n], j[n], x[n]
        ends[part] = at + 1


@njit(**_FAST)
def _shuffle(ends, state, i, j, x):
    """Shuffle each part (Fisher & Yates)."""
    for part in range(len(ends) - 1):
        for n in range(ends[part + 1] - 1, ends[part], -1):
            state = _next(state)
            m = ends[part] + _below(state, n - ends[part] + 1)
            i[n], i[m] = i[m], i[n]
            j[n], j[m] = j[m], j[n]
            x[n], x[m] = x[m], x[n]
