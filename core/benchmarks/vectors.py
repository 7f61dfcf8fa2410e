"""Our vectors beside the others': words and pairs a second, quality over paired seeds, memory, search.

    speed       word2vec: words a second (as read, thinned-out ones included) of one pass, by number of threads,
                skip-gram and CBOW, beside gensim and the binaries that are named
    ngrams      the same with n-grams of 3 to 6 characters, skip-gram, beside fastText, on the first million words; of
                both a pass alone, without hashing the n-grams and filling their table
    glove       counting pairs, ours from word numbers in memory, theirs from the text; then pairs a second of training.
                Equal: the loss after one iteration is at most 2% above theirs
    quality     the scores on --sets of ours and of gensim's, as many paired seeds as --repeats says (10 for a claim),
                by number of threads and by how many words share their noise, with n-grams those of fastText's, and of
                GloVe those of Stanford's with the final cost; with --keep FILE it can be stopped and goes on; see
                vector_quality.py
    memory      the most bytes a fresh process held while it trained on the text, one pass
    nearest     the ten tokens nearest to one; equal: the same cosines within 1e-4

Quality is measured on the whole text, all else on its first two million words if nothing else is said. Binaries are
named by --peer NAME=PATH: word2vec (word2vec.c), fasttext, glove (the folder of Stanford's build). Theirs is the time
of two passes less the time of one, so that reading the vocabulary does not count; ours is all of it. A peer that is not
there has no column.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import entrypoints

from luthier.core.benchmarks.timing import (
    AGAIN,
    Row,
    Tool,
    in_child,
    load_own,
    most_memory,
    race,
    rows_of,
    thread_counts,
)
from luthier.core.benchmarks.vector_peers import (
    NEGATIVE,
    SIZE,
    WINDOW,
    binary,
    find_binaries,
    gensim,
    gensim_version,
    glove_count,
    glove_fit,
    less,
    seconds,
)
from luthier.core.benchmarks.vector_quality import quality
from luthier.core.benchmarks.vector_texts import Source, read_source
from luthier.core.console import say
from luthier.core.errors import ConfigError, did_you_mean
from luthier.core.evaluation.word_sets import read_word_set
from luthier.models.cooccurrence import count_pairs
from luthier.models.glove import train_glove
from luthier.models.vectors import Vectors
from luthier.models.word2vec import Word2Vec, Word2VecSettings, train_word2vec

__all__ = ["GROUPS", "run"]

GROUPS = ("speed", "ngrams", "glove", "quality", "memory", "nearest")
WORDS = 2_000_000  # of the text, but for quality
NGRAM = 6  # characters
QUERIES = 100
X_MAX = 10


def run(
    *,
    texts: Sequence[Path] = (),
    only: Sequence[str] = (),
    own: str | None = None,
    sets: Sequence[Path] = (),
    peer: Sequence[str] = (),
    repeats: int = 5,
    keep: Path | None = None,
) -> list[Row]:
    """All rows. `texts` are the files to learn from, by default Python's own documentation; `own` is FILE.py:FUNCTION,
    called with a `Source` and a seed, which makes one pass of skip-gram and returns the vectors; `keep` the file
    that holds each run of quality (vector_quality.py). Raises InputError for
    a text without words that occur often enough, ConfigError for a group, function or peer that is none."""
    for name in only:
        if name not in GROUPS:
            raise ConfigError(
                f"--only {name}: no such group{did_you_mean(name, GROUPS)}; there are {', '.join(GROUPS)}"
            )
    paths, given = find_binaries(peer), [read_word_set(Path(s)) for s in sets]
    users = load_own(own) if own else None
    whole = read_source([Path(text) for text in texts])
    source = whole.first(WORDS)
    say(f"{source.name}: {len(whole.rows):,} words, {len(whole.counts):,} different ones")
    with tempfile.TemporaryDirectory() as folder:
        corpus = source.write(Path(folder) / "corpus.txt")
        groups: dict[str, Callable[[], list[Row]]] = {
            "speed": lambda: _speed(source, corpus, paths, repeats, users),
            "ngrams": lambda: _ngrams(
                whole.first(WORDS // 2), Path(folder) / "half.txt", paths.get("fasttext"), repeats
            ),
            "glove": lambda: _glove(source, corpus, paths.get("glove"), repeats),
            "quality": lambda: list(quality(whole, given, max(repeats, 2), users, paths, keep)),
            "memory": lambda: _memory(source),
            "nearest": lambda: _nearest(source, repeats),
        }
        return [row for name, group in groups.items() if not only or name in only for row in group()]


# ---------------------------------------------------------------- word2vec


def _train(source: Source, threads: int, **settings: Any) -> np.ndarray:
    settings = {"vector_size": SIZE, "window": WINDOW, "negative": NEGATIVE, "epochs": 1, **settings}
    return train_word2vec(
        source.rows, source.offsets, source.counts, tokens=source.words, workers=threads, **settings
    ).vectors


def _speed(
    source: Source, corpus: Path, paths: Mapping[str, Path], repeats: int, users: tuple[str, Callable] | None
) -> list[Row]:
    rows, sentences = [], source.sentences()
    for threads in thread_counts():
        unit = f"{threads} thread{'s' * (threads > 1)}"
        for sg, kind in ((True, "skip-gram"), (False, "CBOW")):
            calls: dict[str, Callable[[], float]] = {}
            calls["ours"] = lambda sg=sg, t=threads: seconds(lambda: _train(source, t, sg=sg))
            if (model := gensim(sentences, threads, sg)) is not None:
                calls[gensim_version()] = lambda m=model: seconds(
                    lambda: m.train(sentences, total_words=len(source.rows), epochs=1)
                )
            for name in ("word2vec", "fasttext"):
                if name in paths:
                    passes = binary(name, paths[name], corpus, sg, threads)
                    calls[name] = lambda p=passes: less(p)
            if users and sg and threads == 1:
                calls[users[0]] = lambda u=users[1]: seconds(lambda: u(source, 0))
            rows += _in_turn(f"{kind} {SIZE}, window {WINDOW}, {NEGATIVE} negatives, {unit}", source, calls, repeats)
    return rows


def _ngrams(source: Source, corpus: Path, fasttext: Path | None, repeats: int) -> list[Row]:
    rows: list[Row] = []
    settings: Any = {"max_n": NGRAM, "vector_size": SIZE, "window": WINDOW, "negative": NEGATIVE, "epochs": 1}
    for threads in thread_counts():
        calls: dict[str, Callable[[], float]] = {}
        calls["ours"] = lambda t=threads: _pass(source, Word2VecSettings(workers=t, **settings))
        if fasttext:
            passes = binary("fasttext", fasttext, source.write(corpus), True, threads, NGRAM)
            calls["fasttext"] = lambda p=passes: less(p)
        unit = f"{threads} thread{'s' * (threads > 1)}"
        rows += _in_turn(f"skip-gram {SIZE} with n-grams of 3 to {NGRAM}, {unit}", source, calls, repeats, "ngrams")
    return rows


def _pass(source: Source, settings: Word2VecSettings) -> float:
    training = Word2Vec(source.rows, source.offsets, source.counts, settings, source.words)
    return seconds(training.train)


def _in_turn(
    case: str, source: Source, calls: dict[str, Callable[[], float]], repeats: int, group: str = "speed"
) -> list[Row]:
    """Words a second of each call, which tells its own seconds."""
    say(f"  {case}")
    train_word2vec(source.rows[:9999], np.array([0, 9999]), source.counts, epochs=1)  # compiled
    taken = {name: [] for name in [*calls, AGAIN]}
    for _ in range(repeats):
        for name in taken:
            taken[name].append(len(source.rows) / calls.get(name, calls["ours"])())
    equal = dict.fromkeys(taken, True)
    return rows_of(case, "words/s", taken, equal, group=group, check="timed only; see quality")


# ---------------------------------------------------------------- GloVe


def _glove(source: Source, corpus: Path, build: Path | None, repeats: int) -> list[Row]:
    size = len(source.counts)
    count = lambda: count_pairs(source.rows, source.offsets, size, window=WINDOW)  # noqa: E731
    pairs = count()
    train = lambda n: train_glove(pairs, size, vector_size=SIZE, x_max=X_MAX, iterations=n)  # noqa: E731
    loss = train(1).losses[0]
    tools, equal = {"ours": Tool(count, len(source.rows))}, True
    trainers: dict[str, Callable[[int], Any]] = {"ours": train, AGAIN: train}
    if build:
        theirs = glove_count(build, corpus, WINDOW)
        tools["Stanford's C"] = Tool(theirs, len(source.rows))
        theirs()
        trainers["Stanford's C"] = glove_fit(build, corpus, X_MAX, 1)
        equal = loss < 1.02 * trainers["Stanford's C"](1)
    rows = race(f"counting, window {WINDOW}, 1 thread", "words/s", tools, repeats, group="glove")
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(repeats):
        for name, trainer in trainers.items():
            taken[name].append(less(trainer))
    values = {name: [len(pairs.x) / s for s in seconds] for name, seconds in taken.items()}
    check = "the loss after one iteration at most 2% above theirs"
    case = f"training {SIZE}, {len(pairs.x):,} pairs, 1 thread"
    return [*rows, *rows_of(case, "pairs/s", values, dict.fromkeys(values, equal), group="glove", check=check)]


# ---------------------------------------------------------------- memory, search


def _memory(source: Source) -> list[Row]:
    say("  memory")
    peaks = {"ours": [in_child(_memory_of_ours, source) / 1e6]}
    if gensim([["a"]], 1) is not None:
        peaks[gensim_version()] = [in_child(_memory_of_gensim, source.sentences()) / 1e6]
    equal = dict.fromkeys(peaks, True)
    case = "skip-gram, one pass, imports and the text included"
    return rows_of(case, "MB at most", peaks, equal, group="memory", more_is_better=False)


def _memory_of_ours(source: Source) -> int:
    entrypoints._already_initialized = True  # packages of peers extend Numba (awkward, of gigatoken, 46 MB): not ours
    with most_memory() as memory:
        _train(source, 1)
    return memory.most


def _memory_of_gensim(sentences: list[list[str]]) -> int:
    with most_memory() as memory:
        gensim(sentences, 1).train(sentences, total_words=sum(map(len, sentences)), epochs=1)
    return memory.most


def _nearest(source: Source, repeats: int) -> list[Row]:
    table = _train(source, 1)
    vectors = Vectors(table, source.words, np.arange(len(table)), source.counts)
    asked = source.words[:QUERIES]
    ours = lambda: [vectors.most_similar(w) for w in asked]  # noqa: E731
    cosines = lambda result: np.array([[score for _, score in found] for found in result])  # noqa: E731
    expected = cosines(ours())
    same = lambda result: bool(np.abs(cosines(result) - expected).max() < 1e-4)  # noqa: E731
    tools = {"ours": Tool(ours, QUERIES)}
    if gensim([["a"]], 1) is not None:
        keyed = vectors.to_gensim()
        tools[gensim_version()] = Tool(lambda: [keyed.most_similar(w) for w in asked], QUERIES, same)
    case = f"10 nearest of {len(table):,} tokens, {SIZE} numbers"
    return race(case, "queries/s", tools, repeats, group="nearest", check="the same cosines within 1e-4")
