"""`luthier index`: a corpus into a searchable index. The work is in `core/assistant/index.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.assistant.index import IndexConfig, build_index
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Make a corpus searchable, so that an assistant can look facts up and quote them.

    Goes in: a corpus folder, its stable and its volatile documents, and its questions.jsonl if there is one; vectors
    and their tokenizer for finding what is said in other words.

    Comes out: a folder with index.sqlite (sentences, table rows and known answers with file, page and span, full text,
    sentence vectors) and manifest.json.

    Example: luthier index build/corpus --vectors build/vectors-word2vec --tokenizer build/tokenizer --out build/index

    Takes about 1 s for 5,000 sentences on one core.
    """

    corpus: tyro.conf.Positional[Path]
    """Folder made by `luthier collect`."""
    vectors: Path | None = None
    """Folder made by `luthier train-vectors`; without it words are compared by stem only."""
    tokenizer: Path | None = None
    """Tokenizer of the vectors; leave out for vectors of words."""
    out: Path = Path("index")
    """Folder of the index."""
    overwrite: bool = False
    """Replace a different index in --out."""
    config: IndexConfig = field(default_factory=IndexConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "index", argv)
    summary = build_index(
        command.corpus,
        command.out,
        command.config,
        vectors=command.vectors,
        tokenizer=command.tokenizer,
        overwrite=command.overwrite,
    )
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
