"""Are ours as good? Paired seeds of ours and of others on word sets, five passes over the text, everybody's default.

    skip-gram, CBOW    beside gensim on one thread: ours by number of threads, and on one thread by how many words share
                       their noise (`shared_noise`): 0 is the method of the paper, in which every pair draws its own
                       (skip-gram only); 1 is the default; more is faster, and what it costs is seen here
    with n-grams       of 3 to 6 characters, skip-gram, rate 0.05, beside fastText on one thread if it is given, on the
                       first two million words: where a run takes a minute, ten of them take ten
    GloVe              beside Stanford's program on one thread if it is given, each on its own counts of the same text,
                       the same first words, window 10, x_max 10, 15 iterations; and the final cost, J of the last
                       iteration divided by the pairs, which both define alike

Of each set the mean difference over the seeds, and its 95% interval by Student's t; not inferior is ours where the
interval lies above −0.5 points (of a cost, the difference in percent, below +0.5). Only what trains with the defaults,
and a user's own, is claimed, of GloVe cost and analogies; the rest is shown, of other settings on three seeds. A set of
which under 70% could be asked is left out.

Ten seeds take hours. With a file to keep them in, each run's scores are written there when it ends, and a benchmark
that was stopped finds them: a line of JSON a run, with a hash of text, sets and our trainer, so that a change of
any of them trains again. Peers are known by name and version: begin another file where they are called otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from luthier.core.benchmarks.timing import Row, rows_of, thread_counts
from luthier.core.benchmarks.vector_peers import (
    NEGATIVE,
    SIZE,
    WINDOW,
    binary,
    gensim,
    gensim_version,
    glove_count,
    glove_fit,
)
from luthier.core.benchmarks.vector_texts import Source
from luthier.core.console import say
from luthier.core.evaluation.vectors import Words, score_set
from luthier.core.evaluation.word_sets import Score, WordSet
from luthier.models import cooccurrence, glove, ngrams, word2vec, word2vec_fast
from luthier.models.vector_files import read_any
from luthier.models.vectors import Vectors
from luthier.models.word2vec import train_word2vec

__all__ = ["quality"]

SHARED = (0, 4, 16)  # beside the default
SHOWN = 3  # seeds of what is not claimed
MARGIN = 0.5  # points
EPOCHS = 5  # gensim's, fastText's and our default
WORDS = 2_000_000  # with n-grams, and for GloVe
NGRAMS: Any = {"max_n": 6, "alpha": 0.05}
GLOVE: Any = {"window": 10, "x_max": 10.0, "iterations": 15}
COST = "final cost"
WORD2VEC = (word2vec, word2vec_fast, ngrams)
T_95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t for 1 … 9 degrees of freedom

Train = Callable[[Source, int], Any]  # a text and a seed → vectors, or vectors and their final cost


class Case(NamedTuple):
    """What is trained on `source`, the peer it is held against (a name among the cases; "" for a peer), and whether it
    is claimed to be as good; the `files` of ours and further `settings`, for the hash."""

    source: Source
    train: Train
    peer: str = ""
    claimed: bool = True
    files: tuple[ModuleType, ...] = WORD2VEC
    settings: str = ""


def quality(
    source: Source,
    sets: Sequence[WordSet],
    seeds: int,
    own: tuple[str, Train] | None = None,
    peers: Mapping[str, Path] = MappingProxyType({}),
    keep: Path | None = None,
) -> Iterable[Row]:
    """The rows, and those of a user's trainer, which are not kept; `peers` as of `find_binaries`. None without sets or
    gensim."""
    if not sets or gensim([["a"]], 1) is None:
        say("  quality: needs --sets and gensim")
        return
    cases = _cases(source, peers) | ({own[0]: Case(source, own[1], f"skip-gram, {gensim_version()}")} if own else {})
    known = _read(keep)
    found: dict[str, list[list[Score]]] = {name: [] for name in cases}
    for seed in range(seeds):  # a stopped run has the same seeds of all
        for name, case in cases.items():
            if seed >= SHOWN and not case.claimed:
                continue
            key = f"{name}, seed {seed}, {_digest(case, sets)}"
            if key not in known or (own and name == own[0]):
                say(f"  quality: seed {seed}, {name}")
                known[key] = _scores(case.source, case.train(case.source, seed), sets)
                if not (own and name == own[0]):
                    _write(keep, key, known[key])
            found[name].append(known[key])
    for name, case in cases.items():
        if case.peer:
            yield from _rows(name, case, found[name], found[case.peer])


def _cases(source: Source, peers: Mapping[str, Path]) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for sg, kind in ((True, "skip-gram"), (False, "CBOW")):
        peer = f"{kind}, {gensim_version()}"
        cases[peer] = Case(source, _gensim(sg))
        for threads in thread_counts():
            name = f"{kind}, {threads} thread{'s' * (threads > 1)}"
            cases[name] = Case(source, _ours(sg=sg, workers=threads), peer)
        for shared in SHARED if sg else SHARED[1:]:
            cases[f"{kind}, {shared} share"] = Case(source, _ours(sg=sg, shared_noise=shared), peer, claimed=False)
    first, some = source.first(WORDS), [(t, f"{t} thread{'s' * (t > 1)}") for t in thread_counts()]
    if "fasttext" in peers:
        peer = "n-grams, fasttext"
        cases[peer] = Case(first, _fasttext(peers["fasttext"]))
        cases |= {f"n-grams, {name}": Case(first, _ours(workers=n, **NGRAMS), peer) for n, name in some}
    if "glove" in peers:
        peer, files, settings = "GloVe, Stanford's C", (glove, cooccurrence), repr(GLOVE)
        cases[peer] = Case(first, _stanford(peers["glove"]), settings=settings)
        cases |= {f"GloVe, {name}": Case(first, _glove(n), peer, True, files, settings) for n, name in some}
    return cases


# ---------------------------------------------------------------- trainers


def _ours(**settings: Any) -> Train:
    settings = {"vector_size": SIZE, "window": WINDOW, "negative": NEGATIVE, "epochs": EPOCHS, **settings}

    def train(source: Source, seed: int) -> np.ndarray:
        text = (source.rows, source.offsets, source.counts)
        return train_word2vec(*text, tokens=source.words, seed=seed, **settings).vectors

    return train


def _gensim(sg: bool) -> Train:
    def train(source: Source, seed: int) -> np.ndarray:
        sentences = source.sentences()
        model = gensim(sentences, 1, sg, seed)
        # By words, as ours: its own default lets the rate fall by documents, which short ones first would bring down.
        model.train(sentences, total_words=len(source.rows), epochs=EPOCHS)
        return model.wv[source.words]

    return train


def _fasttext(path: Path) -> Train:
    def train(source: Source, seed: int) -> np.ndarray:
        with TemporaryDirectory() as folder:
            corpus = source.write(Path(folder) / "corpus.txt")
            more = ["-seed", seed + 1, "-lr", NGRAMS["alpha"]]  # its 0 is its 1
            binary("fasttext", path, corpus, True, 1, NGRAMS["max_n"], more)(EPOCHS)
            found = read_any(corpus.with_name("fasttext.out.vec"))
        return found.vectors[[found.row(word) for word in source.words]]

    return train


def _glove(workers: int) -> Train:
    def train(source: Source, seed: int) -> tuple[np.ndarray, float]:
        size, chosen = len(source.counts), dict(GLOVE)
        pairs = cooccurrence.count_pairs(source.rows, source.offsets, size, window=chosen.pop("window"))
        trained = glove.train_glove(pairs, size, vector_size=SIZE, seed=seed, workers=workers, **chosen)
        return trained.vectors, trained.losses[-1]

    return train


def _stanford(build: Path) -> Train:
    def train(source: Source, seed: int) -> tuple[np.ndarray, float]:
        with TemporaryDirectory() as folder:
            corpus = source.write(Path(folder) / "corpus.txt")
            glove_count(build, corpus, GLOVE["window"])()
            cost = glove_fit(build, corpus, GLOVE["x_max"], seed + 1)(GLOVE["iterations"])  # its 0 is the clock
            found = read_any(corpus.with_name("glove.out.txt"))
        return found.vectors[[found.row(word) for word in source.words]], cost

    return train


# ---------------------------------------------------------------- scores


def _scores(source: Source, learned: Any, sets: Sequence[WordSet]) -> list[Score]:
    """The scores of the sets that count, and the cost where there is one."""
    table, *costs = learned if isinstance(learned, tuple) else (learned,)
    looked_up = Words(Vectors(table, source.words, np.arange(len(table)), source.counts))
    found = [score for one in sets for score in score_set(looked_up, one)]
    return [s for s in found if s.counts and not s.section] + [Score(COST, "", "", c, c, c, 1, 1) for c in costs]


def _rows(name: str, case: Case, ours: list[list[Score]], theirs: list[list[Score]]) -> Iterable[Row]:
    peer = case.peer.partition(", ")[2]
    for n, score in enumerate(ours[0]):
        cost = score.set == COST
        a, b = (np.array([run[n].value for run in side]) for side in (ours, theirs[: len(ours)]))
        gained = 100 * ((b - a) / b.mean() if cost else a - b)
        half = T_95[min(len(a) - 1, len(T_95)) - 1] * gained.std(ddof=1) / len(a) ** 0.5
        low, high = gained.mean() - half, gained.mean() + half
        claimed = case.claimed and (not case.peer.startswith("GloVe") or cost or score.kind != "similarity")
        fine, check = {peer: bool(low > -MARGIN) or not claimed}, "interval above −0.5"
        if cost:
            label = f"{COST}, {name}, {len(a)} seeds: {-high:+.2f}% to {-low:+.2f}%"
            values, metric, check = {"ours": a.tolist(), peer: b.tolist()}, "J a pair", "interval below +0.5%"
        else:
            label = (
                f"{score.set} {score.kind} ({score.coverage:.0%}), {name}, {len(a)} seeds: {low:+.2f} to {high:+.2f}"
            )
            values, metric = {"ours": (100 * a).tolist(), peer: (100 * b).tolist()}, "points"
        check = check if claimed else "shown only"
        yield from rows_of(label, metric, values, fine, group="quality", check=check, more_is_better=not cost)


# ---------------------------------------------------------------- what is kept


def _digest(case: Case, sets: Sequence[WordSet]) -> str:
    """What the scores come from, but for the name and the seed: of a peer, only text and sets."""
    source, files = case.source, [m.__file__ for m in case.files if case.peer]
    trainer = b"".join(Path(str(file)).read_bytes() for file in files)
    settings = repr((SIZE, WINDOW, NEGATIVE, EPOCHS, NGRAMS, source.words, sets)).encode() + case.settings.encode()
    return sha256(trainer + settings + source.rows.tobytes() + source.offsets.tobytes()).hexdigest()[:16]


def _read(keep: Path | None) -> dict[str, list[Score]]:
    if keep is None or not keep.exists():
        return {}
    text = keep.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a run that was killed may have left half a line
    if whole != text:
        keep.write_text(whole, encoding="utf-8")
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line["run"]: [Score(**score) for score in line["scores"]] for line in lines}


def _write(keep: Path | None, key: str, scores: list[Score]) -> None:
    if keep:
        with keep.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"run": key, "scores": [asdict(score) for score in scores]}) + "\n")
