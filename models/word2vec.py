"""Word2Vec: skip-gram with negative sampling (Mikolov et al. 2013b, arXiv:1310.4546, eq. 4).

Every word has two vectors, w as the one that stands in a text and c as the one that is predicted. For each word of the
text and each neighbour x in its window, pull w_x and c_word together and push w_x away from K words drawn by chance:

    loss(x, word) = −log σ(w_x · c_word) − Σ_k log σ(−w_x · c_noise_k)
    ∂loss/∂(w · c) = σ(w · c) − label =: e,  label 1 for the word, 0 for noise;  w −= rate·Σ e·c,  c −= rate·Σ e·w

- *window*: its reach is drawn anew for each word, 1 … `window`, which counts near words more often;
- *noise* is drawn in proportion to count^`ns_exponent` (¾), exactly and in constant time, by Walker's alias table;
- *sample*: a word of frequency f is kept with probability √(t/f) + t/f, t = `sample` (the formula of word2vec.c);
- the rate falls in a straight line from `alpha` to `min_alpha` over all words of all epochs;
- *shared noise* (Ji et al. 2016, arXiv:1604.04661): the neighbours of one word share its K noise words. Three small
  matrix products then do the work of (K + 1)·neighbours dot products, at equal quality:

      E [n, K+1] = σ(X Tᵀ) − labels;   T −= rate·Eᵀ X;   X −= rate·E T        X [n, D] neighbours, T [K+1, D] targets

A window never leaves its document. `workers` threads share both tables without a lock (Niu et al. 2011, HOGWILD): an
update lost now and then does no harm, but two such runs differ. One thread gives the same bits for the same seed.

σ comes from a table over [−8, 8], linearly interpolated (error below 4e-6) and constant beyond.

Legend: V rows of the vocabulary, D vector size, P = D rounded up to 16 (the rest stays zero), K noise words.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from luthier.models.vectors import Trained, VectorsError

__all__ = ["alias_table", "skipgram", "skipgram_plain", "train_word2vec"]

ROUND = 100_000  # words a thread trains between two looks at the loss; short, so that threads stay close in the text

# One stream of chance for both twins: Knuth's 64-bit linear congruential generator, its upper 53 bits as a number < 1.
MULTIPLIER, INCREMENT = np.uint64(6364136223846793005), np.uint64(1442695040888963407)
SHIFT, UNIT = np.uint64(11), 2.0**-53

REACH, BINS = 8, 1024
SIGMOID = (1 / (1 + np.exp(-(np.arange(BINS + 2) - BINS / 2) * (2 * REACH / BINS)))).astype(np.float32)
ZERO, HALF, SCALE, TOP = (np.float32(x) for x in (0, BINS / 2, BINS / (2 * REACH), BINS))


# ---------------------------------------------------------------- the plain twin


def skipgram_plain(
    rows, offsets, document, first, last, keep, accept, alias, sigmoid, W, C, window, negative, alpha, min_alpha, state
):
    """Train on rows[first:last], the readable way. Updates W and C [V, P]; returns (Σ loss and pairs of every 16th
    word, all pairs, the state of chance). `document` is the one that `first` lies in; the rest as in `skipgram`."""

    def uniform():
        nonlocal state
        state = (int(state) * int(MULTIPLIER) + int(INCREMENT)) % 2**64
        return (state >> 11) * UNIT

    def noise():
        y = uniform() * len(W)
        return int(y) if y - int(y) < accept[int(y)] else int(alias[int(y)])

    loss, measured, pairs, at = 0.0, 0, 0, first
    while at < last:
        end = min(last, int(offsets[document + 1]))
        kept = [int(row) for row in rows[at:end] if uniform() < keep[row]]
        for i, word in enumerate(kept):
            reach = 1 + int(uniform() * window)
            neighbours = kept[max(0, i - reach) : i] + kept[i + 1 : i + reach + 1]
            targets = [word] + [noise() for _ in range(negative)]
            rate = alpha + (min_alpha - alpha) * ((at - first) + i * (end - at) / len(kept)) / (last - first)
            counts = np.array([1.0] + [float(t != word) for t in targets[1:]], np.float32)  # the word is no noise
            X, T = W[neighbours], C[targets]
            error = 1 / (1 + np.exp(-np.clip(X @ T.T, -REACH, REACH)))
            error[:, 0] -= 1
            if i % 16 == 0:
                loss -= float((np.log(1 - np.abs(error)) * counts).sum())
                measured += len(neighbours)
            pairs += len(neighbours)
            step = (-rate * error * counts).astype(np.float32)
            np.add.at(C, targets, step.T @ X)
            np.add.at(W, neighbours, step @ T)
        at, document = end, document + 1
    return loss, measured, pairs, state


# ---------------------------------------------------------------- the fast twin


# No "nnan": a guard for numbers that are none must survive. Three rows at a time because K + 1 = 6 by default, and a
# row that is loaded once then serves three sums.
@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
def skipgram(
    rows, offsets, document, first, last, keep, accept, alias, sigmoid, W, C, window, negative, alpha, min_alpha, state
):
    """Train on rows[first:last] int32, where offsets int64 bound the documents. `keep` float64 [V] is the chance to be
    kept, `accept` float64 and `alias` int64 [V] the noise; the rate goes from `alpha` to `min_alpha`; `state` uint64.
    """
    V, P, K = W.shape[0], W.shape[1], (negative + 3) // 3 * 3
    kept, neighbours = np.empty(last - first, np.int64), np.zeros(2 * window + 3, np.int64)
    targets, rates = np.zeros(K, np.int64), np.zeros(K, np.float32)
    T, step = np.zeros((K, P), np.float32), np.zeros((2 * window + 3, K), np.float32)
    loss, measured, pairs, at = 0.0, 0, 0, first
    while at < last:
        end, m = min(last, offsets[document + 1]), 0
        for q in range(at, end):
            state = state * MULTIPLIER + INCREMENT
            kept[m] = rows[q]
            if (state >> SHIFT) * UNIT < keep[rows[q]]:
                m += 1
        for i in range(m):
            # The neighbours; two more of weight zero fill the last group of three.
            word, n = kept[i], 0
            state = state * MULTIPLIER + INCREMENT
            reach = 1 + int((state >> SHIFT) * UNIT * window)
            for j in range(max(0, i - reach), min(m, i + reach + 1)):
                if j != i:
                    neighbours[n] = kept[j]
                    n += 1
            neighbours[n] = neighbours[n + 1] = word
            # The targets: the word and its noise, copied, since their rows change below.
            rate = alpha + (min_alpha - alpha) * ((at - first) + i * (end - at) / m) / (last - first)
            for k in range(negative + 1):
                t, rates[k] = word, rate
                if k > 0:
                    state = state * MULTIPLIER + INCREMENT
                    y = (state >> SHIFT) * UNIT * V
                    t = int(y)
                    if y - t >= accept[t]:
                        t = alias[t]
                    if t == word:  # the word is no noise
                        rates[k] = ZERO
                targets[k] = t
                for d in range(P):
                    T[k, d] = C[t, d]
            # step = −rate · (σ(X Tᵀ) − labels)
            for j in range(n):
                x = neighbours[j]
                for k in range(0, K, 3):
                    s0 = s1 = s2 = ZERO
                    for d in range(P):
                        w = W[x, d]
                        s0 += w * T[k, d]
                        s1 += w * T[k + 1, d]
                        s2 += w * T[k + 2, d]
                    step[j, k], step[j, k + 1], step[j, k + 2] = s0, s1, s2
                for k in range(negative + 1):
                    z = min(max(step[j, k] * SCALE + HALF, ZERO), TOP)
                    h = int(z)
                    e = sigmoid[h] + (z - h) * (sigmoid[h + 1] - sigmoid[h])
                    if k == 0:
                        e -= 1
                    if i & 15 == 0 and rates[k] > ZERO:
                        loss -= np.log(1 - abs(e))
                    step[j, k] = -e * rates[k]
            if i & 15 == 0:
                measured += n
            pairs += n
            # C += stepᵀ X, then W += step T: both from the rows as they were before.
            for k in range(negative + 1):
                step[n, k] = step[n + 1, k] = ZERO
                t = targets[k]
                for j in range(0, n, 3):
                    a0, a1, a2 = step[j, k], step[j + 1, k], step[j + 2, k]
                    x0, x1, x2 = neighbours[j], neighbours[j + 1], neighbours[j + 2]
                    for d in range(P):
                        C[t, d] += a0 * W[x0, d] + a1 * W[x1, d] + a2 * W[x2, d]
            for j in range(n):
                x = neighbours[j]
                for k in range(0, K, 3):
                    a0, a1, a2 = step[j, k], step[j, k + 1], step[j, k + 2]
                    for d in range(P):
                        W[x, d] += a0 * T[k, d] + a1 * T[k + 1, d] + a2 * T[k + 2, d]
        at, document = end, document + 1
    return loss, measured, pairs, state


# ---------------------------------------------------------------- training


def train_word2vec(
    rows: np.ndarray,
    offsets: np.ndarray,
    counts: np.ndarray,
    *,
    vector_size: int = 100,
    window: int = 5,
    negative: int = 5,
    sample: float = 1e-3,
    alpha: float = 0.025,
    min_alpha: float = 1e-4,
    epochs: int = 5,
    ns_exponent: float = 0.75,
    seed: int = 0,
    workers: int = 1,
    kernel: Callable = skipgram,
    report: Callable[[int, float], object] = lambda words, loss: None,
) -> Trained:
    """Learn vectors of `rows` (int, the row of each word of the text; 0 the commonest), documents between `offsets`,
    `counts` [V] of each row. Names as in gensim; `kernel` is `skipgram` or its plain twin. `report(words, loss)` is
    called after each round. Raises VectorsError for settings that cannot be."""
    _check(rows, counts, vector_size=vector_size, window=window, negative=negative, epochs=epochs, workers=workers)
    rows, offsets = np.array(rows, np.int32), np.array(offsets, np.int64)
    V, P = len(counts), -(-vector_size // 16) * 16
    W, C = np.zeros((V, P), np.float32), np.zeros((V, P), np.float32)
    W[:, :vector_size] = (np.random.default_rng(seed).random((V, vector_size), np.float32) - 0.5) / vector_size
    fixed = (keep_probability(counts, sample), *alias_table(counts**ns_exponent), SIGMOID, W, C, window, negative)
    states = np.random.SeedSequence(seed).generate_state(workers, np.uint64)
    losses, pairs, done, total = [], 0, 0, epochs * len(rows)

    def work(worker: int, first: int, last: int, rate: float, end_rate: float) -> tuple:
        document = int(np.searchsorted(offsets, first, "right")) - 1
        result = kernel(rows, offsets, document, first, last, *fixed, rate, end_rate, states[worker])
        states[worker] = result[3]
        return result

    with ThreadPoolExecutor(workers) as pool:
        for _ in range(epochs):
            for start in range(0, len(rows), ROUND * workers):
                cuts = np.linspace(start, min(start + ROUND * workers, len(rows)), workers + 1).astype(int).tolist()
                rate = alpha + (min_alpha - alpha) * done / total
                done += cuts[-1] - start
                end_rate = alpha + (min_alpha - alpha) * done / total
                results = [pool.submit(work, n, cuts[n], cuts[n + 1], rate, end_rate) for n in range(workers)]
                sums = np.sum([r.result()[:3] for r in results], axis=0)
                losses.append(float(sums[0] / max(sums[1], 1)))
                pairs += int(sums[2])
                report(cuts[-1] - start, losses[-1])
    return Trained(W[:, :vector_size].copy(), C[:, :vector_size].copy(), losses, pairs)


def _check(rows: np.ndarray, counts: np.ndarray, **at_least_one: int) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise VectorsError(f"{name} = {value}: expected at least 1")
    if len(rows) == 0 or len(counts) < 2:
        raise VectorsError(f"{len(rows)} words of {len(counts)} different ones: too little to learn vectors from")


def keep_probability(counts: np.ndarray, sample: float) -> np.ndarray:
    """float64 [V]: √(t/f) + t/f, at most 1; all 1 where `sample` is 0."""
    if sample <= 0:
        return np.ones(len(counts))
    ratio = sample * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1, np.sqrt(ratio) + ratio)


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias method as Vose (1991) builds it: draw a slot i of V evenly; take i with chance accept[i], else
    alias[i]. Every slot holds 1/V of the chance, a poor word's slot filled up from a rich one's."""
    accept = weights / weights.sum() * len(weights)
    alias = np.arange(len(weights))
    poor, rich = list(np.flatnonzero(accept < 1)), list(np.flatnonzero(accept >= 1))
    while poor and rich:
        low, high = poor.pop(), rich[-1]
        alias[low] = high
        accept[high] -= 1 - accept[low]
        if accept[high] < 1:
            poor.append(rich.pop())
    accept[poor + rich] = 1.0  # what rounding left over
    return accept, alias
