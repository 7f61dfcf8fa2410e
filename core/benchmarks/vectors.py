"""Our Word2Vec beside gensim's, on the same words: first as good, then timed in turn.

    skip-gram   words a second (as read, thinned-out ones included) of one pass over the text, first on one thread, then
                on all. Equal: the cosines between the 500 commonest words agree with gensim's as well as those of two
                seeds of gensim agree with each other, within 0.1 of the correlation. (On several threads and few words
                ours lie further off than on one: the commonest words' rows, which the threads then fight for, differ.)
    nearest     the ten tokens nearest to one, in a table of that size; equal: the same tokens
    glove       pairs a second. Stanford's program is no Python package and has no column here; equal: the plain twin
                comes to the same loss on a part of the pairs

A peer that is not installed has no columns. The last row is ours against ours: how far a ratio may be from 1 by chance.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luthier.core.benchmarks.timing import Row, rate_row, seconds_in_turn
from luthier.core.console import say
from luthier.core.errors import InputError
from luthier.core.training.vectors import words
from luthier.models.cooccurrence import Cooccurrences, count_pairs
from luthier.models.glove import adagrad, adagrad_plain, train_glove
from luthier.models.vectors import Vectors
from luthier.models.word2vec import train_word2vec

__all__ = ["run"]

MOST = 12_000_000  # characters of the text that are used
MIN_COUNT = 5
SIZE, WINDOW, NEGATIVE = 100, 5, 5
EPOCHS = 3  # of the comparison of quality
COMMON = 500  # words whose cosines are compared
MARGIN = 0.1
SENTENCE = 10_000  # words; gensim leaves out what is longer, without a word
QUERIES = 100


class Text(NamedTuple):
    """The words of a text as rows, 0 the commonest; where its documents begin and end; how often each occurs."""

    name: str
    rows: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray
    words: list[str]

    def sentences(self) -> list[list[str]]:
        """The documents as gensim wants them, long ones cut."""
        cut = []
        for start, end in pairwise(self.offsets):
            document = [self.words[row] for row in self.rows[start:end]]
            cut += [document[at : at + SENTENCE] for at in range(0, len(document), SENTENCE)]
        return cut


def run(*, text: Path | None = None, repeats: int = 5) -> list[Row]:
    """All rows. `text` is the file to learn from, by default Python's own documentation. Raises InputError for a text
    without words that occur often enough."""
    source = _read(text)
    say(f"{source.name}: {len(source.rows):,} words, {len(source.counts):,} different ones")
    cores = os.cpu_count() or 1
    sentences = source.sentences()
    rows: list[Row] = []
    for threads in sorted({1, cores}):
        rows.append(_skipgram(source, sentences, threads, repeats))
    return [*rows, _nearest(source, repeats), _glove(source, repeats), _ours(source, repeats)]


def _read(file: Path | None) -> Text:
    from luthier.core.data.general import python_documentation
    from luthier.core.data.texts import read_texts

    texts = [t.text for t in read_texts([file])] if file else [text for _, text in python_documentation()]
    documents, room = [], MOST
    for text in texts:
        documents.append(words(text[:room]))
        room -= len(text)
        if room <= 0:
            break
    vocabulary, counts = np.unique([w for d in documents for w in d] or [""], return_counts=True)
    order = np.argsort(-counts, kind="stable")[: int((counts >= MIN_COUNT).sum())]
    if len(order) < 2 * COMMON:
        raise InputError(f"{len(order)} words occur {MIN_COUNT} times or more; the benchmark needs {2 * COMMON}")
    known = {str(vocabulary[n]): row for row, n in enumerate(order)}
    kept = [[known[w] for w in d if w in known] for d in documents]
    name = file.name if file else "python documentation"
    rows = np.array([row for d in kept for row in d], np.int32)
    return Text(name, rows, np.cumsum([0, *map(len, kept)]), counts[order], list(known))


# ---------------------------------------------------------------- cases


def _train(source: Text, threads: int, epochs: int = 1, seed: int = 0) -> np.ndarray:
    return train_word2vec(
        source.rows,
        source.offsets,
        source.counts,
        vector_size=SIZE,
        window=WINDOW,
        negative=NEGATIVE,
        epochs=epochs,
        seed=seed,
        workers=threads,
    ).vectors


def _gensim(sentences: list[list[str]], threads: int, seed: int = 0) -> Any:
    """A gensim model that knows the words and has learned nothing, or None where gensim is not installed."""
    try:
        from gensim.models import Word2Vec
    except ImportError:
        return None
    model = Word2Vec(
        vector_size=SIZE, window=WINDOW, negative=NEGATIVE, sg=1, min_count=1, workers=threads, seed=seed, sample=1e-3
    )
    model.build_vocab(sentences)
    return model


def _skipgram(source: Text, sentences: list[list[str]], threads: int, repeats: int) -> Row:
    say(f"skip-gram on {threads} thread{'s' * (threads > 1)}")
    tools: dict[str, Callable[[], Any]] = {"ours": lambda: _train(source, threads)}
    model, equal = _gensim(sentences, threads), True
    if model is not None:
        equal = _as_good(source, sentences, threads)
        tools["theirs"] = lambda: model.train(sentences, total_examples=len(sentences), epochs=1)
    taken = seconds_in_turn(tools, repeats)
    case = f"skip-gram {SIZE}, window {WINDOW}, {NEGATIVE} negatives, {source.name}, {threads} thread"
    peer = f"gensim {metadata.version('gensim')}" if model is not None else "none"
    amount = len(source.rows)
    return rate_row(case + "s" * (threads > 1), "words/s", amount, taken["ours"], peer, taken.get("theirs", []), equal)


def _as_good(source: Text, sentences: list[list[str]], threads: int) -> bool:
    """Whether our cosines between common words agree with gensim's as two seeds of gensim agree with each other."""
    theirs = []
    for seed in (1, 2):
        model = _gensim(sentences, threads, seed)
        model.train(sentences, total_examples=len(sentences), epochs=EPOCHS)
        theirs.append(_cosines(model.wv[source.words[:COMMON]]))
    ours = _cosines(_train(source, threads, EPOCHS, seed=1)[:COMMON])
    among_them = np.corrcoef(theirs[0], theirs[1])[0, 1]
    with_ours = np.mean([np.corrcoef(ours, t)[0, 1] for t in theirs])
    say(f"  agreement of cosines: gensim with itself {among_them:.3f}, ours with gensim {with_ours:.3f}")
    return bool(with_ours > among_them - MARGIN)


def _cosines(table: np.ndarray) -> np.ndarray:
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def _nearest(source: Text, repeats: int) -> Row:
    say("nearest tokens")
    table = _train(source, 1)
    vectors = Vectors(table, source.words, np.arange(len(table)), source.counts)
    asked = source.words[:QUERIES]
    tools: dict[str, Callable[[], Any]] = {"ours": lambda: [vectors.most_similar(w) for w in asked]}
    peer, equal = "none", True
    if _gensim([["a"]], 1) is not None:
        keyed, peer = vectors.to_gensim(), f"gensim {metadata.version('gensim')}"
        tools["theirs"] = lambda: [keyed.most_similar(w) for w in asked]
        ours, theirs = ([[token for token, _ in found] for found in tool()] for tool in tools.values())
        equal = ours == theirs
    taken = seconds_in_turn(tools, repeats)
    case = f"10 nearest of {len(table):,} tokens, {SIZE} numbers"
    return rate_row(case, "queries/s", QUERIES, taken["ours"], peer, taken.get("theirs", []), equal)


def _glove(source: Text, repeats: int) -> Row:
    say("GloVe")
    pairs = count_pairs(source.rows, source.offsets, len(source.counts), window=WINDOW)
    part = Cooccurrences(*(column[:2000] for column in pairs))
    once = partial(train_glove, size=len(source.counts), vector_size=SIZE, iterations=1)
    losses = [once(part, kernel=kernel).losses[0] for kernel in (adagrad, adagrad_plain)]
    taken = seconds_in_turn({"ours": lambda: once(pairs)}, repeats)
    case = f"GloVe {SIZE}, {len(pairs.x):,} pairs, ordering them included, 1 thread"
    equal = abs(losses[0] / losses[1] - 1) < 1e-4
    return rate_row(case, "pairs/s", len(pairs.x), taken["ours"], "none", [], equal)


def _ours(source: Text, repeats: int) -> Row:
    say("ours against ours")
    taken = seconds_in_turn({name: lambda: _train(source, 1) for name in ("ours", "theirs")}, repeats)
    return rate_row(
        "noise: skip-gram, 1 thread, against itself",
        "words/s",
        len(source.rows),
        taken["ours"],
        "ours",
        taken["theirs"],
        True,
    )
