"""`luthier encode`: texts into shards of token ids. The work is in `core/data/encode.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.data.encode import EncodeConfig, encode
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Turn texts into shards of token ids, which training reads without loading them.

    Goes in: a corpus, text files (.txt, .md), JSON lines with a field "text" (--column: another), .gz and .zst of
    these, Parquet tables, or folders of them; and the tokenizer to encode with (a folder with a tokenizer.json, or that
    file).

    Comes out: a folder with train-00000.bin (the ids), .idx (where each document begins), .doc (which line of
    documents.jsonl it is), the same for validation, sources.jsonl (their names) and shards.json (the counts).

    Example: luthier encode corpus/ --tokenizer tokenizer/ --out shards/

    Takes about a second for 5 MB of text on one core; the first call compiles the encoder once, in some seconds.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Corpus, files and folders to encode."""
    tokenizer: Path
    """Folder with a tokenizer.json, or the file."""
    out: Path = Path("shards")
    """Folder for the shards."""
    overwrite: bool = False
    """Replace different shards in --out."""
    config: EncodeConfig = field(default_factory=EncodeConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "encode", argv)
    print(encode(command.inputs, command.tokenizer, command.out, command.config, overwrite=command.overwrite))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
