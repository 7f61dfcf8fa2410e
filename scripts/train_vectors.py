"""`luthier train-vectors`: tokens or words into vectors. The work is in `core/training/vectors.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.training.vectors import VectorsConfig, train_vectors
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Train word vectors, Word2Vec or GloVe, on a tokenizer's tokens or on words.

    Goes in: a shards folder (vectors of tokens, which can start a model's embedding); or corpora, .txt, .md, .jsonl
    with a field "text" (--column: another), .gz and .zst of these, .parquet, and folders of them (vectors of words:
    runs of letters and digits, small, joined by hyphens and apostrophes).

    Comes out: a folder with vectors.safetensors, vocabulary.jsonl (token, id, count), metrics.jsonl (the loss) and
    manifest.json. Look at it: luthier show vectors/ --near wood

    Example: luthier train-vectors shards/ --tokenizer tokenizer/ --method word2vec --out vectors/

    Takes about 2.5 s for a million words and pass with word2vec, 1 s for 5 million pairs and pass with glove, on one
    core at 2 GHz with vectors of 100 numbers; 5 s more to compile, the first time.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Shards folder, or corpora, text files and folders of them."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that made the shards; left out, the copy in the shards is taken."""
    start: Path | None = None
    """Vectors folder to go on from: its words keep their vectors, new ones are added (word2vec)."""
    out: Path = Path("vectors")
    """Folder for the vectors."""
    overwrite: bool = False
    """Replace different work in --out."""
    config: VectorsConfig = field(default_factory=VectorsConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "train-vectors", argv)
    print(
        train_vectors(
            command.inputs,
            command.out,
            command.config,
            tokenizer=command.tokenizer,
            start=command.start,
            overwrite=command.overwrite,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
