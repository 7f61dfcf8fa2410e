"""`luthier show`: what any file or folder of the process is. The work is in `core/show/show.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from luthier.core.data.texts import COLUMN
from luthier.core.errors import InputError
from luthier.core.show.show import show
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Say what a file or folder is and print it for human eyes.

    Goes in: a project, corpus, questions.jsonl, tokenizer, shards, vectors, model, index or evaluation; a metrics.jsonl
    or conversations; kernel:attention, kernel:rms_norm and so on; hub:OWNER/NAME, a model to be downloaded.

    Comes out: on stdout, what it holds: counts and a piece of a corpus, a text's tokens in colours, a word's merges, a
    tokenizer's report on a corpus, nearest words, a model's layers, parameters and loss curve, a training example with
    its trained part marked, what an index finds; what a kernel takes on each chip and the least time it can need.

    Example: luthier show build/tokenizer --text "The soundboard is spruce."

    Takes under 1 s; 3 to 5 s where a model is opened; a report 1 s for 50 MB and 3 s for a thousand documents.
    """

    path: tyro.conf.Positional[tuple[Path, ...]]
    """What to show. Several training runs: their curves in one picture, and the settings that differ."""
    step: int | None = None
    """A step of a training run: the document and page of everything in its batch."""
    text: str | None = None
    """A text to try a tokenizer or model on, or a question for an index."""
    word: str | None = None
    """A word: how a tokenizer's merges put it together, in order and as a tree."""
    report: Path | None = None
    """A corpus, text file or folder of texts: how a tokenizer fits it, by language and document, and its idle ids."""
    column: str = COLUMN
    """With --report: field of JSON lines, or column of a Parquet table, that holds the text."""
    near: tuple[str, ...] = ()
    """Words whose nearest neighbours in the vectors are wanted."""
    analogy: tuple[str, ...] = ()
    """Three words a b c for vectors: what is nearest to a - b + c? `king man woman` asks for the queen."""
    page: Path | None = None
    """With --text for a model: also write attention maps, logit lens and losses to this HTML file."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "show", argv)
    if not command.path:
        raise InputError("nothing to show: give a file or folder")
    show(
        command.path[0],
        others=command.path[1:],
        step=command.step,
        text=command.text,
        word=command.word,
        report=command.report,
        near=command.near,
        analogy=command.analogy,
        page=command.page,
        column=command.column,
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
