"""Word2Vec: words that stand in like places get like vectors (Mikolov et al. 2013a, arXiv:1301.3781; 2013b, 1310.4546).

Every word has two vectors, w as the one that stands in a text and c as the one that is predicted. The text is walked
word by word; the *targets* of a word are pulled towards, or pushed from, a vector h made of its neighbours:

    skip-gram (`sg`)   h = w_x for each neighbour x in turn                          2013a, section 3.2
    CBOW               h = the mean of all neighbours' w (`cbow_mean`), or their sum   2013a, section 3.1

    negative sampling  loss = −log σ(h · c_word) − Σ_k log σ(−h · c_noise_k)                 2013b, eq. 4
    tree (`hs`)        loss = −Σ_n log σ(± h · c_n) over the nodes n on the word's path        2013b, eq. 3
                       of a Huffman tree, + where the path turns left (models/huffman.py)
    both               ∂loss/∂(h · c) = σ(h · c) − label =: e,   h −= rate·Σ e·c,   c −= rate·e·h

Goldberg & Levy (2014, arXiv:1402.3722) derive the first of the two in full. Around that:

- *window*: its reach is drawn anew for each word, 1 … `window`, which counts near words more often;
- *noise* is drawn in proportion to count^`ns_exponent` (¾), exactly and in constant time, by Walker's alias table;
- *sample*: a word of frequency f is kept with probability √(t/f) + t/f, t = `sample` (the formula of word2vec.c);
- first vectors are drawn evenly from ±1/D, as gensim's and fastText's are (word2vec.c: ±½/D); contexts begin at zero;
- the rate falls in a straight line from `alpha` to `min_alpha` over all words of all epochs;
- *n-grams* (Bojanowski et al. 2017, arXiv:1607.04606, eq. 2): w is the mean of the word's own row and those of its
  character n-grams (models/ngrams.py), so that a word never seen has a vector;
- *shared noise* (Ji et al. 2016, arXiv:1604.04661): the n neighbours of a word share its K noise words. Three small
  matrix products then do the work of n (K + 1) dot products, at equal quality: word2vec_fast.py;
- *ring*: a word's vector is copied when it comes into reach of the walk, changed there, and what it gained is added to
  its row when it goes out of reach: one look into the table for a word, and for its n-grams, not one for each pair.

A window never leaves its document, nor its piece: the text is cut every 8,192 words, a document of any length is
trained whole. Each piece has its own stream of chance, whoever trains it. Each epoch takes the pieces in an order of
its own: the rate falls, and what stands last in the text would be learned at the least of it every time.

**Threads.** `workers` threads take pieces in order and share the table without a lock (Niu et al. 2011, HOGWILD): an
update lost now and then does no harm, but two such runs differ. One thread gives the same bits for the same seed.

`deterministic` gives the same bits for any number of threads, by using one. Rounds were tried, in which several threads
read the table as it was, log their changes and add them in a fixed order: logs and rows then travel between the cores,
and two threads are slower than one. docs/vectors.md has the figures.

Legend: V words, B n-gram buckets, N rows of the table, D vector size, P = D rounded up to 8 (the rest stays zero).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from luthier.models.huffman import huffman_paths
from luthier.models.ngrams import ngram_parts
from luthier.models.vectors import Trained, VectorsError
from luthier.models.word2vec_fast import Model, Room, places, thin, walk

__all__ = ["Word2Vec", "Word2VecSettings", "alias_table", "keep_probability", "train_word2vec"]

PIECE = 8_192  # words with one stream of chance
ROUND = 64  # pieces between two looks at the loss


@dataclass(frozen=True)
class Word2VecSettings:
    """Names as in gensim; see the module's head. `max_n` 0: no n-grams. `shared_noise`: words of the text that share
    their noise words; 0: every pair draws its own."""

    vector_size: int = 100
    window: int = 5
    sg: bool = True
    hs: bool = False
    negative: int = 5
    ns_exponent: float = 0.75
    sample: float = 1e-3
    alpha: float = 0.025
    min_alpha: float = 1e-4
    cbow_mean: bool = True
    epochs: int = 5
    seed: int = 0
    workers: int = 1
    deterministic: bool = False
    shared_noise: int = 1
    min_n: int = 3
    max_n: int = 0
    bucket: int = 2_000_000

    def __post_init__(self) -> None:
        for name in ("vector_size", "window", "epochs", "workers", "min_n", "bucket"):
            if getattr(self, name) < 1:
                raise VectorsError(f"{name} = {getattr(self, name)}: expected at least 1")
        for name in ("negative", "sample", "min_alpha", "shared_noise", "max_n"):
            if getattr(self, name) < 0:
                raise VectorsError(f"{name} = {getattr(self, name)}: expected at least 0")
        if not self.alpha > 0:
            raise VectorsError(f"alpha = {self.alpha}: expected more than 0")
        if not (self.negative or self.hs):
            raise VectorsError("negative = 0 and hs = false: nothing to learn from\nGive --negative 5, or --hs.")


class Word2Vec:
    """A training in progress. `rows` int32 (the row of each word of the text, 0 the commonest; may be memory-mapped),
    documents between `offsets`, `counts` [V] of each row, `tokens` for their n-grams.

    Attributes: `table` float32 [N, P], `done` pieces trained, `losses` one a round, `pairs` visited.
    """

    def __init__(
        self,
        rows: np.ndarray,
        offsets: np.ndarray,
        counts: np.ndarray,
        settings: Word2VecSettings | None = None,
        tokens: Sequence[str] = (),
        kernel: Callable = walk,
    ) -> None:
        self.settings = s = settings or Word2VecSettings()
        if len(rows) == 0 or len(counts) < 2:
            raise VectorsError(f"{len(rows)} words of {len(counts)} different ones: too little to learn vectors from")
        if s.max_n and len(tokens) != len(counts):
            raise VectorsError(f"{len(tokens)} tokens for {len(counts)} rows: n-grams need the spelling of each")
        self.rows, self.offsets = rows.astype(np.int32, copy=False), np.asarray(offsets, np.int64)
        self.counts, self.kernel = np.asarray(counts), kernel
        self.pieces = -(-len(rows) // PIECE)
        self.done, self.pairs, self.losses = 0, 0, []
        self._model, self.most_targets = _model(self.counts, s, tokens)
        self.table = self._model.table
        self._rooms: list[tuple] = []  # borrowed by one thread at a time

    @property
    def finished(self) -> bool:
        return self.done == self.pieces * self.settings.epochs

    @property
    def words_done(self) -> int:
        epochs, pieces = divmod(self.done, self.pieces)
        return epochs * len(self.rows) + min(pieces * PIECE, len(self.rows))

    def train(self, report: Callable[[int, float], object] = lambda words, loss: None) -> None:
        """Train to the end, from wherever `done` is. `report(words, loss)` is called after each round; an exception
        that it raises leaves a state that training goes on from."""
        order, ordered = np.zeros(0, np.int64), -1
        with ThreadPoolExecutor(1 if self.settings.deterministic else self.settings.workers) as pool:
            while not self.finished:
                epoch, first = divmod(self.done, self.pieces)
                if epoch != ordered:
                    order, ordered = self._order(epoch), epoch
                pieces = range(first, min(first + ROUND, self.pieces))
                results = list(pool.map(partial(self._train_piece, epoch), pieces, order[first : pieces.stop].tolist()))
                sums = np.sum(results, axis=0)
                self.done += len(pieces)
                self.pairs += int(sums[2])
                self.losses.append(float(sums[0] / max(sums[1], 1)))
                report(min(pieces.stop * PIECE, len(self.rows)) - pieces.start * PIECE, self.losses[-1])

    # ------------------------------------------------------------ one piece

    def _order(self, epoch: int) -> np.ndarray:
        """The pieces as an epoch takes them."""
        return np.random.default_rng((self.settings.seed, epoch)).permutation(self.pieces)

    def _train_piece(self, epoch: int, turn: int, piece: int) -> np.ndarray:
        """Train a piece of the text in its turn; Σ loss, pairs measured, pairs."""
        room, kept, ends = self._borrow()
        # A stream of chance of its own for what is kept, and one for noise and windows.
        states = np.random.SeedSequence((self.settings.seed, epoch, piece)).generate_state(3, np.uint64)
        first, last = piece * PIECE, min((piece + 1) * PIECE, len(self.rows))
        words, documents, _ = thin(self.rows, self.offsets, first, last, self._model.keep, states[0], kept, ends)
        text, rates = (kept[:words], ends[:documents]), self._rates(epoch, turn)
        out = self.kernel(*text, 0, words, self._model, room, *rates, states[1])
        self._rooms.append((room, kept, ends))
        return np.array(out[:3])

    def _rates(self, epoch: int, turn: int) -> tuple[float, float]:
        s, total = self.settings, self.settings.epochs * len(self.rows)
        parts = (epoch * len(self.rows) + min(p * PIECE, len(self.rows)) for p in (turn, turn + 1))
        first, last = (s.alpha + (s.min_alpha - s.alpha) * part / total for part in parts)
        return first, last

    def _borrow(self) -> tuple:
        """Working space of one thread: room, words kept, documents' ends."""
        try:
            return self._rooms.pop()
        except IndexError:
            P, s = self.table.shape[1], self.settings
            room = _room(P, s.window, s.negative, -(-self.most_targets // 6) * 6)
            room = room._replace(places=places(self._model, room))
            return room, np.zeros(PIECE, np.int32), np.zeros(PIECE, np.int64)

    # ------------------------------------------------------------ results and state

    @property
    def vectors(self) -> np.ndarray:
        """float32 [V, D]: each word's own row, or the mean of it and its n-grams'. This and what follows are parts of
        `table` where they can be, which change as training goes on."""
        D, m = self.settings.vector_size, self._model
        if not len(m.parts):
            return self.table[: len(self.counts), :D]
        vectors = np.empty((len(self.counts), D), np.float32)
        for start in range(0, len(vectors), PIECE):  # the rows of all parts at once could be more than memory
            ends = m.part_offsets[start : start + PIECE + 1]
            sums = np.add.reduceat(self.table[m.parts[ends[0] : ends[-1]], :D], ends[:-1] - ends[0], axis=0)
            vectors[start : start + PIECE] = sums / np.diff(ends).astype(np.float32)[:, None]
        return vectors

    @property
    def contexts(self) -> np.ndarray:
        """float32 [V, D]: the vectors of predicted words; zeros without negative sampling."""
        start = self._model.contexts
        return self.table[start : start + len(self.counts), : self.settings.vector_size]

    @property
    def ngrams(self) -> np.ndarray | None:
        """float32 [B, D]: the rows of the buckets, where n-grams are used."""
        part = self.table[len(self.counts) : self._model.contexts, : self.settings.vector_size]
        return part if len(part) else None

    def state(self) -> dict[str, np.ndarray]:
        """All that training goes on from: to be given to `restore` of one with the same text and settings."""
        numbers = {"done": self.done, "pairs": self.pairs, "losses": self.losses, "order": 1}
        return {"table": self.table, **{name: np.array(value) for name, value in numbers.items()}}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a saved state. Raises VectorsError for one of another size, or from before epochs had orders."""
        if "order" not in state:
            raise VectorsError(
                "this training was begun by an earlier luthier, which took the text's pieces in another order\n"
                "Begin it anew: --overwrite"
            )
        if state["table"].shape != self.table.shape:
            raise VectorsError(f"a state of shape {state['table'].shape} does not fit a table of {self.table.shape}")
        self.table[:] = state["table"]
        self.done, self.pairs = int(state["done"]), int(state["pairs"])
        self.losses = [float(loss) for loss in state["losses"]]

    def start_from(
        self, rows: np.ndarray, vectors: np.ndarray, contexts: np.ndarray | None, ngrams: np.ndarray | None = None
    ) -> None:
        """Begin with vectors trained before: those of old row n are given to row rows[n]; the rest stays as drawn. The
        tree's nodes begin anew, because a grown vocabulary has another tree."""
        D, m = self.settings.vector_size, self._model
        if vectors.shape[1] != D:
            raise VectorsError(f"vectors of {vectors.shape[1]} numbers cannot start vectors of {D}")
        if ngrams is not None or len(m.parts):
            buckets = self.table[len(self.counts) : m.contexts, :D]
            if ngrams is None or ngrams.shape != buckets.shape:
                found = "no n-grams" if ngrams is None else f"{len(ngrams):,} buckets of n-grams"
                raise VectorsError(f"vectors with {found} cannot start a training with {len(buckets):,} buckets")
            buckets[:] = ngrams
        self.table[rows, :D] = vectors
        if len(m.parts):  # the row is what the mean lacks: parts · mean − the n-grams
            for row, vector in zip(rows.tolist(), vectors, strict=True):
                parts = m.parts[m.part_offsets[row] : m.part_offsets[row + 1]]
                self.table[row, :D] = len(parts) * vector - self.table[parts[1:], :D].sum(axis=0)
        if contexts is not None:
            self.table[m.contexts + rows, :D] = contexts


def train_word2vec(
    rows: np.ndarray,
    offsets: np.ndarray,
    counts: np.ndarray,
    *,
    tokens: Sequence[str] = (),
    kernel: Callable = walk,
    report: Callable[[int, float], object] = lambda words, loss: None,
    **settings: Any,
) -> Trained:
    """Learn vectors from beginning to end: arguments as of `Word2Vec` and `Word2VecSettings`."""
    training = Word2Vec(rows, offsets, counts, Word2VecSettings(**settings), tokens, kernel)
    training.train(report)
    # A copy, or the buckets of n-grams would live as long as it
    return Trained(training.vectors, training.contexts.copy(), training.losses, training.pairs)


# ---------------------------------------------------------------- tables


def _model(counts: np.ndarray, s: Word2VecSettings, tokens: Sequence[str]) -> tuple[Model, int]:
    """The tables at the start, and the most targets that a word has."""
    V, B = len(counts), s.bucket if s.max_n else 0
    none, longest = np.zeros(0, np.int64), 0
    parts = ngram_parts(tokens, s.min_n, s.max_n, s.bucket) if s.max_n else (none, none)
    paths = (none, np.zeros(0, np.float32), none)
    if s.hs:
        nodes, turns, ends = huffman_paths(counts)
        paths, longest = (nodes + 2 * V + B, turns, ends), int(np.diff(ends).max())
    table = _aligned(2 * V + B + (V - 1 if s.hs else 0), -(-s.vector_size // 8) * 8)
    rng = np.random.default_rng(s.seed)
    for start in range(0, V + B, PIECE):
        block = table[start : min(start + PIECE, V + B), : s.vector_size]
        block[:] = (2 * rng.random(block.shape, np.float32) - 1) / s.vector_size
    accept, alias = alias_table(counts**s.ns_exponent)
    noise = alias + np.minimum(accept, 1 - 2**-26)  # both in one number, and one look into memory
    keep = keep_probability(counts, s.sample)
    fixed = (V + B, s.window, s.negative, s.shared_noise if s.sg else max(s.shared_noise, 1), s.sg, s.cbow_mean)
    return Model(table, keep, noise, *parts, *paths, *fixed), s.negative + 1 + longest


def _room(P: int, window: int, negative: int, L: int) -> Room:
    slots, wide, n, hidden = 1 << (2 * window).bit_length(), L // 6 * 8, 2 * window + 1, _aligned(2, P)
    return Room(
        ring=_aligned(slots, P),
        before=_aligned(slots, P),
        hidden=hidden,
        slots=np.zeros(n, np.int64),
        only=np.array([hidden.ctypes.data]),
        targets=np.zeros(L, np.int64),
        labels=np.zeros(wide, np.float32),
        rates=np.zeros(wide, np.float32),
        drawn=np.zeros((2, negative), np.int64),
        steps=_aligned(n, wide),
        old=_aligned(n, P),
        gains=_aligned(L, P),
        places=np.zeros(0, np.int64),
    )


def _aligned(rows: int, columns: int) -> np.ndarray:
    """Zeros float32 [rows, columns] that begin where a line of the cache does."""
    memory = np.zeros(rows * columns + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + rows * columns].reshape(rows, columns)


def keep_probability(counts: np.ndarray, sample: float) -> np.ndarray:
    """float64 [V]: √(t/f) + t/f, at most 1; all 1 where `sample` is 0."""
    if sample <= 0:
        return np.ones(len(counts))
    ratio = sample * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1, np.sqrt(ratio) + ratio)


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias method as Vose (1991) builds it: draw a slot i of V evenly; take i with chance accept[i], else
    alias[i]. Every slot holds 1/V of the chance, a poor word's slot filled up from a rich one's."""
    shares = weights / weights.sum() * len(weights)
    poor, rich = np.flatnonzero(shares < 1).tolist(), np.flatnonzero(shares >= 1).tolist()
    accept, alias = shares.tolist(), list(range(len(shares)))  # lists: read one by one
    while poor and rich:
        low, high = poor.pop(), rich[-1]
        alias[low] = high
        accept[high] -= 1 - accept[low]
        if accept[high] < 1:
            poor.append(rich.pop())
    for left in poor + rich:  # by rounding
        accept[left] = 1.0
    return np.array(accept), np.array(alias)
