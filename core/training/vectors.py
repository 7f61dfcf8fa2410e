"""Train vectors: the tokens of shards, or the words of texts, become a vectors folder.

    shards folder   the ids of the training split, spelled by the tokenizer that made them: vectors that can start a
                    model's embedding
    texts           words: a word is a run of letters and digits, several joined by single hyphens or apostrophes,
                    written small (`don't`, `e-mail`, `4th`); everything else separates. Documents held out by `collect`
                    are left out

    text ─core/training/rows.py─▶ rows ─┬─core/training/word2vec.py─┬─▶ vectors.safetensors, vocabulary.jsonl,
                                        └─core/training/glove.py────┘   metrics.jsonl (the loss), training.json

Rows are ordered by count. A token that occurs less than `min_count` times has no row, and its neighbours close up, as
in word2vec. The formats and the search are in models/vectors.py, the objectives in docs/vectors.md.

`start` goes on from vectors trained before: on new text, with the old vocabulary and whatever is new in it, counts
added up. word2vec only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.artifacts import Artifact, apart, read_json, read_jsonl, read_manifest, write_json, write_jsonl
from luthier.core.compiling import announce_compiling
from luthier.core.console import say
from luthier.core.data.encode import tokenizer_hash
from luthier.core.data.shards import open_shards
from luthier.core.data.texts import COLUMN, hash_texts, without_default
from luthier.core.errors import ConfigError, InputError
from luthier.core.training.rows import prepare_rows, remove_rows, words
from luthier.core.training.vectors_config import VectorsConfig

if TYPE_CHECKING:
    from luthier.core.training.rows import Rows
    from luthier.models.vectors import Vectors

__all__ = ["VectorsConfig", "VectorsSummary", "train_vectors", "words"]

FACTS = "training.json"


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


def train_vectors(
    inputs: Sequence[Path],
    out: Path,
    config: VectorsConfig | None = None,
    *,
    tokenizer: Path | None = None,
    start: Path | None = None,
    overwrite: bool = False,
) -> VectorsSummary:
    """Train vectors on one or more shards folders, or on texts and corpora, into the folder `out`.

    `tokenizer` is the folder of the tokenizer that made the shards; left out, the copy in the shards is taken. `start`
    is a vectors folder to go on from. Does nothing if the same work is there.

    Raises InputError for inputs without a usable token or two near each other, or of two kinds,
    ArtifactError for other work in `out` (unless `overwrite`), TrainingError if GloVe leaves the range of numbers.
    """
    config, out = config or VectorsConfig(), Path(out)
    inputs = apart(inputs, out)
    if not inputs:
        raise InputError("no input given\nName shards, or texts: luthier train-vectors INPUT… --out vectors/")
    shards = [path for path in inputs if _is_shards(path)]
    if shards and len(shards) < len(inputs):
        other = next(path for path in inputs if path not in shards)
        raise InputError(f"{shards[0]} holds token ids and {other} does not\nGive shards, or texts, not both.")
    if shards and config.phrases:
        raise ConfigError(f"phrases = {config.phrases}: they are made of words, and {shards[0]} holds token ids")
    if shards and config.column != COLUMN:
        raise ConfigError(f"column = {config.column!r}: it is of texts, and {shards[0]} holds token ids")
    hashes, documents = _hash_shards(shards, tokenizer) if shards else hash_texts(inputs)
    before = _start(start, config) if start else None
    hashes = {**hashes, "start": start}
    settings = without_default(asdict(config))
    work = Artifact(
        out, "train-vectors", settings, hashes, documents=documents, overwrite=overwrite, progress="*/*.npz"
    )
    if work.done:
        say(f"{out} is up to date")
        return _summary(out)
    with work:
        texts = [] if shards else inputs
        text = prepare_rows(work.folder, config, texts=texts, shards=shards, tokenizer=tokenizer, start=before)
        seconds = _train_into(work.folder, text, config, before)
        remove_rows(work.folder)
    summary = _summary(out)
    summary.seconds = seconds
    return summary


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


def _start(folder: Path, config: VectorsConfig) -> Vectors:
    """The vectors to go on from. Raises ConfigError for GloVe, whose counts are not kept."""
    from luthier.models.vectors import load_vectors

    if config.method != "word2vec":
        raise ConfigError("only word2vec goes on from vectors: GloVe's pairs are counted once, over all the text")
    read_manifest(folder, "train-vectors")
    return load_vectors(folder)


# ---------------------------------------------------------------- training


def _train_into(folder: Path, text: Rows, config: VectorsConfig, start: Vectors | None) -> float:
    """Train and write the folder's files; returns the seconds that training took, compilation included."""
    from luthier.models.vectors import Vectors

    announce_compiling()
    started = time.perf_counter()
    if config.method == "glove":
        from luthier.core.training.glove import glove

        trained, ngrams, sizes = glove(text.rows, text.offsets, text.counts, config, text.tokens, folder), None, (0, 0)
    else:
        from luthier.core.training.word2vec import word2vec

        trained = word2vec(text, config, folder, start)
        ngrams, sizes = trained.ngrams, (config.min_n, config.max_n)
        if not trained.pairs:
            raise InputError(
                "no two words stood within a window of each other: nothing to learn vectors from\n"
                "Give longer texts, or --sample 0, which thins no word out."
            )
    seconds = time.perf_counter() - started
    contexts = trained.contexts if config.method == "glove" or config.negative else None
    Vectors(trained.vectors, text.tokens, text.ids, text.counts, contexts, text.spelling, ngrams, sizes).save(folder)
    write_jsonl(folder / "metrics.jsonl", ({"step": n, "loss": loss} for n, loss in enumerate(trained.losses, 1)))
    facts = {"tokens": text.read, "trained": len(text.rows), "pairs": trained.pairs, "vocabulary": len(text.tokens)}
    write_json(folder / FACTS, facts)
    return seconds


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
