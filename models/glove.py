"""GloVe: vectors whose products are the logarithms of how often words stand together (Pennington et al. 2014).

Count first. X_ij is how often word j stands within `window` words of word i, a pair at distance d adding 1/d. Then fit

    J = Σ_ij f(X_ij) · ½ (w_i · c_j + b_i + b̃_j − log X_ij)²         f(x) = min(1, (x / x_max)^alpha)       (eq. 8, 9)

(the ½ is Stanford's, and only scales the rate). Why products: what tells ice from steam is not how often *solid* stands
near ice, but how much more often than near steam; a ratio of counts is a difference of logarithms, hence a direction.

AdaGrad (Duchi et al. 2011) gives each number its own rate, eta / √(1 + sum of its squared gradients so far):

    diff = w_i · c_j + b_i + b̃_j − log X_ij,  g = f·diff;   ∂w_i = g·c_j,  ∂c_j = g·w_i,  ∂b_i = ∂b̃_j = g

A word's final vector is w + c (§4.2): with a symmetric window the two tables differ by chance only.

Counting is one sort. Each pair becomes the number (i·V + j)·window + d − 1; sorted, equal pairs lie together, and the
sums of 1/d over each stretch are X. A block of words at a time, then the blocks' sums are merged the same way.
Training visits the pairs in tiles of 512 × 512 words, in an order drawn once, so that the rows of a tile stay in the
core's cache.

A window never leaves its document. `workers` threads share the tables without a lock; one thread gives the same bits
for the same seed. A product that is no number, or beyond ±1e4, stops the training and names the pair.

Legend: V rows of the vocabulary, D vector size, P = D rounded up to 16 (the rest stays zero).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import njit

from luthier.models.vectors import Trained, VectorsError

__all__ = ["Cooccurrences", "Diverged", "adagrad", "adagrad_plain", "count_pairs", "count_pairs_plain", "train_glove"]

TILE = 512  # words
ROUND = 1_000_000  # pairs a thread trains between two looks at the keyboard and the loss
BLOCK = 1_000_000  # words counted at once: window · 8 MB
LIMIT = 1e4  # log X is below 50 for any corpus; a product this far off will not come back


class Diverged(VectorsError):
    """Training left the range of numbers at the pair of rows `i`, `j` with count `x`."""

    def __init__(self, i: int, j: int, x: float, product: float) -> None:
        super().__init__(f"the product of rows {i} and {j} (count {x:g}) became {product:g}; lower eta")
        self.i, self.j, self.x, self.product = i, j, x, product


class Cooccurrences(NamedTuple):
    """The pairs with a count above zero, sorted: rows i and j int32, count x float32, both (i, j) and (j, i)."""

    i: np.ndarray
    j: np.ndarray
    x: np.ndarray


# ---------------------------------------------------------------- counting


def count_pairs_plain(rows: np.ndarray, offsets: np.ndarray, window: int) -> dict[tuple[int, int], float]:
    """X as a dictionary (i, j) → count, the readable way."""
    counts: Counter[tuple[int, int]] = Counter()
    for start, end in pairwise(offsets):
        document = [int(row) for row in rows[start:end]]
        for at, word in enumerate(document):
            for distance in range(1, min(window, at) + 1):
                other = document[at - distance]
                counts[word, other] += 1 / distance  # pyright: ignore[reportArgumentType]
                counts[other, word] += 1 / distance  # pyright: ignore[reportArgumentType]
    return dict(counts)


def count_pairs(rows: np.ndarray, offsets: np.ndarray, size: int, *, window: int = 5) -> Cooccurrences:
    """X of the text `rows` (int, values below `size`), documents between `offsets`."""
    if size**2 * window >= 2**63:
        raise VectorsError(f"{size:,} words with window {window} do not fit 64-bit keys; raise min_count")
    document = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys, sums = np.zeros(0, np.int64), np.zeros(0)
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        new = [_keys(rows, document, start, stop, distance, size, window) for distance in range(1, window + 1)]
        found = np.sort(np.concatenate(new))
        keys, sums = _merge(keys, sums, found // window, 1.0 / (found % window + 1))
    i, j = keys // size, keys % size
    other = i != j
    sums[~other] *= 2  # a word beside itself counts once from each side
    mirrored = np.concatenate([keys, (j * size + i)[other]])
    order = np.argsort(mirrored, kind="stable")
    mirrored = mirrored[order]
    x = np.concatenate([sums, sums[other]])[order]
    return Cooccurrences((mirrored // size).astype(np.int32), (mirrored % size).astype(np.int32), x.astype(np.float32))


def _keys(
    rows: np.ndarray, document: np.ndarray, start: int, stop: int, distance: int, size: int, window: int
) -> np.ndarray:
    """The numbers of the pairs of rows[start:stop] with the word `distance` before; each pair smaller row first."""
    start = max(start, distance)
    here, before = slice(start, stop), slice(start - distance, max(stop - distance, start - distance))
    together = document[here] == document[before]
    a, b = rows[here][together].astype(np.int64), rows[before][together].astype(np.int64)
    return (np.minimum(a, b) * size + np.maximum(a, b)) * window + distance - 1


def _merge(
    keys: np.ndarray, sums: np.ndarray, new_keys: np.ndarray, new_sums: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums by key: sorted `keys` without repetition and sorted `new_keys` with."""
    first = np.flatnonzero(np.diff(new_keys, prepend=-1))
    if len(first):
        new_keys, new_sums = new_keys[first], np.add.reduceat(new_sums, first)
    if not len(keys):
        return new_keys, new_sums
    both, values = np.concatenate([keys, new_keys]), np.concatenate([sums, new_sums])
    order = np.argsort(both, kind="stable")
    both, values = both[order], values[order]
    first = np.flatnonzero(np.diff(both, prepend=-1))
    return both[first], np.add.reduceat(values, first)


# ---------------------------------------------------------------- the plain twin


def adagrad_plain(i, j, log_x, f, first, last, W, C, GW, GC, b, eta):
    """Visit pairs first … last − 1, the readable way; the arguments as in `adagrad`."""
    loss = 0.0
    for n in range(first, last):
        row, column = i[n], j[n]
        w, c = W[row].copy(), C[column].copy()
        diff = w @ c + b[row, 0] + b[column, 1] - log_x[n]
        if not abs(diff) < LIMIT:
            return loss, n
        g = f[n] * diff
        loss += 0.5 * g * diff
        for value, squares, gradient in ((W[row], GW[row], g * c), (C[column], GC[column], g * w)):
            value -= eta * gradient / np.sqrt(squares)
            squares += gradient**2
        for at in ((row, 0), (column, 1)):
            b[at] -= eta * g / np.sqrt(b[at[0], at[1] + 2])
            b[at[0], at[1] + 2] += g * g
    return loss, -1


# ---------------------------------------------------------------- the fast twin


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
def adagrad(i, j, log_x, f, first, last, W, C, GW, GC, b, eta):
    """Visit pairs first … last − 1: rows i and j int32, log_x and f float32. W, C [V, P] and the sums of their squared
    gradients GW, GC float32 are changed in place, as is b [V, 4]: b, b̃ and their sums. `eta` float32.

    Returns (Σ ½ f diff², −1), or the number of the pair whose product is no number of use."""
    loss = 0.0
    for n in range(first, last):
        row, column = i[n], j[n]
        diff = b[row, 0] + b[column, 1] - log_x[n]
        for d in range(W.shape[1]):
            diff += W[row, d] * C[column, d]
        if not abs(diff) < LIMIT:
            return loss, n
        g = f[n] * diff
        loss += 0.5 * g * diff
        for d in range(W.shape[1]):
            w, c = W[row, d], C[column, d]
            dw, dc, sw, sc = g * c, g * w, GW[row, d], GC[column, d]
            W[row, d] = w - eta * dw / np.sqrt(sw)
            C[column, d] = c - eta * dc / np.sqrt(sc)
            GW[row, d] = sw + dw * dw
            GC[column, d] = sc + dc * dc
        b[row, 0] -= eta * g / np.sqrt(b[row, 2])
        b[column, 1] -= eta * g / np.sqrt(b[column, 3])
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
    report: Callable[[int, float], object] = lambda pairs, loss: None,
) -> Trained:
    """Learn vectors [size, vector_size] from counts. Names as in the paper and in Stanford's program; `kernel` is
    `adagrad` or its plain twin; `report(pairs, loss)` is called now and then with the loss of the iteration so far.

    The losses are J divided by the number of pairs, each pair's share as it was when visited. Raises VectorsError for
    settings that cannot be, Diverged naming the pair."""
    for name, value in {"vector_size": vector_size, "iterations": iterations, "workers": workers}.items():
        if value < 1:
            raise VectorsError(f"{name} = {value}: expected at least 1")
    if not len(pairs.x):
        raise VectorsError("no two words stand within a window of each other: nothing to learn vectors from")
    rng = np.random.default_rng(seed)
    order = _tiled(pairs, size, rng)
    i, j, x = pairs.i[order], pairs.j[order], pairs.x[order]
    log_x, f = np.log(x), np.minimum(1, (x / np.float32(x_max)) ** np.float32(alpha))
    P = -(-vector_size // 16) * 16
    W, C, GW, GC = (np.full((size, P), fill, np.float32) for fill in (0, 0, 1, 1))
    b = np.ones((size, 4), np.float32)
    for table in (W[:, :vector_size], C[:, :vector_size], b[:, :2]):
        table[:] = (rng.random(table.shape, np.float32) - 0.5) / (vector_size + 1)
    fixed = (W, C, GW, GC, b, np.float32(eta))
    losses = []
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(iterations):
            total = 0.0
            for start in range(0, len(x), ROUND * workers):
                cuts = np.linspace(start, min(start + ROUND * workers, len(x)), workers + 1).astype(int).tolist()
                results = [pool.submit(kernel, i, j, log_x, f, *cut, *fixed) for cut in pairwise(cuts)]
                for loss, n in [r.result() for r in results]:
                    if n >= 0:
                        product = float(W[i[n]] @ C[j[n]] + b[i[n], 0] + b[j[n], 1])
                        raise Diverged(int(i[n]), int(j[n]), float(x[n]), product)
                    total += float(loss)
                report(cuts[-1] - start, total / cuts[-1])
            losses.append(total / len(x))
    vectors = W[:, :vector_size] + C[:, :vector_size]
    return Trained(vectors, C[:, :vector_size].copy(), losses, len(x))


def _tiled(pairs: Cooccurrences, size: int, rng: np.random.Generator) -> np.ndarray:
    """An order by tiles of 512 × 512 words: the tiles by chance, and by chance within each."""
    tiles = -(-size // TILE)
    place = rng.permutation(tiles * tiles).astype(np.int64)
    tile = place[(pairs.i // TILE).astype(np.int64) * tiles + pairs.j // TILE]
    return np.argsort(tile << 32 | rng.integers(0, 2**32, len(tile), np.int64))
