"""`luthier train-tokenizer`: a tokenizer from text. The work is in `core/training/tokenizer.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.training.tokenizer import TokenizerConfig, train_tokenizer
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Learn from text which bytes belong together, so that a model reads words and parts of words.

    Goes in: a corpus (its training documents), text files (.txt, .md), JSON lines with a field "text" (--column:
    another), .gz and .zst of these, Parquet tables, or folders of them; with --extend, a tokenizer to go on from.

    Comes out: a folder with tokenizer.json and tokenizer_config.json, which `transformers` and `tokenizers` open with
    the same ids (with --model unigram: tokenizer.model, which `sentencepiece` opens), training.json (what it was
    trained on) and manifest.json.

    Example: luthier train-tokenizer corpus/ --vocab-size 8000 --out tokenizer/

    Takes about a second for 35 MB of English and 32,000 ids on one core; the first call compiles the trainer once, in
    some seconds.
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Corpus, files and folders to learn from."""
    out: Path = Path("tokenizer")
    """Folder for the tokenizer."""
    extend: Path | None = None
    """Folder or file of a tokenizer whose merges are continued on the inputs: its ids stay, up to --add new ones come
    behind them."""
    overwrite: bool = False
    """Replace a different tokenizer in --out."""
    tiktoken: Path | None = None
    """Also write the ranks in tiktoken's format to this file."""
    config: TokenizerConfig = field(default_factory=TokenizerConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "train-tokenizer", argv)
    print(
        train_tokenizer(command.inputs, command.out, command.config, extend=command.extend, overwrite=command.overwrite)
    )
    if command.tiktoken and command.config.model == "bpe":
        from luthier.tokenizers.formats import load_tokenizer, save_tiktoken

        save_tiktoken(load_tokenizer(command.out), command.tiktoken)
        print(f"tiktoken ranks in {command.tiktoken}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
