"""Our vectors beside the others': words and pairs a second, quality over paired seeds, memory, search.

    speed       word2vec: words a second (as read, thinned-out ones included) of one pass over the text, by number of
                threads, skip-gram and CBOW, beside gensim and the binaries that are named
    glove       counting pairs, ours from word numbers in memory, theirs from the text; then pairs a second of training.
                Equal: the loss after one iteration is at most 2% above theirs
    quality     the scores on --sets of ours and of gensim's, as many paired seeds as --repeats says (10 for a claim).
                Equal: the 95% interval of the mean difference (Student's t) lies above −0.5 points. A set of which
                under 70% could be asked is left out
    memory      the most bytes a fresh process held while it trained on the text, one pass
    nearest     the ten tokens nearest to one; equal: the same cosines within 1e-4

Binaries are named by --peer NAME=PATH: word2vec (word2vec.c), fasttext, glove (the folder of Stanford's build). Theirs
is the time of two passes less the time of one, so that reading the vocabulary does not count. A peer that is not there
has no column.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luthier.core.benchmarks.timing import AGAIN, Row, Tool, in_child, most_memory, race, rows_of, thread_counts
from luthier.core.console import say
from luthier.core.errors import ConfigError, InputError, did_you_mean
from luthier.core.evaluation.vectors import Words, score_set
from luthier.core.evaluation.word_sets import WordSet, read_word_set
from luthier.core.training.rows import words
from luthier.models.cooccurrence import count_pairs
from luthier.models.glove import train_glove
from luthier.models.vectors import Vectors
from luthier.models.word2vec import train_word2vec

__all__ = ["GROUPS", "run"]

GROUPS = ("speed", "glove", "quality", "memory", "nearest")
BINARIES = ("word2vec", "fasttext", "glove")
MOST = 12_000_000  # characters of the text that are used
MIN_COUNT = 5
SIZE, WINDOW, NEGATIVE = 100, 5, 5
LEAST = 200  # different words
SENTENCE = 10_000  # words; gensim leaves out what is longer, without a word
QUERIES = 100
MARGIN = 0.5  # points
EPOCHS = 3  # of the comparison of quality
T_95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t for 1 … 9 degrees of freedom


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


def run(
    *,
    text: Path | None = None,
    only: Sequence[str] = (),
    sets: Sequence[Path] = (),
    peer: Sequence[str] = (),
    repeats: int = 5,
) -> list[Row]:
    """All rows. `text` is the file to learn from, by default Python's own documentation. Raises InputError for a text
    without words that occur often enough, ConfigError for a group or peer that is none."""
    for name in only:
        if name not in GROUPS:
            raise ConfigError(
                f"--only {name}: no such group{did_you_mean(name, GROUPS)}; there are {', '.join(GROUPS)}"
            )
    paths = _paths(peer)
    given = [read_word_set(Path(s)) for s in sets]
    source = _read(text)
    say(f"{source.name}: {len(source.rows):,} words, {len(source.counts):,} different ones")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_text("\n".join(" ".join(s) for s in source.sentences()) + "\n", encoding="utf-8")
        groups: dict[str, Callable[[], list[Row]]] = {
            "speed": lambda: _speed(source, corpus, paths, repeats),
            "glove": lambda: _glove(source, corpus, paths.get("glove"), repeats),
            "quality": lambda: _quality(source, given, max(repeats, 2)),
            "memory": lambda: _memory(source),
            "nearest": lambda: _nearest(source, repeats),
        }
        return [row for name, group in groups.items() if not only or name in only for row in group()]


def _paths(peer: Sequence[str]) -> dict[str, Path]:
    paths = {}
    for one in peer:
        name, _, path = one.partition("=")
        if name not in BINARIES or not Path(path).exists() or not path:
            raise ConfigError(f"--peer {one}: expected NAME=PATH with a path that is there, NAME {', '.join(BINARIES)}")
        paths[name] = Path(path)
    return paths


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
    if len(order) < LEAST:
        raise InputError(f"{len(order)} words occur {MIN_COUNT} times or more; the benchmark needs {LEAST}")
    known = {str(vocabulary[n]): row for row, n in enumerate(order)}
    kept = [[known[w] for w in d if w in known] for d in documents]
    name = file.name if file else "python documentation"
    rows = np.array([row for d in kept for row in d], np.int32)
    return Text(name, rows, np.cumsum([0, *map(len, kept)]), counts[order], list(known))


# ---------------------------------------------------------------- word2vec


def _train(source: Text, threads: int, sg: bool = True, epochs: int = 1, seed: int = 0) -> np.ndarray:
    settings = {"vector_size": SIZE, "window": WINDOW, "negative": NEGATIVE, "sg": sg}
    return train_word2vec(
        source.rows, source.offsets, source.counts, **settings, epochs=epochs, seed=seed, workers=threads
    ).vectors


def _gensim(sentences: list[list[str]], threads: int, sg: bool = True, seed: int = 0) -> Any:
    """A gensim model that knows the words and has learned nothing, or None where gensim is not installed."""
    try:
        from gensim.models import Word2Vec
    except ImportError:
        return None
    model = Word2Vec(
        vector_size=SIZE, window=WINDOW, negative=NEGATIVE, sg=int(sg), min_count=1, workers=threads, seed=seed + 1
    )
    model.build_vocab(sentences)
    return model


def _version() -> str:
    return f"gensim {metadata.version('gensim')}"


def _speed(source: Text, corpus: Path, paths: Mapping[str, Path], repeats: int) -> list[Row]:
    sentences, rows = source.sentences(), []
    for sg, kind in ((True, "skip-gram"), (False, "CBOW")):
        for threads in thread_counts():
            case = f"{kind} {SIZE}, window {WINDOW}, {NEGATIVE} negatives, {threads} thread{'s' * (threads > 1)}"
            say(f"  {case}")
            calls: dict[str, Callable[[], Any]] = {"ours": lambda sg=sg, t=threads: _train(source, t, sg)}
            model = _gensim(sentences, threads, sg)
            if model is not None:
                calls[_version()] = lambda m=model: m.train(sentences, total_examples=len(sentences), epochs=1)
            calls["ours"]()  # compiled
            taken = {name: [] for name in [*calls, AGAIN]}
            taken |= {name: [] for name in paths if name != "glove"}
            for _ in range(repeats):
                for name in taken:
                    if name in paths:
                        once = _binary(name, paths[name], corpus, sg, threads)
                        taken[name].append(_less(once))
                    else:
                        taken[name].append(_seconds(calls.get(name, calls["ours"])))
            values = {name: [len(source.rows) / s for s in seconds] for name, seconds in taken.items()}
            check = "timed only; see quality"
            rows += rows_of(case, "words/s", values, dict.fromkeys(values, True), group="speed", check=check)
    return rows


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _less(passes: Callable[[int], Any]) -> float:
    """Seconds of one pass: two less one."""
    one, two = _seconds(lambda: passes(1)), _seconds(lambda: passes(2))
    return max(two - one, 1e-3)


def _binary(name: str, path: Path, corpus: Path, sg: bool, threads: int) -> Callable[[int], Any]:
    """A function that runs a peer's program for so many passes."""
    out = corpus.with_name(f"{name}.out")
    if name == "word2vec":
        arguments = [
            "-train",
            corpus,
            "-output",
            out,
            "-size",
            SIZE,
            "-window",
            WINDOW,
            "-negative",
            NEGATIVE,
            "-hs",
            0,
        ]
        arguments += ["-sample", "1e-3", "-threads", threads, "-min-count", 1, "-cbow", int(not sg), "-binary", 1]
        passes = "-iter"
    else:
        arguments = ["skipgram" if sg else "cbow", "-input", corpus, "-output", out, "-dim", SIZE, "-ws", WINDOW]
        arguments += ["-neg", NEGATIVE, "-t", "1e-3", "-thread", threads, "-minCount", 1, "-maxn", 0]
        passes = "-epoch"
    return lambda n: _call([path, *arguments, passes, n])


def _call(command: Sequence[Any], stdin: Path | None = None, stdout: Path | None = None) -> str:
    """Run a program; what it says on stderr. Raises ConfigError with its last words if it fails."""
    with (stdin or Path(os.devnull)).open("rb") as given, (stdout or Path(os.devnull)).open("wb") as taken:
        done = subprocess.run([str(part) for part in command], stdin=given, stdout=taken, stderr=subprocess.PIPE)
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        raise ConfigError(f"{command[0]} failed with {done.returncode}: {said.strip()[-200:]}")
    return said


# ---------------------------------------------------------------- GloVe


def _glove(source: Text, corpus: Path, build: Path | None, repeats: int) -> list[Row]:
    size, folder = len(source.counts), corpus.parent
    count = lambda: count_pairs(source.rows, source.offsets, size, window=WINDOW)  # noqa: E731
    pairs = count()
    train = lambda n: train_glove(pairs, size, vector_size=SIZE, x_max=10, iterations=n)  # noqa: E731
    loss = train(1).losses[0]
    tools, equal = {"ours": Tool(count, len(source.rows))}, True
    if build:
        vocabulary, counted, mixed = (folder / n for n in ("vocab.txt", "pairs", "mixed"))
        _call([build / "vocab_count", "-min-count", 1, "-verbose", 0], corpus, vocabulary)
        cooccur = [build / "cooccur", "-vocab-file", vocabulary, "-window-size", WINDOW, "-verbose", 0]
        tools["Stanford's C"] = Tool(lambda: _call(cooccur, corpus, counted), len(source.rows))
        _call(cooccur, corpus, counted)
        _call([build / "shuffle", "-verbose", 0, "-seed", 1, "-temp-file", folder / "temp"], counted, mixed)
    rows = race(f"counting, window {WINDOW}, 1 thread", "words/s", tools, repeats, group="glove")
    taken = {"ours": [], AGAIN: []} | ({"Stanford's C": []} if build else {})
    fit = ["-input-file", folder / "mixed", "-vocab-file", folder / "vocab.txt", "-save-file", folder / "out"]
    fit = [build / "glove" if build else "", *fit, "-threads", 1]
    fit += ["-x-max", 10, "-vector-size", SIZE, "-verbose", 1, "-seed", 1, "-gradsq-file", folder / "squares"]
    for _ in range(repeats):
        for name in taken:
            taken[name].append(_less((lambda n: _call([*fit, "-iter", n])) if name == "Stanford's C" else train))
    if build:
        equal = loss < 1.02 * float(_call([*fit, "-iter", 1]).rpartition("cost: ")[2].split()[0])
    values = {name: [len(pairs.x) / s for s in seconds] for name, seconds in taken.items()}
    check = "the loss after one iteration at most 2% above theirs"
    case = f"training {SIZE}, {len(pairs.x):,} pairs, 1 thread"
    return [*rows, *rows_of(case, "pairs/s", values, dict.fromkeys(values, equal), group="glove", check=check)]


# ---------------------------------------------------------------- quality, memory, search


def _quality(source: Text, sets: Sequence[WordSet], seeds: int) -> list[Row]:
    sentences = source.sentences()
    if not sets or _gensim(sentences[:1], 1) is None:
        say("  quality: needs --sets and gensim")
        return []
    ours, theirs = [], []
    for seed in range(seeds):
        say(f"  quality: seed {seed + 1} of {seeds}")
        ours.append(_scores(source, _train(source, 1, epochs=EPOCHS, seed=seed), sets))
        model = _gensim(sentences, 1, seed=seed)
        model.train(sentences, total_examples=len(sentences), epochs=EPOCHS)
        theirs.append(_scores(source, model.wv[source.words], sets))
    rows = []
    for name in ours[0]:
        a, b = (np.array([run[name] for run in side]) for side in (ours, theirs))
        half = T_95[min(seeds - 1, len(T_95)) - 1] * (a - b).std(ddof=1) / seeds**0.5
        low, high = (a - b).mean() - half, (a - b).mean() + half
        case = f"{name}, {seeds} seeds, difference {low:+.2f} to {high:+.2f}"
        values, fine = {"ours": a.tolist(), _version(): b.tolist()}, {_version(): bool(low > -MARGIN)}
        rows += rows_of(case, "points", values, fine, group="quality", check="not inferior", more_is_better=True)
    return rows


def _scores(source: Text, table: np.ndarray, sets: Sequence[WordSet]) -> dict[str, float]:
    """Set → score in points, of the sets that count."""
    looked_up = Words(Vectors(table, source.words, np.arange(len(table)), source.counts))
    found = [score for one in sets for score in score_set(looked_up, one)]
    return {f"{s.set} {s.kind}": 100 * s.value for s in found if s.counts and not s.section}


def _memory(source: Text) -> list[Row]:
    say("  memory")
    peaks = {"ours": [in_child(_memory_of_ours, source) / 1e6]}
    if _gensim([["a"]], 1) is not None:
        peaks[_version()] = [in_child(_memory_of_gensim, source.sentences()) / 1e6]
    equal = dict.fromkeys(peaks, True)
    case = "skip-gram, one pass, imports and the text included"
    return rows_of(case, "MB at most", peaks, equal, group="memory", more_is_better=False)


def _memory_of_ours(source: Text) -> int:
    with most_memory() as memory:
        _train(source, 1)
    return memory.most


def _memory_of_gensim(sentences: list[list[str]]) -> int:
    with most_memory() as memory:
        _gensim(sentences, 1).train(sentences, total_examples=len(sentences), epochs=1)
    return memory.most


def _nearest(source: Text, repeats: int) -> list[Row]:
    table = _train(source, 1)
    vectors = Vectors(table, source.words, np.arange(len(table)), source.counts)
    asked = source.words[:QUERIES]
    ours = lambda: [vectors.most_similar(w) for w in asked]  # noqa: E731
    cosines = lambda result: np.array([[score for _, score in found] for found in result])  # noqa: E731
    expected = cosines(ours())
    same = lambda result: bool(np.abs(cosines(result) - expected).max() < 1e-4)  # noqa: E731
    tools = {"ours": Tool(ours, QUERIES)}
    if _gensim([["a"]], 1) is not None:
        keyed = vectors.to_gensim()
        tools[_version()] = Tool(lambda: [keyed.most_similar(w) for w in asked], QUERIES, same)
    case = f"10 nearest of {len(table):,} tokens, {SIZE} numbers"
    return race(case, "queries/s", tools, repeats, group="nearest", check="the same cosines within 1e-4")
