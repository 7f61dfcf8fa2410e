"""`luthier show`: what any file or folder of the process is. The work is in `core/show/show.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from luthier.core.show.show import show
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Say what a file or folder is and print it for human eyes.

    Goes in: a project, corpus, questions.jsonl, tokenizer, shards, vectors, model, index or evaluation; a metrics.jsonl
    or conversations.

    Comes out: on stdout, what it holds: counts and a piece of a corpus, a text's tokens in colours, nearest words, a
    model's layers, parameters and loss curve, a training example with its trained part marked, what an index finds.

    Example: luthier show build/tokenizer --text "The soundboard is spruce."

    Takes under 1 s; 3 to 5 s where a model is opened.
    """

    path: tyro.conf.Positional[Path]
    """What to show."""
    text: str | None = None
    """A text to try a tokenizer or model on, or a question for an index."""
    near: tuple[str, ...] = ()
    """Words whose nearest neighbours in the vectors are wanted."""
    analogy: tuple[str, ...] = ()
    """Three words a b c for vectors: what is nearest to a - b + c? `king man woman` asks for the queen."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "show", argv)
    show(command.path, text=command.text, near=command.near, analogy=command.analogy)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
