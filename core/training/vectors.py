"""Train vectors: the tokens of shards, or the words of texts, become a vectors folder.

    shards folder   the ids of the training split, spelled by the tokenizer that made them: vectors that can start a
                    model's embedding
    texts           words: a word is a run of letters and digits, several joined by single hyphens or apostrophes,
                    written small (`don't`, `e-mail`, `4th`); everything else separates. Documents held out by `collect`
                    are left out

    ids ─count, drop the rare─▶ rows ─┬─word2vec: models/word2vec.py─┬─▶ vectors.safetensors, vocabulary.jsonl,
                                      └─glove: core/training/glove.py┘   metrics.jsonl (the loss), training.json

Rows are ordered by count. A token that occurs less than `min_count` times has no row, and its neighbours close up, as
in word2vec. The formats and the search are in models/vectors.py, the objectives in docs/vectors.md.
"""

from __future__ import annotations

import os
import re
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from luthier.core.artifacts import Artifact, read_json, read_jsonl, read_manifest, write_json, write_jsonl
from luthier.core.console import progress, say
from luthier.core.data.encode import tokenizer_hash
from luthier.core.data.shards import open_shards
from luthier.core.data.texts import hash_texts, read_texts
from luthier.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from luthier.models.vectors import Trained

__all__ = ["VectorsConfig", "VectorsSummary", "train_vectors", "words"]

FACTS = "training.json"
WORD = re.compile(r"[^\W_]+(?:[-’'][^\W_]+)*")


@dataclass(frozen=True)
class VectorsConfig:
    """How vectors are trained; names as in gensim (word2vec) and in the paper (GloVe)."""

    method: Literal["word2vec", "glove"] = "word2vec"
    """word2vec: skip-gram with negative sampling, Mikolov et al. 2013. glove: Pennington et al. 2014."""
    vector_size: int = 100
    """Numbers in a vector."""
    window: int = 5
    """Words on either side that count as near; never across the end of a document."""
    min_count: int = 5
    """Tokens that occur less often have no vector."""
    epochs: int = 5
    """word2vec: passes over the text."""
    negative: int = 5
    """word2vec: noise words drawn for each word (5 to 20; Mikolov et al. 2013b, section 2.2)."""
    sample: float = 1e-3
    """word2vec: share of the text above which a word is thinned out; 0: none is."""
    alpha: float = 0.025
    """word2vec: learning rate at the start."""
    min_alpha: float = 1e-4
    """word2vec: learning rate at the end, reached in a straight line."""
    ns_exponent: float = 0.75
    """word2vec: noise is drawn in proportion to count to this power; 0: evenly, 1: by count."""
    iterations: int = 15
    """glove: passes over the counted pairs."""
    x_max: float = 10.0
    """glove: count from which a pair has full weight; the paper's 100 is for billions of words."""
    x_exponent: float = 0.75
    """glove: the paper's alpha, the power by which the weight of rarer pairs falls."""
    eta: float = 0.05
    """glove: AdaGrad's learning rate."""
    symmetric: bool = True
    """glove: count neighbours on both sides; with no-symmetric only those before a word (the paper's section 4.2)."""
    max_memory: float = 2.0
    """glove: GB that counting may take; a text that needs more is counted in parts, merged on disk. Any value gives the
    same counts."""
    workers: int = 1
    """Threads; 0: one a core. One gives the same bits every time; several share the table without a lock (HOGWILD),
    which is faster, but no two runs are alike, and the commonest words of a small text differ most."""
    seed: int = 0
    """Starts the stream of chance: first vectors, noise, order."""

    def __post_init__(self) -> None:
        whole = ("vector_size", "window", "min_count", "epochs", "negative", "iterations")
        for name, lowest in {**dict.fromkeys(whole, 1), "workers": 0, "sample": 0, "min_alpha": 0}.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least {lowest}")
        for name in ("alpha", "x_max", "eta", "max_memory"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected more than 0")


@dataclass
class VectorsSummary:
    """What was trained: `tokens` were read, `trained` of them have a vector; `losses` are one a round. `seconds` of the
    training, compilation included; 0 where nothing had to be done."""

    out: Path
    method: str
    vocabulary: int
    tokens: int
    trained: int
    pairs: int
    losses: list[float]
    passes: int
    seconds: float = 0.0

    def __str__(self) -> str:
        unit = "words" if self.method == "word2vec" else "pairs"
        visited = self.passes * (self.trained if self.method == "word2vec" else self.pairs)
        speed = f", {visited / self.seconds:,.0f} {unit} a second" if self.seconds else ""
        return (
            f"{self.method}: {self.vocabulary:,} vectors from {self.trained:,} tokens ({self.tokens - self.trained:,} "
            f"rarer ones left out), {self.pairs:,} pairs{speed}\n"
            f"loss {self.losses[0]:.4f} → {self.losses[-1]:.4f} in {self.out}"
        )


class Source(NamedTuple):
    """Token ids int, where documents begin and end, the spelling of each id, and which spelling that is."""

    ids: np.ndarray
    offsets: np.ndarray
    tokens: list[str]
    spelling: str


def train_vectors(
    inputs: Sequence[Path],
    out: Path,
    config: VectorsConfig | None = None,
    *,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> VectorsSummary:
    """Train vectors on one or more shards folders, or on texts and corpora, into the folder `out`.

    `tokenizer` is the folder of the tokenizer that made the shards; left out, the copy in the shards is taken. Does
    nothing if the same work is there. Raises InputError for inputs without a usable token or of two kinds,
    ArtifactError for other work in `out` (unless `overwrite`), TrainingError if GloVe leaves the range of numbers.
    """
    config, out = config or VectorsConfig(), Path(out)
    inputs = [Path(path) for path in inputs]
    if not inputs:
        raise InputError("no input given\nName shards, or texts: luthier train-vectors INPUT… --out vectors/")
    shards = [path for path in inputs if _is_shards(path)]
    if shards and len(shards) < len(inputs):
        other = next(path for path in inputs if path not in shards)
        raise InputError(f"{shards[0]} holds token ids and {other} does not\nGive shards, or texts, not both.")
    hashes, documents = _hash_shards(shards, tokenizer) if shards else hash_texts(inputs)
    work = Artifact(out, "train-vectors", asdict(config), hashes, documents=documents, overwrite=overwrite)
    if work.done:
        say(f"{out} is up to date")
        return _summary(out)
    with work:
        source = _from_shards(shards, tokenizer) if shards else _from_texts(inputs)
        seconds = _train_into(work.folder, source, config)
    summary = _summary(out)
    summary.seconds = seconds
    return summary


def words(text: str) -> list[str]:
    """The words of a text by this module's rule."""
    return WORD.findall(text.lower())


# ---------------------------------------------------------------- inputs


def _is_shards(path: Path) -> bool:
    return (path / "shards.json").is_file() and read_manifest(path)["stage"] == "encode"


def _hash_shards(shards: Sequence[Path], tokenizer: Path | None) -> tuple[dict[str, Path | str | None], list]:
    """The inputs of work on shards. Raises InputError if the tokenizer is not the one that made the ids."""
    found = tokenizer_hash(tokenizer or shards[0])
    for path in shards:
        if open_shards(path).tokenizer != found:
            raise InputError(
                f"{path} was not encoded with the tokenizer of {tokenizer or shards[0]}: its ids mean other tokens\n"
                "Give the tokenizer that made the shards."
            )
    return {f"input {n}": path for n, path in enumerate(shards)}, []


def _from_shards(shards: Sequence[Path], tokenizer: Path | None) -> Source:
    from luthier.tokenizers.formats import load_tokenizer, spell

    made_by = load_tokenizer(tokenizer or shards[0])
    special = {id_: text for text, id_ in made_by.special_tokens.items()}
    tokens = [special.get(id_) or spell(token) for id_, token in enumerate(made_by.tokens)]
    parts = [open_shards(path) for path in shards]
    starts = np.cumsum([0, *(len(part.tokens) for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    ids = np.concatenate([np.asarray(part.tokens) for part in parts])
    return Source(ids, np.concatenate([*offsets, starts[-1:]]), tokens, "byte-level")


def _from_texts(inputs: Sequence[Path]) -> Source:
    number_of: dict[str, int] = {}
    ids, offsets = array("i"), [0]
    with progress("Reading", None, "words") as advance:
        for text in read_texts(inputs):
            if text.split == "train":
                found = words(text.text)
                ids.extend(number_of.setdefault(word, len(number_of)) for word in found)
                offsets.append(len(ids))
                advance(len(found), note=text.name)
    return Source(np.frombuffer(ids, np.int32), np.array(offsets, np.int64), list(number_of), "words")


# ---------------------------------------------------------------- training


def _train_into(folder: Path, source: Source, config: VectorsConfig) -> float:
    """Train and write the folder's files; returns the seconds that training took, compilation included."""
    from luthier.models.vectors import Vectors

    counts = np.bincount(source.ids, minlength=len(source.tokens))
    kept = np.argsort(-counts, kind="stable")[: int((counts >= config.min_count).sum())]
    if len(kept) < 2:
        raise InputError(
            f"{len(kept)} of the {np.count_nonzero(counts):,} different tokens occur {config.min_count} times or more "
            f"in {len(source.ids):,} tokens: too little to learn vectors from\nLower --min-count, or give more text."
        )
    rows, offsets = _rows(source, kept)
    started = time.perf_counter()
    tokens = [source.tokens[id_] for id_ in kept]
    if config.method == "glove":
        from luthier.core.training.glove import glove

        trained = glove(rows, offsets, counts[kept], config, tokens, folder)
    else:
        trained = _word2vec(rows, offsets, counts[kept], config, tokens)
    seconds = time.perf_counter() - started
    ids = kept if source.spelling == "byte-level" else np.arange(len(kept))
    Vectors(trained.vectors, tokens, ids, counts[kept], trained.contexts, source.spelling).save(folder)
    write_jsonl(folder / "metrics.jsonl", ({"step": n, "loss": loss} for n, loss in enumerate(trained.losses, 1)))
    facts = {"tokens": len(source.ids), "trained": len(rows), "pairs": trained.pairs, "vocabulary": len(kept)}
    write_json(folder / FACTS, facts)
    return seconds


def _rows(source: Source, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The text as rows of the table, int32, tokens without a row left out, and where its documents begin and end."""
    row_of = np.full(len(source.tokens), -1, np.int32)
    row_of[kept] = np.arange(len(kept), dtype=np.int32)
    rows = row_of[source.ids]
    known = rows >= 0
    return rows[known], np.concatenate([[0], np.cumsum(known)])[source.offsets]


def _word2vec(
    rows: np.ndarray, offsets: np.ndarray, counts: np.ndarray, config: VectorsConfig, tokens: Sequence[str]
) -> Trained:
    from luthier.models.word2vec import train_word2vec

    with progress("Training word2vec", config.epochs * len(rows), "words") as advance:
        return train_word2vec(
            rows,
            offsets,
            counts,
            vector_size=config.vector_size,
            window=config.window,
            negative=config.negative,
            sample=config.sample,
            alpha=config.alpha,
            min_alpha=config.min_alpha,
            epochs=config.epochs,
            ns_exponent=config.ns_exponent,
            seed=config.seed,
            workers=config.workers or os.cpu_count() or 1,
            report=lambda count, loss: advance(count, note=f"loss {loss:.4f}"),
        )


def _summary(out: Path) -> VectorsSummary:
    """The summary of a vectors folder that is there."""
    settings, facts = read_manifest(out, "train-vectors")["settings"], read_json(out / FACTS)
    losses = [row["loss"] for row in read_jsonl(out / "metrics.jsonl")]
    passes = settings["epochs"] if settings["method"] == "word2vec" else settings["iterations"]
    return VectorsSummary(
        out,
        settings["method"],
        facts["vocabulary"],
        facts["tokens"],
        facts["trained"],
        facts["pairs"],
        losses,
        passes,
    )
