"""Training a unigram vocabulary: which pieces, and how probable each is.

Kudo (2018, arXiv:1804.10959, section 3.2), as the sentencepiece library does it: start from far too many pieces, then

    repeat until there are few enough
        E step   for every word, the expected number of times each piece is used, over all its segmentations
        M step   the probability of a piece: its expected count, as a share of all
        prune    drop the quarter of pieces whose loss costs the text's likelihood least

The E step is forward–backward on the lattice of each word. Forward: alpha(j) = sum over pieces i→j of alpha(i) · p, the
probability of all ways to place j. Going back, the chance that a way to j took the piece from i is its share of
alpha(j), so with post(j) the chance that j is a boundary at all

    count(i→j) = post(j) · alpha(i) · p / alpha(j),        post(i) = sum of the counts of the pieces that start at i

Only ratios of nearby alphas matter, so a long word needs no logarithms: where alpha becomes small it is scaled up.

The M step is that of Bayesian EM with a sparse prior: exp(digamma(c) - digamma(sum)) in place of c / sum, which takes
about half a count from each piece. A piece's loss is what the likelihood would fall by if its uses, as counted in the
best segmentations, were written with the best other segmentation of it. Single characters always stay.

Words are counted once, and everything works on distinct words. The lattice is made once, from the suffix array of all
words (unigram_seed.py), and shrinks with the vocabulary. Words are dealt to a fixed number of parts whose sums are
added in order, so the result is the same for any number of threads. A line may be of any length. A word longer than
LONGEST characters (text without spaces, base64) is cut there for counting; nothing is left out.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from luthier.tokenizers.bpe import VocabularyError
from luthier.tokenizers.bpe_train import SPECIAL_TOKENS
from luthier.tokenizers.unigram import SPACE, Kind, Normalizer, UnigramTokenizer
from luthier.tokenizers.unigram_seed import ANY, Lattice, find_seeds, read_lattice

__all__ = ["expected_by_the_book", "train_unigram"]

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

PARTS: Final = 8  # of the words, for threads
BLOCK: Final = 1 << 22  # characters normalized at a time
LONGEST: Final = 1000  # characters of a word
STEPS: Final = 2  # of EM before each pruning
LEAST: Final = 0.5  # expected count below which a piece is dropped
SPARE: Final = 1.1  # pruning stops at this multiple of the size; the least probable of the rest go last


def train_unigram(
    texts: Iterable[str],
    vocab_size: int,
    *,
    normalizer: Normalizer | None = None,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    byte_fallback: bool = False,
    character_coverage: float = 0.9995,
    max_piece_length: int = 16,
    seed_size: int = 1_000_000,
    shrinking_factor: float = 0.75,
    num_threads: int = 1,
    on_round: Callable[[int, float], None] | None = None,
) -> UnigramTokenizer:
    """Train a unigram tokenizer of at most `vocab_size` ids: `<unk>`, special tokens, with `byte_fallback` the 256
    bytes, and pieces, the most probable first.

    `character_coverage`: share of the text whose characters, the most frequent, become pieces; the rest is unknown.
    `max_piece_length` in characters; `seed_size` pieces to start from; `shrinking_factor` what a pruning leaves of
    them. `on_round` hears before each pruning how many pieces there are and the mean log-likelihood of a word. Raises
    VocabularyError for a size that cannot be.
    """
    if normalizer is None:
        from luthier.tokenizers.normalizer import nmt_nfkc

        normalizer = nmt_nfkc()
    meta = ["<unk>", *special_tokens, *(f"<0x{b:02X}>" for b in range(256) if byte_fallback)]
    corpus = _corpus(_count_words(texts, normalizer), character_coverage)
    _check(vocab_size, meta, corpus.alphabet)
    size = vocab_size - len(meta)
    pieces, scores = _train(corpus, size, max_piece_length, seed_size, shrinking_factor, num_threads, on_round)
    taken = [k for k, piece in enumerate(pieces) if piece not in set(meta)]
    kinds = [Kind.UNKNOWN] + [Kind.CONTROL] * len(special_tokens) + [Kind.BYTE] * (256 if byte_fallback else 0)
    return UnigramTokenizer(
        [*meta, *(pieces[k] for k in taken)],
        np.concatenate([np.zeros(len(meta)), scores[taken]]).astype(np.float32),
        normalizer=normalizer,
        kinds=kinds + [Kind.NORMAL] * len(taken),
        byte_fallback=byte_fallback,
    )


def _check(vocab_size: int, meta: Sequence[str], alphabet: str) -> None:
    if len(alphabet) < 2:
        raise VocabularyError("there is no text to train on: nothing but white space\nGive files with words in them.")
    if len(set(meta)) < len(meta) or "" in meta:
        raise VocabularyError(f"special tokens must be different, not empty and not <unk>: {', '.join(meta[1:9])}")
    if vocab_size < len(meta) + len(alphabet):
        raise VocabularyError(
            f"vocab_size {vocab_size} is too small: {len(alphabet)} characters and {len(meta)} other ids need "
            f"{len(meta) + len(alphabet)}\nUse that or more, or a lower character_coverage."
        )


# ---------------------------------------------------------------- the reference


def expected_by_the_book(words: dict[str, int], p: dict[str, float]) -> dict[str, float]:
    """The E step in plain Python: expected count of each piece over all segmentations of all words."""
    expected = dict.fromkeys(p, 0.0)
    for word, count in words.items():
        n = len(word)
        alpha, beta = [1.0] + [0.0] * n, [0.0] * n + [1.0]
        spans = [(i, j) for i in range(n) for j in range(i + 1, n + 1) if word[i:j] in p]
        for i, j in spans:
            alpha[j] += alpha[i] * p[word[i:j]]
        for i, j in reversed(spans):
            beta[i] += p[word[i:j]] * beta[j]
        for i, j in spans:
            expected[word[i:j]] += count * alpha[i] * p[word[i:j]] * beta[j] / alpha[n]
    return expected


# ---------------------------------------------------------------- words


class _Corpus(NamedTuple):
    """Distinct words as characters: 1 is ▁, c is alphabet[c - 1]; each word is followed by 0."""

    alphabet: str
    text: npt.NDArray[np.int32]
    weights: Longs  # how often the word at each place occurs
    scripts: npt.NDArray[np.int32]  # of each character


def _count_words(texts: Iterable[str], normalizer: Normalizer) -> Counter[str]:
    """How often each word occurs, its ▁ included."""
    words: Counter[str] = Counter()
    for text in texts:
        for block in _blocks(text):
            words.update(normalizer.normalize(block).split(SPACE))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        if len(word) < LONGEST:
            counts[SPACE + word] += count
        else:
            for i in range(0, len(word), LONGEST):
                counts[(SPACE if i == 0 else "") + word[i : i + LONGEST]] += count
    del counts[SPACE]
    return counts


def _blocks(text: str) -> Iterator[str]:
    """`text` in stretches of about BLOCK characters that end with a space."""
    begin = 0
    while len(text) - begin > BLOCK and (end := text.find(" ", begin + BLOCK)) >= 0:
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _corpus(words: Counter[str], coverage: float) -> _Corpus:
    """The words in order, common ones first; a character that is not covered cuts its word in two."""
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    letters = np.frombuffer("".join(word + "\0" for word, _ in ranked).encode("utf-32-le"), np.uint32)
    lengths = np.array([len(word) + 1 for word, _ in ranked], np.int64)
    weights = np.repeat(np.array([count for _, count in ranked], np.int64), lengths)
    counts = np.bincount(letters, weights, minlength=ord(SPACE) + 1)
    counts[0] = 0
    chosen = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    before = (np.cumsum(counts[chosen]) - counts[chosen]) / max(counts.sum(), 1)
    chosen = [ord(SPACE), *(c for c in chosen[before < coverage].tolist() if c not in (ord(SPACE), 0))]
    number = np.zeros(len(counts), np.int32)
    number[chosen] = np.arange(1, len(chosen) + 1)
    names: dict[str, int] = {}
    scripts = [
        ANY,
        ANY,
        *(ANY if (s := _script(chr(c))) is None else names.setdefault(s, len(names)) for c in chosen[1:]),
    ]
    return _Corpus("".join(map(chr, chosen)), number[letters], weights, np.array(scripts, np.int32))


def _script(character: str) -> str | None:
    """The script of a character, from its name: the three of Japanese are one, what is no letter is common to all; None
    for a mark that goes with any."""
    if unicodedata.category(character)[0] not in "LM":
        return "COMMON"
    name = unicodedata.name(character, "NONE").split()[0].split("-")[0]
    if name in ("HIRAGANA", "KATAKANA", "CJK", "IDEOGRAPHIC"):
        return "HAN"
    return None if name == "COMBINING" else name


# ---------------------------------------------------------------- the loop


class _State(NamedTuple):
    """The pieces of the moment: where one occurs in the text, its length, its log-probability; and their lattice."""

    where: Longs
    lengths: npt.NDArray[np.uint8]
    scores: Floats
    lattice: Lattice


def _train(
    corpus: _Corpus,
    size: int,
    max_piece_length: int,
    seed_size: int,
    shrinking_factor: float,
    num_threads: int,
    on_round: Callable[[int, float], None] | None,
) -> tuple[list[str], Floats]:
    """At most `size` pieces, the most probable first, and their log-probabilities."""
    letters = len(corpus.alphabet)
    seeds, order = find_seeds(corpus.text, corpus.weights, corpus.scripts, max_piece_length, seed_size)
    state = _State(
        seeds.where,
        seeds.lengths,
        np.log(seeds.worth / seeds.worth.sum()),
        read_lattice(corpus.text, order, seeds),
    )
    parts = _parts(corpus, state.lattice)
    wanted = int(size * SPARE)
    with ThreadPoolExecutor(num_threads) as pool:
        while True:
            for _ in range(STEPS):
                expected, likelihood = _expect(corpus, state, parts, pool)
                state = state._replace(scores=_maximize(expected, letters))
            if on_round:
                on_round(len(state.scores), likelihood)
            if np.count_nonzero(state.scores > -np.inf) <= wanted:
                break
            state = _prune(corpus, state, parts, pool, max(wanted, int(shrinking_factor * len(state.scores))))
    return _finish(corpus, state, size)


def _parts(corpus: _Corpus, lattice: Lattice) -> list[tuple[int, int]]:
    """PARTS stretches of the text with whole words and about as many edges each."""
    n = len(corpus.text)
    goals = np.searchsorted(lattice.first[:-1], np.arange(1, PARTS) * (lattice.first[-1] / PARTS))
    ends = np.flatnonzero(corpus.text == 0) + 1
    cuts = [0, *(int(ends[np.searchsorted(ends, goal)]) if goal < n else n for goal in goals), n]
    return list(pairwise(cuts))


def _expect(
    corpus: _Corpus, state: _State, parts: Sequence[tuple[int, int]], pool: ThreadPoolExecutor
) -> tuple[Floats, float]:
    """Expected counts of all pieces, and the mean log-likelihood of a word."""
    p = np.exp(state.scores)

    def one(part: tuple[int, int]) -> tuple[Floats, float]:
        expected, room = np.zeros(len(p)), np.empty((3, LONGEST + 2))
        return expected, _forward_backward(corpus.text, corpus.weights, *part, *state.lattice, p, room, expected)

    results = list(pool.map(one, parts))
    words = int(corpus.weights[corpus.text == 0].sum())
    return np.sum([expected for expected, _ in results], axis=0), sum(log for _, log in results) / max(words, 1)


def _maximize(expected: Floats, letters: int) -> Floats:
    """New log-probabilities; -inf for a piece that is dropped."""
    counts = expected.copy()
    counts[:letters] = np.maximum(counts[:letters], LEAST)
    kept = counts >= LEAST
    scores = np.full(len(counts), -np.inf)
    scores[kept] = _digamma(counts[kept]) - _digamma(counts[kept].sum(keepdims=True))
    return scores


def _digamma(x: Floats) -> Floats:
    """The derivative of log Γ: shifted to x ≥ 6 by ψ(x) = ψ(x + 1) - 1/x, then the asymptotic series."""
    x, result = x.copy(), np.zeros_like(x)
    while (small := x < 6).any():
        result[small] -= 1 / x[small]
        x[small] += 1
    y = 1 / (x * x)
    return result + np.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y / 252))


def _prune(
    corpus: _Corpus, state: _State, parts: Sequence[tuple[int, int]], pool: ThreadPoolExecutor, size: int
) -> _State:
    """Keep the `size` pieces whose loss would cost most."""

    def one(part: tuple[int, int]) -> Floats:
        counts, room = np.zeros(len(state.scores)), np.empty(LONGEST + 2)
        back = np.empty((2, len(room)), np.int64)
        _count_best(corpus.text, corpus.weights, *part, *state.lattice, state.scores, room, back, counts)
        return counts

    counts = np.sum(list(pool.map(one, parts)), axis=0)
    losses = np.empty(len(counts))
    letters, back = len(corpus.alphabet), np.empty((2, 256), np.int64)
    _losses(letters, state.where, state.lengths, *state.lattice, state.scores, counts, np.empty(256), back, losses)
    kept = np.sort(np.argsort(-losses, kind="stable")[:size])
    kept = kept[losses[kept] > -np.inf]
    number = np.full(len(counts), -1, np.int32)
    number[kept] = np.arange(len(kept))
    first, pieces, lengths = state.lattice
    edges = _shrink(first, pieces, lengths, number)
    lattice = Lattice(first, pieces[:edges], lengths[:edges])
    return _State(state.where[kept], state.lengths[kept], state.scores[kept], lattice)


def _finish(corpus: _Corpus, state: _State, size: int) -> tuple[list[str], Floats]:
    """All characters and the most probable pieces, `size` in all."""
    letters = len(corpus.alphabet)
    order = np.argsort(-state.scores, kind="stable")
    order = order[state.scores[order] > -np.inf]
    kept = np.concatenate([order[order < letters], order[order >= letters][: size - letters]])
    kept = kept[np.argsort(-state.scores[kept], kind="stable")]
    alphabet = "\0" + corpus.alphabet
    where, lengths = state.where[kept].tolist(), state.lengths[kept].tolist()
    pieces = ["".join(alphabet[c] for c in corpus.text[i : i + n]) for i, n in zip(where, lengths, strict=True)]
    return pieces, state.scores[kept]


# ---------------------------------------------------------------- the fast path

# No compiled function makes an array, so Numba need not count references; only outer ones are called from Python.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

SMALL: Final = 2.0**-300
LARGE: Final = 2.0**300


@_outer
def _forward_backward(text, weights, begin, end, first, pieces, lengths, p, room, expected):
    """Add the expected counts of the words in text[begin:end]; returns the log-likelihood of all of them."""
    alpha, ratio, scales, likelihood = room[0], room[1], room[2], 0.0
    while begin < end:
        n = 0
        while text[begin + n] != 0:
            n += 1
        if n:
            _forward(first[begin : begin + n + 1], pieces, lengths, p, alpha, scales, n)
            weight = np.float64(weights[begin])
            likelihood += weight * (np.log(alpha[n]) + scales[n] * np.log(SMALL))
            _backward(first[begin : begin + n + 1], pieces, lengths, p, alpha, ratio, scales, n, weight, expected)
        begin += n + 1
    return likelihood


@_inner
def _forward(first, pieces, lengths, p, alpha, scales, n):
    """alpha[j] · SMALL^scales[j]: the probability of all ways to place j."""
    alpha[0], scale = 1.0, 0.0
    for j in range(1, n + 1):
        alpha[j] = 0.0
    for i in range(n + 1):
        if alpha[i] < SMALL:
            last, most = min(n, i + 255), 0.0
            for j in range(i, last + 1):
                most = max(most, alpha[j])
            if most < SMALL:
                scale += 1.0
                for j in range(i, last + 1):
                    alpha[j] *= LARGE
        scales[i] = scale
        if i < n:
            for e in range(first[i], first[i + 1]):
                alpha[i + lengths[e]] += alpha[i] * p[pieces[e]]


@_inner
def _backward(first, pieces, lengths, p, alpha, ratio, scales, n, weight, expected):
    """ratio[j]: weight · (chance that j is a boundary) / alpha[j]."""
    ratio[n] = weight / alpha[n]
    for i in range(n - 1, -1, -1):
        total = 0.0
        for e in range(first[i], first[i + 1]):
            j = i + lengths[e]
            share = p[pieces[e]] * ratio[j]
            if scales[j] != scales[i]:
                share *= LARGE ** (scales[j] - scales[i])
            expected[pieces[e]] += share * alpha[i]
            total += share
        ratio[i] = total


@_outer
def _count_best(text, weights, begin, end, first, pieces, lengths, scores, best, back, counts):
    """Add how often each piece is used in the best segmentations of the words in text[begin:end]."""
    while begin < end:
        n = 0
        while text[begin + n] != 0:
            n += 1
        _best(first[begin : begin + n + 1], pieces, lengths, scores, n, n + 1, best, back)
        j = n
        while j > 0:
            counts[back[1, j]] += weights[begin]
            j = back[0, j]
        begin += n + 1


@_inner
def _best(first, pieces, lengths, scores, n, longest, best, back):
    """The best way to each of n places by pieces shorter than `longest`: its score, its last piece's start and id."""
    best[0] = 0.0
    for j in range(1, n + 1):
        best[j] = -np.inf
    for i in range(n):
        for e in range(first[i], first[i + 1]):
            j = i + lengths[e]
            if lengths[e] < longest and j <= n and best[i] + scores[pieces[e]] > best[j]:
                best[j], back[0, j], back[1, j] = best[i] + scores[pieces[e]], i, pieces[e]


@_outer
def _losses(letters, where, sizes, first, pieces, lengths, scores, counts, best, back, losses):
    """What dropping each piece costs the mean log-likelihood, but for a factor: inf for characters, -inf for pieces
    that no best segmentation uses."""
    total = 0.0
    for c in counts:
        total += c
    for k in range(len(counts)):
        losses[k] = np.inf if k < letters else -np.inf
        if k < letters or counts[k] == 0:
            continue
        n, place = np.int64(sizes[k]), where[k]
        _best(first[place : place + n + 1], pieces, lengths, scores, n, n, best, back)
        if best[n] >= scores[k]:
            continue
        parts, logs, j = 0, 0.0, n
        while j > 0:
            logs += np.log(counts[back[1, j]] + counts[k])
            parts, j = parts + 1, back[0, j]
        instead = logs - parts * np.log(total + counts[k] * (parts - 1))
        losses[k] = counts[k] * (np.log(counts[k] / total) - instead)


@_outer
def _shrink(first, pieces, lengths, number):
    """Renumber the edges and drop those whose piece has no number; returns how many are left."""
    out, begin = np.int64(0), first[0]
    for i in range(len(first) - 1):
        end = first[i + 1]
        first[i] = out
        for e in range(begin, end):
            if number[pieces[e]] >= 0:
                pieces[out], lengths[out] = number[pieces[e]], lengths[e]
                out += 1
        begin = end
    first[len(first) - 1] = out
    return out
